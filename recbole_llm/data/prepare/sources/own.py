"""A user's own tables: CSV, TSV, Parquet or JSON lines, gzipped or not."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ....errors import UserError
from ....settings.rules import nearest
from ..clean import values
from ..engine import columns_of, delimited, file_literal, header_of, json_lines
from ..files.reading import DELIMITERS, JSON, check_encoding, check_lines, keys_of
from ..recipe import Files, Recipe, Source, title_alone
from ..times import time_columns

SOURCE = Source("tables of the user", "", "That of the tables.", "")
ROLES = ("user", "item", "time", "rating")
PARQUET = ".parquet"


def recipe(name: str, files: Files, mapping: str) -> Recipe:
    """Make a recipe for a user's own tables.

    Parameters
    ----------
    name : str
        Name of the dataset.
    files : mapping of str to Path
        The file `inter` with the interactions and, for item texts, the file `items`.
    mapping : str
        `user=…,item=…,time=…,title=…`: the columns of the roles user, item, time and rating. Any
        other role is a column of .item.

    Returns
    -------
    Recipe
        The recipe.

    Raises
    ------
    UserError
        If a file does not exist or is of an unknown kind, a column is missing, or the mapping lacks
        a role or is not written like this.
    """
    column_of = _parse_mapping(mapping)
    texts = tuple(role for role in column_of if role not in ROLES)
    _check_roles(column_of, texts, "items" in files)
    for kind, path in files.items():
        roles = ROLES if kind == "inter" else ("item", *texts)
        columns = {role: column_of[role] for role in roles if role in column_of}
        _check_table(f"--{kind}", path, columns)
    settings: dict[str, Any] = {}
    if texts:
        fields = {role.replace("_", " ").capitalize(): role for role in texts}
        settings = {"text_fields": fields} | title_alone("ST5Seq", "TASTELoRA")
    arguments = [f"--name={name}", *(f"--{kind}={path}" for kind, path in files.items())]
    columns_note = ", ".join(f"{role} from `{column}`" for role, column in column_of.items())
    return Recipe(
        name=name,
        title="own tables",
        source=SOURCE,
        files=(),
        events=partial(_events, column_of),
        items=partial(_items, column_of, texts),
        text=partial(_text, texts),
        columns=texts,
        reads=("inter", "items" if "items" in files else "inter"),
        quoted=tuple(kind for kind, path in files.items() if _suffix(path) in DELIMITERS),
        rated="rating" in column_of,
        time="as in the source",
        time_column=column_of["time"],
        arguments=" ".join([*arguments, f'--map="{mapping}"']),
        settings=settings,
        notes=(f"Columns: {columns_note}.",),
    )


def _parse_mapping(mapping: str) -> dict[str, str]:
    """Role -> column of `role=column,role=column`."""
    column_of: dict[str, str] = {}
    for pair in filter(None, mapping.split(",")):
        role, _, column = (part.strip() for part in pair.partition("="))
        is_repeated = role.lower() in (other.lower() for other in column_of)
        if not role.isidentifier() or not column or is_repeated or role.endswith("_id"):
            raise UserError(
                "--map: expected role=column, each role once and none that ends in _id, "
                f"found {pair.strip()!r}"
            )
        column_of[role] = column
    return column_of


def _check_roles(column_of: Mapping[str, str], texts: tuple[str, ...], has_items: bool) -> None:
    """Raise UserError if the mapping lacks a role, or does not fit the files."""
    missing = [role for role in ("user", "item", "time") if role not in column_of]
    if missing:
        raise UserError(
            f"--map: expected user=…, item=… and time=…, found no {' and no '.join(missing)}"
        )
    if has_items and "title" not in texts:
        raise UserError(
            "--map: expected title=…, the column of --items with which texts begin, found none"
        )
    if texts and not has_items:
        raise UserError(
            f"--items: expected the file with {', '.join(texts)}, found none; "
            "name it, or leave them out of --map"
        )


def _check_table(option: str, path: Path, columns: dict[str, str]) -> None:
    """Raise UserError if a table does not exist, cannot be read as text, or lacks a column."""
    if not path.is_file():
        raise UserError(f"{option}: expected a file, found {path}")
    _rows(path, ())
    if _suffix(path) != PARQUET:
        check_encoding(path)
    if _suffix(path) in JSON:
        check_lines(path)
    _check_columns(path, columns)


def _check_columns(path: Path, column_of: dict[str, str]) -> None:
    """Raise UserError for the first column that a file lacks; `column_of` is role -> column.

    A few objects of JSON lines may lack a key. Only what every interaction and every text needs is
    expected in the first lines. Keys are case-sensitive; column names are not.
    """
    is_json = _suffix(path) in JSON
    if is_json:
        names = keys_of(path)
        needed = ("user", "item", "time", "title")
        column_of = {role: column_of[role] for role in needed if role in column_of}
    elif _suffix(path) in DELIMITERS:
        names = header_of(path, DELIMITERS[_suffix(path)])
    else:
        names = columns_of(path)
    if not names:
        return
    known = set(names) if is_json else {name.lower() for name in names}
    for role, column in column_of.items():
        if (column if is_json else column.lower()) not in known:
            raise UserError(
                f"--map: {role}={column}, but {path} has no column {column}; "
                f"it has {', '.join(names)[:400]}{nearest(column, names)}"
            )


def _suffix(path: Path) -> str:
    """The suffix that tells the kind of a file, without `.gz`."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _rows(path: Path, columns: Iterable[str]) -> str:
    """What follows FROM to read some columns of a file."""
    if _suffix(path) not in _READERS:
        raise UserError(f"{path}: expected one of {', '.join(_READERS)} (or with .gz behind it)")
    return _READERS[_suffix(path)](path, columns)


