"""Metadata of the items in the interactions: read, reduced to one row an item, cleaned, written."""

from collections.abc import Callable
from pathlib import Path

from ..texts.words import words
from .card import Facts
from .clean import clean
from .engine import PLACE, Engine, delimited
from .files.reading import Reader
from .recipe import Files, Recipe

TITLED = '"#titled"'  # column that says whether a row has a title after cleaning
UNCOUNTED = ("description", "attributes")  # columns whose words the card does not count


def read_items(
    recipe: Recipe,
    files: Files,
    engine: Engine,
    reader: Reader,
    facts: Facts,
    log: Callable[[str], None],
) -> None:
    """Create the table `items`, with the metadata of the items in `events`.

    If an item has several rows, the first with a title after cleaning is taken, else the first. The
    column TITLED says whether the row has a title.

    Parameters
    ----------
    recipe : Recipe
        The dataset.
    files : mapping of str to Path
        Its raw files.
    engine : Engine
        The tables, with `events`.
    reader : Reader
        Reads the raw files.
    facts : Facts
        Counts broken and repeated rows.
    log : callable
        Receives a line for each step.
    """
    events, items = recipe.reads
    path = files[items]
    if items == events:  # there is no metadata
        engine.run(
            f"CREATE TABLE items AS SELECT *, false AS {TITLED} FROM ({recipe.items(files)})"
        )
        return
    log(f"reading {path.name} ({path.stat().st_size / 2**20:.0f} MiB)")
    engine.run('CREATE TABLE seen AS SELECT DISTINCT "item" FROM events')  # once for all pieces
    rejected_before = engine.rejected()
    engine.load(
        "metadata",
        reader.pieces(path, items in recipe.quoted),
        lambda piece: recipe.items({**files, items: piece}),
        path,
        'WHERE "item" IN (FROM seen) OR "item" IS NULL',
    )
    without_item = engine.value('SELECT count(*) FROM metadata WHERE "item" IS NULL')
    facts.broken_rows = without_item + engine.rejected() - rejected_before
    if facts.broken_rows:
        log(f"{path.name}: lines that are broken or lack the item, left out: {facts.broken_rows}")
        engine.run('DELETE FROM metadata WHERE "item" IS NULL')
    _choose_rows(recipe, engine)
    rows = engine.value("SELECT count(*) FROM metadata")
    facts.repeated_rows = rows - engine.value("SELECT count(*) FROM items")


def _choose_rows(recipe: Recipe, engine: Engine) -> None:
    """Create `items` from `metadata`: one row an item, and the column TITLED.

    Titles are cleaned in Python. Unless the recipe filters by titles, only those of items with
    several rows are needed.
    """
    query = f"SELECT {PLACE} AS place, title FROM metadata"
    if not recipe.described:
        repeated = 'SELECT "item" FROM metadata GROUP BY ALL HAVING count(*) > 1'
        query += f' WHERE "item" IN ({repeated})'
    empty = dict.fromkeys(row["column_name"] for row in engine.rows("DESCRIBE metadata"))
    untitled = engine.folder / "untitled.csv"
    with open(untitled, "w") as file:
        for row in engine.rows(query):
            texts = recipe.text(empty | {"title": row["title"]})
            if not clean(texts[recipe.title_column], recipe.ascii_only):
                file.write(f"{row['place']}\n")
    places = delimited(untitled, ",", "place", kind="BIGINT")
    labelled = f"SELECT *, {PLACE} NOT IN (FROM {places}) AS {TITLED} FROM metadata"
    rank = f'row_number() OVER (PARTITION BY "item" ORDER BY NOT {TITLED}, {PLACE})'
    engine.run(f"CREATE TABLE items AS SELECT * FROM ({labelled}) QUALIFY {rank} = 1")


def write_items(recipe: Recipe, engine: Engine, path: Path, facts: Facts) -> None:
    """Write the .item file: a row for each item of `events` that has metadata.

    Parameters
    ----------
    recipe : Recipe
        The dataset.
    engine : Engine
        The tables, with `events` and `items`.
    path : Path
        The file to write.
    facts : Facts
        Counts rows, empty cells and words.
    """
    vocabulary: set[str] = set()
    counted = [column for column in recipe.columns if column not in UNCOUNTED]
    if "main_category" in counted:  # the text has it in place of the categories
        counted.remove("categories")
    header = ["item_id:token", *(f"{column}:token_seq" for column in recipe.columns)]
    query = 'SELECT * FROM items WHERE "item" IN (SELECT "item" FROM events) ORDER BY "item"'
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(header) + "\n")
        for row in engine.rows(query):
            texts = recipe.text(row)
            cells = {column: clean(cell, recipe.ascii_only) for column, cell in texts.items()}
            line = [row["item"], *(cells[column] for column in recipe.columns)]
            file.write("\t".join(line) + "\n")
            facts.described += 1
            facts.empty.update(column for column in recipe.columns if not cells[column])
            item_words = words(" ".join(cells[column] for column in counted))
            facts.words += len(item_words)
            vocabulary.update(item_words)
    facts.vocabulary = len(vocabulary)
