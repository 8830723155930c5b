"""Tables larger than memory: DuckDB, with a bound on what it holds, the rest in scratch files."""

import csv
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import UserError
from .files.reading import LINE, damaged, opened

MEMORY, LEAST, MOST = (
    768,
    512,
    2**24,
)  # MiB that DuckDB may hold, and what can be asked for; what is more goes to disk
ROWS = 10_000  # that Python holds at once
PLACE = '"#place"'  # a column that no table of a user has


class Engine:
    """One conversion's tables, in a folder that is thrown away afterwards.

    Raises UserError where duckdb is not installed, and from `run` where a raw file cannot be read to its end.
    """

    def __init__(self, folder: Path, memory: int = MEMORY):
        try:
            import duckdb
        except ImportError:
            raise UserError(
                "prepare: expected the package duckdb, which is not installed: "
                'pip install "recbole_llm[prepare]"'
            ) from None
        self.error, self.folder = duckdb.Error, folder
        folder.mkdir(parents=True, exist_ok=True)
        limits = {
            "memory_limit": f"{memory}MiB",
            "temp_directory": str(folder / "spill"),
            "threads": max(1, min(8, os.cpu_count() or 1, memory // 192)),
        }
        self.connection = duckdb.connect(":memory:", config=limits)
        self.connection.execute("SET enable_progress_bar = false")
        self.connection.execute("SET TimeZone = 'UTC'")  # else times depend on the machine's zone
        # whichever side seems small would be held: of a join with metadata always the ids, never the texts
        self.connection.execute("SET disabled_optimizers = 'build_side_probe_side'")

    def run(self, query: str, reading: Path | None = None):
        """Execute SQL. reading : the raw file it reads, to be named if it is damaged."""
        with self._told(reading):
            return self.connection.execute(query)

    def rows(self, query: str) -> Iterator[dict]:
        """The rows of a query, one by one; no other may be asked until they are all there."""
        result = self.run(query)
        names = [column[0] for column in result.description]
        while True:
            with self._told():
                rows = result.fetchmany(ROWS)
            if not rows:
                return
            for row in rows:
                yield dict(zip(names, row, strict=True))

    @contextmanager
    def _told(self, reading: Path | None = None):
        try:
            yield
        except self.error as fault:
            reason = " ".join(str(fault).split("\n\n")[0].split())[:240]
            if reading is None or "Memory" in type(fault).__name__ or str(self.folder) in reason:
                raise UserError(
                    f"the tables cannot be held: {reason}; free space at {self.folder.parent}, or raise --memory"
                ) from fault
            if type(fault).__name__ == "BinderException":
                raise UserError(
                    f"{reading}: {reason.removeprefix('Binder Error: ')}; name its columns as they are called"
                ) from None
            raise UserError(
                f"{reading}: cannot be read ({reason}); mend it, or get it again, and run again"
            ) from None

    def load(
        self,
        table: str,
        pieces: Iterable[Path],
        query: Callable[[Path], str],
        path: Path,
        where: str = "",
    ) -> None:
        """Make a table of a raw file's rows and their place in it, piece by piece; query: piece -> SQL."""
        for number, piece in enumerate(pieces):
            into = f"INSERT INTO {table}" if number else f"CREATE TABLE {table} AS"
            rows = f"SELECT *, {number} * {10**12} + row_number() OVER () AS {PLACE} FROM ({query(piece)})"
            self.run(f"{into} SELECT * FROM ({rows}) {where}", path)

    def value(self, query: str):
        """The only value of a query's only row."""
        return next(iter(next(self.rows(query)).values()))

    def rejected(self) -> int:
        """Lines of delimited files that were passed over so far: those that are no text, have too many cells or quotes that do not fit."""
        made = self.value("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'reject_errors'")
        return (
            self.value("SELECT count(DISTINCT (scan_id, file_id, line)) FROM reject_errors")
            if made
            else 0
        )

    def close(self) -> None:
        self.connection.close()


def text(value: str | Path) -> str:
    """A string literal."""
    return "'" + str(value).replace("'", "''") + "'"


def hashed(column: str) -> str:
    """SQL of 8 hex digits that tell one text from another; of a missing text none."""
    return f"left(md5({column}), 8)"


def file(path: Path) -> str:
    """A literal of one file's name, whatever characters it has."""
    return text(re.sub(r"[*?]", lambda found: f"[{found[0]}]", str(path)))


def json_lines(path: Path, **columns: str) -> str:
    """What stands behind FROM for a file of JSON objects, one a line, gzipped or not; columns: key=TYPE. A line that is no object is a row of NULLs."""
    kinds = ", ".join(f"{text(name)}: '{kind}'" for name, kind in columns.items())
    return (
        f"read_json({file(path)}, format = 'newline_delimited', columns = {{{kinds}}}, ignore_errors = true, maximum_object_size = {LINE}, "
        "hive_partitioning = false)"
    )


def delimited(
    path: Path,
    delimiter: str,
    *columns: str,
    quote: str = "",
    header: bool = False,
    encoding: str = "utf-8",
    kind: str = "VARCHAR",
) -> str:
    """What stands behind FROM for a delimited file, all columns of one kind; without a quote character, quotes are text. A short row is filled with NULLs.

    Raises UserError if the file has a header and it names other columns.
    """
    if header and (found := header_of(path, delimiter)) != list(columns):
        raise UserError(
            f"{path}: expected the columns {', '.join(columns)}, found {', '.join(found)[:240]}; get the right file"
        )
    names = ", ".join(f"{text(name)}: '{kind}'" for name in columns)
    return (
        f"read_csv({file(path)}, delim = {text(delimiter)}, header = {str(header).lower()}, quote = {text(quote)}, escape = {text(quote)}, "
        f"encoding = {text(encoding)}, columns = {{{names}}}, auto_detect = false, strict_mode = {str(bool(quote)).lower()}, "
        f"null_padding = true, nullstr = '', store_rejects = true, hive_partitioning = false, "
        f"parallel = {str(not quote).lower()})"  # quoted cells may hold line ends, which no thread in the middle of a file can tell
    )


def columns_of(path: Path) -> list[str]:
    """Columns of a Parquet file.

    None if it cannot be read or duckdb is not installed: the conversion reports both.
    """
    try:
        import duckdb
    except ImportError:
        return []
    try:
        with duckdb.connect() as connection:
            query = f"DESCRIBE SELECT * FROM read_parquet({file(path)}, hive_partitioning = false)"
            return [row[0] for row in connection.execute(query).fetchall()]
    except duckdb.Error:
        return []


def header_of(path: Path, delimiter: str) -> list[str]:
    """The first row of a delimited file."""
    try:
        with opened(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
            return next(csv.reader(file, delimiter=delimiter), [])
    except (OSError, EOFError, zlib.error, csv.Error) as fault:
        raise damaged(path, str(fault)) from None