def _read_delimited(path: Path, columns: Iterable[str]) -> str:
    """SQL that reads all columns of a delimited file as text: an id 007 is not the number 7."""
    delimiter = DELIMITERS[_suffix(path)]
    header = header_of(path, delimiter)
    if not header or "" in header or len({name.lower() for name in header}) < len(header):
        raise UserError(
            f"{path}: expected a first line with the name of each column, each once, "
            f"found {delimiter.join(header)[:240]!r}"
        )
    return delimited(path, delimiter, *header, quote='"', header=True)


def _read_json(path: Path, columns: Iterable[str]) -> str:
    """SQL that reads some keys of JSON lines as text."""
    return json_lines(path, **dict.fromkeys(columns, "VARCHAR"))


def _read_parquet(path: Path, columns: Iterable[str]) -> str:
    """SQL that reads all columns of a Parquet file with their types."""
    return f"read_parquet({file_literal(path)}, hive_partitioning = false)"


_READERS: dict[str, Callable[[Path, Iterable[str]], str]] = {
    **dict.fromkeys(DELIMITERS, _read_delimited),
    PARQUET: _read_parquet,
    **dict.fromkeys(JSON, _read_json),
}


def _events(column_of: Mapping[str, str], files: Files) -> str:
    """SQL of the interactions."""
    user, item, time, rating = (
        _identifier(column_of[role]) if role in column_of else "NULL" for role in ROLES
    )
    rows = _rows(files["inter"], [column_of[role] for role in ROLES if role in column_of])
    ids = f'trim({user}::VARCHAR) AS "user", trim({item}::VARCHAR) AS "item"'
    number = f"try_cast({rating} AS DOUBLE)"
    finite = f'CASE WHEN isfinite({number}) THEN {number} END AS "rating"'
    return f"SELECT {ids}, {finite}, {time_columns(time)} FROM {rows}"


def _items(column_of: Mapping[str, str], texts: tuple[str, ...], files: Files) -> str:
    """SQL of the items' texts; an empty table without the file `items`."""
    if "items" not in files:
        return 'SELECT NULL::VARCHAR AS "item", NULL::VARCHAR AS title WHERE false'
    rows = _rows(files["items"], [column_of["item"], *(column_of[role] for role in texts)])
    columns = ", ".join(f'{_identifier(column_of[role])} AS "{role}"' for role in texts)
    return (
        f'SELECT trim({_identifier(column_of["item"])}::VARCHAR) AS "item", {columns} FROM {rows}'
    )


def _identifier(name: str) -> str:
    """A column's name as SQL."""
    return '"' + name.replace('"', '""') + '"'


def _text(texts: tuple[str, ...], row: dict[str, Any]) -> dict[str, str]:
    """The columns of .item of one row."""
    return {column: _as_text(row[column]) for column in texts}


def _as_text(cell: Any) -> str:
    """A cell as text; the members of a list are joined by spaces."""
    if cell is None:
        return ""
    if isinstance(cell, list):
        return " ".join(str(member) for member in cell if member is not None)
    if isinstance(cell, str) and cell.startswith("["):
        return " ".join(values(cell))
    return str(cell)
