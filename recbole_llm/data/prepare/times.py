"""Times of raw tables.

Numbers since 1970 in any unit, and dates with or without a UTC offset, become seconds since 1970.
"""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...errors import UserError
from .engine import PLACE, Engine
from .files.reading import DELIMITERS, JSON, opened

SECONDS = "seconds since 1970 (UTC)"
MISSING = ("", "nan", "nat", "null", "none", "na", "n/a", "<na>", "\\n")  # cells without a time
OLDEST, NEWEST = -2208988800, 7258118400  # years 1900 to 2200: "01-05-20" is no day of the year 1
SINCE, UNTIL = 315532800, 4102444800  # years 1980 to 2100, in seconds since 1970
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
DATE = r"^\d"  # the beginning of a date
NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
SHOWN = 60  # largest number of a cell's characters in a message


def time_columns(column: str) -> str:
    """Write the SQL that parses a raw column of times, for `settle`.

    Parameters
    ----------
    column : str
        The raw column.

    Returns
    -------
    str
        SQL of three columns. "time" is the number in a cell, or the seconds since 1970 of a date; a
        date without a UTC offset is in UTC. "dated" is whether it was a date. "unread" is the cell
        if it is neither a number nor a date and not missing. The time zone of the session must be
        UTC, as that of `Engine` is.
    """
    cell = f"trim({column}::VARCHAR)"
    # "10:00:00 +0200" and a small z are common, but DuckDB cannot read them.
    iso = rf"regexp_replace(regexp_replace({cell}, '\s+([+-]\d)', '\1'), 'z$', 'Z')"
    # DuckDB also takes words such as "epoch" and "infinity" for times and numbers.
    date = (
        f"CASE WHEN regexp_matches({iso}, '{DATE}') THEN epoch(try_cast({iso} AS TIMESTAMPTZ)) END"
    )
    number = f"CASE WHEN regexp_full_match({cell}, '{NUMBER}') THEN try_cast({cell} AS DOUBLE) END"
    missing = ", ".join(f"'{word}'" for word in MISSING)
    dated = f"({number} IS NULL AND coalesce({date} BETWEEN {OLDEST} AND {NEWEST}, false))"
    readable = (
        f"({cell} IS NULL OR isfinite({number}) IS TRUE OR {dated} OR lower({cell}) IN ({missing}))"
    )
    return f"""CASE WHEN {dated} THEN {date} WHEN isfinite({number}) THEN {number} END AS "time",
        {dated} AS "dated", CASE WHEN NOT {readable} THEN left({cell}, {SHOWN}) END AS "unread" """


def settle(engine: Engine, path: Path, column: str, log: Callable[[str], None]) -> str | None:
    """Give the times of the table `events` one unit, and drop the auxiliary columns.

    If each number lies between 1980 and 2100 as seconds, milliseconds, microseconds or nanoseconds
    since 1970, all of them become seconds. Other numbers, such as positions in a sequence, stay as
    they are.

    Parameters
    ----------
    engine : Engine
        The tables; `events` has the columns of `time_columns`.
    path : Path
        The raw file of the interactions.
    column : str
        Its column of times.
    log : callable
        Receives a line about what was converted.

    Returns
    -------
    str or None
        The unit of the times in words, or None if the numbers stay as they are.

    Raises
    ------
    UserError
        With line and cell, if a time cannot be read, or if there are dates as well as numbers that
        are not times since 1970, or numbers of several units as well as such numbers.
    """
    _check_readable(engine, path, column)
    dates = engine.value('SELECT count(*) FROM events WHERE "dated"')
    numbers = 'SELECT "time" FROM events WHERE NOT "dated" AND "time" IS NOT NULL'
    counts = {}  # unit -> numbers that are times in it
    for unit in UNITS:
        count = engine.value(f"SELECT count(*) FROM ({numbers}) WHERE {_in_unit(unit)}")
        if count:
            counts[unit] = count
    other = engine.value(f"SELECT count(*) FROM ({numbers})") - sum(counts.values())
    if other and (dates or len(counts) > 1):
        outside = " AND ".join(f"NOT ({_in_unit(unit)})" for unit in UNITS)
        odd = f'NOT "dated" AND {outside}'
        cell = engine.value(f'SELECT arg_min("time", {PLACE}) FROM events WHERE {odd}')
        raise UserError(
            f"{path}: expected times of one kind in column {column}, found {cell:.16g} ({other} "
            f"such numbers) beside {'dates' if dates else ' and '.join(counts)}; "
            "write all of them as dates, or as seconds since 1970"
        )
    engine.run('ALTER TABLE events DROP COLUMN "unread"')
    if other and counts:
        log(
            f"{path.name}: {other} of the numbers in column {column} are no times between 1980 "
            "and 2100: all are kept as they are"
        )
    elif not other:
        _to_seconds(engine, path, counts, log)
    engine.run('ALTER TABLE events DROP COLUMN "dated"')
    return None if other else SECONDS


def _check_readable(engine: Engine, path: Path, column: str) -> None:
    """Raise UserError for the first cell that is neither a number nor a date nor missing."""
    unread = engine.value('SELECT count("unread") FROM events')
    if not unread:
        return
    rows = engine.value("SELECT count(*) FROM events")
    cell = engine.value(f'SELECT arg_min("unread", {PLACE}) FROM events')
    raise UserError(
        f"{_place(path, column, cell)}: expected a number or an ISO 8601 date such as 2020-05-01 "
        f"or 2020-05-01T10:00:00+02:00 in column {column}, found {cell!r} ({unread} of {rows} "
        "events are unreadable); write dates year first, or as seconds since 1970"
    )


def _in_unit(unit: str) -> str:
    """SQL that says whether a number is a time between 1980 and 2100 in a unit."""
    size = UNITS[unit]
    return f'"time" >= {SINCE * size} AND "time" < {UNTIL * size}'


def _to_seconds(
    engine: Engine, path: Path, counts: dict[str, int], log: Callable[[str], None]
) -> None:
    """Divide the numbers that are times in a unit smaller than seconds."""
    for unit, count in counts.items():
        if UNITS[unit] > 1:
            log(f"{path.name}: {count} times in {unit} made seconds")
            engine.run(
                f'UPDATE events SET "time" = "time" / {UNITS[unit]} '
                f'WHERE NOT "dated" AND {_in_unit(unit)}'
            )


def _place(path: Path, column: str, cell: str) -> str:
    """The file and, for a text file, the line of the first cell with this content."""
    for line, content in _cells(path, column):
        if str(content).strip()[:SHOWN] == cell:
            return f"{path}, line {line}"
    return str(path)


def _cells(path: Path, column: str) -> Iterator[tuple[int, Any]]:
    """Line number and cell of each row of a column, if the file is a text file."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in (*DELIMITERS, *JSON):
        return
    with opened(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
        if suffix in DELIMITERS:
            rows = csv.reader(file, delimiter=DELIMITERS[suffix])
            names = [name.lower() for name in next(rows, [])]
            place = names.index(column.lower())
            yield from ((rows.line_num, row[place]) for row in rows if len(row) > place)
            return
        for number, line in enumerate(file, start=1):
            try:
                yield number, json.loads(line).get(column)
            except (ValueError, AttributeError):
                continue
