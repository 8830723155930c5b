"""A ranking that is going on, in a file: a killed process loses minutes of it, not hours."""

import logging
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

from .. import store
from ..files import atomically
from .ranks import RankTable

KEEP_SECONDS = 120  # most ranking that is lost, and one batch


class Kept:
    """What is ranked so far of one part by one model; the file is of one run, part and state of this package's code.

    Attributes
    ----------
    weights : folder of the run whose weights rank, where a model may keep its answers for other rankings of the same cases.
    parts, lists : rank tables, and (items, scores) of their top lists if there are any, in the order of the cases.
    """

    def __init__(self, folder: Path, part: str, model, weights: Path | None = None):
        self.weights = weights or folder
        self.path, self.counts = (
            folder / f"{part}.{store.code()}.kept.npz",
            getattr(model, "counts", Counter()),
        )
        self.parts: list[RankTable] = []
        self.lists: list[tuple[np.ndarray, np.ndarray]] = []
        self.saved = self.began = time.perf_counter()
        self.found: dict[str, int] = {}
        if self.path.is_file():
            self._read()

    def _read(self) -> None:
        try:
            with np.load(self.path) as file:
                columns = dict(file)
            table = RankTable(**{name: columns[name] for name in RankTable.__dataclass_fields__})
        except (
            AttributeError,
            EOFError,
            KeyError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
            zipfile.BadZipFile,
        ) as fault:
            logging.getLogger().warning(
                f"{self.path} is damaged ({type(fault).__name__}): this ranking starts over"
            )
            return
        self.parts, self.lists = (
            [table],
            [(columns["items"], columns["scores"])] if "items" in columns else [],
        )
        self.found = dict(zip(columns["names"].tolist(), columns["counts"].tolist(), strict=True))
        self.began -= float(columns["seconds"])

    @property
    def seconds(self) -> float:
        """What the ranking has taken, in all processes."""
        return time.perf_counter() - self.began

    def start(self) -> None:
        """To be called when the model has begun to count."""
        self.counts.update(self.found)

    def keep(self, parts: list[RankTable], lists: list[tuple]) -> None:
        if time.perf_counter() - self.saved < KEEP_SECONDS:
            return
        columns = vars(RankTable.concat(parts)) | (
            dict(zip(("items", "scores"), joined(lists), strict=True)) if lists else {}
        )
        with atomically(self.path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                **columns,
                names=np.array(list(self.counts), dtype=str),
                counts=np.array(list(self.counts.values())),
                seconds=self.seconds,
            )
        self.saved = time.perf_counter()


def joined(lists: list[tuple]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(column) for column in zip(*lists, strict=True))


def forget(folder: Path, part: str = "*") -> None:
    """Remove what is kept of a part, or of all."""
    for path in folder.glob(f"{part}.*.kept.npz"):
        path.unlink()


def start_over(folder: Path) -> None:
    """Remove whatever other weights have left in a run's folder."""
    forget(folder)
    for path in folder.glob(store.TEXTS.format(part="*", key="*")):
        path.unlink()
