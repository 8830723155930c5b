"""From raw files to a dataset: read, filtered, cleaned, counted and written.

A dataset is written as a whole or not at all.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import yaml
from filelock import FileLock

from ...errors import UserError, require_packages
from ...storage.run_folders import check_writable
from ...storage.screen import say
from .card import Facts, card
from .engine import MEMORY, PLACE, Engine, literal
from .files.raw import Net, fetch
from .files.reading import Reader
from .items import TITLED, read_items, write_items
from .recipe import Files, Recipe
from .times import settle

Log = Callable[[str], None]

COMPLETE = (
    '"user" IS NOT NULL AND "item" IS NOT NULL AND "time" IS NOT NULL '
    "AND \"user\" <> '' AND \"item\" <> ''"
)
RARE = 5  # fewer interactions than this make a user or an item rare, in the checks of k-cores


def prepare(
    recipe: Recipe,
    data_path: Path,
    raw: Path | Files | None,
    net: Net,
    memory: int = MEMORY,
    log: Log = say,
) -> Path:
    """Make a dataset from its raw files: atomic files, settings and card.

    Parameters
    ----------
    recipe : Recipe
        The dataset.
    data_path : Path
        Folder of the datasets, in which a folder of the recipe's name is written.
    raw : Path, mapping of str to Path, or None
        The raw files, or the folder in which they are looked for and to which missing ones are
        downloaded; None means `data_path`/raw/NAME.
    net : Net
        How to download.
    memory : int
        MiB that DuckDB may use.
    log : callable
        Receives a line for each step.

    Returns
    -------
    Path
        The dataset's folder.

    Raises
    ------
    UserError
        If the dataset exists already, raw files are missing or damaged, no interaction is left, or
        a file cannot be written.
    """
    require_packages("prepare", "prepare", "duckdb", "requests")
    check_writable(data_path, "data_path")
    try:
        data_path.mkdir(parents=True, exist_ok=True)
        with FileLock(data_path / f".{recipe.name}.lock"):
            return _prepare(recipe, data_path, raw, net, memory, log)
    except OSError as fault:
        reason = f"{fault.filename or data_path}: {fault.strerror or fault}"
        raise UserError(
            f"{reason}; make room, or permit reading and writing, "
            "or name other folders by --data_path and --raw; then run again"
        ) from fault


def _prepare(
    recipe: Recipe, data_path: Path, raw: Path | Files | None, net: Net, memory: int, log: Log
) -> Path:
    """Convert into a work folder, then move the finished files to their places."""
    folder, work = data_path / recipe.name, data_path / f".{recipe.name}.preparing"
    if (folder / f"{recipe.name}.inter").exists():
        raise UserError(f"{folder} exists already; remove it to prepare {recipe.name} again")
    shutil.rmtree(work, ignore_errors=True)  # a killed process may have left it
    try:
        if raw is None or isinstance(raw, Path):
            raw_folder = raw or data_path / "raw" / recipe.name
            files: Files = fetch(recipe.files, raw_folder, work / "raw", recipe.source.page, net)
        else:
            files = raw
        engine, reader = Engine(work / "tables", memory), Reader(work / "pieces", log)
        try:
            facts = _convert(recipe, files, engine, reader, work, log)
            sums = [(path.name, *reader.size_and_sha256(path)) for path in files.values()]
        finally:
            reader.close()
            engine.close()
        (work / "README.md").write_text(card(recipe, facts, sums), encoding="utf-8")
        _move(recipe.name, work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    log(
        f"{folder}: {facts.users} users, {facts.items} items, {facts.events} events; "
        f"{recipe.source.licence} Its card: {folder / 'README.md'}"
    )
    return folder


def _move(name: str, work: Path, folder: Path) -> None:
    """Move the finished files into the dataset's folder.

    The .inter file comes last, because it makes the folder a dataset. A file without a successor is
    removed: it belongs to an earlier conversion, whose .inter file was removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file_name in (f"{name}.item", f"{name}.yaml", "README.md", f"{name}.inter"):
        if (work / file_name).is_file():
            os.replace(work / file_name, folder / file_name)
        else:
            (folder / file_name).unlink(missing_ok=True)


