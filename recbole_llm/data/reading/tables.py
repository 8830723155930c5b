"""Interactions and item texts as plain arrays: read once, filtered once, ordered by exact time.

Every model of the harness, RecBole's own included, sees the users, items and order of one `Tables`.
"""

import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from ...errors import UserError
from .atomic import read_atomic, read_header

EVERY = "[0,inf)"
REVIEW = "review"  # a column of what the user wrote, or of its hash
TIME_NAME = re.compile(
    r"time|date|(^|_)(day|month|year|ts|epoch|when|moment)(_|$)|(?-i:[a-z]At)$|_at$", re.IGNORECASE
)


@dataclass(frozen=True)
class Tables:
    """The events of all users, sorted by (user, time, file order), and the side tables aligned with them.

    User u's events are rows start[u] : start[u + 1]. RecBole's internal ids are these indices + 1, as both
    number tokens by first appearance in the file.
    """

    name: str
    users: np.ndarray  # [n_users] str tokens
    items: np.ndarray  # [n_items] str tokens
    start: np.ndarray  # [n_users + 1] int64
    item: np.ndarray  # [n_events] int32, index into items
    time: np.ndarray  # [n_events] float64; the row number where the file has no time column
    file_order: np.ndarray  # [n_events] int64: events[file_order] restores the order of the file
    columns: dict[str, np.ndarray]  # further columns of .inter, [n_events] each
    item_table: pd.DataFrame  # row i describes items[i]; str cells; "" where unknown
    item_types: dict[str, str]  # column -> atomic type
    user_table: pd.DataFrame | None = None
    user_types: dict[str, str] = field(default_factory=dict)
    has_time: bool = True
    log: tuple[str, ...] = ()  # what was read, filtered and left out, one line each
    cases: dict[str, np.ndarray] | None = (
        None  # benchmark files: split name -> (begin, end) rows, [n, 2] int64
    )
    strangers: str | None = None  # where no item of an event has a row in .item: that, in words
    item_row: np.ndarray | None = (
        None  # [n_items] int64: row of .item, whatever is filtered, -1 for none; None without that file
    )

    @cached_property
    def user(self) -> np.ndarray:
        """[n_events] int32 user index of each event."""
        return np.repeat(np.arange(len(self.users), dtype=np.int32), np.diff(self.start))

    @cached_property
    def position(self) -> np.ndarray:
        """[n_events] int64 index of each event in its user's sequence."""
        return np.arange(len(self.item)) - self.start[self.user]

    @cached_property
    def met(self) -> np.ndarray:
        """[n_users] int64: how many different items each user has met."""
        return np.bincount(
            np.unique(self.user.astype(np.int64) * len(self.items) + self.item) // len(self.items),
            minlength=len(self.users),
        )

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over users, items, order, times and side tables: equal data, equal fingerprint."""
        digest = hashlib.sha256()
        for tokens in (self.users, self.items):
            digest.update("\0".join(tokens).encode())
        for array in (
            self.start,
            self.item,
            self.time,
            *(self.columns[key] for key in sorted(self.columns)),
        ):
            digest.update(
                np.ascontiguousarray(
                    array if array.dtype != object else array.astype(str)
                ).tobytes()
            )
        for table, types in (
            (self.item_table, self.item_types),
            (self.user_table, self.user_types),
        ):
            for name in (
                () if table is None else table
            ):  # a column's type decides what a model makes of its cells
                digest.update(f"{name}:{types[name]}\0".encode() + "\0".join(table[name]).encode())
        for split, rows in sorted((self.cases or {}).items()):
            digest.update(split.encode() + rows.tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Source:
    """What to read and how to filter it. Field names are the configuration keys of the same meaning.

    user_interval / item_interval bound the number of events (k-core, repeated until nothing changes);
    value_intervals bounds float columns; all are RecBole's interval strings such as "[5,inf)".
    """

    folder: Path
    name: str
    user_field: str = "user_id"
    item_field: str = "item_id"
    time_field: str = "timestamp"
    rating_field: str = "rating"
    inter_columns: frozenset[str] | None = frozenset()  # further columns of .inter; None takes all
    dedup: str = "event"  # event | consecutive | consecutive_item | none
    remove_repeats: str | None = None  # first | last: keep one event per (user, item)
    catalogue: str = "met"  # met | all
    user_sample: float = 1.0
    sample_seed: int = 0
    user_interval: str = EVERY
    item_interval: str = EVERY
    value_intervals: tuple[tuple[str, str], ...] = ()
    need_item_row: bool = False  # leave out events of items that .item does not list
    benchmark: tuple[str, ...] = ()  # suffixes of pre-split files
    separator: str = "\t"  # between the cells of files without a tab in their header

    def path(self, suffix: str) -> Path:
        return self.folder / f"{self.name}.{suffix}"


def load(source: Source) -> Tables:
    """Read and filter one dataset. Raises UserError on a missing file or column, or when nothing is left."""
    if source.benchmark:
        from .benchmark import load_benchmark

        return load_benchmark(source)
    log = []
    frame = _read_interactions(source)
    has_time = source.time_field in frame
    if not has_time:
        log.append(
            f"no column {source.time_field}: the order of the file is the order of time"
            f"{_times_elsewhere(source)}"
        )
        frame[source.time_field] = np.arange(len(frame), dtype=np.float64)
    log.append(f"{len(frame)} events read from {source.folder}")
    frame = _deduplicate(frame, source, has_time, log)
    frame = _filter(frame, source, log)
    if len(frame) == 0:
        raise UserError(
            f"{source.path('inter')}: no event is left after filtering; " + "; ".join(log)
        )
    return build(source, frame, has_time, log)


def _times_elsewhere(source: Source) -> str:
    """A hint at a column whose name is that of a time, for a dataset without its time column."""
    types = read_header(source.path("inter"), source.separator)
    core = {source.user_field, source.item_field, source.rating_field}
    names = [name for name in types if TIME_NAME.search(name) and name not in core]
    if not names:
        return ""
    name = names[0]
    if types[name] != "float":
        return (
            f"; if {name}:{types[name]} is the time, write it as a number in a column "
            f"{source.time_field}:float"
        )
    return f"; if {name} is the time, set --TIME_FIELD={name}"


def build(source: Source, frame: pd.DataFrame, has_time: bool, log: list[str]) -> Tables:
    """Tables from a filtered frame of events in file order."""
    (user, users), (item, items) = (
        _number(frame[name]) for name in (source.user_field, source.item_field)
    )
    time = frame[source.time_field].to_numpy(dtype=np.float64)
    order = np.lexsort((time, user))  # stable: equal times keep the order of the file
    file_order = np.empty_like(order)
    file_order[order] = np.arange(len(order))
    item_table, item_types = _side_table(source, "item", source.item_field, log)
    strangers = None
    if item_table is not None and len(item_table) and not item_table.index.isin(items).any():
        strangers = f"no {source.item_field} of the events has a row in {source.path('item').name}: {items[0]!r} is an event's, {item_table.index[0]!r} a row's"
    if source.catalogue == "all" and item_table is not None:
        items = np.concatenate(
            [items, np.setdiff1d(item_table.index.to_numpy(dtype=object), items)]
        )
    elif source.catalogue not in ("met", "all"):
        raise UserError(f"catalogue: expected met or all, found {source.catalogue!r}")
    user_table, user_types = _side_table(source, "user", source.user_field, log)
    core = {source.user_field, source.item_field, source.time_field}
    tables = Tables(
        name=source.name, users=users, items=items, has_time=has_time,
        start=np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(users)))]).astype(np.int64),
        item=item[order].astype(np.int32), time=time[order], file_order=file_order,
        columns={name: frame[name].to_numpy()[order] for name in frame if name not in core},
        item_table=_align(item_table, items, source.path("item"), log), item_types=item_types,
        user_table=None if user_table is None else _align(user_table, users, source.path("user"), log),
        user_types=user_types, log=tuple(log), strangers=strangers,
        item_row=None if item_table is None else item_table.index.get_indexer(items),
    )  # fmt: skip
    return tables


def _number(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """(number of each row's token, tokens by first appearance) without a Python string per row."""
    codes, tokens = pd.factorize(column)
    return codes, np.asarray(tokens, dtype=object)


def _read_interactions(source: Source) -> pd.DataFrame:
    path = source.path("inter")
    if not path.is_file():
        raise UserError(f"{path} not found; expected the interactions of {source.name} there")
    types = read_header(path, source.separator)
    for name in (source.user_field, source.item_field):
        if name not in types:
            raise UserError(
                f"{path}: expected a column {name}, found {', '.join(types)}; rename it or set its key (USER_ID_FIELD, …)"
            )
    if types.get(source.time_field, "float") != "float":
        raise UserError(
            f"{path}: expected {source.time_field}:float, found {source.time_field}:{types[source.time_field]}; write the times as numbers"
        )
    wanted = None
    if source.inter_columns is not None:
        if missing := sorted(source.inter_columns - set(types) - {source.time_field}):
            raise UserError(
                f"{path} has no column {', '.join(missing)}; it has {', '.join(types)}; set load_col or threshold"
            )
        wanted = {
            source.user_field,
            source.item_field,
            source.time_field,
            source.rating_field,
        } | source.inter_columns
        wanted |= {name for name, _ in source.value_intervals}
        if source.dedup == "consecutive":
            wanted.add(REVIEW)
    frame = read_atomic(path, wanted, separator=source.separator)
    for name in (source.user_field, source.item_field):
        empty = np.flatnonzero(frame[name] == "")
        if len(empty):
            raise UserError(
                f"{path}, line {empty[0] + 2}: {name} is empty ({len(empty)} such lines); give it an id or remove the line"
            )
    if source.time_field in frame and len(
        bad := np.flatnonzero(~np.isfinite(frame[source.time_field]))
    ):
        cells = read_atomic(path, {source.time_field}, numbers=False, separator=source.separator)
        cell = cells[source.time_field][bad[0]]
        raise UserError(
            f"{path}, line {bad[0] + 2}: expected a finite number in column {source.time_field}, found {cell!r} ({len(bad)} such lines); "
            "correct it or remove the line"
        )
    return frame


def _deduplicate(
    frame: pd.DataFrame, source: Source, has_time: bool, log: list[str]
) -> pd.DataFrame:
    before = len(frame)
    pair = [source.user_field, source.item_field]
    event = pair + [name for name in (source.time_field, source.rating_field) if name in frame]
    if source.dedup == "event":
        if has_time:
            frame = frame[~frame.duplicated(event)]
    elif source.dedup == "consecutive":
        if has_time:
            frame = frame[~_repeats(frame, event + [REVIEW] * (REVIEW in frame), source)]
        if source.inter_columns is not None and REVIEW not in source.inter_columns:
            frame = frame.drop(columns=REVIEW, errors="ignore")
    elif source.dedup == "consecutive_item":
        frame = frame[~_repeats(frame, pair, source)]
    elif source.dedup != "none":
        raise UserError(
            f"dedup: expected event, consecutive, consecutive_item or none, found {source.dedup!r}"
        )
    if source.remove_repeats:
        if source.remove_repeats not in ("first", "last"):
            raise UserError(
                f"rm_dup_inter: expected first or last, found {source.remove_repeats!r}"
            )
        order = np.argsort(frame[source.time_field].to_numpy(), kind="stable")
        repeat = frame.iloc[order].duplicated(pair, keep=source.remove_repeats).sort_index()
        frame = frame[~repeat]
    if len(frame) < before:
        log.append(f"{before - len(frame)} duplicate events left out (dedup: {source.dedup})")
    return frame.reset_index(drop=True)


def _repeats(frame: pd.DataFrame, columns: list[str], source: Source) -> pd.Series:
    """Whether each event equals its user's event before it in these columns.

    Two missing cells are equal.
    """
    order = np.lexsort((frame[source.time_field], pd.factorize(frame[source.user_field])[0]))
    cells = frame[columns].iloc[order]
    before = cells.shift()
    same = (cells == before) | (cells.isna() & before.isna())
    repeat = same.all(axis=1)
    repeat.iloc[:1] = False  # nothing is before it
    return repeat.sort_index()


def _filter(frame: pd.DataFrame, source: Source, log: list[str]) -> pd.DataFrame:
    for name, interval in source.value_intervals:
        if name not in frame:
            raise UserError(
                f"val_interval: {source.path('inter')} has no column {name}; it has {', '.join(frame)}"
            )
        if frame[name].dtype != np.float64:
            raise UserError(
                f"val_interval: column {name} of {source.path('inter')} holds no numbers; only float columns can be bounded"
            )
        kept = _inside(frame[name].to_numpy(), interval, f"val_interval.{name}")
        log.append(f"{int((~kept).sum())} events with {name} outside {interval} left out")
        frame = frame[kept]
    if source.need_item_row and source.path("item").is_file():
        path = source.path("item")
        known = read_atomic(path, {source.item_field}, numbers=False, separator=source.separator)[
            source.item_field
        ]
        kept = frame[source.item_field].isin(known)
        if not kept.all():
            log.append(
                f"{int((~kept).sum())} events of items that are not in {source.path('item').name} left out"
            )
        frame = frame[kept]
    if source.user_sample <= 0 or source.user_sample > 1 and source.user_sample % 1:
        raise UserError(
            f"user_sample: expected a fraction up to 1 or a number of users above it, found {source.user_sample}"
        )
    if source.user_sample != 1:
        tokens = np.sort(frame[source.user_field].unique().astype(str))
        kept = max(
            1,
            round(
                len(tokens) * source.user_sample if source.user_sample < 1 else source.user_sample
            ),
        )
        chosen = np.random.default_rng(source.sample_seed).permutation(tokens)[:kept]
        frame = frame[frame[source.user_field].isin(chosen)]
        log.append(
            f"{len(chosen)} of {len(tokens)} users drawn (user_sample: {source.user_sample}, sample_seed: {source.sample_seed})"
        )
    return _k_core(frame, source, log)


def _k_core(frame: pd.DataFrame, source: Source, log: list[str]) -> pd.DataFrame:
    """Drop users and items whose number of events is outside the intervals until none is left outside."""
    user, item = (pd.factorize(frame[name])[0] for name in (source.user_field, source.item_field))
    kept = np.ones(len(frame), dtype=bool)
    while True:
        user_events = np.bincount(user[kept], minlength=user.max(initial=0) + 1)
        item_events = np.bincount(item[kept], minlength=item.max(initial=0) + 1)
        bad = ~_inside(user_events, source.user_interval, "user_inter_num_interval")[user]
        bad |= ~_inside(item_events, source.item_interval, "item_inter_num_interval")[item]
        if not (bad & kept).any():
            break
        kept &= ~bad
    if not kept.all():
        log.append(
            f"{int((~kept).sum())} events left out (users with {source.user_interval}, items with {source.item_interval} events stay)"
        )
    return frame[kept]


def _inside(values: np.ndarray, interval: str, key: str) -> np.ndarray:
    """bool [n]: which values lie in an interval. key: the setting that names it, for the error."""
    text = str(interval).strip()
    try:
        low, high = (float(end) for end in text[1:-1].split(","))
        if text[0] not in "[(" or text[-1] not in "])":
            raise ValueError
    except (ValueError, IndexError):
        raise UserError(
            f'{key}: expected an interval such as "[5,inf)", found {interval!r}'
        ) from None
    above = values >= low if text[0] == "[" else values > low
    return above & (values <= high if text[-1] == "]" else values < high)


def _side_table(
    source: Source, kind: str, key: str, log: list[str]
) -> tuple[pd.DataFrame | None, dict[str, str]]:
    """A .item or .user file with its id as index.

    Of several rows of an id, each column's first cell that is not empty counts.
    """
    path = source.path(kind)
    if not path.is_file():
        return None, {}
    types = read_header(path, source.separator)
    if key not in types:
        raise UserError(f"{path}: expected a column {key}, found {', '.join(types)}")
    frame = read_atomic(path, numbers=False, separator=source.separator)
    repeated = frame.duplicated(key)
    if repeated.any():
        frame = _joined(frame, repeated, key, path, log)
    return frame.set_index(key), {name: kind for name, kind in types.items() if name != key}


def _joined(
    frame: pd.DataFrame, repeated: pd.Series, key: str, path: Path, log: list[str]
) -> pd.DataFrame:
    """One row of each id, in the place of its first one, and a line of how many there were."""
    several = frame[frame[key].isin(frame[key][repeated])]
    columns = [name for name in frame if name != key]
    filled = several[[key, *columns]].replace("", np.nan).infer_objects()
    by_id = filled.groupby(key, sort=False)
    first = by_id.first().fillna("")
    frame = frame[~repeated].copy()
    again = frame[key].isin(first.index)
    for name in columns:
        frame.loc[again, name] = frame.loc[again, key].map(first[name])
    differing = (by_id[columns].nunique() > 1).any(axis=1)
    line = (
        f"{int(repeated.sum())} further rows of {path.name} are of an id that has a row: of each column "
        "the first cell that is not empty is taken"
    )
    if differing.any():
        ids = differing.index[differing]
        line += (
            f"; rows of {len(ids)} ids differ: {', '.join(ids[:3])}{', …' if len(ids) > 3 else ''}"
        )
    log.append(line)
    return frame


def _align(
    frame: pd.DataFrame | None, tokens: np.ndarray, path: Path, log: list[str]
) -> pd.DataFrame:
    """Rows in the order of tokens; a token without a row gets empty cells and is counted."""
    if frame is None:
        return pd.DataFrame(index=range(len(tokens)))
    rows = frame.index.get_indexer(tokens)
    if (rows < 0).any():
        missing = tokens[rows < 0]
        log.append(
            f"{len(missing)} of {len(tokens)} ids have no row in {path.name}: {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}"
        )
    blank = pd.DataFrame({name: [""] for name in frame})
    table = pd.concat([frame.reset_index(drop=True), blank], ignore_index=True)
    return table.iloc[np.where(rows < 0, len(frame), rows)].reset_index(drop=True)
