"""Who is predicted what: the train, validation and test cases of one dataset, the same for every model."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...contracts.cases import Cases
from ...errors import UserError
from ..reading.tables import Tables


@dataclass(frozen=True)
class Split:
    """Cases of the three parts, and the events a model without sequences may train on."""

    train: Cases
    valid: Cases
    test: Cases
    train_events: np.ndarray  # bool [n_events]


def whole_history(tables: Tables, rows: np.ndarray) -> Cases:
    """Cases that predict event rows from everything their user did before."""
    user = tables.user[rows]
    return Cases(user, tables.start[user], rows.astype(np.int64))


def draw(cases: Cases, most: int) -> Cases:
    """At most so many of them (0: all), in their order; the same ones for every model and seed."""
    if not most or len(cases) <= most:
        return cases
    return cases[np.sort(np.random.default_rng(0).permutation(len(cases))[:most])]


def make_split(tables: Tables, split: dict, part: str = "pretrain") -> Split:
    """Cut a dataset by `eval_args.split`, a dict with one entry:

    - `LS: valid_and_test | test_only`: the last one or two events of each user are held out. As
      in RecBole's sequential split, a user's first event is never a target, and of short users the test event
      is kept before the validation event, and a training target before both.
    - `RS: [a, b, c]`: per-user temporal ratios of the n - 1 targets, RecBole's rounding.
    - `temporal: [a, b, c]`: the per-user history is cut into Pre-train, Continue Train and Future-Test; each
      training part gives its last target to its own validation; floor(b (n - 1)) and floor(c (n - 1)) targets,
      the rest to Pre-train. `part` chooses whose train and validation cases are used: pretrain, continue or
      both. Every Future-Test event is a test case. (UMass x Spotify, "TASTE-LoRA", 2024.)
    - `timestamp: [t1, t2]`: targets before t1 train, before t2 validate, the others test (absolute times).

    Ignored for pre-split files, which bring their cases. Raises UserError if no test or training case is left.
    """
    if tables.cases is not None:
        user, parts = tables.user, {}
        for name, rows in tables.cases.items():
            begin, end = rows[rows[:, 0] < rows[:, 1]].T  # a target without a history is no case
            parts[name] = Cases(user[end], begin, end)
        seen = np.zeros(len(tables.item) + 1, dtype=np.int64)
        np.add.at(seen, tables.cases["train"][:, 0], 1)
        np.add.at(seen, tables.cases["train"][:, 1] + 1, -1)
        result = Split(train_events=np.cumsum(seen[:-1]) > 0, **parts)
    else:
        if not isinstance(split, dict) or len(split) != 1 or next(iter(split)) not in _RULES:
            raise UserError(
                f"eval_args.split: expected one of {', '.join(_RULES)} with its value, found {split!r}"
            )
        ((rule, value),) = split.items()
        label = _RULES[rule](tables, value, part)
        rows = {
            name: np.flatnonzero(label == code)
            for name, code in (("train", 0), ("valid", 1), ("test", 2))
        }
        # A first event has no history: it is in nobody's cases, but everybody may learn from it.
        result = Split(
            **{
                name: whole_history(tables, index[tables.position[index] > 0])
                for name, index in rows.items()
            },
            train_events=label == 0,
        )
    for name in ("train", "test"):
        if len(getattr(result, name)) == 0:
            raise UserError(
                f"dataset {tables.name}: the split {split} leaves no {name} case (longest sequence: {np.diff(tables.start).max()} events); "
                "change eval_args.split or the filters"
            )
    return result


def every_case(tables: Tables) -> Cases:
    """All events that have a history, as cases with all of it."""
    return whole_history(tables, np.flatnonzero(tables.position > 0))


def _last_out(tables: Tables, value: str, part: str) -> np.ndarray:
    if value not in ("valid_and_test", "test_only"):
        raise UserError(
            f"eval_args.split.LS: expected valid_and_test or test_only, found {value!r}"
        )
    targets = np.diff(tables.start)[tables.user] - 1
    from_end = targets - tables.position  # 0 for the last event
    label = np.where((from_end == 0) & (targets >= 2), 2, 0)
    return (
        np.where((from_end == 1) & (targets >= 3), 1, label) if value == "valid_and_test" else label
    )


def _ratios(tables: Tables, value: list, part: str) -> np.ndarray:
    ratio = _three(value, "RS")
    label = np.zeros(len(tables.item), dtype=np.int64)
    for begin, end in zip(tables.start[:-1] + 1, tables.start[1:], strict=True):
        total = int(end - begin)
        counts = [int(share * total) for share in ratio]
        counts[0] = total - sum(counts[1:])
        for back in (
            1,
            2,
        ):  # RecBole's Dataset._calcu_split_ids: small parts get one from a large first part
            if counts[0] <= 1:
                break
            if 0 < ratio[-back] * total < 1:
                counts[-back] += 1
                counts[0] -= 1
        label[begin:end] = np.repeat([0, 1, 2], counts)
    return label


def _temporal(tables: Tables, value: list, part: str) -> np.ndarray:
    ratio = _three(value, "temporal")
    if part not in ("pretrain", "continue", "both"):
        raise UserError(f"eval_args.part: expected pretrain, continue or both, found {part!r}")
    targets = (np.diff(tables.start) - 1)[tables.user]
    # 1e-9: 0.2 * 15 must floor to 3 whatever the last bit says
    later, future = (np.floor(share * targets + 1e-9).astype(np.int64) for share in ratio[1:])
    from_end = targets - tables.position
    in_future = from_end < future
    in_later = ~in_future & (from_end < future + later)
    early = ~in_future & ~in_later
    label = np.full(len(tables.item), -1)
    for name, inside, last in (("pretrain", early, future + later), ("continue", in_later, future)):
        if part in (name, "both"):
            label[inside] = 0
            label[inside & (from_end == last)] = 1
    label[in_future] = 2
    return label


def _timestamps(tables: Tables, value: list, part: str) -> np.ndarray:
    if not tables.has_time:
        raise UserError(f"eval_args.split.timestamp: dataset {tables.name} has no time column")
    try:
        first, second = (float(bound) for bound in value)
    except (TypeError, ValueError):
        raise UserError(
            f"eval_args.split.timestamp: expected two times [t1, t2] in the file's unit, found {value!r}"
        ) from None
    if not first <= second:
        raise UserError(
            f"eval_args.split.timestamp: expected [t1, t2] with t1 before t2, found {value!r}, whose first time is after the second"
        )
    return (tables.time >= first).astype(np.int64) + (tables.time >= second)


def _three(value: list, rule: str) -> list[float]:
    try:
        ratio = [float(share) for share in value]
        if len(ratio) != 3 or min(ratio) < 0 or sum(ratio) <= 0:
            raise ValueError
    except (TypeError, ValueError):
        raise UserError(
            f"eval_args.split.{rule}: expected three ratios such as [0.6, 0.2, 0.2], found {value!r}"
        ) from None
    return [share / sum(ratio) for share in ratio]


_RULES: dict[str, Callable[[Tables, object, str], np.ndarray]] = {
    "LS": _last_out,
    "RS": _ratios,
    "temporal": _temporal,
    "timestamp": _timestamps,
}