def _convert(
    recipe: Recipe, files: Files, engine: Engine, reader: Reader, work: Path, log: Log
) -> Facts:
    """Write the atomic files and the settings into the work folder, and count what is in them."""
    facts = Facts()
    path = files[recipe.reads[0]]
    _read_events(recipe, files, engine, reader, facts, log)
    _drop_incomplete(engine, path, facts, log)
    _check_core(recipe, engine, path)
    _check_ids(engine, path)
    if recipe.users < 1:
        _sample_users(engine, recipe.users)
    if not recipe.described:
        _filter(recipe, engine)
    read_items(recipe, files, engine, reader, facts, log)
    if recipe.described:
        titled = f'SELECT "item" FROM items WHERE {TITLED}'
        engine.run(f'DELETE FROM events WHERE "item" NOT IN ({titled})')
        _filter(recipe, engine)
    if not engine.value("SELECT count(*) FROM events"):
        raise _nothing_left(recipe, files, facts)
    _write_events(recipe, engine, work)
    facts.count(engine, recipe.reviewed)
    if recipe.columns:
        write_items(recipe, engine, work / f"{recipe.name}.item", facts)
        _check_items(recipe, facts, files[recipe.reads[1]], log)
    settings: dict = {}
    if "attributes" in recipe.columns:
        settings = {"selected_features": ["attributes"], "item_attribute": "attributes"}
    content = yaml.safe_dump(settings | recipe.settings, sort_keys=False, allow_unicode=True)
    (work / f"{recipe.name}.yaml").write_text(content, encoding="utf-8")
    return facts


def _read_events(
    recipe: Recipe, files: Files, engine: Engine, reader: Reader, facts: Facts, log: Log
) -> None:
    """Create the table `events` of all interactions in the raw file."""
    name = recipe.reads[0]
    path = files[name]
    log(f"reading {path.name} ({path.stat().st_size / 2**20:.0f} MiB)")
    engine.load(
        "events",
        reader.pieces(path, name in recipe.quoted),
        lambda piece: recipe.events({**files, name: piece}),
        path,
    )
    facts.read = engine.value("SELECT count(*) FROM events") + engine.rejected()
    if not facts.read:
        raise UserError(
            f"{path}: expected events, found a file without rows; is it the right file, and whole?"
        )
    facts.time = recipe.time
    if recipe.time_column:
        facts.time = settle(engine, path, recipe.time_column, log) or facts.time


def _drop_incomplete(engine: Engine, path: Path, facts: Facts, log: Log) -> None:
    """Drop interactions without user, item or time; raise UserError if all are so."""
    if not engine.value(f"SELECT count(*) FROM events WHERE {COMPLETE}"):
        missing = [
            role
            for role in ("user", "item", "time")
            if not engine.value(f'SELECT count("{role}") FROM events')
        ]
        raise UserError(
            f"{path}: expected events with user, item and time, "
            f"found {facts.read} lines without {' or '.join(missing) or 'one of them'}"
        )
    engine.run(f"DELETE FROM events WHERE NOT ({COMPLETE}) OR ({COMPLETE}) IS NULL")
    facts.broken = facts.read - engine.value("SELECT count(*) FROM events")
    if facts.broken:
        log(
            f"{facts.broken} of {facts.read} events are broken or lack a user, an item or a time: "
            "left out"
        )


def _check_core(recipe: Recipe, engine: Engine, path: Path) -> None:
    """Raise UserError if the raw file is not the k-core that the recipe promises.

    The 5-core and the 0-core have the same file name: only their content tells them apart.
    """
    if recipe.core is None:
        return
    counts = " UNION ALL ".join(
        f'SELECT count(*) AS n FROM events GROUP BY "{column}"' for column in ("user", "item")
    )
    rare = engine.value(f"SELECT avg((n < {RARE})::INT) FROM ({counts})")
    if rare is None:
        return
    is_wrong = rare > 0.01 if recipe.core else rare == 0
    if is_wrong:
        raise UserError(
            f"{path}: expected the {recipe.core}-core file, found {rare:.0%} of the users and "
            f"items with fewer than {RARE} events; "
            f"get the right one, or prepare {5 - recipe.core}-core"
        )


def _check_ids(engine: Engine, path: Path) -> None:
    """Raise UserError for an id that an atomic file cannot hold."""
    ids = 'SELECT unnest(["user", "item"]) AS id FROM events'
    wrong = f"""SELECT id FROM ({ids}) WHERE regexp_matches(id, '^"|[\t\n\r]') LIMIT 1"""
    for row in engine.rows(wrong):
        raise UserError(
            f"{path}: expected ids without tabs, line ends and quotes in front, "
            f"which atomic files cannot hold; found {row['id']!r}"
        )


