"""From raw files to a dataset: read, left out, cleaned, counted, written whole or not at all."""

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
from .engine import MEMORY, PLACE, Engine, text
from .files.raw import Net, fetch
from .files.reading import Reader
from .items import TITLED, read_items, write_items
from .recipe import Files, Recipe
from .times import settle


def prepare(
    recipe: Recipe,
    data_path: Path,
    raw: Path | Files | None,
    net: Net,
    memory: int = MEMORY,
    log: Callable[[str], None] = say,
) -> Path:
    """Make `data_path`/NAME out of a recipe: atomic files, settings and card.

    raw : the folder of the raw files, `data_path`/raw/NAME if None, in which those that are not there are downloaded; or the files themselves.

    Raises UserError if the dataset is there already, if raw files cannot be had or are damaged, if nothing is left, or if a file cannot be written.
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
            f"{reason}; make room, or let it be read and written, or name other folders by --data_path and --raw; then run again"
        ) from fault


def _prepare(recipe: Recipe, data_path: Path, raw, net: Net, memory: int, log) -> Path:
    folder, work = data_path / recipe.name, data_path / f".{recipe.name}.preparing"
    if (folder / f"{recipe.name}.inter").exists():
        raise UserError(f"{folder} is there already; remove it to prepare {recipe.name} again")
    shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
    try:
        files = raw
        if raw is None or isinstance(raw, Path):
            files = fetch(
                recipe.files,
                raw or data_path / "raw" / recipe.name,
                work / "raw",
                recipe.source.page,
                net,
            )
        engine, reader = Engine(work / "tables", memory), Reader(work / "pieces", log)
        try:
            facts = _convert(recipe, files, engine, reader, work, log)
            sums = [(path.name, *reader.found(path)) for path in files.values()]
        finally:
            reader.close()
            engine.close()
        (work / "README.md").write_text(card(recipe, facts, sums), encoding="utf-8")
        folder.mkdir(parents=True, exist_ok=True)
        for name in (
            f"{recipe.name}.item",
            f"{recipe.name}.yaml",
            "README.md",
            f"{recipe.name}.inter",
        ):  # the last one makes it a dataset
            if (work / name).is_file():
                os.replace(work / name, folder / name)
            else:  # of an earlier one, whose events were removed
                (folder / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    log(
        f"{folder}: {facts.users} users, {facts.items} items, {facts.events} events; {recipe.source.licence} Its card: {folder / 'README.md'}"
    )
    return folder


def _convert(
    recipe: Recipe, files: Files, engine: Engine, reader: Reader, work: Path, log
) -> Facts:
    facts, own = Facts(), recipe.reads[0]
    events, items = (files[name] for name in recipe.reads)
    log(f"reading {events.name} ({events.stat().st_size / 2**20:.0f} MiB)")
    engine.load(
        "events",
        reader.pieces(events, own in recipe.quoted),
        lambda piece: recipe.events({**files, own: piece}),
        events,
    )
    facts.read = engine.value("SELECT count(*) FROM events") + engine.rejected()
    if not facts.read:
        raise UserError(
            f"{events}: expected events, found a file without rows; is it the right file, and whole?"
        )
    facts.time = recipe.time
    if recipe.time_column:
        facts.time = settle(engine, events, recipe.time_column, log) or facts.time
    whole = '"user" IS NOT NULL AND "item" IS NOT NULL AND "time" IS NOT NULL AND "user" <> \'\' AND "item" <> \'\''
    if facts.read and not engine.value(f"SELECT count(*) FROM events WHERE {whole}"):
        missing = [
            role
            for role in ("user", "item", "time")
            if not engine.value(f'SELECT count("{role}") FROM events')
        ]
        raise UserError(
            f"{events}: expected events with user, item and time, found {facts.read} lines without {' or '.join(missing) or 'one of them'}"
        )
    engine.run(f"DELETE FROM events WHERE NOT ({whole}) OR ({whole}) IS NULL")
    facts.broken = facts.read - engine.value("SELECT count(*) FROM events")
    if facts.broken:
        log(
            f"{facts.broken} of {facts.read} events are broken or lack a user, an item or a time: left out"
        )
    _check_core(recipe, engine, events)
    ids = """SELECT unnest(["user", "item"]) AS id FROM events"""
    for row in engine.rows(
        f"""SELECT id FROM ({ids}) WHERE regexp_matches(id, '^"|[\t\n\r]') LIMIT 1"""
    ):
        raise UserError(
            f"{events}: expected ids without tabs, line ends and quotes in front, which atomic files cannot hold; found {row['id']!r}"
        )
    if recipe.users < 1:
        everyone = engine.value('SELECT count(DISTINCT "user") FROM events')
        drawn = f"""SELECT "user" FROM (SELECT DISTINCT "user" FROM events) ORDER BY md5("user"), "user" LIMIT {max(1, round(everyone * recipe.users))}"""
        engine.run(f'DELETE FROM events WHERE "user" NOT IN ({drawn})')
    if not recipe.described:
        _leave_out(recipe, engine)
    read_items(recipe, files, engine, reader, facts, log)
    if recipe.described:
        engine.run(
            f'DELETE FROM events WHERE "item" NOT IN (SELECT "item" FROM items WHERE {TITLED})'
        )
        _leave_out(recipe, engine)
    if not engine.value("SELECT count(*) FROM events"):
        left_out = "; ".join(recipe.filters) or "nothing was filtered"
        whole = "" if items == events else f"; are {events} and {items} of one source?"
        raise UserError(f"{recipe.name}: no event is left of {facts.read} ({left_out}){whole}")
    _write_events(recipe, engine, work)
    facts.count(engine, recipe.reviewed)
    if recipe.columns:
        write_items(recipe, engine, work / f"{recipe.name}.item", facts)
        _check_items(recipe, facts, files[recipe.reads[1]], log)
    settings = (
        {"selected_features": ["attributes"], "item_attribute": "attributes"}
        if "attributes" in recipe.columns
        else {}
    )
    (work / f"{recipe.name}.yaml").write_text(
        yaml.safe_dump(settings | recipe.settings, sort_keys=False, allow_unicode=True),
        encoding="utf-8",
    )
    return facts


def _check_items(recipe: Recipe, facts: Facts, path: Path, log) -> None:
    """Columns that are all empty and ids that never fit are misspelt, as a rule."""
    if not facts.described and facts.broken_rows:
        raise UserError(
            f"{path}: expected rows of the {facts.items} items of the events, found none, and {facts.broken_rows} lines that are broken or "
            "lack the item; is it the right file, and whole?"
        )
    if not facts.described:
        raise UserError(
            f"{path}: expected rows of the {facts.items} items of the events, found none; are the ids written alike, and is it the right file?"
        )
    if facts.empty[recipe.title_column] == facts.described:
        raise UserError(
            f"{path}: expected titles, found none that is not empty; is its column called as it was said?"
        )
    if facts.described < facts.items:
        log(f"{path.name}: {facts.described} of {facts.items} items have a row")
    if empty := [column for column in recipe.columns if facts.empty[column] == facts.described]:
        log(f"{path.name}: empty for every item: {', '.join(empty)}")


def _check_core(recipe: Recipe, engine: Engine, path: Path) -> None:
    """5-core and 0-core files are called alike: what is in them tells one from the other."""
    if recipe.core is None:
        return
    counts = " UNION ALL ".join(
        f'SELECT count(*) AS n FROM events GROUP BY "{column}"' for column in ("user", "item")
    )
    rare = engine.value(f"SELECT avg((n < 5)::INT) FROM ({counts})")
    if rare is not None and ((rare > 0.01) if recipe.core else (rare == 0)):
        found = f"{rare:.0%} of the users and items with fewer than 5 events"
        raise UserError(
            f"{path}: expected the {recipe.core}-core file, found {found}; get the right one, or prepare {5 - recipe.core}-core"
        )


def _leave_out(recipe: Recipe, engine: Engine) -> None:
    """Apply `least` until nothing changes, then `length`."""
    if recipe.least != (1, 1):
        first = f'SELECT min({PLACE}) FROM events GROUP BY "user", "item", "time", "rating"'
        engine.run(
            f"CREATE OR REPLACE TABLE events AS SELECT *, {PLACE} IN ({first}) AS new FROM events"
        )
        before = None
        while before != (before := engine.value("SELECT count(*) FROM events")):
            for column, least in zip(("user", "item"), recipe.least, strict=True):
                engine.run(
                    f'DELETE FROM events WHERE "{column}" IN (SELECT "{column}" FROM events GROUP BY ALL HAVING count(*) FILTER (new) < {least})'
                )
    if recipe.length:
        low, high = recipe.length
        engine.run(
            f'DELETE FROM events WHERE "user" IN (SELECT "user" FROM events GROUP BY ALL HAVING count(*) NOT BETWEEN {low} AND {high})'
        )


def _write_events(recipe: Recipe, engine: Engine, work: Path) -> None:
    rating = ', "rating" AS "rating:float"' if recipe.rated else ""
    review = ', "review" AS "review:token"' if recipe.reviewed else ""
    columns = f'"user" AS "user_id:token", "item" AS "item_id:token"{rating}, "time" AS "timestamp:float"{review}'
    target = text(work / f"{recipe.name}.inter")
    engine.run(f"""COPY (SELECT {columns} FROM events ORDER BY "user", "time", {PLACE})
        TO {target} (FORMAT csv, DELIMITER '\t', HEADER true, QUOTE '', ESCAPE '')""")
