"""Reading RecBole's atomic files: tab-separated UTF-8 with a typed header (`name:type`)."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd

from ...errors import UserError

# Numbers are read to the last bit: the default since pandas 3.1, where asking for it is deprecated.
EXACT = (
    {}
    if tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1)
    else {"float_precision": "round_trip"}
)
TYPES = ("token", "token_seq", "float", "float_seq")
NEXT_COLUMN = re.compile(r":(?:token_seq|float_seq|token|float)([^\w:]+)\w[^:]*:")


def read_header(path: Path, separator: str = "\t") -> dict[str, str]:
    """Column name -> atomic type, in file order. separator : see `read_atomic`."""
    with open(path, "rb") as file:
        line = file.readline()
    return _parse_header(path, line, _separator(line, separator))


def read_atomic(
    path: Path, columns: set[str] | None = None, numbers: bool = True, separator: str = "\t"
) -> pd.DataFrame:
    """Read one atomic file.

    `float` columns come back as float64 (an empty cell is NaN), all others as the str of the cell. Nothing is taken
    for missing but the empty cell: an id or a title may be `NA`, `null` or `nan`. A cell is unquoted only if it is a
    well-formed quoted cell; any other `"` is text.

    Parameters
    ----------
    columns : names to keep; None keeps all.
    numbers : False leaves `float` columns as the str of the cell, as a text needs them.
    separator : what stands between the cells of a file without a tab in its header, one character.

    Raises
    ------
    UserError : with file and line, on a wrong header, a wrong number of cells (a tab inside a text), a cell
        that is no number in a float column, or bytes that are not UTF-8.
    """
    path = Path(path)
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    head, _, body = raw.partition(b"\n")
    separator = _separator(head, separator)
    types = _parse_header(path, head, separator)
    del raw
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 2
        raise UserError(
            f"{path}, line {line}: the bytes are not UTF-8; convert the file (`iconv -t utf-8`)"
        ) from None
    keep = [name for name in types if columns is None or name in columns]
    bad = _first_ragged_line(body, len(types), separator)
    if bad is None:
        source, quoting = body, csv.QUOTE_NONE
        opens = f'{separator}"'.encode()
        quoted = body.startswith(b'"') or opens in body or b'\n"' in body
    else:
        _check_quoted(path, body, len(types), bad, separator)
        source, quoting, quoted = body, csv.QUOTE_MINIMAL, False
    dtype = {name: str for name in keep if types[name] != "float" or not numbers}
    floats = [name for name in keep if name not in dtype]

    def parse(float_dtype):
        return pd.read_csv(
            io.BytesIO(source), sep=separator, lineterminator="\n", header=None, names=list(types), usecols=keep, encoding="utf-8",
            quoting=quoting, keep_default_na=False, na_values={name: [""] for name in floats}, engine="c",
            dtype=dtype | dict.fromkeys(floats, float_dtype), **EXACT,
        )[keep]  # fmt: skip

    try:
        frame = parse(np.float64)
    except ValueError:
        _report_bad_number(path, parse(str), floats)
        raise
    if quoted:
        for name in dtype:
            frame[name] = _unquote(frame[name])
    return frame


def _separator(header: bytes, separator: str) -> str:
    """A tab for a file that has one in its header, whatever separates the others of its dataset."""
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
    cells = line.decode("utf-8", "replace").removeprefix("\ufeff").rstrip("\r\n").split(separator)
    types = {}
    for cell in cells:
        if other := NEXT_COLUMN.search(cell):
            _report_separator(path, separator, other[1])
        name, _, kind = cell.rpartition(":")
        if not name or kind not in TYPES:
            raise UserError(
                f"{path}, line 1: expected a header of {_named(separator)}-separated `name:type` with type one of {', '.join(TYPES)}, found {cell!r}"
            )
        if name in types:
            raise UserError(f"{path}, line 1: column {name} is there twice; rename one")
        types[name] = kind
    return types


def _report_separator(path: Path, expected: str, found: str) -> None:
    """Raise UserError for a header whose columns something else separates than is expected."""
    advice = "write a tab between the cells of every line"
    if len(found) == 1 and found.isascii():
        advice += f", or set --field_separator='{found}'"
    raise UserError(
        f"{path}, line 1: expected columns separated by {_named(expected, 's')}, found them separated by {_named(found, 's')}; {advice}"
    )


def _named(separator: str, plural: str = "") -> str:
    """A separator in words. plural : what is put behind its name."""
    names = {"\t": "tab", " ": "space", ",": "comma", ";": "semicolon", "|": "pipe"}
    return names[separator] + plural if separator in names else repr(separator)


def _first_ragged_line(body: bytes, width: int, separator: str) -> int | None:
    """Index (0 = first data line) of the first line without width - 1 separators; None if all are right."""
    data = np.frombuffer(body.rstrip(b"\n") + b"\n", dtype=np.uint8)
    ends = np.flatnonzero(data == 10)
    separators = np.searchsorted(np.flatnonzero(data == ord(separator)), ends)
    wrong = np.flatnonzero(np.diff(separators, prepend=0) != width - 1)
    if body.strip(b"\n") == b"" or len(wrong) == 0:
        return None
    return int(wrong[0])


def _check_quoted(path: Path, body: bytes, width: int, ragged: int, separator: str) -> None:
    """Accept a body whose separators or line ends inside well-formed quoted cells explain the ragged lines."""
    lines = body.decode("utf-8").split("\n")
    found = lines[ragged].count(separator) + 1
    message = UserError(
        f"{path}, line {ragged + 2}: expected {width} cells, found {found} (a {_named(separator)} or line end inside a text, or a cut file); "
        "remove it or quote the cell"
    )
    if '"' not in lines[ragged]:
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


def _report_bad_number(path: Path, frame: pd.DataFrame, floats: list[str]) -> None:
    for name in floats:
        for row, cell in enumerate(frame[name].fillna("").to_numpy(dtype=object)):
            if cell and not _is_number(cell):
                raise UserError(
                    f"{path}, line {row + 2}: expected a number or an empty cell in column {name}, found {cell!r}"
                ) from None


def _is_number(cell: str) -> bool:
    """Whether pandas reads it as one: unlike float(), it takes neither `nan` nor `1_000`."""
    try:
        return not np.isnan(float(cell)) and cell.isascii() and "_" not in cell
    except ValueError:
        return False


def _unquote(column: pd.Series) -> pd.Series:
    def clean(cell: str) -> str:
        if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', ""):
            return cell[1:-1].replace('""', '"')
        return cell

    return column.map(clean)