def _sample_users(engine: Engine, share: float) -> None:
    """Keep the interactions of a fraction of the users, chosen by the MD5 of their ids."""
    users = engine.value('SELECT count(DISTINCT "user") FROM events')
    sample = (
        'SELECT "user" FROM (SELECT DISTINCT "user" FROM events) '
        f'ORDER BY md5("user"), "user" LIMIT {max(1, round(users * share))}'
    )
    engine.run(f'DELETE FROM events WHERE "user" NOT IN ({sample})')


def _filter(recipe: Recipe, engine: Engine) -> None:
    """Apply the recipe's `least` until nothing changes, then its `length`.

    A repeated row counts once for `least`.
    """
    if recipe.least != (1, 1):
        first = f'SELECT min({PLACE}) FROM events GROUP BY "user", "item", "time", "rating"'
        engine.run(
            f"CREATE OR REPLACE TABLE events AS SELECT *, {PLACE} IN ({first}) AS new FROM events"
        )
        before, count = None, engine.value("SELECT count(*) FROM events")
        while before != count:
            before = count
            for column, least in zip(("user", "item"), recipe.least, strict=True):
                _drop_groups(engine, column, f"count(*) FILTER (new) < {least}")
            count = engine.value("SELECT count(*) FROM events")
    if recipe.length:
        low, high = recipe.length
        _drop_groups(engine, "user", f"count(*) NOT BETWEEN {low} AND {high}")


def _drop_groups(engine: Engine, column: str, condition: str) -> None:
    """Drop the interactions of the users or items of which a condition is true."""
    groups = f'SELECT "{column}" FROM events GROUP BY ALL HAVING {condition}'
    engine.run(f'DELETE FROM events WHERE "{column}" IN ({groups})')


def _nothing_left(recipe: Recipe, files: Files, facts: Facts) -> UserError:
    """The error for a dataset of which the filters leave no interaction."""
    events, items = (files[name] for name in recipe.reads)
    filters = "; ".join(recipe.filters) or "nothing was filtered"
    question = "" if items == events else f"; are {events} and {items} of one source?"
    return UserError(f"{recipe.name}: no event is left of {facts.read} ({filters}){question}")


def _check_items(recipe: Recipe, facts: Facts, path: Path, log: Log) -> None:
    """Raise UserError if no item has a row or a title; log columns that are empty.

    The reason is usually a misspelt column, or ids that are written differently.
    """
    if not facts.described and facts.broken_rows:
        raise UserError(
            f"{path}: expected rows of the {facts.items} items of the events, found none, and "
            f"{facts.broken_rows} lines that are broken or lack the item; "
            "is it the right file, and whole?"
        )
    if not facts.described:
        raise UserError(
            f"{path}: expected rows of the {facts.items} items of the events, found none; "
            "are the ids written alike in both files, and is it the right file?"
        )
    if facts.empty[recipe.title_column] == facts.described:
        raise UserError(
            f"{path}: expected titles, found none that is not empty; is it the right column?"
        )
    if facts.described < facts.items:
        log(f"{path.name}: {facts.described} of {facts.items} items have a row")
    empty = [column for column in recipe.columns if facts.empty[column] == facts.described]
    if empty:
        log(f"{path.name}: empty for every item: {', '.join(empty)}")


def _write_events(recipe: Recipe, engine: Engine, work: Path) -> None:
    """Write the .inter file, sorted by user, time and place in the raw file."""
    columns = ['"user" AS "user_id:token"', '"item" AS "item_id:token"']
    if recipe.rated:
        columns.append('"rating" AS "rating:float"')
    columns.append('"time" AS "timestamp:float"')
    if recipe.reviewed:
        columns.append('"review" AS "review:token"')
    rows = f'SELECT {", ".join(columns)} FROM events ORDER BY "user", "time", {PLACE}'
    target = literal(work / f"{recipe.name}.inter")
    options = "FORMAT csv, DELIMITER '\t', HEADER true, QUOTE '', ESCAPE ''"
    engine.run(f"COPY ({rows}) TO {target} ({options})")
