"""Ranks of targets among their candidates: exact counts, and a table with one row per case.

Some methods score only a part of the catalogue: texts that name items, lists of another run that
are reranked, an index of nearest items. The same rules hold for all of them:

- An item without a score is unnamed and has the score `UNNAMED`. It is never recommended.
- An unnamed target ranks last, behind all other candidates, and ties with none: its expected,
  optimistic and pessimistic metrics are those of the last rank. The order of unnamed items is
  unknown, so the optimistic order must not put the target first among them: after three named
  items of a catalogue of thousands, it would rank fourth.
- A case without any named item, such as one whose answer could not be parsed, follows the same
  rule: its target ranks last, its list is empty, and the case is counted as `unmatched`. No item
  gains by its place in the catalogue.
- If a second method scores the items that the first leaves unnamed, they rank behind all that the
  first names, in the order of the second: `in_front`.

A score of zero is a score: BM25 gives it to items that share no word with a query, which tie.
"""

import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from ..storage.files import atomically

if TYPE_CHECKING:
    import torch

# score of an item that a method does not name
UNNAMED = -np.inf

# what numpy raises for an npz file that is missing, damaged or of another program
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

# Number of scores that are compared at a time. With the results of the comparisons they fit into a
# second-level cache (at most 1 MB per core), and a sum of as many ones is exact in float32.
CPU_BLOCK, BLOCK_LIMIT = 2**17, 2**24
# With at most this many threads numpy counts about as fast as torch or faster. It never waits for
# another thread either: on a busy machine, the barrier after each of torch's small parallel steps
# was measured to cost a hundred times the work.
NUMPY_THREADS = 3


