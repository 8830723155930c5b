"""The log of what a model has generated for the cases of a run.

It lies in the run's folder, for people to read, and so that no case is decoded twice.
"""

from pathlib import Path
from typing import NamedTuple

from ...storage.content_cache import Lines

Case = tuple[str, int, int]  # user, first event and end event


class Answer(NamedTuple):
    """What was generated for one case.

    Attributes
    ----------
    texts : list of str
        The distinct texts, most probable first.
    logprobs : list of float
        Their log-probabilities.
    times : list of int
        How often each text was generated.
    ended : int
        Number of generations that ended by themselves.
    reached : list of int, optional
        For each text, the number of the item text that a constrained search reached; None where
        texts were sampled freely.
    """

    texts: list[str]
    logprobs: list[float]
    times: list[int]
    ended: int
    reached: list[int] | None = None


class AnswerLog:
    """Answers by case, in a file of lines.

    Parameters
    ----------
    path : Path
        The file, which need not exist.

    Attributes
    ----------
    known : dict of Case to Answer
        The answers in the file when it was opened.
    """

    def __init__(self, path: Path):
        self.lines = Lines(path)
        self.known: dict[Case, Answer] = dict(self.lines.read(_parse))

    def get(self, case: Case) -> Answer | None:
        """Return the answer to a case that was in the file when it was opened.

        Parameters
        ----------
        case : Case
            User, first event and end event.

        Returns
        -------
        Answer or None
            The answer, if there is one.
        """
        return self.known.get(case)

    def add(self, answers: dict[Case, Answer]) -> None:
        """Append answers to the file.

        Parameters
        ----------
        answers : dict of Case to Answer
            The answers.
        """
        self.lines.append(
            {"user": user, "events": events} | answer._asdict()
            for (user, *events), answer in answers.items()
        )


def _parse(line: dict) -> tuple[Case, Answer]:
    return (line.pop("user"), *line.pop("events")), Answer(**line)
