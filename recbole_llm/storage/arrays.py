"""Arrays as long as the data: in memory or in a file."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def index_type(count: int) -> type:
    """Return the shorter of int32 and int64 that numbers below a count."""
    return np.int32 if count < 2**31 else np.int64


class GrowingArray:
    """An array of one dimension that is appended to and then read.

    Parameters
    ----------
    kind : dtype
        Type of its numbers.
    folder : Path, optional
        Where the file lies that holds them, which nothing else sees and which vanishes with the
        array; they are held in memory where None.
    """

    def __init__(self, kind: Any, folder: Path | None = None):
        self.kind = np.dtype(kind)
        self._file = tempfile.TemporaryFile(dir=folder) if folder else None  # noqa: SIM115
        self._parts: list[np.ndarray] = []
        self._count = 0

    def append(self, values: np.ndarray) -> None:
        """Add numbers at the end.

        Parameters
        ----------
        values : ndarray [n]
            The numbers.
        """
        values = np.ascontiguousarray(values, dtype=self.kind)
        self._count += len(values)
        if self._file:
            self._file.write(values.data)
        else:
            self._parts.append(values)

    def array(self) -> np.ndarray:
        """Return all numbers, after which nothing is added.

        Returns
        -------
        ndarray
            In memory, or mapped into it.
        """
        if not self._count:
            return np.zeros(0, dtype=self.kind)
        if not self._file:
            return np.concatenate(self._parts)
        self._file.flush()
        return np.memmap(self._file, dtype=self.kind, mode="r", shape=(self._count,))


def ranges(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Concatenate ranges of integers.

    Parameters
    ----------
    begin, end : ndarray of int64 [n]
        Bounds of the ranges.

    Returns
    -------
    ndarray of int64
        All numbers of begin[0] : end[0], then those of begin[1] : end[1], and so on.
    """
    is_there = end > begin
    begin, end = begin[is_there], end[is_there]
    if not len(begin):
        return np.zeros(0, dtype=np.int64)
    # differences of neighbours, which are summed up in place: there may be many
    numbers = np.ones(int((end - begin).sum()), dtype=np.int64)
    numbers[0] = begin[0]
    numbers[np.cumsum((end - begin)[:-1])] = begin[1:] - end[:-1] + 1
    return np.cumsum(numbers, out=numbers)
