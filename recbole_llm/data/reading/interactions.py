"""Read the interactions of a dataset: once, filtered once, sorted by exact time."""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from ...contracts.interactions import Interactions
from ...errors import UserError
from .atomic import NotInPiecesError, read_atomic, read_header

STORED_BYTES = 2**26  # of an .inter file that is read in pieces
UNBOUNDED = "[0,inf)"  # the interval that every number of interactions lies in
REVIEW = "review"  # the column with the text of a user's review, or with a hash of that text
TIME_NAME = re.compile(
    r"time|date|(^|_)(day|month|year|ts|epoch|when|moment)(_|$)|(?-i:[a-z]At)$|_at$", re.IGNORECASE
)


@dataclass(frozen=True)
class Source:
    """Which files to read and how to filter them.

    A field has the name of the configuration key of the same meaning, or is its short form.
    Intervals are RecBole's strings, such as "[5,inf)".

    Attributes
    ----------
    folder : Path
        Folder of the dataset's files.
    name : str
        Name of the dataset, with which the names of its files begin.
    user_field, item_field, time_field, rating_field : str
        Names of the columns of user, item, time and rating.
    inter_columns : frozenset of str, or None
        Further columns of .inter to read; None reads all.
    dedup : {"event", "consecutive", "consecutive_item", "none"}
        Which repeated interactions to leave out.
    remove_repeats : {"first", "last"}, or None
        Which interaction of each (user, item) pair to keep; None keeps all.
    catalogue : {"met", "all"}
        Whether the items are those of the interactions, or also the other items of the .item file.
    user_sample : float
        The fraction of users to sample if at most 1; else the number of users.
    sample_seed : int
        Seed of that sample.
    user_interval, item_interval : str
        Bounds of the number of interactions of a user and of an item (k-core: applied until nothing
        changes).
    value_intervals : tuple of (str, str)
        Names of float columns, each with the interval its values must lie in.
    need_item_row : bool
        Leave out interactions with items that have no row in the .item file.
    benchmark : tuple of str
        Suffixes of pre-split files; empty for a dataset in one .inter file.
    separator : str
        Separator of the cells in files that have no tab in their header.
    cache : Path or None
        Where a large dataset is stored as numbers, for further runs; it is read as a whole each
        time where None.
    """

    folder: Path
    name: str
    user_field: str = "user_id"
    item_field: str = "item_id"
    time_field: str = "timestamp"
    rating_field: str = "rating"
    inter_columns: frozenset[str] | None = frozenset()
    dedup: str = "event"
    remove_repeats: Literal["first", "last"] | None = None
    catalogue: str = "met"
    user_sample: float = 1.0
    sample_seed: int = 0
    user_interval: str = UNBOUNDED
    item_interval: str = UNBOUNDED
    value_intervals: tuple[tuple[str, str], ...] = ()
    need_item_row: bool = False
    benchmark: tuple[str, ...] = ()
    separator: str = "\t"
    cache: Path | None = None

    def path(self, suffix: str) -> Path:
        """Make the path of one of the dataset's files.

        Parameters
        ----------
        suffix : str
            Suffix of the file, such as `inter` or `item`.

        Returns
        -------
        Path
            The path; the file need not exist.
        """
        return self.folder / f"{self.name}.{suffix}"


