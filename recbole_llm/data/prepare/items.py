"""Metadata of the items that were met: read, one row chosen of several, cleaned and written."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from .card import Facts
from .clean import clean
from .engine import Engine
from .reading import Reader
from .recipe import Files, Recipe

ROWS = 10_000  # items that are cleaned and written at once
WORD = re.compile(r"\w+")
UNCOUNTED = ("description", "attributes")  # long, and there already


def read_items(recipe: Recipe, files: Files, engine: Engine, reader: Reader, facts: Facts, log: Callable[[str], None]) -> None:
    """Make the table of the items of `events`: of several rows of one, the first that has a title once it is cleaned; `titled` says whether it has."""
    events, items = recipe.reads
    if items == events:  # no metadata at all
        engine.run(f"CREATE TABLE items AS SELECT *, false AS titled FROM ({recipe.items(files)})")
        return
    log(f"reading {files[items].name} ({files[items].stat().st_size / 2**20:.0f} MiB)")
    engine.load("found", reader.pieces(files[items]), lambda piece: recipe.items({**files, items: piece}), files[items],
                'WHERE "item" IN (SELECT "item" FROM events) OR "item" IS NULL')  # fmt: skip
    facts.broken_rows = engine.value('SELECT count(*) FROM found WHERE "item" IS NULL')
    if facts.broken_rows:
        log(f"{files[items].name}: lines that are broken or lack the item, left out: {facts.broken_rows}")
        engine.run('DELETE FROM found WHERE "item" IS NULL')
    repeated = 'SELECT "item" FROM found GROUP BY ALL HAVING count(*) > 1'
    asked = "SELECT place, title FROM found" + ("" if recipe.described else f' WHERE "item" IN ({repeated})')
    empty = dict.fromkeys(column for column, *_ in engine.run("DESCRIBE found").fetchall())
    untitled = [row["place"] for row in _rows(engine, asked) if not clean(recipe.text(empty | row)[recipe.title_column], recipe.ascii_only)]
    told = f"SELECT *, place NOT IN (SELECT unnest({untitled}::BIGINT[])) AS titled FROM found"
    engine.run(f'CREATE TABLE items AS SELECT * FROM ({told}) QUALIFY row_number() OVER (PARTITION BY "item" ORDER BY NOT titled, place) = 1')
    facts.repeated_rows = engine.value("SELECT count(*) FROM found") - engine.value("SELECT count(*) FROM items")


def write_items(recipe: Recipe, engine: Engine, path: Path, facts: Facts) -> None:
    """Write .item, a row for each item of `events` that has one, and count what is in it."""
    words: set[str] = set()
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(["item_id:token", *(f"{column}:token_seq" for column in recipe.columns)]) + "\n")
        for row in _rows(engine, 'SELECT * FROM items WHERE "item" IN (SELECT "item" FROM events) ORDER BY "item"'):
            cells = {column: clean(cell, recipe.ascii_only) for column, cell in recipe.text(row).items()}
            file.write("\t".join([row["item"], *(cells[column] for column in recipe.columns)]) + "\n")
            facts.described += 1
            facts.empty.update(column for column in recipe.columns if not cells[column])
            found = WORD.findall(" ".join(cells[column] for column in recipe.columns if column not in UNCOUNTED).lower())
            facts.words += len(found)
            words.update(found)
    facts.vocabulary = len(words)


def _rows(engine: Engine, query: str) -> Iterator[dict]:
    result = engine.run(query)
    names = [column[0] for column in result.description]
    while rows := result.fetchmany(ROWS):
        for row in rows:
            yield dict(zip(names, row, strict=True))
