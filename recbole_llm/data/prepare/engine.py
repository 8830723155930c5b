"""Tables larger than memory: DuckDB with bounded memory, and the rest in scratch files."""

import csv
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import UserError
from .files.reading import LINE, damaged, opened

MEMORY = 768  # MiB that DuckDB may use, if the user does not say; the rest is on disk
LEAST, MOST = 512, 2**24  # bounds of what the user may say
ROWS = 10_000  # rows that Python holds at once
PLACE = '"#place"'  # column with the place of a row in its raw file; no user's table has this name


class Engine:
    """The tables of one conversion.

    Parameters
    ----------
    folder : Path
        Folder of the scratch files, which the caller removes.
    memory : int
        MiB that DuckDB may use.

    Raises
    ------
    UserError
        If duckdb is not installed.
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
        limits: dict[str, Any] = {
            "memory_limit": f"{memory}MiB",
            "temp_directory": str(folder / "spill"),
            "threads": max(1, min(8, os.cpu_count() or 1, memory // 192)),
        }
        self.connection = duckdb.connect(":memory:", config=limits)
        self.connection.execute("SET enable_progress_bar = false")
        # Otherwise times depend on the time zone of the machine.
        self.connection.execute("SET TimeZone = 'UTC'")
        # Otherwise a join holds the side that seems small. It must be the ids, never the texts.
        self.connection.execute("SET disabled_optimizers = 'build_side_probe_side'")

    def run(self, query: str, reading: Path | None = None) -> Any:
        """Execute SQL.

        Parameters
        ----------
        query : str
            One statement.
        reading : Path or None
            The raw file that the statement reads, for the error message.

        Returns
        -------
        DuckDBPyConnection
            The result, to be fetched.

        Raises
        ------
        UserError
            If the raw file cannot be read to its end, or the tables do not fit the disk or memory.
        """
        with self._explain_errors(reading):
            return self.connection.execute(query)

    def rows(self, query: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of a query one by one.

        Parameters
        ----------
        query : str
            A SELECT statement. Until its last row is read, no other statement may be run.

        Yields
        ------
        dict of str to object
            Column name -> value.
        """
        result = self.run(query)
        names = [column[0] for column in result.description]
        while True:
            with self._explain_errors():
                rows = result.fetchmany(ROWS)
            if not rows:
                return
            for row in rows:
                yield dict(zip(names, row, strict=True))

    @contextmanager
    def _explain_errors(self, reading: Path | None = None) -> Iterator[None]:
        """Turn an error of DuckDB into a UserError about the raw file, or about space."""
        try:
            yield
        except self.error as fault:
            reason = " ".join(str(fault).split("\n\n")[0].split())[:240]
            if reading is None or "Memory" in type(fault).__name__ or str(self.folder) in reason:
                raise UserError(
                    f"the tables do not fit: {reason}; "
                    f"free space at {self.folder.parent}, or raise --memory"
                ) from fault
            if type(fault).__name__ == "BinderException":
                raise UserError(
                    f"{reading}: {reason.removeprefix('Binder Error: ')}; "
                    "write the names of its columns as the file has them"
                ) from None
            raise UserError(
                f"{reading}: cannot be read ({reason}); repair it or get it again, then run again"
            ) from None

    def load(
        self,
        table: str,
        pieces: Iterable[Path],
        query: Callable[[Path], str],
        path: Path,
        where: str = "",
    ) -> None:
        """Create a table of a raw file's rows and their places in it, piece by piece.

        Parameters
        ----------
        table : str
            Name of the table.
        pieces : iterable of Path
            The pieces of the raw file.
        query : callable
            Path of a piece -> SELECT statement that reads it.
        path : Path
            The raw file, for error messages.
        where : str
            A WHERE clause for the rows to keep.

        Raises
        ------
        UserError
            If the raw file cannot be read to its end.
        """
        for number, piece in enumerate(pieces):
            into = f"INSERT INTO {table}" if number else f"CREATE TABLE {table} AS"
            place = f"{number} * {10**12} + row_number() OVER () AS {PLACE}"
            rows = f"SELECT *, {place} FROM ({query(piece)})"
            self.run(f"{into} SELECT * FROM ({rows}) {where}", path)

    def value(self, query: str) -> Any:
        """Run a query with one row and one column.

        Parameters
        ----------
        query : str
            A SELECT statement.

        Returns
        -------
        object
            Its only value.
        """
        return next(iter(next(self.rows(query)).values()))

    def rejected(self) -> int:
        """Count the lines of delimited files that DuckDB has skipped.

        Returns
        -------
        int
            Number of lines that are not text, have too many cells, or have unpaired quotes.
        """
        tables = self.value(
            "SELECT count(*) FROM duckdb_tables() WHERE table_name = 'reject_errors'"
        )
        if not tables:
            return 0
        return self.value("SELECT count(DISTINCT (scan_id, file_id, line)) FROM reject_errors")

    def close(self) -> None:
        """Close the connection, which removes the tables."""
        self.connection.close()