def load(source: Source, show_progress: bool = False) -> Interactions:
    """Read and filter one dataset.

    Parameters
    ----------
    source : Source
        Which files to read and how to filter them.
    show_progress : bool
        Whether a bar is drawn while a large dataset is read.

    Returns
    -------
    Interactions
        The remaining interactions, with the side tables of their users and items.

    Raises
    ------
    UserError
        If a file or a column is missing, a cell is wrong, or no interaction is left.
    """
    if source.benchmark:
        from .benchmark import load_benchmark

        return load_benchmark(source)
    if source.cache and _size(source.path("inter")) >= STORED_BYTES:
        from .stored import load_stored

        try:
            return load_stored(source, source.cache, show_progress)
        except NotInPiecesError as reason:
            path = source.path("inter")
            logging.getLogger().info(f"{path}: {reason}; the whole file is read into memory")
    log: list[str] = []
    frame = _read_interactions(source)
    has_time = source.time_field in frame
    if not has_time:
        frame[source.time_field] = np.arange(len(frame), dtype=np.float64)
    log += beginning_lines(source, len(frame), has_time)
    before = len(frame)
    frame = without_duplicates(frame, source, has_time)
    log += duplicates_lines(source, before - len(frame))
    frame = _filter(frame, source, log)
    if len(frame) == 0:
        raise nothing_left(source, log)
    return build(source, frame, has_time, log)


def _size(path: Path) -> int:
    """Bytes of a file; 0 of one that is not there."""
    return path.stat().st_size if path.is_file() else 0


def beginning_lines(source: Source, rows: int, has_time: bool) -> list[str]:
    """Say how many interactions were read, and whether they have times."""
    lines = [f"{rows} events read from {source.folder}"]
    if has_time:
        return lines
    without = f"no column {source.time_field}: the order of the file is the order of time"
    return [f"{without}{_suggest_time_column(source)}", *lines]


def duplicates_lines(source: Source, count: int) -> list[str]:
    """Say how many repeated interactions were left out, if any."""
    return [f"{count} duplicate events left out (dedup: {source.dedup})"] if count else []


def nothing_left(source: Source, log: Sequence[str]) -> UserError:
    """Make the error for a dataset whose interactions are all left out."""
    return UserError(f"{source.path('inter')}: no event is left after filtering; " + "; ".join(log))


def _suggest_time_column(source: Source) -> str:
    """Advice for a dataset without its time column: a column whose name suggests a time, or ""."""
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


def build(source: Source, frame: pd.DataFrame, has_time: bool, log: list[str]) -> Interactions:
    """Sort filtered interactions, number their users and items, and read the side tables.

    Parameters
    ----------
    source : Source
        Names of the columns and of the files.
    frame : DataFrame
        Interactions in file order.
    has_time : bool
        Whether their times come from the file.
    log : list of str
        What was done so far; lines about the side tables are appended.

    Returns
    -------
    Interactions
        The dataset.

    Raises
    ------
    UserError
        If a side table has no id column, or `catalogue` has a wrong value.
    """
    user, users = _number(frame[source.user_field])
    item, items = _number(frame[source.item_field])
    time = frame[source.time_field].to_numpy(dtype=np.float64)
    order = np.lexsort((time, user))  # stable: equal times keep the order of the file
    file_order = np.empty_like(order)
    file_order[order] = np.arange(len(order))
    core = {source.user_field, source.item_field, source.time_field}
    counts = np.bincount(user, minlength=len(users))
    return describe(
        source,
        users,
        items,
        log,
        start=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        item=item[order].astype(np.int32),
        time=time[order],
        file_order=file_order,
        columns={str(name): frame[name].to_numpy()[order] for name in frame if name not in core},
        has_time=has_time,
    )


def describe(
    source: Source, users: Any, items: np.ndarray, log: list[str], **arrays: Any
) -> Interactions:
    """Put interactions together with the side tables of their users and items.

    Parameters
    ----------
    source : Source
        Names of the columns and of the files.
    users : ndarray of str or StoredTokens
        Tokens of the users.
    items : ndarray of str
        Tokens of the items that occur in interactions.
    log : list of str
        What was done so far; lines about the side tables are appended.
    **arrays
        Further attributes of the interactions.

    Returns
    -------
    Interactions
        The dataset.

    Raises
    ------
    UserError
        If a side table has no id column, or `catalogue` has a wrong value.
    """
    item_side, item_types = _side_table(source, "item", source.item_field, log)
    strangers = None if item_side is None else _foreign_items(source, items, item_side)
    items = _catalogue(source, items, item_side)
    user_side, user_types = _side_table(source, "user", source.user_field, log)
    item_table = _align(item_side, items, source.path("item"), log)
    user_table = None
    if user_side is not None:
        user_table = _align(user_side, np.asarray(users), source.path("user"), log)
    return Interactions(
        name=source.name,
        users=users,
        items=items,
        item_table=item_table,
        item_types=item_types,
        user_table=user_table,
        user_types=user_types,
        log=tuple(log),
        strangers=strangers,
        item_row=None if item_side is None else item_side.index.get_indexer(pd.Index(items)),
        **arrays,
    )


