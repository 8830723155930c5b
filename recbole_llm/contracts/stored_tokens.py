"""Ids of users or items that lie in a file, for data with more of them than memory should hold."""

from collections.abc import Iterator
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

    Attributes
    ----------
    text : ndarray of uint8
        The bytes of all tokens.
    """

    dtype = np.dtype(object)

    def __init__(self, text: Path, bounds: np.ndarray):
        self.path, self.bounds = text, bounds
        self.text = np.memmap(text, dtype=np.uint8, mode="r") if bounds[-1] else np.zeros(0, "u1")
        self._bytes = memoryview(self.text.data)  # whose slices are read faster than an array's

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
            rows = np.array(everything[index], dtype=np.int64)
        else:
            rows = np.asarray(index)
            if not rows.size:
                rows = rows.astype(np.int64)
            if rows.dtype == bool and len(rows) != len(self):
                raise IndexError(f"a mask of {len(rows)} for {len(self)} tokens")
            rows = (
                np.flatnonzero(rows)
                if rows.dtype == bool
                else np.where(rows < 0, rows + len(self), rows)
            )
        return self._array(rows)

    def _array(self, rows: np.ndarray) -> np.ndarray:
        tokens = np.empty(len(rows), dtype=object)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"token {rows.min()} or {rows.max()} of {len(self)}")
        pairs = zip(self.bounds[rows].tolist(), self.bounds[rows + 1].tolist(), strict=True)
        tokens[:] = [str(self._bytes[begin:end], "utf-8") for begin, end in pairs]
        return tokens

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), AT_ONCE):
            yield from self[first : first + AT_ONCE]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.astype(dtype or object)

    def __eq__(self, other: object) -> Any:
        return self[:] == other

    def __ne__(self, other: object) -> Any:
        return self[:] != other

    def __reduce__(self) -> Any:
        return StoredTokens, (self.path, self.bounds)

    __hash__ = None  # type: ignore[assignment]  # as arrays

    def astype(self, dtype: Any) -> np.ndarray:
        """Return an array of the tokens."""
        return self._array(np.arange(len(self))).astype(dtype)

    def tolist(self) -> list[str]:
        """Return a list of the tokens."""
        tokens: list[str] = self[:].tolist()
        return tokens

    def _token(self, row: int) -> str:
        return str(self._bytes[self.bounds[row] : self.bounds[row + 1]], "utf-8")
