"""Cases: which interaction of which user is to be predicted, and from which history."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Interactions(Protocol):
    """The interactions of a dataset, grouped by user, each user's oldest first.

    Attributes
    ----------
    users : ndarray of str, [n_users]
        Tokens of the users.
    items : ndarray of str, [n_items]
        Tokens of the items.
    start : ndarray of int64, [n_users + 1]
        First row of each user, and the number of rows at the end.
    user : ndarray of int32, [n_interactions]
        User of each interaction, as an index into `users`.
    item : ndarray of int32, [n_interactions]
        Item of each interaction, as an index into `items`.
    columns : mapping of str to ndarray, [n_interactions] each
        Further columns, such as ratings.
    """

    @property
    def users(self) -> np.ndarray: ...

    @property
    def items(self) -> np.ndarray: ...

    @property
    def start(self) -> np.ndarray: ...

    @property
    def user(self) -> np.ndarray: ...

    @property
    def item(self) -> np.ndarray: ...

    @property
    def columns(self) -> Mapping[str, np.ndarray]: ...


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
