"""Where each target stands among its candidates: exact counts, and the table that holds one row per case.

The rule for methods that score only a part of the catalogue, wherever there is one (texts that name items, lists that are
ranked again, an index that finds the nearest items):

- An item that the method does not name has the score `UNNAMED`. It is in no list of recommendations.
- An unnamed target stands behind all other candidates and ties with none: its expected, optimistic and pessimistic metrics
  are the same, those of the last rank. Nothing is known of the order of unnamed items, so the optimistic order must not
  put the target before them: with three items named in a catalogue of thousands, it would be fourth.
- A case for which the method names nothing, such as one whose answer could not be parsed, is no exception: its target is
  last, its list is empty, and the case is counted as `unmatched`. No item gains by its place in the catalogue.
- Where a second method scores the items that the first leaves unnamed, those stand behind all that the first names, in the
  order of the second: `in_front`.

A score of zero is a score: BM25 gives it to items that share no word with a query, and they tie with each other.
"""

import os
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..storage.files import atomically

if TYPE_CHECKING:
    import torch

UNNAMED = -np.inf  # score of an item that a method does not name

# What numpy raises for an npz file that is missing, cut, damaged or another one.
UNREADABLE = (
    AttributeError,
    EOFError,
    KeyError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)

# Scores compared at a time: with the comparisons' results they fill a second-level cache (at most 1 MB per core), and a sum
# of as many ones is exact in float32.
CPU_BLOCK, BLOCK_LIMIT = 2**17, 2**24
# Up to this many threads numpy counts about as fast as torch or faster. It never waits for another thread either: on a busy
# machine the barrier after each of torch's small parallel steps was measured to cost a hundred times the work.
NUMPY_THREADS = 3


@dataclass(frozen=True, eq=False)
class RankTable:
    """One row per evaluation case; all arrays have the shape [n].

    user, target: numpy unicode tokens (object arrays and lists of str are converted).
    position int32: index of the target in the user's sequence.
    above, tied int32: candidates with a higher score than the target; other candidates with the same score.
    n_candidates int32: size of the candidate set, target included.
    fallback bool: no candidate was named for the case, so that its target is last.

    Raises TypeError for a column of another kind, ValueError for unequal lengths or impossible counts.
    """

    user: np.ndarray
    target: np.ndarray
    position: np.ndarray
    above: np.ndarray
    tied: np.ndarray
    n_candidates: np.ndarray
    fallback: np.ndarray

    def __post_init__(self):
        for name in ("user", "target"):
            object.__setattr__(self, name, _tokens(name, getattr(self, name)))
        for name in ("position", "above", "tied", "n_candidates"):
            object.__setattr__(self, name, _column(name, getattr(self, name), "iu", np.int32))
        object.__setattr__(self, "fallback", _column("fallback", self.fallback, "b", np.bool_))
        lengths = {field.name: len(getattr(self, field.name)) for field in fields(self)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of equal length expected, found {lengths}")
        bad = (
            (self.above < 0)
            | (self.tied < 0)
            | (self.above.astype(np.int64) + self.tied >= self.n_candidates)
        )
        if bad.any():
            i = int(bad.argmax())
            counts = (
                f"above {self.above[i]}, tied {self.tied[i]}, n_candidates {self.n_candidates[i]}"
            )
            raise ValueError(f"row {i}: 0 <= above + tied < n_candidates expected, found {counts}")

    def __len__(self) -> int:
        return len(self.user)

    def take(self, index: np.ndarray) -> "RankTable":
        """The rows that `index` selects (any numpy index), in its order."""
        return RankTable(*(getattr(self, field.name)[index] for field in fields(self)))

    @staticmethod
    def concat(tables: Iterable["RankTable"]) -> "RankTable":
        """All rows of `tables`, in order. Raises ValueError if there is no table."""
        tables = list(tables)
        return RankTable(
            *(
                np.concatenate([getattr(table, field.name) for table in tables])
                for field in fields(RankTable)
            )
        )

    def save(self, path: str | os.PathLike) -> None:
        """Write an npz file without pickled objects; `path` appears complete or not at all."""
        path = Path(path)
        with atomically(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})

    @staticmethod
    def load(path: str | os.PathLike) -> "RankTable":
        """Read what `save` wrote. Raises UserError if the file is missing or something else; never unpickles."""
        names = [field.name for field in fields(RankTable)]
        try:
            with np.load(path, allow_pickle=False) as file:
                return RankTable(*(file[name] for name in names))
        except UNREADABLE as fault:
            if isinstance(fault, PermissionError):
                raise
            from ..storage.run_folders import ranked_again  # not needed where metrics alone are

            raise UserError(
                f"rank table {path} is missing or damaged; {ranked_again(Path(path).parent)}"
            ) from fault


def _tokens(name, values):
    array = np.asarray(values)
    if (
        array.dtype.kind == "O"
        and all(isinstance(value, str) for value in array.flat)
        or array.size == 0
    ):
        array = array.astype(np.str_)
    if array.dtype.kind != "U" or array.ndim != 1:
        raise TypeError(
            f"{name}: one-dimensional str tokens expected, found {array.dtype} of shape "
            f"{array.shape}"
        )
    return array


