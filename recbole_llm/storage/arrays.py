"""Arrays as long as the data: in memory or in a file."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np


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
    sizes = end - begin
    offsets = np.cumsum(sizes) - sizes
    return np.repeat(begin - offsets, sizes) + np.arange(sizes.sum())
