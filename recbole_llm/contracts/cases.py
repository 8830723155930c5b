"""Cases: which interaction of which user is to be predicted, and from which history."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .interactions import Interactions


@dataclass(frozen=True)
class Cases:
    """Prediction tasks: given interactions begin : end of a user, predict interaction `end`.

    Attributes
    ----------
    user : ndarray of int32, [n_cases]
        Index of the user of each case.
    begin : ndarray of int64, [n_cases]
        First row of its history.
    end : ndarray of int64, [n_cases]
        Row of its target, which is the row after its history.
    """

    user: np.ndarray
    begin: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.end)

    def __getitem__(self, index: slice | np.ndarray | Sequence[Any]) -> "Cases":
        return Cases(self.user[index], self.begin[index], self.end[index])

    def histories(self, interactions: Interactions) -> list[np.ndarray]:
        """Look up the items of each case's history.

        Parameters
        ----------
        interactions : Interactions
            The dataset that `begin` and `end` are rows of.

        Returns
        -------
        list of ndarray of int32, [n_items] each
            Item indices, oldest first.
        """
        items = interactions.item
        return [items[begin:end] for begin, end in zip(self.begin, self.end, strict=True)]
