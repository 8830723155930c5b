"""Who is predicted what."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Events(Protocol):
    """A dataset's events, users together and each user's oldest first."""

    item: np.ndarray  # int32 [events]


@dataclass(frozen=True)
class Cases:
    """Prediction tasks: given events begin : end of a user, predict event `end`.

    All arrays have one entry per case; begin and end are event rows of a dataset.
    """

    user: np.ndarray  # int32
    begin: np.ndarray  # int64
    end: np.ndarray  # int64

    def __len__(self) -> int:
        return len(self.end)

    def __getitem__(self, index) -> "Cases":
        return Cases(self.user[index], self.begin[index], self.end[index])

    def histories(self, events: Events) -> list[np.ndarray]:
        """int32 item numbers of each case's history, oldest first."""
        return [events.item[begin:end] for begin, end in zip(self.begin, self.end, strict=True)]
