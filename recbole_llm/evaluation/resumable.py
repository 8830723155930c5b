"""A ranking that is going on, in a file: a killed process loses minutes of it, not hours."""

import io
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..contracts.models import Scorer
from ..storage import run_folders
from ..storage.content_cache import Entries
from .ranks import RankTable

KEEP_SECONDS = 120  # most ranking that is lost, and one batch


@dataclass(frozen=True, eq=False)
class Piece:
    """Consecutive cases that are ranked.

    begin : number of the first case. table : their ranks.
    lists : (items, scores) of their top lists, as in TopLists, or None.
    """

    begin: int
    table: RankTable
    lists: tuple[np.ndarray, np.ndarray] | None = None


class Kept:
    """What is ranked so far of one part by one model; the file is of one run, part and state of this package's code.

    Each entry of the file holds a piece, and what its ranking added to the model's tallies and took
    in seconds, so that a damaged entry costs the ranking of its own cases alone.

    Attributes
    ----------
    weights : folder of the run whose weights rank, where a model may keep its answers for other rankings of the same cases.
    pieces : what is ranked, in no order.
    """

    def __init__(self, folder: Path, part: str, model, weights: Path | None = None):
        self.weights = weights or folder
        self.path, self.counts = (
            folder / f"{part}.{run_folders.code()}.kept.gz",
            model.counts if isinstance(model, Scorer) else Counter(),
        )
        self.entries = Entries(self.path, level=0)
        self.pieces: list[Piece] = []
        self.waiting: list[Piece] = []  # pieces that are not in the file yet
        self.found: Counter = Counter()
        spent = 0.0
        for piece, counts, seconds in self.entries.read(_unpacked):
            self.pieces.append(piece)
            self.found.update(counts)
            spent += seconds
        self.saved = time.perf_counter()
        self.began = self.saved - spent
        self.stored: Counter = Counter()  # the tallies that the file's entries add up to

    @property
    def seconds(self) -> float:
        """What the ranking has taken, in all processes."""
        return time.perf_counter() - self.began

    def start(self) -> None:
        """To be called when the model has begun to count."""
        self.counts.update(self.found)
        self.stored = Counter(self.counts)
        self.saved = time.perf_counter()

    def add(self, piece: Piece) -> None:
        """Take a piece, and write those that wait if it is time to."""
        self.pieces.append(piece)
        self.waiting.append(piece)
        now = time.perf_counter()
        if now - self.saved < KEEP_SECONDS:
            return
        counts = Counter(self.counts)
        new = {name: counts[name] - self.stored[name] for name in counts}
        self.entries.append([_packed(joined(self.waiting), new, now - self.saved)])
        self.waiting, self.saved, self.stored = [], now, counts


def missing(pieces: list[Piece], count: int, rows: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of at most `rows` cases each, which together are those of `count` cases that no piece has."""
    begin = 0
    for piece in [*sorted(pieces, key=lambda piece: piece.begin), None]:
        end = count if piece is None else piece.begin
        for first in range(begin, end, rows):
            yield first, min(first + rows, end)
        if piece is not None:
            begin = piece.begin + len(piece.table)


def joined(pieces: list[Piece]) -> Piece:
    """Pieces behind each other, by the numbers of their cases, as one."""
    pieces = sorted(pieces, key=lambda piece: piece.begin)
    lists = None
    if pieces[0].lists is not None:
        lists = tuple(
            np.concatenate(column) for column in zip(*(one.lists for one in pieces), strict=True)
        )
    return Piece(pieces[0].begin, RankTable.concat(one.table for one in pieces), lists)


def _packed(piece: Piece, counts: dict[str, int], seconds: float) -> bytes:
    columns = dict(vars(piece.table))
    if piece.lists is not None:
        columns |= dict(zip(("items", "scores"), piece.lists, strict=True))
    content = io.BytesIO()
    np.savez(
        content,
        **columns,
        begin=piece.begin,
        names=np.array(list(counts), dtype=str),
        counts=np.array(list(counts.values()), dtype=np.int64),
        seconds=seconds,
    )
    return content.getvalue()


def _unpacked(content: bytes) -> tuple[Piece, dict[str, int], float]:
    with np.load(io.BytesIO(content)) as file:
        columns = dict(file)
    table = RankTable(**{name: columns[name] for name in RankTable.__dataclass_fields__})
    lists = (columns["items"], columns["scores"]) if "items" in columns else None
    counts = dict(zip(columns["names"].tolist(), columns["counts"].tolist(), strict=True))
    return Piece(int(columns["begin"]), table, lists), counts, float(columns["seconds"])


def forget(folder: Path, part: str = "*") -> None:
    """Remove what is kept of a part, or of all."""
    for path in folder.glob(f"{part}.*.kept.gz"):
        path.unlink()


def start_over(folder: Path) -> None:
    """Remove whatever other weights have left in a run's folder."""
    forget(folder)
    for path in folder.glob(run_folders.TEXTS.format(part="*", key="*")):
        path.unlink()
