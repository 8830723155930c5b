"""Pre-split files `<name>.<part>.inter`: one row = a user's history list and the target after it."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd

from ...errors import UserError
from .atomic import read_atomic, read_header
from .tables import EVERY, Source, Tables, build

PARTS = ("train", "valid", "test")
LIST_SIGNS = re.compile(r"[,;|\[\](){}'\"]+")
PADDING = ("pad", "padding", "", "-1")  # names that no item has
FILLERS = ("0", "0.0", "none", "null", "nan")  # usual ones that an item may have, too


def load_benchmark(source: Source) -> Tables:
    """Tables whose cases come from files instead of a split.

    Windows of one user that are part of a longer one share its rows, so that files made by cutting every
    prefix of a sequence give that sequence back; any other window becomes further rows of the user. Lists
    and targets share one numbering, and a list keeps its newest items when a model reads fewer.
    """
    if len(source.benchmark) != len(PARTS):
        raise UserError(
            f"benchmark_filename: expected three suffixes (train, valid, test), found {list(source.benchmark)}"
        )
    filters = {
        "user_sample": source.user_sample != 1, "val_interval": source.value_intervals, "rm_dup_inter": source.remove_repeats,
        "user_inter_num_interval": source.user_interval != EVERY, "item_inter_num_interval": source.item_interval != EVERY,
        "need_item_row": source.need_item_row,
    }  # fmt: skip
    if used := [name for name, value in filters.items() if value]:
        raise UserError(
            f"{', '.join(used)}: files that are split already are taken as they are; leave the filter or benchmark_filename out"
        )
    list_field = f"{source.item_field}_list"
    parts = []
    for part, suffix in zip(PARTS, source.benchmark, strict=True):
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
                f"{path}: expected a column {list_field}:token_seq, the history before each {source.item_field}, its ids separated by "
                f"spaces, found {', '.join(types)}; files of single interactions, as RecBole splits them for general models, have no "
                f"histories: put them together into {source.name}.inter with their times, leave benchmark_filename out, and set "
                "eval_args.split"
            )
        columns = {source.user_field, list_field, source.item_field}
        frame = read_atomic(path, columns, numbers=False, separator=source.separator)
        for name in (source.user_field, source.item_field):
            if len(empty := np.flatnonzero(frame[name] == "")):
                raise UserError(
                    f"{path}, line {empty[0] + 2}: {name} is empty; give it an id or remove the line"
                )
        parts.append(frame.assign(part=part))
    rows = pd.concat(parts, ignore_index=True)
    if len(rows) == 0:
        raise UserError(f"{source.path('*.inter')}: the pre-split files hold no row")
    user, users = pd.factorize(rows[source.user_field].to_numpy(dtype=object))
    log = [
        f"{len(rows)} pre-split rows read: "
        + ", ".join(f"{name} {len(part)}" for name, part in zip(PARTS, parts, strict=True))
    ]
    histories = [cells.split() for cells in rows[list_field]]
    known = _known_items(source, rows)
    _check_lists(source, rows, histories, known)
    if pads := _padding(rows, histories, known, source.user_field):
        before = sum(map(len, histories))
        histories = [[token for token in history if token not in pads] for history in histories]
        log.append(
            f"{', '.join(map(repr, pads))} in {list_field} is taken for padding and left out {before - sum(map(len, histories))} times: "
            f"it stands only at an end of lists, is never a target and has no row in {source.name}.item (give it one if it is an item)"
        )
    empty = np.array([not history for history in histories])
    if empty.any():
        counts = rows["part"][empty].value_counts()
        by_part = ", ".join(f"{name} {counts[name]}" for name in PARTS if name in counts)
        log.append(
            f"{int(empty.sum())} rows have an empty {list_field} ({by_part}): they are no cases, since nothing precedes their targets"
        )
    windows = [
        [*history, target]
        for history, target in zip(histories, rows[source.item_field], strict=True)
    ]
    own_rows = np.split(np.argsort(user, kind="stable"), np.cumsum(np.bincount(user))[:-1])
    blocks = [_chain([windows[row] for row in own]) for own in own_rows]
    place = np.empty((len(rows), 3), dtype=np.int64)  # block, begin, end within the block
    for row in sorted(range(len(rows)), key=lambda r: -len(windows[r])):
        place[row] = _place(blocks[user[row]], windows[row])
    events, offsets = [], []
    for index, own in enumerate(blocks):
        offsets.append(len(events) + np.cumsum([0] + [len(block) for block in own]))
        events += [(users[index], token) for block in own for token in block]
    base = np.array([offsets[user[row]][place[row, 0]] for row in range(len(rows))])
    frame = pd.DataFrame(events, columns=[source.user_field, source.item_field])
    frame[source.time_field] = np.arange(len(frame), dtype=np.float64)
    tables = build(source, frame, False, log)
    bounds = np.stack([base + place[:, 1], base + place[:, 2]], axis=1)
    return replace(
        tables, cases={part: bounds[(rows["part"] == part).to_numpy()] for part in PARTS}
    )


def _known_items(source: Source, rows: pd.DataFrame) -> set[str]:
    """Ids that are targets or have a row in .item."""
    known = set(rows[source.item_field])
    path = source.path("item")
    if path.is_file():
        items = read_atomic(path, {source.item_field}, numbers=False, separator=source.separator)
        known |= set(items[source.item_field])
    return known


def _check_lists(
    source: Source, rows: pd.DataFrame, histories: list[list[str]], known: set[str]
) -> None:
    """Raise UserError for a list that is not ids separated by spaces, such as `[a, b]`: each piece would be an item."""
    for number, history in enumerate(histories):
        for token in history:
            if token in known:
                continue
            pieces = [piece for piece in LIST_SIGNS.split(token) if piece]
            if pieces and pieces != [token] and all(piece in known for piece in pieces):
                part = rows["part"][number]
                line = number - int((rows["part"] == part).to_numpy().argmax()) + 2
                path = source.path(f"{source.benchmark[PARTS.index(part)]}.inter")
                raise UserError(
                    f"{path}, line {line}: expected ids separated by spaces in {source.item_field}_list, found {token[:60]!r}, which is "
                    f"made of the ids {', '.join(pieces[:3])}{', …' if len(pieces) > 3 else ''}; write the list as `{' '.join(pieces[:3])}`"
                )


def _padding(
    rows: pd.DataFrame, histories: list[list[str]], known: set[str], user_field: str
) -> list[str]:
    """Tokens that fill lists up and are no items.

    Padding is never a target, has no row in .item, and stands in one run at the beginning of lists, or at
    their end. Beyond that, its name tells (`[PAD]`), or it fills lists of several users by runs of
    more than one; a name that says nothing must also have made all lists of each file equally long.
    """
    unknown = {token for history in histories for token in history} - known
    if not unknown:
        return []
    at_ends = {token: {"head", "tail"} for token in unknown}
    users: dict[str, set[str]] = {token: set() for token in unknown}
    longest = dict.fromkeys(unknown, 0)
    for user, history in zip(rows[user_field], histories, strict=True):
        for token in unknown.intersection(history):
            count = history.count(token)
            users[token].add(user)
            longest[token] = max(longest[token], count)
            if history[:count] != [token] * count:
                at_ends[token].discard("head")
            if history[-count:] != [token] * count:
                at_ends[token].discard("tail")
    sizes = pd.Series(map(len, histories)).groupby(rows["part"].to_numpy()).nunique()
    one_length = bool((sizes == 1).all())
    padding = []
    for token in sorted(token for token in unknown if at_ends[token]):
        fills = longest[token] > 1 and len(users[token]) > 1
        if token.strip("[]<>()_'\"").casefold() in PADDING or (
            fills and (token.casefold() in FILLERS or one_length)
        ):
            padding.append(token)
    return padding


def _chain(windows: list[list[str]]) -> list[list[str]]:
    """Join a user's longest windows, cut to one length by whoever made the file, where one continues another."""
    size = max(map(len, windows))
    after = {tuple(window[:-1]): window for window in windows if len(window) == size}
    ends = {tuple(window[1:]) for window in windows if len(window) == size}
    blocks = []
    for first in [head for head in after if head not in ends]:
        block = after.pop(first).copy()
        while following := after.pop(tuple(block[1 - size :]), None):
            block.append(following[-1])
        blocks.append(block)
    return blocks


def _place(blocks: list[list[str]], window: list[str]) -> tuple[int, int, int]:
    size = len(window)
    for number, block in enumerate(blocks):
        for begin in range(len(block) - size + 1):
            if block[begin + size - 1] == window[-1] and block[begin : begin + size] == window:
                return number, begin, begin + size - 1
    blocks.append(window)
    return len(blocks) - 1, 0, size - 1
