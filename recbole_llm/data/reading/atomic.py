"""Reading RecBole's atomic files: tab-separated UTF-8 with a typed header (`name:type`)."""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from ...errors import UserError

PANDAS_VERSION = tuple(int(number) for number in pd.__version__.split(".")[:2])
# Numbers are read to the last bit. Since pandas 3.1 this is the default, and asking is deprecated.
EXACT: dict[str, Any] = {} if PANDAS_VERSION >= (3, 1) else {"float_precision": "round_trip"}
BOM = b"\xef\xbb\xbf"
Quoting = Literal[0, 3]  # csv.QUOTE_MINIMAL or csv.QUOTE_NONE
TYPES = ("token", "token_seq", "float", "float_seq")
NEXT_COLUMN = re.compile(r":(?:token_seq|float_seq|token|float)([^\w:]+)\w[^:]*:")


def read_header(path: Path, separator: str = "\t") -> dict[str, str]:
    """Read the header of an atomic file.

    Parameters
    ----------
    path : Path
        The file.
    separator : str
        One character that separates the cells if the header contains no tab.

    Returns
    -------
    dict of str to str
        Column name -> atomic type, in the order of the file.

    Raises
    ------
    UserError
        If the header is not one of an atomic file.
    """
    with open(path, "rb") as file:
        line = file.readline()
    return _parse_header(path, line, _separator(line, separator))


def read_atomic(
    path: Path, columns: set[str] | None = None, numbers: bool = True, separator: str = "\t"
) -> pd.DataFrame:
    """Read an atomic file.

    `float` columns are float64, where an empty cell is NaN; all other columns are the str of the
    cell. Only the empty cell is missing: an id or a title may be `NA`, `null` or `nan`. Quotes are
    removed only from a well-formed quoted cell; any other `"` is part of the text.

    Parameters
    ----------
    path : Path
        The file.
    columns : set of str, or None
        Names of the columns to read; None reads all.
    numbers : bool
        False leaves `float` columns as the str of the cell, as item texts need them.
    separator : str
        One character that separates the cells if the header contains no tab.

    Returns
    -------
    DataFrame
        The rows of the file.

    Raises
    ------
    UserError
        With file and line: if the header is wrong, a line has a wrong number of cells (a tab inside
        a text), a cell of a float column is not a number, or the bytes are not UTF-8.
    """
    path = Path(path)
    raw = path.read_bytes().removeprefix(BOM).replace(b"\r\n", b"\n")
    header, _, body = raw.partition(b"\n")
    del raw
    separator = _separator(header, separator)
    types = _parse_header(path, header, separator)
    names = [name for name in types if columns is None or name in columns]
    return _parse_lines(path, body, types, names, numbers, separator)


class NotInPiecesError(Exception):
    """A file cannot be read in pieces; the message says why."""


def read_pieces(
    path: Path, columns: set[str] | None = None, separator: str = "\t", size: int = 2**25
) -> Iterator[pd.DataFrame]:
    """Read an atomic file in pieces, of the same cells as `read_atomic`.

    Parameters
    ----------
    path : Path
        The file.
    columns : set of str, or None
        Names of the columns to read; None reads all.
    separator : str
        One character that separates the cells if the header contains no tab.
    size : int
        Bytes of a piece.

    Yields
    ------
    DataFrame
        Some rows, numbered from their place in the file.

    Raises
    ------
    UserError
        See `read_atomic`.
    NotInPiecesError
        If a line has a wrong number of cells, which quotes may explain.
    """
    with open(path, "rb") as file:
        header = file.readline().removeprefix(BOM).rstrip(b"\r\n")
        separator = _separator(header, separator)
        types = _parse_header(path, header, separator)
        names = [name for name in types if columns is None or name in columns]
        first, is_over = 0, False
        while body := file.read(size):
            body = (body + file.readline()).replace(b"\r\n", b"\n")
            if not body.strip(b"\n"):
                is_over = True
                continue
            if is_over or body.startswith(b"\n"):
                raise NotInPiecesError("a line is blank")
            is_over = body.endswith(b"\n\n")
            if _first_ragged_line(body, len(types), separator) is not None:
                raise NotInPiecesError("a line has more or fewer cells, or quoted ones")
            frame = _parse_lines(path, body, types, names, True, separator, first)
            frame.index = pd.RangeIndex(first, first + len(frame))
            first += len(frame)
            yield frame


def _parse_lines(
    path: Path,
    body: bytes,
    types: Mapping[str, str],
    names: list[str],
    numbers: bool,
    separator: str,
    first: int = 0,
) -> pd.DataFrame:
    """The cells of some lines, the first of which is row `first` of the file."""
    _check_utf8(path, body, first)
    quoting, unquote = _quoting(path, body, len(types), separator)
    texts = [name for name in names if types[name] != "float" or not numbers]
    floats = [name for name in names if name not in texts]
    dtypes: dict[str, Any] = {name: np.float64 if name in floats else str for name in names}
    try:
        frame = _parse_cells(body, list(types), dtypes, floats, separator, quoting)
    except ValueError:
        cells = dict.fromkeys(names, str)
        frame = _parse_cells(body, list(types), cells, floats, separator, quoting)
        _report_bad_number(path, frame, floats, first)
        raise
    if unquote:
        for name in texts:
            frame[name] = frame[name].map(_unquoted)
    return frame


def _parse_cells(
    body: bytes,
    columns: list[str],
    dtypes: Mapping[str, Any],
    floats: list[str],
    separator: str,
    quoting: Quoting,
) -> pd.DataFrame:
    """The columns in `dtypes`; empty cells of those in `floats` are missing."""
    frame = pd.read_csv(
        io.BytesIO(body),
        sep=separator,
        lineterminator="\n",
        header=None,
        names=columns,
        usecols=list(dtypes),
        encoding="utf-8",
        quoting=quoting,
        keep_default_na=False,
        na_values={name: [""] for name in floats},
        engine="c",
        dtype=dtypes,
        **EXACT,
    )
    return frame[list(dtypes)]