def literal(value: str | Path) -> str:
    """Write a string as an SQL literal.

    Parameters
    ----------
    value : str or Path
        The string.

    Returns
    -------
    str
        The literal in single quotes.
    """
    return "'" + str(value).replace("'", "''") + "'"


def hashed(column: str) -> str:
    """Write the SQL that hashes a text column.

    Parameters
    ----------
    column : str
        Name of the column.

    Returns
    -------
    str
        SQL of 8 hex digits, or NULL for a missing text.
    """
    return f"left(md5({column}), 8)"


def file_literal(path: Path) -> str:
    """Write the name of one file as an SQL literal, with DuckDB's wildcards escaped.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    str
        The literal in single quotes.
    """
    return literal(re.sub(r"[*?]", lambda match: f"[{match[0]}]", str(path)))


def json_lines(path: Path, **columns: str) -> str:
    """Write the SQL that reads a file of JSON objects, one a line, gzipped or not.

    Parameters
    ----------
    path : Path
        The file.
    **columns
        Key -> SQL type.

    Returns
    -------
    str
        What follows FROM. A line that is not an object gives a row of NULLs.
    """
    types = ", ".join(f"{literal(name)}: '{sql_type}'" for name, sql_type in columns.items())
    return (
        f"read_json({file_literal(path)}, format = 'newline_delimited', columns = {{{types}}}, "
        f"ignore_errors = true, maximum_object_size = {LINE}, hive_partitioning = false)"
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
    """Write the SQL that reads a delimited file.

    Parameters
    ----------
    path : Path
        The file.
    delimiter : str
        Separator of the cells.
    *columns
        Names of the columns.
    quote : str
        Quote character; "" takes quotes as text.
    header : bool
        Whether the first line names the columns.
    encoding : str
        Encoding of the file.
    kind : str
        SQL type of all columns.

    Returns
    -------
    str
        What follows FROM. A short row is filled with NULLs.

    Raises
    ------
    UserError
        If the file has a header and it names other columns.
    """
    if header:
        actual = header_of(path, delimiter)
        if actual != list(columns):
            raise UserError(
                f"{path}: expected the columns {', '.join(columns)}, "
                f"found {', '.join(actual)[:240]}; get the right file"
            )
    types = ", ".join(f"{literal(name)}: '{kind}'" for name in columns)
    # Quoted cells may contain line ends, which a thread that begins inside a file cannot recognise.
    is_strict, is_parallel = ("true", "false") if quote else ("false", "true")
    return (
        f"read_csv({file_literal(path)}, delim = {literal(delimiter)}, "
        f"header = {str(header).lower()}, quote = {literal(quote)}, escape = {literal(quote)}, "
        f"encoding = {literal(encoding)}, columns = {{{types}}}, auto_detect = false, "
        f"strict_mode = {is_strict}, null_padding = true, nullstr = '', store_rejects = true, "
        f"hive_partitioning = false, parallel = {is_parallel})"
    )


def columns_of(path: Path) -> list[str]:
    """List the columns of a Parquet file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    list of str
        The columns. Empty if the file cannot be read or duckdb is not installed, which the
        conversion reports.
    """
    try:
        import duckdb
    except ImportError:
        return []
    rows = f"read_parquet({file_literal(path)}, hive_partitioning = false)"
    try:
        with duckdb.connect() as connection:
            description = connection.execute(f"DESCRIBE SELECT * FROM {rows}").fetchall()
            return [row[0] for row in description]
    except duckdb.Error:
        return []


def header_of(path: Path, delimiter: str) -> list[str]:
    """Read the first row of a delimited file.

    Parameters
    ----------
    path : Path
        The file.
    delimiter : str
        Separator of the cells.

    Returns
    -------
    list of str
        Its cells.

    Raises
    ------
    UserError
        If the file cannot be read.
    """
    try:
        with opened(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as lines:
            return next(csv.reader(lines, delimiter=delimiter), [])
    except (OSError, EOFError, zlib.error, csv.Error) as fault:
        raise damaged(path, str(fault)) from None
