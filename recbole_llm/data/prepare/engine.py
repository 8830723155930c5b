"""Tables larger than memory: DuckDB, with a bound on what it holds, the rest in scratch files."""

import csv
import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from ...errors import UserError
from .reading import damaged

MEMORY = 768  # MiB that DuckDB may hold; what is more goes to disk


class Engine:
    """One conversion's tables, in a folder that is thrown away afterwards.

    Raises UserError where duckdb is not installed, and from `run` where a raw file cannot be read to its end.
    """

    def __init__(self, folder: Path, memory: int = MEMORY):
        try:
            import duckdb
        except ImportError:
            raise UserError("prepare: expected the package duckdb, which is not installed; pip install 'recbole_llm[prepare]'") from None
        self.error, self.folder = duckdb.Error, folder
        folder.mkdir(parents=True, exist_ok=True)
        limits = {"memory_limit": f"{memory}MiB", "temp_directory": str(folder / "spill"), "threads": max(1, min(8, os.cpu_count() or 1, memory // 192))}
        self.connection = duckdb.connect(":memory:", config=limits)
        self.connection.execute("SET preserve_insertion_order = true; SET enable_progress_bar = false")
        # whichever side seems small would be held: of a join with metadata always the ids, never the texts
        self.connection.execute("SET disabled_optimizers = 'build_side_probe_side'")

    def run(self, query: str, reading: Path | None = None):
        """Execute SQL. reading : the raw file it reads, to be named if it is damaged."""
        try:
            return self.connection.execute(query)
        except self.error as fault:
            reason = " ".join(str(fault).split("\n\n")[0].split())[:240]
            if type(fault).__name__ == "BinderException":
                raise UserError(f"{reading}: {reason.removeprefix('Binder Error: ')}; name its columns as they are called") from None
            if reading is None or "Memory" in type(fault).__name__:
                raise UserError(f"the tables cannot be held: {reason}; free space at {self.folder.parent}, or raise --memory") from fault
            raise damaged(reading, reason) from None

    def load(self, table: str, pieces: Iterable[Path], query: Callable[[Path], str], path: Path, where: str = "") -> None:
        """Make a table of a raw file's rows and their `place` in it, piece by piece; query: piece -> SQL."""
        for number, piece in enumerate(pieces):
            into = f"INSERT INTO {table}" if number else f"CREATE TABLE {table} AS"
            rows = f"SELECT *, {number} * {10**12} + row_number() OVER () AS place FROM ({query(piece)})"
            self.run(f"{into} SELECT * FROM ({rows}) {where}", path)

    def value(self, query: str):
        """The only value of a query's only row."""
        return self.run(query).fetchone()[0]

    def rejected(self) -> int:
        """Lines of delimited files that were passed over so far: those that are no text."""
        made = self.value("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'reject_errors'")
        return self.value("SELECT count(DISTINCT (scan_id, file_id, line)) FROM reject_errors") if made else 0

    def close(self) -> None:
        self.connection.close()


def text(value: str | Path) -> str:
    """A string literal."""
    return "'" + str(value).replace("'", "''") + "'"


def file(path: Path) -> str:
    """A literal of one file's name, whatever characters it has."""
    return text(re.sub(r"[*?]", lambda found: f"[{found[0]}]", str(path)))


def json_lines(path: Path, **columns: str) -> str:
    """What stands behind FROM for a file of JSON objects, one a line, gzipped or not; columns: key=TYPE. A line that is no object is a row of NULLs."""
    kinds = ", ".join(f"{text(name)}: '{kind}'" for name, kind in columns.items())
    return (
        f"read_json({file(path)}, format = 'newline_delimited', columns = {{{kinds}}}, ignore_errors = true, maximum_object_size = 16777216, "
        "hive_partitioning = false)"
    )


def delimited(path: Path, delimiter: str, *columns: str, quote: str = "", header: bool = False, encoding: str = "utf-8") -> str:
    """What stands behind FROM for a delimited file, all columns text; without a quote character, quotes are text. A short row is filled with NULLs.

    Raises UserError if the file has a header and it names other columns.
    """
    if header:
        _check_header(path, delimiter, columns)
    names = ", ".join(f"{text(name)}: 'VARCHAR'" for name in columns)
    return (
        f"read_csv({file(path)}, delim = {text(delimiter)}, header = {str(header).lower()}, quote = {text(quote)}, escape = {text(quote)}, "
        f"encoding = {text(encoding)}, columns = {{{names}}}, auto_detect = false, strict_mode = false, null_padding = true, nullstr = '', "
        f"store_rejects = true, hive_partitioning = false, "
        f"parallel = {str(not quote).lower()})"  # quoted cells may hold line ends, which no thread in the middle of a file can tell
    )


def _check_header(path: Path, delimiter: str, columns: tuple[str, ...]) -> None:
    opened = gzip.open if path.name.endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
            found = next(csv.reader(file, delimiter=delimiter), [])
    except (OSError, EOFError, zlib.error, csv.Error) as fault:
        raise damaged(path, str(fault)) from None
    if found != list(columns):
        raise UserError(f"{path}: expected the columns {', '.join(columns)}, found {', '.join(found)[:240]}; get the right file")