def _column(name, values, kinds, dtype):
    array = np.asarray(values)
    if (array.dtype.kind not in kinds and array.size) or array.ndim != 1:
        expected = np.dtype(dtype).name
        raise TypeError(
            f"{name}: one-dimensional {expected} expected, found {array.dtype} of shape "
            f"{array.shape}"
        )
    cast = array.astype(dtype, copy=False)
    if not np.array_equal(cast, array):
        raise ValueError(
            f"{name}: values that fit {cast.dtype} expected, found up to {array.max()}"
        )
    return cast


def count_above_and_tied(
    scores: "torch.Tensor", target_index: "torch.Tensor", rows: "torch.Tensor | None" = None
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Count, per case, the candidates above its target and the other candidates tied with it. Exact.

    scores: float [B, N], not changed. target_index: int64 [P], the column of each case's target.
    rows: int64 [P], the row of scores each case reads; None means row i for case i.
    Returns (above, tied), both int32 [P], on the device of scores.

    -inf is a score like any other: below everything, tied with a target of -inf. `rank_targets` and `scored_rows` give it
    the meaning of `UNNAMED`.

    Raises FloatingPointError naming the row if a score is NaN (it would be neither above nor tied, so the target would
    rise), ValueError for shapes that do not fit, IndexError for targets outside the columns, TypeError for scores that are
    not floating point.
    """
    import torch

    if not scores.is_floating_point():
        raise TypeError(f"scores: floating point expected, found {scores.dtype}")
    n_cases = scores.shape[0] if rows is None else len(rows)
    if scores.ndim != 2 or target_index.shape != (n_cases,):
        found = [
            None if value is None else tuple(value.shape) for value in (scores, target_index, rows)
        ]
        raise ValueError(
            f"scores [B, N], target_index [P], rows [P] or P = B expected, found {found}"
        )
    if n_cases and int(target_index.min()) < 0:
        raise IndexError(
            f"target_index: columns 0 to {scores.shape[1] - 1} expected, found "
            f"{int(target_index.min())}"
        )
    scores = scores.detach()
    case_rows = torch.arange(n_cases, device=scores.device) if rows is None else rows
    bounds = scores[case_rows, target_index][:, None]
    above, below = _count(scores, bounds, ("greater", "less"), rows)
    tied = scores.shape[1] - 1 - above - below
    # What is neither above nor below is tied or NaN, so only such cases need a second look.
    doubtful = (tied.bool() | bounds.isnan()[:, 0]).nonzero()[:, 0]
    doubtful_rows = rows if len(doubtful) == n_cases else case_rows[doubtful]
    (reaching,) = _count(scores, bounds[doubtful], ("greater_equal",), doubtful_rows)
    faulty = doubtful[reaching <= (above + tied)[doubtful]]
    if len(faulty):
        raise FloatingPointError(
            f"scores: NaN in row {int(case_rows[faulty[0]])} ({len(faulty)} of {n_cases} cases "
            "read a NaN)"
        )
    return above, tied


def _count(scores, bounds, comparisons, rows=None):
    """int32 [C, P]: for each of the C comparisons and each case, the columns where it holds between scores and bounds [P, 1].

    comparisons: names of functions that numpy and torch share.
    """
    import torch

    if (
        scores.device.type == "cpu"
        and torch.get_num_threads() <= NUMPY_THREADS
        and scores.dtype in (torch.float32, torch.float64)
    ):
        counts = _count_numpy(
            scores.numpy(), bounds.numpy(), comparisons, None if rows is None else rows.numpy()
        )
        return torch.from_numpy(counts)
    return _count_torch(scores, bounds, comparisons, rows)


def _tile(n_cases, width, block):
    """Columns and cases of a tile with about `block` elements, both at least 1."""
    columns = max(1, min(width, block))
    return columns, max(1, min(n_cases, block // columns))


def _count_numpy(scores, bounds, comparisons, rows):
    """`_count` on one thread. Comparisons write bytes of 0 or 1; adding them as 64-bit words counts eight at once.

    A sum of up to 255 words carries into no neighbouring byte, and leaves eight times fewer numbers to add up.
    """
    n_cases, width = len(bounds), scores.shape[1]
    columns, step = _tile(n_cases, width, CPU_BLOCK)
    counts = np.zeros((len(comparisons), n_cases), np.int32)
    for left in range(0, width, columns):
        strip = scores[:, left : left + columns]
        n_words = -(-strip.shape[1] // 8)
        n_sums = -(-n_words // 255)
        words = np.zeros((len(comparisons), step, n_sums, -(-n_words // n_sums)), np.uint64)
        holds = words.reshape(len(comparisons), step, -1).view(np.bool_)[:, :, : strip.shape[1]]
        for start in range(0, n_cases, step):
            cases = slice(start, start + step)
            part = strip[cases] if rows is None else strip[rows[cases]]
            for name, hold in zip(comparisons, holds):
                getattr(np, name)(part, bounds[cases], out=hold[: len(part)])
            sums = np.add.reduce(words[:, : len(part)], axis=3)
            counts[:, cases] += sums.view(np.uint8).sum(2, dtype=np.int32)
    return counts


def _count_torch(scores, bounds, comparisons, rows):
    """`_count` on many threads or another device. Comparisons write zeros and ones of the scores' own type, because on a
    CPU torch vectorises that and not the comparison into bool, and sums floats several times faster than bools.
    """
    import torch

    n_cases, width = len(bounds), scores.shape[1]
    block = CPU_BLOCK * torch.get_num_threads() if scores.device.type == "cpu" else BLOCK_LIMIT
    columns, step = _tile(n_cases, width, min(block, BLOCK_LIMIT))
    dtype = torch.promote_types(
        scores.dtype, torch.float32
    )  # a sum in half precision would not be exact
    buffer = torch.empty(step * columns, dtype=dtype, device=scores.device)
    counts = torch.zeros(
        -(-width // columns), len(comparisons), n_cases, dtype=dtype, device=scores.device
    )
    bounds = bounds.to(dtype).split(step)
    for strip, count in zip(scores.split(columns, 1), counts):
        parts = strip.split(step) if rows is None else (strip[some] for some in rows.split(step))
        holds = buffer[: step * strip.shape[1]].view(step, -1)
        for part, bound, *totals in zip(parts, bounds, *(total.split(step) for total in count)):
            part = part.to(dtype)
            if len(part) < step:
                holds = holds[: len(part)]
            for name, total in zip(comparisons, totals):
                getattr(torch, name)(part, bound, out=holds)
                torch.sum(holds, 1, out=total)
    return counts.sum(0, dtype=torch.float64).to(torch.int32)


def scored_rows(
    scores: "torch.Tensor", rows: "torch.Tensor", target_index: "torch.Tensor"
) -> "torch.Tensor":
    """int64 [P, 3]: above, tied and n_candidates per case, from scores in which -inf marks what is no candidate.

    This is what RecBole's trainer hands out: padding, masked history and, under uniN, all but the sampled items are -inf.
    A target of -inf is `UNNAMED`. Other unnamed items cannot be told from what is no candidate, so all of them but the
    padding, column 0, count as candidates before it: a target that was not named must not gain by what is not known.
    """
    import torch

    in_order = torch.equal(rows, torch.arange(len(scores), device=rows.device))
    above, tied = count_above_and_tied(scores, target_index, rows=None if in_order else rows)
    lowest = torch.full((len(scores), 1), UNNAMED, dtype=scores.dtype, device=scores.device)
    unnamed = scores[rows, target_index] == UNNAMED
    n_candidates = _count(scores, lowest, ("greater",))[0][rows]
    n_candidates = n_candidates.masked_fill(unnamed, scores.shape[1] - 1)
    above, tied = _unnamed_last(above, tied, unnamed, n_candidates)
    return torch.stack((above, tied, n_candidates), 1).long()


def rank_targets(
    scores: "torch.Tensor", target_index: "torch.Tensor", n_candidates: "torch.Tensor"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Count, per case, the candidates above its target and the other candidates tied with it.

    Parameters
    ----------
    scores : float [B, N]; `UNNAMED` for what is not named and for what is no candidate.
    target_index : int64 [B], the column of each case's target.
    n_candidates : int64 [B], candidates of each case, its target included.

    Returns
    -------
    (above, tied) : int32 [B] each, on the device of scores. An unnamed target has all other candidates above it.
    """
    above, tied = count_above_and_tied(scores, target_index)
    unnamed = scores.gather(1, target_index[:, None])[:, 0] == UNNAMED
    return _unnamed_last(above, tied, unnamed, n_candidates)


def _unnamed_last(above, tied, unnamed, n_candidates):
    """(above, tied) with the targets that are unnamed, bool [P], behind all other candidates."""
    last = (n_candidates - 1).to(above.dtype)
    return above.where(~unnamed, last), tied.masked_fill(unnamed, 0)


def in_front(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Scores by `first`; the items that it does not name stand behind those that it does, by `second`.

    first, second : float [cases, items], `UNNAMED` for items without a score. Returns float64 [cases, items]: the order of
    the named items and their differences are those of `first`; what neither names stays unnamed.
    """
    first = np.asarray(first, dtype=np.float64)
    named = first != UNNAMED
    behind = np.where(named, UNNAMED, second)
    lowest = np.where(named, first, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    highest = behind.max(axis=1, keepdims=True, initial=UNNAMED)
    both = np.isfinite(lowest) & np.isfinite(highest)
    lift = np.subtract(highest + 1, lowest, out=np.zeros_like(lowest), where=both)
    return np.where(named, first + lift, behind)


def names_nothing(scores: np.ndarray) -> np.ndarray:
    """bool [cases]: whether all scores, float [cases, items], are zero or all are `UNNAMED`."""
    return ~scores.any(axis=1) | (scores == UNNAMED).all(axis=1)
