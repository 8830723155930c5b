"""Times of raw tables: numbers since 1970 in any unit, or dates with or without a UTC offset, become seconds."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

from ...errors import UserError
from .engine import PLACE, Engine
from .files.reading import DELIMITERS, JSON, opened

MISSING = ("", "nan", "nat", "null", "none", "na", "n/a", "<na>", "\\n")  # cells without a time
OLDEST, NEWEST = -2208988800, 7258118400  # years 1900 to 2200: "01-05-20" is no day of the year 1
SINCE, UNTIL = 315532800, 4102444800  # years 1980 to 2100, in seconds since 1970
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
DATE = r"^\d"  # what a date begins with
NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
SHOWN = 60  # most characters of a cell in a message


def time_columns(column: str) -> str:
    """SQL of the columns "time", "dated" and "unread" for a raw column, which `settle` reads.

    "time" is the number in a cell, or the seconds since 1970 of a date; "dated" tells which. A date
    without a UTC offset is taken as UTC. "unread" is the cell where it is neither and not missing.
    The session's time zone must be UTC, as that of `Engine` is.
    """
    cell = f"trim({column}::VARCHAR)"
    # "10:00:00 +0200" and a small z are common, and DuckDB reads neither
    iso = rf"regexp_replace(regexp_replace({cell}, '\s+([+-]\d)', '\1'), 'z$', 'Z')"
    # DuckDB also takes words such as "epoch" and "infinity" for times and numbers
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
    """Give the times of the table `events` one unit, and drop the columns that only this needs.

    Numbers are taken as times since 1970 if each of them lies between 1980 and 2100 in seconds,
    milliseconds, microseconds or nanoseconds; then all become seconds. Other numbers, such as places
    in a sequence, stay as they are.

    Parameters
    ----------
    path : the raw file of the events.
    column : its column of times.

    Returns
    -------
    The unit of the times in words, or None where the numbers stay as they are.

    Raises
    ------
    UserError : with line and cell, if a time cannot be read, or if dates and numbers do not fit each
        other.
    """
    read = engine.value("SELECT count(*) FROM events")
    unread = engine.value('SELECT count("unread") FROM events')
    if unread:
        cell = engine.value(f'SELECT arg_min("unread", {PLACE}) FROM events')
        raise UserError(
            f"{_place(path, column, cell)}: expected a number or an ISO 8601 date such as 2020-05-01 or "
            f"2020-05-01T10:00:00+02:00 in column {column}, found {cell!r} ({unread} of {read} events "
            "are unreadable); write dates year first, or as seconds since 1970"
        )
    dated = engine.value('SELECT count(*) FROM events WHERE "dated"')
    numbers = 'SELECT "time" FROM events WHERE NOT "dated" AND "time" IS NOT NULL'
    within = {
        unit: f'"time" >= {SINCE * size} AND "time" < {UNTIL * size}'
        for unit, size in UNITS.items()
    }
    counts = {
        unit: count
        for unit, bounds in within.items()
        if (count := engine.value(f"SELECT count(*) FROM ({numbers}) WHERE {bounds}"))
    }
    other = engine.value(f"SELECT count(*) FROM ({numbers})") - sum(counts.values())
    if other and (dated or len(counts) > 1):
        outside = " AND ".join(f"NOT ({bounds})" for bounds in within.values())
        odd = f'NOT "dated" AND {outside}'
        cell = engine.value(f'SELECT arg_min("time", {PLACE}) FROM events WHERE {odd}')
        raise UserError(
            f"{path}: expected times of one kind in column {column}, found {cell:.16g} ({other} such numbers) beside "
            f"{'dates' if dated else ' and '.join(counts)}; write all of them as dates, or as seconds since 1970"
        )
    engine.run('ALTER TABLE events DROP COLUMN "unread"')
    if other:
        if counts:
            log(
                f"{path.name}: {other} of the numbers in column {column} are no times between 1980 and 2100: "
                "all are kept as they are"
            )
        engine.run('ALTER TABLE events DROP COLUMN "dated"')
        return None
    for unit in counts:
        if UNITS[unit] > 1:
            log(f"{path.name}: {counts[unit]} times in {unit} made seconds")
            engine.run(
                f'UPDATE events SET "time" = "time" / {UNITS[unit]} WHERE NOT "dated" AND {within[unit]}'
            )
    engine.run('ALTER TABLE events DROP COLUMN "dated"')
    return "seconds since 1970 (UTC)"


def _place(path: Path, column: str, cell: str) -> str:
    """The file and, of a text file, the line of the first such cell."""
    number = next(
        (line for line, found in _cells(path, column) if str(found).strip()[:SHOWN] == cell), None
    )
    return f"{path}, line {number}" if number else str(path)


def _cells(path: Path, column: str):
    """(line, cell) of a column of a text file."""
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
