"""The train, validation and test cases of one dataset, the same for every model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...contracts.cases import Cases
from ...contracts.interactions import Interactions, UserBlock
from ...errors import UserError
from ...storage.arrays import GrowingArray

TRAIN, VALID, TEST, UNUSED = 0, 1, 2, -1  # labels of interactions
EVENTS_AT_ONCE = 2**21  # interactions that are labelled together


@dataclass(frozen=True)
class Split:
    """The cases of the three splits.

    Attributes
    ----------
    train, valid, test : Cases
        The cases to learn from, to select by and to report.
    train_events : ndarray of bool, [n_interactions]
        The interactions that a model without sequences may train on.
    """

    train: Cases
    valid: Cases
    test: Cases
    train_events: np.ndarray


def draw(cases: Cases, most: int) -> Cases:
    """Sample cases, the same ones for every model and seed.

    Parameters
    ----------
    cases : Cases
        The cases to sample from.
    most : int
        Largest number of cases; 0 means all.

    Returns
    -------
    Cases
        The sample, in the order of `cases`.
    """
    if not most or len(cases) <= most:
        return cases
    return cases[np.sort(np.random.default_rng(0).permutation(len(cases))[:most])]


def make_split(interactions: Interactions, split: Any, part: str = "pretrain") -> Split:
    """Split a dataset by `eval_args.split`.

    Pre-split files bring their cases, so that `split` is ignored for them.

    Parameters
    ----------
    interactions : Interactions
        The dataset.
    split : dict
        One entry, the rule and its value:

        - `LS: valid_and_test | test_only`: the last one or two interactions of each user are held
          out. As in RecBole's sequential split, a user's first interaction is never a target. A
          user with few interactions has a test case before a validation case, and a training case
          before both.
        - `RS: [a, b, c]`: ratios of the n - 1 targets of each user, in the order of time, rounded
          as RecBole rounds them.
        - `temporal: [a, b, c]`: each user's history is cut into the periods Pre-train, Continue
          Train and Future-Test (UMass x Spotify, "TASTE-LoRA", 2024). Continue Train has floor(b (n
          - 1)) targets, Future-Test floor(c (n - 1)), and Pre-train the others. The last target of
          each of the first two periods is its validation case. Every target in Future-Test is a
          test case.
        - `timestamp: [t1, t2]`: targets before the time t1 are for training, those before t2 for
          validation, the others for testing.
    part : {"pretrain", "continue", "both"}
        For `temporal`: the period whose training and validation cases are used.

    Returns
    -------
    Split
        The cases.

    Raises
    ------
    UserError
        If `split` is none of these, or there is no training or no test case.
    """
    if interactions.cases is not None:
        result = _given_split(interactions, interactions.cases)
    else:
        result = _split_by_rule(interactions, split, part)
    for name, cases in (("train", result.train), ("test", result.test)):
        if len(cases) == 0:
            raise UserError(
                f"dataset {interactions.name}: the split {split} leaves no {name} case "
                f"(longest sequence: {np.diff(interactions.start).max()} events); "
                "change eval_args.split or the filters"
            )
    return result


def every_case(interactions: Interactions) -> Cases:
    """Make a case of each interaction but the first of a user, with its whole history.

    Parameters
    ----------
    interactions : Interactions
        The dataset.

    Returns
    -------
    Cases
        n - 1 cases of a user with n interactions.
    """
    cases = GrowingCases(interactions.folder)
    for first, last in _blocks(interactions.start):
        block = interactions.block(first, last)
        cases.append(block, np.flatnonzero(block.position > 0), first, interactions.start[first])
    return cases.cases()


def _given_split(interactions: Interactions, given: dict[str, np.ndarray]) -> Split:
    """The split of pre-split files.

    An interaction is a training interaction if it is in the window of a training case.
    """
    cases = {}
    for name, bounds in given.items():
        begin, end = bounds[bounds[:, 0] < bounds[:, 1]].T  # without a history there is no case
        cases[name] = Cases(interactions.user[end], begin, end)
    steps = np.zeros(
        len(interactions.item) + 1, dtype=np.int64
    )  # +1 where a window begins, -1 behind it
    np.add.at(steps, given["train"][:, 0], 1)
    np.add.at(steps, given["train"][:, 1] + 1, -1)
    in_window = np.cumsum(steps[:-1]) > 0
    return Split(cases["train"], cases["valid"], cases["test"], train_events=in_window)


def _split_by_rule(interactions: Interactions, split: Any, part: str) -> Split:
    """The split that a rule of `eval_args.split` makes.

    A user's first interaction has no history: it is in no case, but models without sequences may
    learn from it.
    """
    if not isinstance(split, dict) or len(split) != 1 or next(iter(split)) not in _RULES:
        raise UserError(
            f"eval_args.split: expected one of {', '.join(_RULES)} with its value, found {split!r}"
        )
    ((rule, value),) = split.items()
    if rule == "timestamp":
        value = _two_times(interactions, value)
    folder = interactions.folder  # that of large data, whose cases are held in files too
    parts = {code: GrowingCases(folder) for code in (TRAIN, VALID, TEST)}
    train_events = GrowingArray(bool, folder)
    for first, last in _blocks(interactions.start):
        block = interactions.block(first, last)
        label = _RULES[rule](block, value, part)
        train_events.append(label == TRAIN)
        for code, cases in parts.items():
            rows = np.flatnonzero((label == code) & (block.position > 0))
            cases.append(block, rows, first, interactions.start[first])
    train, valid, test = (cases.cases() for cases in parts.values())
    return Split(train, valid, test, train_events=train_events.array())


def _blocks(start: np.ndarray) -> Iterator[tuple[int, int]]:
    """Bounds of blocks of users with at most EVENTS_AT_ONCE interactions, or of one user."""
    first = 0
    while first < len(start) - 1:
        last = int(np.searchsorted(start, start[first] + EVENTS_AT_ONCE, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


class GrowingCases:
    """Cases whose histories are everything their users did before, block by block.

    Parameters
    ----------
    folder : Path or None
        Where the files lie that hold them; they are held in memory where None.
    """

    def __init__(self, folder: Path | None):
        self.user, self.begin, self.end = (
            GrowingArray(kind, folder) for kind in (np.int32, np.int64, np.int64)
        )

    def append(self, block: UserBlock, rows: np.ndarray, user: int, row: int) -> None:
        """Add a case for each of some rows of a block that begins at a user and a row."""
        users = block.user[rows]
        self.user.append(users + user)
        self.begin.append(block.start[users] + row)
        self.end.append(rows + row)

    def cases(self) -> Cases:
        """Return all cases."""
        return Cases(self.user.array(), self.begin.array(), self.end.array())


def _leave_last_out(block: UserBlock, value: Any, part: str) -> np.ndarray:
    """Label of each interaction for the rule `LS`, int [n_interactions]."""
    if value not in ("valid_and_test", "test_only"):
        raise UserError(
            f"eval_args.split.LS: expected valid_and_test or test_only, found {value!r}"
        )
    targets = np.diff(block.start)[block.user] - 1
    from_end = targets - block.position  # 0 for a user's last interaction
    label = np.where((from_end == 0) & (targets >= 2), TEST, TRAIN)
    if value == "valid_and_test":
        label[(from_end == 1) & (targets >= 3)] = VALID
    return label


def _ratios(block: UserBlock, value: Any, part: str) -> np.ndarray:
    """Label of each interaction for the rule `RS`, int64 [n_interactions].

    As in RecBole's `Dataset._calcu_split_ids`, a split of less than one target gets one from train,
    as long as train has more than one.
    """
    ratio = _three_ratios(value, "RS")
    label = np.zeros(len(block), dtype=np.int64)
    for begin, end in zip(block.start[:-1] + 1, block.start[1:], strict=True):
        total = int(end - begin)
        counts = [int(share * total) for share in ratio]
        counts[TRAIN] = total - counts[VALID] - counts[TEST]
        for small in (TEST, VALID):
            if counts[TRAIN] <= 1:
                break
            if 0 < ratio[small] * total < 1:
                counts[small] += 1
                counts[TRAIN] -= 1
        label[begin:end] = np.repeat([TRAIN, VALID, TEST], counts)
    return label


def _temporal(block: UserBlock, value: Any, part: str) -> np.ndarray:
    """Label of each interaction for the rule `temporal`, int64 [n_interactions]."""
    ratio = _three_ratios(value, "temporal")
    if part not in ("pretrain", "continue", "both"):
        raise UserError(f"eval_args.part: expected pretrain, continue or both, found {part!r}")
    targets = (np.diff(block.start) - 1)[block.user]
    # 1e-9: 0.2 * 15 must be rounded down to 3, although its float may lie below 3
    continued, future = (np.floor(share * targets + 1e-9).astype(np.int64) for share in ratio[1:])
    from_end = targets - block.position
    in_future = from_end < future
    in_continue = ~in_future & (from_end < future + continued)
    in_pretrain = ~in_future & ~in_continue
    label = np.full(len(block), UNUSED)
    for name, inside, last in (
        ("pretrain", in_pretrain, future + continued),
        ("continue", in_continue, future),
    ):
        if part in (name, "both"):
            label[inside] = TRAIN
            label[inside & (from_end == last)] = VALID
    label[in_future] = TEST
    return label


def _timestamps(block: UserBlock, value: Any, part: str) -> np.ndarray:
    """Label of each interaction for the rule `timestamp`, int64 [n_interactions]."""
    first, second = value
    return (block.time >= first).astype(np.int64) + (block.time >= second)


def _two_times(interactions: Interactions, value: Any) -> tuple[float, float]:
    """The two times of the rule `timestamp`."""
    if not interactions.has_time:
        raise UserError(
            f"eval_args.split.timestamp: dataset {interactions.name} has no time column"
        )
    try:
        first, second = (float(bound) for bound in value)
    except (TypeError, ValueError):
        raise UserError(
            "eval_args.split.timestamp: expected two times [t1, t2] in the file's unit, "
            f"found {value!r}"
        ) from None
    if not first <= second:
        raise UserError(
            f"eval_args.split.timestamp: expected [t1, t2] with t1 before t2, found {value!r}, "
            "whose first time is after the second"
        )
    return first, second


def _three_ratios(value: Any, rule: str) -> list[float]:
    """The three ratios of a rule, divided by their sum."""
    try:
        ratio = [float(share) for share in value]
        if len(ratio) != 3 or min(ratio) < 0 or sum(ratio) <= 0:
            raise ValueError
    except (TypeError, ValueError):
        raise UserError(
            f"eval_args.split.{rule}: expected three ratios such as [0.6, 0.2, 0.2], "
            f"found {value!r}"
        ) from None
    total = sum(ratio)
    return [share / total for share in ratio]


_RULES: dict[str, Callable[[UserBlock, Any, str], np.ndarray]] = {
    "LS": _leave_last_out,
    "RS": _ratios,
    "temporal": _temporal,
    "timestamp": _timestamps,
}
