"""Metadata of the items that were met: read, one row chosen of several, cleaned and written."""

from collections.abc import Callable
from pathlib import Path

from ..texts.words import words
from .card import Facts
from .clean import clean
from .engine import PLACE, Engine, delimited
from .files.reading import Reader
from .recipe import Files, Recipe

TITLED = '"#titled"'
UNCOUNTED = ("description", "attributes")  # long, and there already


def read_items(
    recipe: Recipe,
    files: Files,
    engine: Engine,
    reader: Reader,
    facts: Facts,
    log: Callable[[str], None],
) -> None:
    """Make the table of the items of `events`: of several rows of one, the first that has a title once it is cleaned; TITLED says whether it has."""
    events, items = recipe.reads
    if items == events:  # no metadata at all
        engine.run(
            f"CREATE TABLE items AS SELECT *, false AS {TITLED} FROM ({recipe.items(files)})"
        )
        return
    log(f"reading {files[items].name} ({files[items].stat().st_size / 2**20:.0f} MiB)")
    engine.run('CREATE TABLE met AS SELECT DISTINCT "item" FROM events')  # once for all pieces
    before = engine.rejected()
    engine.load("found", reader.pieces(files[items], items in recipe.quoted), lambda piece: recipe.items({**files, items: piece}), files[items],
                'WHERE "item" IN (FROM met) OR "item" IS NULL')  # fmt: skip
    facts.broken_rows = (
        engine.value('SELECT count(*) FROM found WHERE "item" IS NULL') + engine.rejected() - before
    )
    if facts.broken_rows:
        log(
            f"{files[items].name}: lines that are broken or lack the item, left out: {facts.broken_rows}"
        )
        engine.run('DELETE FROM found WHERE "item" IS NULL')
    repeated = 'SELECT "item" FROM found GROUP BY ALL HAVING count(*) > 1'
    asked = f"SELECT {PLACE} AS place, title FROM found" + (
        "" if recipe.described else f' WHERE "item" IN ({repeated})'
    )
    empty = dict.fromkeys(row["column_name"] for row in engine.rows("DESCRIBE found"))
    untitled = engine.folder / "untitled.csv"
    with open(untitled, "w") as file:
        for row in engine.rows(asked):
            if not clean(
                recipe.text(empty | {"title": row["title"]})[recipe.title_column], recipe.ascii_only
            ):
                file.write(f"{row['place']}\n")
    told = f"SELECT *, {PLACE} NOT IN (FROM {delimited(untitled, ',', 'place', kind='BIGINT')}) AS {TITLED} FROM found"
    engine.run(
        f'CREATE TABLE items AS SELECT * FROM ({told}) QUALIFY row_number() OVER (PARTITION BY "item" ORDER BY NOT {TITLED}, {PLACE}) = 1'
    )
    facts.repeated_rows = engine.value("SELECT count(*) FROM found") - engine.value(
        "SELECT count(*) FROM items"
    )


def write_items(recipe: Recipe, engine: Engine, path: Path, facts: Facts) -> None:
    """Write .item, a row for each item of `events` that has one, and count what is in it."""
    vocabulary: set[str] = set()
    counted = [column for column in recipe.columns if column not in UNCOUNTED]
    if "main_category" in counted:  # which stands for the levels in the text
        counted.remove("categories")
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(
            "\t".join(["item_id:token", *(f"{column}:token_seq" for column in recipe.columns)])
            + "\n"
        )
        for row in engine.rows(
            'SELECT * FROM items WHERE "item" IN (SELECT "item" FROM events) ORDER BY "item"'
        ):
            cells = {
                column: clean(cell, recipe.ascii_only) for column, cell in recipe.text(row).items()
            }
            file.write(
                "\t".join([row["item"], *(cells[column] for column in recipe.columns)]) + "\n"
            )
            facts.described += 1
            facts.empty.update(column for column in recipe.columns if not cells[column])
            found = words(" ".join(cells[column] for column in counted))
            facts.words += len(found)
            vocabulary.update(found)
    facts.vocabulary = len(vocabulary)