def _number(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Number the tokens of a column by first appearance, without a Python string per row.

    Returns the number of each row's token, int64 [n_rows], and the tokens, str [n_tokens].
    """
    codes, tokens = pd.factorize(column)
    return codes, np.asarray(tokens, dtype=object)


def _foreign_items(source: Source, items: np.ndarray, table: pd.DataFrame) -> str | None:
    """A sentence that says so if the .item file describes none of the items; else None."""
    if not len(table) or table.index.isin(items).any():
        return None
    return (
        f"no {source.item_field} of the events has a row in {source.path('item').name}: "
        f"the events have {items[0]!r}, the rows {table.index[0]!r}"
    )


def _catalogue(source: Source, items: np.ndarray, table: pd.DataFrame | None) -> np.ndarray:
    """The tokens of all items: those of the interactions, then those of .item if `all`."""
    if source.catalogue not in ("met", "all"):
        raise UserError(f"catalogue: expected met or all, found {source.catalogue!r}")
    if source.catalogue == "met" or table is None:
        return items
    return np.concatenate([items, np.setdiff1d(table.index.to_numpy(dtype=object), items)])


def _read_interactions(source: Source) -> pd.DataFrame:
    """The .inter file with the columns that are needed, its ids and times checked."""
    path = source.path("inter")
    if not path.is_file():
        raise UserError(f"{path} not found; expected the interactions of {source.name} there")
    frame = read_atomic(path, set(needed_columns(source)), separator=source.separator)
    check_ids(source, frame)
    if source.time_field in frame:
        times = frame[source.time_field]
        check_times(source, times, lambda row: _cell(source, source.time_field, row))
    return frame


def _cell(source: Source, name: str, row: int) -> str:
    """A cell of .inter as it is written."""
    cells = read_atomic(source.path("inter"), {name}, numbers=False, separator=source.separator)
    return str(cells[name][row])


def _check_core_columns(source: Source, path: Path, types: dict[str, str]) -> None:
    """Raise UserError if the user or item column is missing, or the times are not numbers."""
    for name in (source.user_field, source.item_field):
        if name not in types:
            raise UserError(
                f"{path}: expected a column {name}, found {', '.join(types)}; "
                "rename it or set its key (USER_ID_FIELD, …)"
            )
    time_type = types.get(source.time_field, "float")
    if time_type != "float":
        raise UserError(
            f"{path}: expected {source.time_field}:float, found {source.time_field}:{time_type}; "
            "write the times as numbers"
        )


def needed_columns(source: Source) -> dict[str, str]:
    """List the columns to read from .inter, with their types.

    Parameters
    ----------
    source : Source
        Names of the columns, and of the file.

    Returns
    -------
    dict of str to str
        Name -> atomic type, in the order of the file.

    Raises
    ------
    UserError
        If the user or item column or one of `inter_columns` is missing, or times are no numbers.
    """
    path = source.path("inter")
    types = read_header(path, source.separator)
    _check_core_columns(source, path, types)
    needed = _names_of_needed(source, path, types)
    return {name: kind for name, kind in types.items() if name in needed}


def _names_of_needed(source: Source, path: Path, types: dict[str, str]) -> set[str]:
    """Names of the columns to read from .inter, and of some that it need not have."""
    if source.inter_columns is None:
        return set(types)
    missing = sorted(source.inter_columns - set(types) - {source.time_field})
    if missing:
        raise UserError(
            f"{path} has no column {', '.join(missing)}; it has {', '.join(types)}; "
            "set load_col or threshold"
        )
    core = {source.user_field, source.item_field, source.time_field, source.rating_field}
    needed = core | source.inter_columns | {name for name, _ in source.value_intervals}
    if source.dedup == "consecutive":
        needed.add(REVIEW)
    return needed


def check_ids(source: Source, frame: pd.DataFrame, where: str = "") -> None:
    """Raise UserError for an empty user or item id.

    Parameters
    ----------
    source : Source
        Names of the columns, and of the file.
    frame : DataFrame
        Some rows, which are numbered as in the file.
    where : str
        Where such lines are counted, for the message.
    """
    for name in (source.user_field, source.item_field):
        empty = frame.index[frame[name] == ""]
        if len(empty):
            raise UserError(
                f"{source.path('inter')}, line {empty[0] + 2}: {name} is empty ({len(empty)} such "
                f"lines{where}); give it an id or remove the line"
            )


def check_times(
    source: Source, times: pd.Series, cell: Callable[[int], str], where: str = ""
) -> None:
    """Raise UserError for a time that is missing or infinite.

    Parameters
    ----------
    source : Source
        Names of the columns, and of the file.
    times : Series of float
        Times of some rows, which are numbered as in the file.
    cell : callable
        Number of a row -> its time as it is written.
    where : str
        Where such lines are counted, for the message.
    """
    wrong = times.index[~np.isfinite(times)]
    if len(wrong):
        raise UserError(
            f"{source.path('inter')}, line {wrong[0] + 2}: expected a finite number in column "
            f"{source.time_field}, found {cell(wrong[0])!r} ({len(wrong)} such lines{where}); "
            "correct it or remove the line"
        )


def without_duplicates(frame: pd.DataFrame, source: Source, has_time: bool) -> pd.DataFrame:
    """Leave out repeated interactions, as `dedup` and `remove_repeats` say.

    Parameters
    ----------
    frame : DataFrame
        All interactions of some users, in the order of the file.
    source : Source
        Names of the columns, and what is left out.
    has_time : bool
        Whether times come from the file.

    Returns
    -------
    DataFrame
        The remaining interactions, numbered from 0.

    Raises
    ------
    UserError
        If a setting has a wrong value.
    """
    pair = [source.user_field, source.item_field]
    event = pair + [name for name in (source.time_field, source.rating_field) if name in frame]
    if source.dedup == "event":
        if has_time:
            frame = frame[~frame.duplicated(event)]
    elif source.dedup == "consecutive":
        if has_time:
            columns = [*event, REVIEW] if REVIEW in frame else event
            frame = frame[~_repeats(frame, columns, source)]
        if source.inter_columns is not None and REVIEW not in source.inter_columns:
            frame = frame.drop(columns=REVIEW, errors="ignore")
    elif source.dedup == "consecutive_item":
        frame = frame[~_repeats(frame, pair, source)]
    elif source.dedup != "none":
        raise UserError(
            f"dedup: expected event, consecutive, consecutive_item or none, found {source.dedup!r}"
        )
    if source.remove_repeats:
        frame = _one_per_pair(frame, pair, source)
    return frame.reset_index(drop=True)


def _one_per_pair(frame: pd.DataFrame, pair: list[str], source: Source) -> pd.DataFrame:
    """Keep the first or last interaction of each user with each item, by time."""
    if source.remove_repeats not in ("first", "last"):
        raise UserError(f"rm_dup_inter: expected first or last, found {source.remove_repeats!r}")
    order = np.argsort(frame[source.time_field].to_numpy(), kind="stable")
    repeat = frame.iloc[order].duplicated(pair, keep=source.remove_repeats).sort_index()
    return frame[~repeat]


def _repeats(frame: pd.DataFrame, columns: list[str], source: Source) -> pd.Series:
    """Whether each interaction equals the user's previous one in these columns.

    Two missing cells are equal.
    """
    order = np.lexsort((frame[source.time_field], pd.factorize(frame[source.user_field])[0]))
    cells = frame[columns].iloc[order]
    before = cells.shift()
    same = (cells == before) | (cells.isna() & before.isna())
    repeat = same.all(axis=1)
    repeat.iloc[:1] = False  # the first one has no previous one
    return repeat.sort_index()


def _filter(frame: pd.DataFrame, source: Source, log: list[str]) -> pd.DataFrame:
    """Apply the filters: values, items without a row, sample of users, k-core, in this order."""
    for name, interval in source.value_intervals:
        kept = inside_interval(frame, name, interval, source)
        log.append(values_line(name, interval, int((~kept).sum())))
        frame = frame[kept]
    if source.need_item_row and source.path("item").is_file():
        has_row = frame[source.item_field].isin(described_items(source))
        log += described_lines(source, int((~has_row).sum()))
        frame = frame[has_row]
    if source.user_sample != 1:
        tokens = np.asarray(frame[source.user_field].unique(), dtype=object)
        sample = sample_users(tokens, source)
        log.append(sample_line(source, len(sample), len(tokens)))
        frame = frame[frame[source.user_field].isin(sample)]
    return _k_core(frame, source, log)


def values_line(name: str, interval: str, count: int) -> str:
    """Say how many interactions have a value outside an interval."""
    return f"{count} events with {name} outside {interval} left out"


def described_lines(source: Source, count: int) -> list[str]:
    """Say how many interactions are with items without a row, if any."""
    name = source.path("item").name
    return [f"{count} events of items that are not in {name} left out"] if count else []


def sample_line(source: Source, count: int, total: int) -> str:
    """Say how many users were sampled."""
    return (
        f"{count} of {total} users drawn (user_sample: {source.user_sample}, "
        f"sample_seed: {source.sample_seed})"
    )


def core_lines(source: Source, count: int) -> list[str]:
    """Say how many interactions of rare users and items were left out, if any."""
    bounds = f"users with {source.user_interval}, items with {source.item_interval} events stay"
    return [f"{count} events left out ({bounds})"] if count else []


def inside_interval(frame: pd.DataFrame, name: str, interval: str, source: Source) -> np.ndarray:
    """Return whether the value of each interaction in a float column lies in an interval.

    Parameters
    ----------
    frame : DataFrame
        Interactions.
    name : str
        The column.
    interval : str
        Such as "[5,inf)".
    source : Source
        Names of the columns, and of the file.

    Returns
    -------
    ndarray of bool [rows]

    Raises
    ------
    UserError
        If there is no such column, it has no numbers, or the interval is none.
    """
    path = source.path("inter")
    if name not in frame:
        raise UserError(
            f"val_interval: {path} has no column {name}; it has {', '.join(map(str, frame))}"
        )
    if frame[name].dtype != np.float64:
        raise UserError(
            f"val_interval: column {name} of {path} holds no numbers; "
            "only float columns can be bounded"
        )
    return inside(frame[name].to_numpy(), interval, f"val_interval.{name}")


def described_items(source: Source) -> pd.Series:
    """Return the ids of the items that have a row in the .item file."""
    name = source.item_field
    table = read_atomic(source.path("item"), {name}, numbers=False, separator=source.separator)
    return table[name]


def check_sample(source: Source) -> None:
    """Raise UserError if `user_sample` is neither a fraction nor a number of users."""
    size = source.user_sample
    if size <= 0 or size > 1 and size % 1:
        raise UserError(
            f"user_sample: expected a fraction up to 1 or a number of users above it, found {size}"
        )


def sample_users(tokens: np.ndarray, source: Source) -> np.ndarray:
    """Draw a seeded sample of users.

    The tokens are sorted before they are shuffled, so that the order of the file does not matter.

    Parameters
    ----------
    tokens : ndarray of str
        The users, each once.
    source : Source
        Size and seed of the sample.

    Returns
    -------
    ndarray of str
        The sample.

    Raises
    ------
    UserError
        If `user_sample` is no size.
    """
    check_sample(source)
    size = source.user_sample
    count = max(1, round(len(tokens) * size if size < 1 else size))
    return np.random.default_rng(source.sample_seed).permutation(np.sort(tokens))[:count]


def _k_core(frame: pd.DataFrame, source: Source, log: list[str]) -> pd.DataFrame:
    """Drop users and items with too few or too many interactions until none is left of them."""
    user = pd.factorize(frame[source.user_field])[0]
    item = pd.factorize(frame[source.item_field])[0]
    keep = np.ones(len(frame), dtype=bool)
    while True:
        user_counts = np.bincount(user[keep], minlength=user.max(initial=0) + 1)
        item_counts = np.bincount(item[keep], minlength=item.max(initial=0) + 1)
        drop = ~inside(user_counts, source.user_interval, "user_inter_num_interval")[user]
        drop |= ~inside(item_counts, source.item_interval, "item_inter_num_interval")[item]
        if not (drop & keep).any():
            break
        keep &= ~drop
    log += core_lines(source, int((~keep).sum()))
    return frame[keep]


def inside(values: np.ndarray, interval: str, key: str) -> np.ndarray:
    """Return whether each value lies in an interval.

    Parameters
    ----------
    values : ndarray [n]
        Numbers.
    interval : str
        Such as "[5,inf)".
    key : str
        The setting that gives it, for the error message.

    Returns
    -------
    ndarray of bool [n]

    Raises
    ------
    UserError
        If the interval is none.
    """
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
    """A .item or .user file with its id as index, and the types of its columns.

    If several rows have one id, the first non-empty cell of each column counts.
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
        frame = _merge_rows(frame, repeated, key, path, log)
    del types[key]
    return frame.set_index(key), types


def _merge_rows(
    frame: pd.DataFrame, repeated: pd.Series, key: str, path: Path, log: list[str]
) -> pd.DataFrame:
    """Merge the rows of each id into its first row, and log how many there were."""
    several = frame[frame[key].isin(frame[key][repeated])]
    columns = [name for name in frame if name != key]
    filled = several[[key, *columns]].replace("", np.nan).infer_objects()
    by_id = filled.groupby(key, sort=False)
    first = by_id.first().fillna("")
    frame = frame[~repeated].copy()
    merged = frame[key].isin(first.index)
    for name in columns:
        frame.loc[merged, name] = frame.loc[merged, key].map(first[name])
    differing = (by_id[columns].nunique() > 1).any(axis=1)
    line = (
        f"{int(repeated.sum())} further rows of {path.name} are of an id that has a row: "
        "of each column the first cell that is not empty is taken"
    )
    if differing.any():
        ids = differing.index[differing]
        line += f"; rows of {len(ids)} ids differ: {_first_three(ids)}"
    log.append(line)
    return frame


def _first_three(ids: np.ndarray | pd.Index) -> str:
    """The first three ids for a message, with an ellipsis if there are more."""
    return ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")


def _align(
    frame: pd.DataFrame | None, tokens: np.ndarray, path: Path, log: list[str]
) -> pd.DataFrame:
    """Rows of a side table in the order of tokens; a token without a row gets empty cells."""
    if frame is None:
        return pd.DataFrame(index=range(len(tokens)))
    rows = frame.index.get_indexer(pd.Index(tokens))
    if (rows < 0).any():
        missing = tokens[rows < 0]
        log.append(
            f"{len(missing)} of {len(tokens)} ids have no row in {path.name}: "
            f"{_first_three(missing)}"
        )
    blank = pd.DataFrame({name: [""] for name in frame})
    table = pd.concat([frame.reset_index(drop=True), blank], ignore_index=True)
    return table.iloc[np.where(rows < 0, len(frame), rows)].reset_index(drop=True)
