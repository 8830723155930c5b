"""Pre-split files `<name>.<split>.inter`, where one row is a user's history list and its target."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import pandas as pd

from ...contracts.interactions import Interactions
from ...errors import UserError
from .atomic import read_atomic, read_header
from .interactions import UNBOUNDED, Source, build

SPLITS = ("train", "valid", "test")
LIST_SIGNS = re.compile(r"[,;|\[\](){}'\"]+")
PADDING_NAMES = ("pad", "padding", "", "-1")  # only padding has such a name
AMBIGUOUS_NAMES = ("0", "0.0", "none", "null", "nan")  # usual for padding, but possible for an item


@dataclass
class _Rows:
    """The rows of the pre-split files, in the order of the files.

    Attributes
    ----------
    frame : DataFrame
        The cells of each row, with its split in the column `split`.
    histories : list of list of str
        Item ids of each row's history, oldest first.
    targets : list of str
        Item id that follows each history.
    known : set of str
        Ids that are surely items: targets, and those with a row in .item.
    """

    frame: pd.DataFrame
    histories: list[list[str]]
    targets: list[str]
    known: set[str]


def load_benchmark(source: Source) -> Interactions:
    """Read a dataset that is split already; its cases come from the files.

    A row's window is its history and its target. Windows of one user that are part of a longer
    window share its interactions, so that files made by cutting every prefix of a sequence give
    that sequence back; any other window becomes further interactions of the user. Lists and targets
    share one numbering. A model that reads fewer items than a list has reads the newest ones.

    Parameters
    ----------
    source : Source
        Which files to read.

    Returns
    -------
    Interactions
        The dataset, with `cases`.

    Raises
    ------
    UserError
        If a file, a column or an id is missing, a list is not written as ids separated by spaces,
        or a filter is set.
    """
    _check_settings(source)
    frames = [
        _read_split(source, split, suffix)
        for split, suffix in zip(SPLITS, source.benchmark, strict=True)
    ]
    rows = _parse(source, pd.concat(frames, ignore_index=True))
    counts = ", ".join(f"{split} {len(frame)}" for split, frame in zip(SPLITS, frames, strict=True))
    log = [f"{len(rows.frame)} pre-split rows read: {counts}"]
    _check_lists(source, rows)
    _remove_padding(source, rows, log)
    _log_empty_histories(source, rows, log)
    interactions, bounds = _sequences(source, rows)
    interactions[source.time_field] = np.arange(len(interactions), dtype=np.float64)
    interactions = build(source, interactions, False, log)
    cases = {split: bounds[(rows.frame["split"] == split).to_numpy()] for split in SPLITS}
    return replace(interactions, cases=cases)


def _check_settings(source: Source) -> None:
    """Raise UserError for a wrong number of files, or for filters, which are not applied here."""
    if len(source.benchmark) != len(SPLITS):
        raise UserError(
            "benchmark_filename: expected three suffixes (train, valid, test), "
            f"found {list(source.benchmark)}"
        )
    is_set = {
        "user_sample": source.user_sample != 1,
        "val_interval": source.value_intervals,
        "rm_dup_inter": source.remove_repeats,
        "user_inter_num_interval": source.user_interval != UNBOUNDED,
        "item_inter_num_interval": source.item_interval != UNBOUNDED,
        "need_item_row": source.need_item_row,
    }
    filters = [name for name, value in is_set.items() if value]
    if filters:
        raise UserError(
            f"{', '.join(filters)}: files that are split already are taken as they are; "
            "leave the filter or benchmark_filename out"
        )


def _read_split(source: Source, split: str, suffix: str) -> pd.DataFrame:
    """The rows of one file, with a column `split`; its columns and ids are checked."""
    list_field = f"{source.item_field}_list"
    path = source.path(f"{suffix}.inter")
    if not path.is_file():
        raise UserError(
            f"{path} not found; benchmark_filename names the files <dataset>.<suffix>.inter"
        )
    types = read_header(path, source.separator)
    for name in (source.user_field, source.item_field):
        if name not in types:
            raise UserError(f"{path}: expected a column {name}, found {', '.join(types)}")
    if list_field not in types:
        raise UserError(
            f"{path}: expected a column {list_field}:token_seq, the history before each "
            f"{source.item_field}, its ids separated by spaces, found {', '.join(types)}; files of "
            "single interactions, as RecBole splits them for general models, have no histories: "
            f"put them together into {source.name}.inter with their times, "
            "leave benchmark_filename out, and set eval_args.split"
        )
    columns = {source.user_field, list_field, source.item_field}
    frame = read_atomic(path, columns, numbers=False, separator=source.separator)
    for name in (source.user_field, source.item_field):
        empty = np.flatnonzero(frame[name] == "")
        if len(empty):
            raise UserError(
                f"{path}, line {empty[0] + 2}: {name} is empty; give it an id or remove the line"
            )
    return frame.assign(split=split)


def _parse(source: Source, frame: pd.DataFrame) -> _Rows:
    """Split the history lists at spaces, and collect the ids that are surely items."""
    if len(frame) == 0:
        raise UserError(f"{source.path('*.inter')}: the pre-split files hold no row")
    histories = [cell.split() for cell in frame[f"{source.item_field}_list"]]
    known = set(frame[source.item_field])
    path = source.path("item")
    if path.is_file():
        items = read_atomic(path, {source.item_field}, numbers=False, separator=source.separator)
        known |= set(items[source.item_field])
    return _Rows(frame, histories, list(frame[source.item_field]), known)


def _check_lists(source: Source, rows: _Rows) -> None:
    """Raise UserError for a list with other signs than spaces, such as `[a, b]`.

    Each piece between spaces would be taken for an item of its own.
    """
    for number, history in enumerate(rows.histories):
        for token in history:
            if token in rows.known:
                continue
            pieces = [piece for piece in LIST_SIGNS.split(token) if piece]
            if pieces and pieces != [token] and all(piece in rows.known for piece in pieces):
                raise _list_error(source, rows, number, token, pieces)


def _list_error(
    source: Source, rows: _Rows, number: int, token: str, pieces: list[str]
) -> UserError:
    """The error for a token of row `number` that consists of several ids."""
    split = rows.frame["split"][number]
    first = int((rows.frame["split"] == split).to_numpy().argmax())
    path = source.path(f"{source.benchmark[SPLITS.index(split)]}.inter")
    return UserError(
        f"{path}, line {number - first + 2}: expected ids separated by spaces in "
        f"{source.item_field}_list, found {token[:60]!r}, which is made of the ids "
        f"{', '.join(pieces[:3])}{', …' if len(pieces) > 3 else ''}; "
        f"write the list as `{' '.join(pieces[:3])}`"
    )


def _remove_padding(source: Source, rows: _Rows, log: list[str]) -> None:
    """Remove padding tokens from the histories, and log how many there were."""
    padding = _padding_tokens(rows, source.user_field)
    if not padding:
        return
    before = sum(len(history) for history in rows.histories)
    for number, history in enumerate(rows.histories):
        rows.histories[number] = [token for token in history if token not in padding]
    after = sum(len(history) for history in rows.histories)
    log.append(
        f"{', '.join(map(repr, padding))} in {source.item_field}_list is taken for padding and "
        f"left out {before - after} times: it stands only at an end of lists, is never a target "
        f"and has no row in {source.name}.item (give it one if it is an item)"
    )


def _padding_tokens(rows: _Rows, user_field: str) -> list[str]:
    """Tokens that pad the lists and are no items, sorted.

    Padding is never a target, has no row in .item, and is one run at the beginning of lists, or at
    their end. Besides, one of these must hold:

    - its name says so (`[PAD]`);
    - it pads lists of several users by runs of more than one token, and its name is usual for
      padding (`0`) or all lists of each file are equally long.
    """
    unknown = set(chain.from_iterable(rows.histories)) - rows.known
    if not unknown:
        return []
    ends = {token: {"head", "tail"} for token in unknown}  # where all runs of the token are
    users: dict[str, set[str]] = {token: set() for token in unknown}
    longest_run = dict.fromkeys(unknown, 0)
    for user, history in zip(rows.frame[user_field], rows.histories, strict=True):
        for token in unknown.intersection(history):
            count = history.count(token)
            users[token].add(user)
            longest_run[token] = max(longest_run[token], count)
            if history[:count] != [token] * count:
                ends[token].discard("head")
            if history[-count:] != [token] * count:
                ends[token].discard("tail")
    lengths = pd.Series([len(history) for history in rows.histories])
    lengths_per_file = lengths.groupby(rows.frame["split"].to_numpy()).nunique()
    equally_long = bool((lengths_per_file == 1).all())
    padding = []
    for token in sorted(token for token in unknown if ends[token]):
        pads_by_runs = longest_run[token] > 1 and len(users[token]) > 1
        usual_name = token.casefold() in AMBIGUOUS_NAMES
        has_padding_name = token.strip("[]<>()_'\"").casefold() in PADDING_NAMES
        if has_padding_name or (pads_by_runs and (usual_name or equally_long)):
            padding.append(token)
    return padding


def _log_empty_histories(source: Source, rows: _Rows, log: list[str]) -> None:
    """Log how many rows are no cases because their history is empty."""
    empty = np.array([not history for history in rows.histories])
    if not empty.any():
        return
    counts = rows.frame["split"][empty].value_counts()
    per_split = ", ".join(f"{split} {counts[split]}" for split in SPLITS if split in counts)
    log.append(
        f"{int(empty.sum())} rows have an empty {source.item_field}_list ({per_split}): "
        "they are no cases, since nothing precedes their targets"
    )


def _sequences(source: Source, rows: _Rows) -> tuple[pd.DataFrame, np.ndarray]:
    """Merge the windows of each user into as few sequences as hold them all.

    Returns
    -------
    interactions : DataFrame
        User and item of each interaction, users together, in the order of their sequences.
    bounds : ndarray of int64, [n_rows, 2]
        First history interaction and target of each row.
    """
    user, users = pd.factorize(rows.frame[source.user_field].to_numpy(dtype=object))
    windows = [
        [*history, target] for history, target in zip(rows.histories, rows.targets, strict=True)
    ]
    by_user = np.split(np.argsort(user, kind="stable"), np.cumsum(np.bincount(user))[:-1])
    sequences = []
    for user_rows in by_user:
        sequences.append(_chain([windows[row] for row in user_rows]))
    place = np.empty((len(windows), 3), dtype=np.int64)  # sequence, begin and end in it
    # The longest windows come first, since the shorter ones may be part of them.
    for row in sorted(range(len(windows)), key=lambda row: -len(windows[row])):
        place[row] = _place(sequences[user[row]], windows[row])
    interactions: list[tuple[str, str]] = []
    offsets = []  # of each user's sequences
    for index, user_sequences in enumerate(sequences):
        lengths = [len(sequence) for sequence in user_sequences]
        offsets.append(len(interactions) + np.cumsum([0, *lengths]))
        for sequence in user_sequences:
            interactions += [(users[index], token) for token in sequence]
    offset = np.array([offsets[user[row]][place[row, 0]] for row in range(len(windows))])
    frame = pd.DataFrame(interactions, columns=[source.user_field, source.item_field])
    return frame, np.stack([offset + place[:, 1], offset + place[:, 2]], axis=1)


def _chain(windows: Sequence[list[str]]) -> list[list[str]]:
    """Join a user's longest windows wherever one continues another by one item.

    Whoever made the file may have cut the histories to one length, so that every window of that
    length is the one before it, moved by one item.
    """
    size = max(len(window) for window in windows)
    longest = [window for window in windows if len(window) == size]
    by_history = {tuple(window[:-1]): window for window in longest}
    ends = {tuple(window[1:]) for window in longest}
    sequences = []
    for first in [history for history in by_history if history not in ends]:
        sequence = by_history.pop(first).copy()
        next_window = by_history.pop(tuple(sequence[1 - size :]), None)
        while next_window:
            sequence.append(next_window[-1])
            next_window = by_history.pop(tuple(sequence[1 - size :]), None)
        sequences.append(sequence)
    return sequences


def _place(sequences: list[list[str]], window: list[str]) -> tuple[int, int, int]:
    """Find a window in a user's sequences: number of the sequence, begin, and end (its target).

    A window that is in none of them is appended as a sequence of its own.
    """
    target, length = window[-1], len(window) - 1  # of the history
    for number, sequence in enumerate(sequences):
        for end in range(length, len(sequence)):
            if sequence[end] == target and sequence[end - length : end + 1] == window:
                return number, end - length, end
    sequences.append(window)
    return len(sequences) - 1, 0, length
