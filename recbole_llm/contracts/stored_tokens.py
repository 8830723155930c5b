"""Ids of users or items that lie in a file, for data with more of them than memory should hold."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

AT_ONCE = 2**16  # ids that are decoded together


class StoredTokens:
    """An array of str in a mapped file, which becomes an array of objects where one is needed.

    Parameters
    ----------
    text : Path
        The tokens in UTF-8, one behind the other.
    bounds : ndarray of int64 [n + 1]
        Token i has the bytes bounds[i] : bounds[i + 1].
    """

    dtype = np.dtype(object)

    def __init__(self, text: Path, bounds: np.ndarray):
        self.bounds = bounds
        self._text = np.memmap(text, dtype=np.uint8, mode="r") if bounds[-1] else np.zeros(0, "u1")

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def shape(self) -> tuple[int]:
        """The number of tokens, as arrays have it."""
        return (len(self),)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int | np.integer):
            return self._token(range(len(self))[index])
        everything = range(len(self))
        if isinstance(index, slice):
            return self._array(everything[index])
        index = np.asarray(index)
        if index.dtype == bool:
            index = np.flatnonzero(index)
        return self._array([everything[row] for row in index.tolist()])

    def _array(self, rows: Sequence[int]) -> np.ndarray:
        tokens = np.empty(len(rows), dtype=object)
        tokens[:] = [self._token(row) for row in rows]
        return tokens

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), AT_ONCE):
            yield from self[first : first + AT_ONCE]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.astype(dtype or object)

    def __eq__(self, other: object) -> Any:
        return self[:] == other

    __hash__ = None  # type: ignore[assignment]  # as arrays

    def astype(self, dtype: Any) -> np.ndarray:
        """Return an array of the tokens."""
        return self._array(range(len(self))).astype(dtype)

    def tolist(self) -> list[str]:
        """Return a list of the tokens."""
        tokens: list[str] = self[:].tolist()
        return tokens

    def _token(self, row: int) -> str:
        return self._text[self.bounds[row] : self.bounds[row + 1]].tobytes().decode()
