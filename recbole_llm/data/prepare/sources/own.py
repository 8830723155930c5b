"""A user's own tables: CSV, TSV, Parquet or JSON lines, gzipped or not."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from ....errors import UserError
from ....settings.rules import nearest
from ..clean import values
from ..engine import columns_of, delimited, file, header_of, json_lines
from ..files.reading import DELIMITERS, JSON, check_encoding, check_lines, keys_of
from ..recipe import Files, Recipe, Source, title_alone
from ..times import time_columns

SOURCE = Source("tables of the user", "", "That of the tables.", "")
ROLES = ("user", "item", "time", "rating")
KINDS = {  # suffix -> how DuckDB reads a file; every cell of it is text where it has no types, for 007 is no 7
    **dict.fromkeys(DELIMITERS, lambda path, columns: _delimited(path)),
    ".parquet": lambda path, columns: f"read_parquet({file(path)}, hive_partitioning = false)",
    **dict.fromkeys(
        JSON, lambda path, columns: json_lines(path, **dict.fromkeys(columns, "VARCHAR"))
    ),
}


def recipe(name: str, files: Files, mapping: str) -> Recipe:
    """A recipe for the files `inter` and, with texts, `items`; mapping, `user=…,item=…,time=…,title=…`, says which column plays which role, and what
    further ones are called in .item.

    Raises UserError for a file that is not there or of another kind, and for a role that is missing or no role.
    """
    items = files.get("items")
    named = {}
    for pair in filter(None, mapping.split(",")):
        role, _, column = (part.strip() for part in pair.partition("="))
        if (
            not role.isidentifier()
            or not column
            or role.lower() in map(str.lower, named)
            or role.endswith("_id")
        ):
            raise UserError(
                f"--map: expected role=column, each role once and none that ends in _id, found {pair.strip()!r}"
            )
        named[role] = column
    columns = tuple(role for role in named if role not in ROLES)
    if left := [role for role in ROLES[:3] if role not in named]:
        raise UserError(
            f"--map: expected user=…, item=… and time=…, found no {' and no '.join(left)}"
        )
    if items and "title" not in columns:
        raise UserError(
            "--map: expected title=…, the column of --items that a text begins with, found none"
        )
    if columns and not items:
        raise UserError(
            f"--items: expected the file with {', '.join(columns)}, found none; name it, or leave them out of --map"
        )
    for role, path in files.items():
        if not path.is_file():
            raise UserError(f"--{role}: expected a file, found {path}")
        _rows(path, ())
        if _suffix(path) != ".parquet":
            check_encoding(path)
        if _suffix(path) in JSON:
            check_lines(path)
        wanted = ("user", "item", "time", "rating") if role == "inter" else ("item", *columns)
        _check_columns(path, {one: named[one] for one in wanted if one in named})
    shown = {column.replace("_", " ").capitalize(): column for column in columns}
    return Recipe(
        name=name, title="own tables", source=SOURCE, files=(), events=partial(_events, named), items=partial(_items, named, columns),
        text=partial(_text, columns), columns=columns, reads=("inter", "items" if items else "inter"),
        quoted=tuple(role for role, path in files.items() if _suffix(path) in DELIMITERS), rated="rating" in named,
        settings={"text_fields": shown} | title_alone("ST5Seq", "TASTELoRA") if shown else {}, time="as in the source", time_column=named["time"],
        arguments=" ".join([f"--name={name}", *(f"--{role}={path}" for role, path in files.items()), f'--map="{mapping}"']),
        notes=("Columns: " + ", ".join(f"{role} from `{column}`" for role, column in named.items()) + ".",),
    )  # fmt: skip


def _check_columns(path: Path, wanted: dict[str, str]) -> None:
    """Raise UserError for the first column that a file lacks. wanted : role -> column."""
    if _suffix(path) in DELIMITERS:
        names = header_of(path, DELIMITERS[_suffix(path)])
    elif _suffix(path) in JSON:
        names = keys_of(path)
        # a key may be that of a few objects only, but for what every event and every text needs
        wanted = {
            role: wanted[role] for role in ("user", "item", "time", "title") if role in wanted
        }
    else:
        names = columns_of(path)
    known = {name if _suffix(path) in JSON else name.lower() for name in names}
    for role, column in wanted.items():
        if names and (column if _suffix(path) in JSON else column.lower()) not in known:
            raise UserError(
                f"--map: {role}={column}, but {path} has no column {column}; it has {', '.join(names)[:400]}"
                f"{nearest(column, names)}"
            )


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _rows(path: Path, columns: Iterable[str]) -> str:
    if _suffix(path) not in KINDS:
        raise UserError(f"{path}: expected one of {', '.join(KINDS)} (or with .gz behind it)")
    return KINDS[_suffix(path)](path, columns)


def _delimited(path: Path) -> str:
    delimiter = DELIMITERS[_suffix(path)]
    columns = header_of(path, delimiter)
    if not columns or "" in columns or len({name.lower() for name in columns}) < len(columns):
        raise UserError(
            f"{path}: expected a first line with the name of each column, each once, found {delimiter.join(columns)[:240]!r}"
        )
    return delimited(path, delimiter, *columns, quote='"', header=True)


def _events(named: dict[str, str], files: Files) -> str:
    user, item, time, rating = (_column(named[role]) if role in named else "NULL" for role in ROLES)
    rows = _rows(files["inter"], [named[role] for role in ROLES if role in named])
    ids = f'trim({user}::VARCHAR) AS "user", trim({item}::VARCHAR) AS "item"'
    score = f"try_cast({rating} AS DOUBLE)"
    finite = f'CASE WHEN isfinite({score}) THEN {score} END AS "rating"'
    return f"SELECT {ids}, {finite}, {time_columns(time)} FROM {rows}"


def _items(named: dict[str, str], columns: tuple[str, ...], files: Files) -> str:
    if "items" not in files:
        return 'SELECT NULL::VARCHAR AS "item", NULL::VARCHAR AS title WHERE false'
    rows = _rows(files["items"], [named["item"], *(named[column] for column in columns)])
    chosen = ", ".join(f'{_column(named[column])} AS "{column}"' for column in columns)
    return f'SELECT trim({_column(named["item"])}::VARCHAR) AS "item", {chosen} FROM {rows}'


def _column(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(columns: tuple[str, ...], row: dict) -> dict[str, str]:
    return {column: _plain(row[column]) for column in columns}


def _plain(cell) -> str:
    if isinstance(cell, list):
        return " ".join(str(one) for one in cell if one is not None)
    return (
        " ".join(values(cell))
        if isinstance(cell, str) and cell.startswith("[")
        else ""
        if cell is None
        else str(cell)
    )
