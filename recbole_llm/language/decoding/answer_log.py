"""What a model has written for the cases of a part, in a file of its run: for people to read, and never to be decoded twice."""

from pathlib import Path
from typing import NamedTuple

from ...storage.content_cache import Lines


class Answer(NamedTuple):
    """What was generated for one case: its distinct texts, most probable first.

    texts, logprobs, times : the texts, the log-probability of each, and how often it was drawn.
    ended : how many of the samples ended by themselves.
    reached : numbers of the distinct item texts that a constrained search found, one for each text; None if texts were drawn freely.
    """

    texts: list[str]
    logprobs: list[float]
    times: list[int]
    ended: int
    reached: list[int] | None = None


class AnswerLog:
    """Answers by case (user, first event, end event), in a file of lines."""

    def __init__(self, path: Path):
        self.lines = Lines(path)
        self.known: dict[tuple[str, int, int], Answer] = dict(self.lines.read(_answer))

    def get(self, case: tuple[str, int, int]) -> Answer | None:
        return self.known.get(case)

    def add(self, answers: dict[tuple[str, int, int], Answer]) -> None:
        self.lines.append(
            {"user": user, "events": events} | answer._asdict()
            for (user, *events), answer in answers.items()
        )


def _answer(line: dict) -> tuple[tuple[str, int, int], Answer]:
    return (line.pop("user"), *line.pop("events")), Answer(**line)