@dataclass(frozen=True, eq=False)
class RankTable:
    """The ranks of the targets of evaluation cases.

    Arguments may be any sequences; they are converted to the types below.

    Attributes
    ----------
    user, target : ndarray of str, [n_cases]
        Tokens of the user and of the target item.
    position : ndarray of int32, [n_cases]
        Index of the target in the user's sequence.
    above : ndarray of int32, [n_cases]
        Number of candidates with a higher score than the target.
    tied : ndarray of int32, [n_cases]
        Number of other candidates with the same score as the target.
    n_candidates : ndarray of int32, [n_cases]
        Number of candidates, the target included.
    fallback : ndarray of bool, [n_cases]
        Whether no candidate of the case was named, so that its target ranks last.

    Raises
    ------
    TypeError
        If a column has another type.
    ValueError
        If columns differ in length, or counts are impossible.

    Examples
    --------
    >>> table = RankTable(
    ...     user=["ann", "bob"],
    ...     target=["pen", "ink"],
    ...     position=[4, 2],
    ...     above=[0, 3],
    ...     tied=[0, 1],
    ...     n_candidates=[10, 10],
    ...     fallback=[False, False],
    ... )
    >>> len(table)
    2
    >>> table.take(table.above > 0).user.tolist()
    ['bob']
    """

    user: np.ndarray
    target: np.ndarray
    position: np.ndarray
    above: np.ndarray
    tied: np.ndarray
    n_candidates: np.ndarray
    fallback: np.ndarray

    def __post_init__(self) -> None:
        for name in ("user", "target"):
            object.__setattr__(self, name, _tokens(name, getattr(self, name)))
        for name in ("position", "above", "tied", "n_candidates"):
            object.__setattr__(self, name, _column(name, getattr(self, name), "iu", np.int32))
        object.__setattr__(self, "fallback", _column("fallback", self.fallback, "b", np.bool_))
        lengths = {name: len(column) for name, column in self._columns().items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of equal length expected, found {lengths}")
        is_wrong = (self.above < 0) | (self.tied < 0)
        is_wrong |= self.above.astype(np.int64) + self.tied >= self.n_candidates
        if is_wrong.any():
            row = int(is_wrong.argmax())
            counts = ", ".join(
                f"{name} {getattr(self, name)[row]}" for name in ("above", "tied", "n_candidates")
            )
            raise ValueError(
                f"row {row}: 0 <= above + tied < n_candidates expected, found {counts}"
            )

    def __len__(self) -> int:
        return len(self.user)

    def _columns(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def take(self, index: np.ndarray | slice) -> "RankTable":
        """Select rows.

        Parameters
        ----------
        index : ndarray or slice
            Any index of numpy for one dimension.

        Returns
        -------
        RankTable
            The rows, in the order of `index`.
        """
        return RankTable(*(column[index] for column in self._columns().values()))

    @staticmethod
    def concat(tables: Iterable["RankTable"]) -> "RankTable":
        """Concatenate tables.

        Parameters
        ----------
        tables : iterable of RankTable
            At least one table.

        Returns
        -------
        RankTable
            The rows of all tables, in order.

        Raises
        ------
        ValueError
            If there is no table.
        """
        columns: dict[str, list[np.ndarray]] = {field.name: [] for field in fields(RankTable)}
        for table in tables:
            for name, column in table._columns().items():
                columns[name].append(column)
        return RankTable(*map(np.concatenate, columns.values()))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an npz file without pickled objects, atomically.

        Parameters
        ----------
        path : path
            The file.
        """
        path = Path(path)
        with atomically(path) as temporary, open(temporary, "wb") as file:
            # keywords of savez are names of arrays, and its one flag is not among them
            columns: dict[str, Any] = self._columns()
            np.savez(file, **columns)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "RankTable":
        """Read a file that `save` wrote. Pickled objects are refused.

        Parameters
        ----------
        path : path
            The file.

        Returns
        -------
        RankTable
            The table.

        Raises
        ------
        UserError
            If the file is missing, damaged or of another program.
        PermissionError
            If it must not be read.
        """
        names = [field.name for field in fields(RankTable)]
        try:
            with np.load(path, allow_pickle=False) as file:
                return RankTable(*(file[name] for name in names))
        except UNREADABLE as fault:
            if isinstance(fault, PermissionError):
                raise
            # imported here, because the use of metrics alone does not need it
            from ..storage.run_folders import ranked_again

            raise UserError(
                f"rank table {path} is missing or damaged; {ranked_again(Path(path).parent)}"
            ) from fault


def _tokens(name: str, values: Sequence[str] | np.ndarray) -> np.ndarray:
    array = np.asarray(values)
    is_text = array.dtype.kind == "O" and all(isinstance(value, str) for value in array.flat)
    if is_text or array.size == 0:
        array = array.astype(np.str_)
    if array.dtype.kind != "U" or array.ndim != 1:
        raise TypeError(
            f"{name}: one-dimensional str tokens expected, found {array.dtype} of shape "
            f"{array.shape}"
        )
    return array


def _column(
    name: str, values: Sequence[Any] | np.ndarray, kinds: str, dtype: type[np.generic]
) -> np.ndarray:
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
    """Count, for each case, the candidates above its target and the others tied with it.

    The counts are exact. -inf is a score like any other: below everything, and tied with a target
    of -inf. `rank_targets` and `scored_rows` give it the meaning of `UNNAMED`.

    Parameters
    ----------
    scores : Tensor of float, [n_rows, n_items]
        Scores; they are not changed.
    target_index : Tensor of int64, [n_cases]
        Column of each case's target.
    rows : Tensor of int64, [n_cases], optional
        Row of `scores` of each case; by default case i has row i.

    Returns
    -------
    above, tied : Tensor of int32, [n_cases]
        The counts, on the device of `scores`.

    Raises
    ------
    FloatingPointError
        If a score that a case reads is NaN. A NaN is neither above nor tied, so that the target
        would gain. The message names the row.
    ValueError
        If shapes do not fit.
    IndexError
        If a target is outside the columns.
    TypeError
        If scores are not floating point.

    Examples
    --------
    >>> import torch
    >>> scores = torch.tensor([[0.9, 0.5, 0.5, 0.1], [0.2, 0.4, 0.3, 0.1]])
    >>> above, tied = count_above_and_tied(scores, torch.tensor([1, 1]))
    >>> above.tolist(), tied.tolist()
    ([1, 0], [1, 0])
    """
    import torch

    n_cases = scores.shape[0] if rows is None else len(rows)
    _check_arguments(scores, target_index, rows, n_cases)
    scores = scores.detach()
    case_rows = torch.arange(n_cases, device=scores.device) if rows is None else rows
    bounds = scores[case_rows, target_index][:, None]
    above, below = _count(scores, bounds, ("greater", "less"), rows)
    tied = scores.shape[1] - 1 - above - below
    # what is neither above nor below is tied or NaN, so that only such cases need a second look
    doubtful = (tied.bool() | bounds.isnan()[:, 0]).nonzero()[:, 0]
    doubtful_rows = rows if len(doubtful) == n_cases else case_rows[doubtful]
    (reaching,) = _count(scores, bounds[doubtful], ("greater_equal",), doubtful_rows)
    faulty = case_rows[doubtful[reaching <= (above + tied)[doubtful]]]
    if len(faulty):
        count = f"{len(faulty)} of {n_cases} cases read a NaN"
        raise FloatingPointError(f"scores: NaN in row {int(faulty[0])} ({count})")
    return above, tied


def _check_arguments(
    scores: "torch.Tensor",
    target_index: "torch.Tensor",
    rows: "torch.Tensor | None",
    n_cases: int,
) -> None:
    """Check types, shapes and signs of the arguments of `count_above_and_tied`."""
    if not scores.is_floating_point():
        raise TypeError(f"scores: floating point expected, found {scores.dtype}")
    if scores.ndim != 2 or target_index.shape != (n_cases,):
        arguments = (scores, target_index, rows)
        shapes = [None if value is None else tuple(value.shape) for value in arguments]
        raise ValueError(
            f"scores [B, N], target_index [P], rows [P] or P = B expected, found {shapes}"
        )
    if n_cases and int(target_index.min()) < 0:
        raise IndexError(
            f"target_index: columns 0 to {scores.shape[1] - 1} expected, found "
            f"{int(target_index.min())}"
        )


def _count(
    scores: "torch.Tensor",
    bounds: "torch.Tensor",
    comparisons: Sequence[str],
    rows: "torch.Tensor | None" = None,
) -> "torch.Tensor":
    """Count the columns in which comparisons between scores and bounds hold.

    Parameters
    ----------
    scores : Tensor of float, [n_rows, n_items]
        Scores.
    bounds : Tensor of float, [n_cases, 1]
        What the scores of each case are compared with.
    comparisons : sequence of str
        Names of functions that numpy and torch share.
    rows : Tensor of int64, [n_cases], optional
        Row of `scores` of each case; by default case i has row i.

    Returns
    -------
    Tensor of int32, [n_comparisons, n_cases]
        The counts.
    """
    import torch

    is_numpy_type = scores.dtype in (torch.float32, torch.float64)
    has_few_threads = torch.get_num_threads() <= NUMPY_THREADS
    if scores.device.type == "cpu" and has_few_threads and is_numpy_type:
        row_numbers = None if rows is None else rows.numpy()
        counts = _count_numpy(scores.numpy(), bounds.numpy(), comparisons, row_numbers)
        return torch.from_numpy(counts)
    return _count_torch(scores, bounds, comparisons, rows)


def _tile(n_cases: int, width: int, block: int) -> tuple[int, int]:
    """Columns and cases of a tile with about `block` elements, both at least 1."""
    columns = max(1, min(width, block))
    return columns, max(1, min(n_cases, block // columns))


def _count_numpy(
    scores: np.ndarray, bounds: np.ndarray, comparisons: Sequence[str], rows: np.ndarray | None
) -> np.ndarray:
    """`_count` on one thread.

    Comparisons write bytes of 0 or 1. Adding them as 64-bit words counts eight at once: a sum of up
    to 255 words carries into no neighbouring byte, and leaves eight times fewer numbers to add.
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


def _count_torch(
    scores: "torch.Tensor",
    bounds: "torch.Tensor",
    comparisons: Sequence[str],
    rows: "torch.Tensor | None",
) -> "torch.Tensor":
    """`_count` on many threads or another device.

    Comparisons write zeros and ones of the scores' own type. On a CPU, torch vectorises that and
    not the comparison into bool, and sums floats several times faster than bools.
    """
    import torch

    n_cases, width = len(bounds), scores.shape[1]
    block = CPU_BLOCK * torch.get_num_threads() if scores.device.type == "cpu" else BLOCK_LIMIT
    columns, step = _tile(n_cases, width, min(block, BLOCK_LIMIT))
    # a sum in half precision would not be exact
    dtype = torch.promote_types(scores.dtype, torch.float32)
    buffer = torch.empty(step * columns, dtype=dtype, device=scores.device)
    n_strips = -(-width // columns)
    counts = torch.zeros(n_strips, len(comparisons), n_cases, dtype=dtype, device=scores.device)
    case_bounds = torch.split(bounds.to(dtype), step)
    for strip, strip_counts in zip(torch.split(scores, columns, dim=1), counts):
        if rows is None:
            parts: Iterable[torch.Tensor] = torch.split(strip, step)
        else:
            parts = map(strip.__getitem__, torch.split(rows, step))
        holds = buffer[: step * strip.shape[1]].view(step, -1)
        totals = torch.split(strip_counts, step, dim=1)
        for part, bound, part_totals in zip(parts, case_bounds, totals):
            part = part.to(dtype)
            part_holds = holds[: len(part)]
            for name, total in zip(comparisons, part_totals):
                getattr(torch, name)(part, bound, out=part_holds)
                torch.sum(part_holds, 1, out=total)
    return counts.sum(0, dtype=torch.float64).to(torch.int32)


def scored_rows(
    scores: "torch.Tensor", rows: "torch.Tensor", target_index: "torch.Tensor"
) -> "torch.Tensor":
    """Rank targets among the items with a score above -inf.

    RecBole's trainer makes such scores: padding, masked history and, under uniN, all but the
    sampled items are -inf. A target of -inf is `UNNAMED`. Other unnamed items cannot be told from
    items that are no candidates, so that all of them but the padding, column 0, count as candidates
    above it: an unnamed target must not gain by what is unknown.

    Parameters
    ----------
    scores : Tensor of float, [n_rows, n_items]
        Scores; column 0 is padding.
    rows : Tensor of int64, [n_cases]
        Row of `scores` of each case.
    target_index : Tensor of int64, [n_cases]
        Column of each case's target.

    Returns
    -------
    Tensor of int64, [n_cases, 3]
        Above, tied and number of candidates of each case.
    """
    import torch

    is_in_order = torch.equal(rows, torch.arange(len(scores), device=rows.device))
    above, tied = count_above_and_tied(scores, target_index, rows=None if is_in_order else rows)
    lowest = torch.full((len(scores), 1), UNNAMED, dtype=scores.dtype, device=scores.device)
    is_unnamed = scores[rows, target_index] == UNNAMED
    n_candidates = _count(scores, lowest, ("greater",))[0][rows]
    n_candidates = n_candidates.masked_fill(is_unnamed, scores.shape[1] - 1)
    above, tied = _unnamed_last(above, tied, is_unnamed, n_candidates)
    return torch.stack((above, tied, n_candidates), 1).long()


def rank_targets(
    scores: "torch.Tensor", target_index: "torch.Tensor", n_candidates: "torch.Tensor"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Count, for each case, the candidates above its target and the others tied with it.

    Parameters
    ----------
    scores : Tensor of float, [n_cases, n_items]
        Scores; `UNNAMED` for unnamed items and for items that are no candidates.
    target_index : Tensor of int64, [n_cases]
        Column of each case's target.
    n_candidates : Tensor of int64, [n_cases]
        Number of candidates of each case, the target included.

    Returns
    -------
    above, tied : Tensor of int32, [n_cases]
        The counts, on the device of `scores`. All other candidates are above an unnamed target.

    Examples
    --------
    The target of the second case is unnamed, so that it ranks last among four candidates:

    >>> import torch
    >>> scores = torch.tensor([[0.5, 0.5, 0.1, 0.9], [UNNAMED, 0.7, UNNAMED, UNNAMED]])
    >>> above, tied = rank_targets(scores, torch.tensor([0, 0]), torch.tensor([4, 4]))
    >>> above.tolist(), tied.tolist()
    ([1, 3], [1, 0])
    """
    above, tied = count_above_and_tied(scores, target_index)
    is_unnamed = scores.gather(1, target_index[:, None])[:, 0] == UNNAMED
    return _unnamed_last(above, tied, is_unnamed, n_candidates)


def _unnamed_last(
    above: "torch.Tensor",
    tied: "torch.Tensor",
    is_unnamed: "torch.Tensor",
    n_candidates: "torch.Tensor",
) -> "tuple[torch.Tensor, torch.Tensor]":
    """The counts above and tied with unnamed targets, bool [n_cases], behind all candidates."""
    last = (n_candidates - 1).to(above.dtype)
    return above.where(~is_unnamed, last), tied.masked_fill(is_unnamed, 0)


def in_front(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rank by a first method, and the items that it does not name behind them by a second one.

    Parameters
    ----------
    first, second : ndarray of float, [n_cases, n_items]
        Scores of the methods; `UNNAMED` for items without a score.

    Returns
    -------
    ndarray of float64, [n_cases, n_items]
        Scores. The items that `first` names have its order and its differences of scores; items
        that neither method names are `UNNAMED`.

    Examples
    --------
    >>> in_front(np.array([[0.1, UNNAMED, 0.3]]), np.array([[9.0, 5.0, 9.0]])).tolist()
    [[6.0, 5.0, 6.2]]
    """
    first = np.asarray(first, dtype=np.float64)
    is_named = first != UNNAMED
    behind = np.where(is_named, UNNAMED, second)
    lowest = np.where(is_named, first, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    highest = behind.max(axis=1, keepdims=True, initial=UNNAMED)
    has_both = np.isfinite(lowest) & np.isfinite(highest)
    lift = np.subtract(highest + 1, lowest, out=np.zeros_like(lowest), where=has_both)
    return np.where(is_named, first + lift, behind)


def checked_scores(scores: Any, n_cases: int, n_items: int, method: str) -> Any:
    """Return what a model gave as floating-point numbers, one for each case and item.

    Parameters
    ----------
    scores : ndarray or Tensor
        What a model gave.
    n_cases : int
        Number of cases that it was asked about.
    n_items : int
        Number of items of the catalogue.
    method : str
        The class and its method, for the message.

    Returns
    -------
    ndarray or Tensor of float, [n_cases, n_items]
        The scores; float64 where whole numbers were given.

    Raises
    ------
    UserError
        If they are no array or tensor, or the shape is another.
    """
    is_tensor = hasattr(scores, "is_floating_point")
    if not is_tensor and not isinstance(scores, np.ndarray):
        raise UserError(
            f"{method}: expected scores [cases, items] as an array or a tensor, found "
            f"{type(scores).__name__}"
        )
    if tuple(scores.shape) != (n_cases, n_items):
        raise UserError(
            f"{method}: expected scores [cases, items], here of shape ({n_cases}, {n_items}), "
            f"found {tuple(scores.shape)}"
        )
    if is_tensor:
        return scores if scores.is_floating_point() else scores.double()
    return scores if scores.dtype.kind == "f" else scores.astype(np.float64)


def names_nothing(scores: np.ndarray) -> np.ndarray:
    """Find the cases for which a method says nothing about any item.

    Parameters
    ----------
    scores : ndarray of float, [n_cases, n_items]
        Scores.

    Returns
    -------
    ndarray of bool, [n_cases]
        Whether all scores of the case are zero or all are `UNNAMED`.
    """
    is_silent: np.ndarray = ~scores.any(axis=1) | (scores == UNNAMED).all(axis=1)
    return is_silent
