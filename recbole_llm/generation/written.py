"""What a model has written for the cases of a part, in a file of its run: for people to read, and never to be decoded twice."""

import gzip
import json
import logging
import os
import zlib
from pathlib import Path
from typing import NamedTuple


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


class Written:
    """Answers by case (user, first event, end event), in a gzip file of JSON lines (`zcat FILE | less`).

    Every batch is appended by one write, so that a killed process loses the batch it was at and processes may share a file.
    """

    def __init__(self, path: Path):
        self.path, self.known = path, {}
        lines = []
        try:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                for line in file:
                    self._take(json.loads(line))
                    lines.append(line)
        except FileNotFoundError:
            return
        except (EOFError, KeyError, OSError, TypeError, ValueError, zlib.error) as fault:
            logging.getLogger().warning(f"{path} is damaged ({type(fault).__name__}): {len(lines)} answers of it are taken, the others written again")
            temporary = path.with_name(path.name + ".tmp")
            temporary.write_bytes(gzip.compress("".join(lines).encode()))
            os.replace(temporary, path)

    def _take(self, line: dict) -> None:
        case = (line.pop("user"), *line.pop("events"))
        self.known[case] = Answer(**line)

    def get(self, case: tuple[str, int, int]) -> Answer | None:
        return self.known.get(case)

    def add(self, answers: dict[tuple[str, int, int], Answer]) -> None:
        lines = (json.dumps({"user": user, "events": events} | answer._asdict(), ensure_ascii=False) for (user, *events), answer in answers.items())
        with open(self.path, "ab", buffering=0) as file:
            file.write(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
