"""A ranking in progress, stored in a file, so that a killed process loses minutes of it at most."""

import io
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..contracts.models import Scorer
from ..storage import run_folders
from ..storage.content_cache import Entries
from .ranks import RankTable

# seconds of ranking after which it is stored: what a killed process loses, beside one batch
KEEP_SECONDS = 120


@dataclass(frozen=True, eq=False)
class Piece:
    """Consecutive cases that are ranked.

    Attributes
    ----------
    begin : int
        Number of the first case.
    table : RankTable
        Their ranks.
    lists : tuple of ndarray, [n_cases, k] each, or None
        Items and scores of their top lists, as in `TopLists`.
    """

    begin: int
    table: RankTable
    lists: tuple[np.ndarray, np.ndarray] | None = None


class Kept:
    """The cases of one part that a model has ranked so far.

    The file belongs to one run, one part and one state of this package's code. Each of its entries
    holds a piece, the counts that its ranking added to the model's counters, and its seconds.
    Damage of an entry therefore costs the ranking of its own cases only.

    Parameters
    ----------
    folder : Path
        The run's folder.
    part : {"valid", "test"}
        The part.
    model : Scorer or recommender of RecBole
        The model that ranks.
    weights : Path, optional
        Folder of the run whose weights rank, by default `folder`. The model may store generated
        answers there, for other rankings of the same cases.

    Attributes
    ----------
    pieces : list of Piece
        What is ranked so far, in any order.
    """

    def __init__(self, folder: Path, part: str, model: Any, weights: Path | None = None) -> None:
        self.weights = weights or folder
        self.path = folder / f"{part}.{run_folders.code()}.kept.gz"
        self.counts: Counter[str] = model.counts if isinstance(model, Scorer) else Counter()
        self.entries = Entries(self.path, level=0)
        self.pieces: list[Piece] = []
        # pieces that are not in the file yet
        self.waiting: list[Piece] = []
        self.counts_before: Counter[str] = Counter()
        seconds_before = 0.0
        for piece, counts, seconds in self.entries.read(_unpacked):
            self.pieces.append(piece)
            self.counts_before.update(counts)
            seconds_before += seconds
        self.saved = time.perf_counter()
        self.began = self.saved - seconds_before
        # sum of the counts in the file's entries
        self.counts_saved: Counter[str] = Counter()

    @property
    def seconds(self) -> float:
        """Duration of the ranking, in all processes."""
        return time.perf_counter() - self.began

    def start(self) -> None:
        """Add the counts of earlier processes to the model's counters, which have been reset."""
        self.counts.update(self.counts_before)
        self.counts_saved = Counter(self.counts)
        self.saved = time.perf_counter()

    def add(self, piece: Piece) -> None:
        """Add a piece, and store all pieces that are not in the file if `KEEP_SECONDS` have passed.

        Parameters
        ----------
        piece : Piece
            Cases that have just been ranked.
        """
        self.pieces.append(piece)
        self.waiting.append(piece)
        now = time.perf_counter()
        if now - self.saved < KEEP_SECONDS:
            return
        counts = Counter(self.counts)
        new = {name: counts[name] - self.counts_saved[name] for name in counts}
        self.entries.append([_packed(joined(self.waiting), new, now - self.saved)])
        self.waiting, self.saved, self.counts_saved = [], now, counts


def missing(pieces: Sequence[Piece], count: int, rows: int) -> Iterator[tuple[int, int]]:
    """Split the cases that no piece has into batches.

    Parameters
    ----------
    pieces : sequence of Piece
        What is ranked, in any order.
    count : int
        Number of all cases.
    rows : int
        Maximum number of cases of a batch.

    Yields
    ------
    begin, end : int
        The batch has cases begin : end.

    Examples
    --------
    >>> list(missing([], 4, 3))
    [(0, 3), (3, 4)]
    """
    ranked = [(piece.begin, piece.begin + len(piece.table)) for piece in pieces]
    begin = 0
    for end, next_begin in [*sorted(ranked), (count, count)]:
        for first in range(begin, end, rows):
            yield first, min(first + rows, end)
        begin = next_begin


def joined(pieces: Sequence[Piece]) -> Piece:
    """Concatenate pieces.

    Parameters
    ----------
    pieces : sequence of Piece
        At least one piece, in any order.

    Returns
    -------
    Piece
        Their cases in the order of their numbers.
    """
    pieces = sorted(pieces, key=lambda piece: piece.begin)
    table = RankTable.concat(piece.table for piece in pieces)
    lists = [piece.lists for piece in pieces if piece.lists is not None]
    if len(lists) < len(pieces):
        return Piece(pieces[0].begin, table)
    items = np.concatenate([part for part, _ in lists])
    scores = np.concatenate([part for _, part in lists])
    return Piece(pieces[0].begin, table, (items, scores))


def _packed(piece: Piece, counts: dict[str, int], seconds: float) -> bytes:
    columns = dict(vars(piece.table))
    if piece.lists is not None:
        columns["items"], columns["scores"] = piece.lists
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
    """Remove the stored pieces of a ranking.

    Parameters
    ----------
    folder : Path
        The run's folder.
    part : str
        "valid" or "test"; both by default.
    """
    for path in folder.glob(f"{part}.*.kept.gz"):
        path.unlink()


def start_over(folder: Path) -> None:
    """Remove all pieces and generated texts, which other weights have left in a run's folder.

    Parameters
    ----------
    folder : Path
        The run's folder.
    """
    forget(folder)
    for path in folder.glob(run_folders.TEXTS.format(part="*", key="*")):
        path.unlink()