def _check_utf8(path: Path, body: bytes, first: int) -> None:
    """Raise UserError with the line of the first bytes that are not UTF-8."""
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + first + 2
        raise UserError(
            f"{path}, line {line}: the bytes are not UTF-8; convert the file (`iconv -t utf-8`)"
        ) from None


def _quoting(path: Path, body: bytes, width: int, separator: str) -> tuple[Quoting, bool]:
    """How pandas reads quotes, and whether quotes must be removed afterwards.

    Lines of the right number of cells are read without regard to quotes. Otherwise quoted cells
    must explain the other lines, and pandas removes the quotes. Raises UserError if they do not.
    """
    ragged = _first_ragged_line(body, width, separator)
    if ragged is not None:
        _check_quoted(path, body, width, ragged, separator)
        return csv.QUOTE_MINIMAL, False
    has_quoted_cell = body.startswith(b'"') or f'{separator}"'.encode() in body or b'\n"' in body
    return csv.QUOTE_NONE, has_quoted_cell


def _separator(header: bytes, separator: str) -> str:
    """The separator of one file: a tab if its header contains one, else that of its dataset."""
    if (
        len(separator) != 1
        or not separator.isascii()
        or separator.isalnum()
        or separator in '":_\n'
    ):
        raise UserError(
            f"field_separator: expected one character such as ',' or ' ', found {separator!r}"
        )
    return "\t" if b"\t" in header else separator


def _parse_header(path: Path, line: bytes, separator: str) -> dict[str, str]:
    """Column name -> atomic type. Raises UserError for anything but `name:type` cells."""
    text = line.decode("utf-8", "replace").removeprefix("\ufeff").rstrip("\r\n")
    types: dict[str, str] = {}
    for cell in text.split(separator):
        another_column = NEXT_COLUMN.search(cell)
        if another_column:
            _report_separator(path, separator, another_column[1])
        name, _, kind = cell.rpartition(":")
        if not name or kind not in TYPES:
            raise UserError(
                f"{path}, line 1: expected a header of {_in_words(separator)}-separated "
                f"`name:type` with type one of {', '.join(TYPES)}, found {cell!r}"
            )
        if name in types:
            raise UserError(f"{path}, line 1: column {name} is there twice; rename one")
        types[name] = kind
    return types


def _report_separator(path: Path, expected: str, actual: str) -> None:
    """Raise UserError for a header whose columns are separated by another character."""
    advice = "write a tab between the cells of every line"
    if len(actual) == 1 and actual.isascii():
        advice += f", or set --field_separator='{actual}'"
    raise UserError(
        f"{path}, line 1: expected columns separated by {_in_words(expected, 's')}, "
        f"found them separated by {_in_words(actual, 's')}; {advice}"
    )


def _in_words(separator: str, plural: str = "") -> str:
    """The name of a separator with a plural ending; the separator itself if it has no name."""
    names = {"\t": "tab", " ": "space", ",": "comma", ";": "semicolon", "|": "pipe"}
    return names[separator] + plural if separator in names else repr(separator)


def _first_ragged_line(body: bytes, width: int, separator: str) -> int | None:
    """Index of the first line without `width` cells; 0 is the first data line, None means no line.

    Works on arrays of byte positions, because a loop over the lines is slow.
    """
    data = np.frombuffer(body.rstrip(b"\n") + b"\n", dtype=np.uint8)
    ends = np.flatnonzero(data == 10)
    separators = np.searchsorted(np.flatnonzero(data == ord(separator)), ends)
    wrong = np.flatnonzero(np.diff(separators, prepend=0) != width - 1)
    if body.strip(b"\n") == b"" or len(wrong) == 0:
        return None
    return int(wrong[0])


def _check_quoted(path: Path, body: bytes, width: int, ragged: int, separator: str) -> None:
    """Raise UserError for a ragged line, unless well-formed quoted cells explain every such line.

    A quoted cell may contain separators and line ends.
    """
    line = body.decode("utf-8").split("\n")[ragged]
    message = UserError(
        f"{path}, line {ragged + 2}: expected {width} cells, found {line.count(separator) + 1} "
        f"(a {_in_words(separator)} or line end inside a text, or a cut file); "
        "remove it or quote the cell"
    )
    if '"' not in line:
        raise message
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(
        io.StringIO(body.decode("utf-8"), newline=""), delimiter=separator, strict=True
    )
    try:
        if any(row and len(row) != width for row in reader):
            raise message
    except csv.Error:
        raise message from None


def _report_bad_number(path: Path, frame: pd.DataFrame, floats: list[str], first: int) -> None:
    """Raise UserError for the first cell of a float column that is neither a number nor empty."""
    for name in floats:
        for row, cell in enumerate(frame[name].fillna("").to_numpy(dtype=object)):
            if cell and not _is_number(cell):
                raise UserError(
                    f"{path}, line {first + row + 2}: expected a number or an empty cell in column "
                    f"{name}, found {cell!r}"
                ) from None


def _is_number(cell: str) -> bool:
    """Whether pandas reads the cell as a number: unlike float(), not `nan` and not `1_000`."""
    try:
        return not np.isnan(float(cell)) and cell.isascii() and "_" not in cell
    except ValueError:
        return False


def _unquoted(cell: str) -> str:
    """The text of a well-formed quoted cell; any other cell as it is."""
    if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', ""):
        return cell[1:-1].replace('""', '"')
    return cell
