"""A dataset's card: what it is, where it is from, what was done to it, what is in it."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ... import __version__
from .engine import PLACE, Engine
from .recipe import Recipe


@dataclass
class Facts:
    """What a conversion counts.

    read, broken : events of the raw file, those that are left out. broken_rows, repeated_rows : metadata rows without an item, further ones of one item.
    described, empty, words, vocabulary : items with a row, empty cells by column, words of all columns but description and attributes, distinct ones.
    """

    read: int = 0
    broken: int = 0
    broken_rows: int = 0
    repeated_rows: int = 0
    described: int = 0
    empty: Counter = field(default_factory=Counter)
    words: int = 0
    vocabulary: int = 0
    users: int = 0
    items: int = 0
    events: int = 0
    repeated_events: int = 0
    tied: int = 0
    first: float | None = None
    last: float | None = None
    lengths: tuple[int, float, float, int] = (0, 0.0, 0.0, 0)  # least, median, mean, most
    time: str = ""  # unit of the times, in words

    def count(self, engine: Engine, reviewed: bool) -> None:
        """Statistics of the table of events.

        reviewed : whether an event repeats another only if it follows it and has the same review.
        """
        row = engine.run(
            'SELECT count(DISTINCT "user"), count(DISTINCT "item"), count(*), min("time"), max("time") FROM events'
        ).fetchone()
        self.users, self.items, self.events, self.first, self.last = row
        same = 'SELECT count(*) AS times FROM events GROUP BY "user", "item", "time", "rating"'
        repeated = f"SELECT coalesce(sum(times - 1), 0)::BIGINT FROM ({same})"
        if reviewed:
            row = '("item", "time", "rating", "review")'
            before = f'lag({row}) OVER (PARTITION BY "user" ORDER BY "time", {PLACE})'
            repeated = f"SELECT count(*) FILTER ({row} IS NOT DISTINCT FROM before) FROM (SELECT *, {before} AS before FROM events)"
        self.repeated_events = engine.value(repeated)
        tied = 'SELECT "user" FROM events GROUP BY "user", "time" HAVING min("item") <> max("item")'
        self.tied = engine.value(f'SELECT count(DISTINCT "user") FROM ({tied})')
        self.lengths = engine.run(
            'SELECT min(n), median(n), avg(n), max(n) FROM (SELECT count(*) AS n FROM events GROUP BY "user")'
        ).fetchone()


def card(recipe: Recipe, facts: Facts, raw: Sequence[tuple[str, int, str]]) -> str:
    """README.md of a dataset; raw: name, size in bytes and sha256 of each file that was read."""
    least, median, mean, most = facts.lengths
    rows = [
        ("users", f"{facts.users:,}"),
        ("items met", f"{facts.items:,}"),
        ("events", f"{facts.events:,}"),
        ("events that repeat another (left out at load by `dedup`)", f"{facts.repeated_events:,} ({facts.repeated_events / facts.events:.1%})"),
        ("density", f"{facts.events / facts.users / facts.items:.4%}"),
        ("events of a user: least, median, mean, most", f"{least}, {median:g}, {mean:.2f}, {most}"),
        ("users with several items at one time", f"{facts.tied:,}"),
        (f"times ({facts.time})", f"{_moment(facts.first, facts.time)} to {_moment(facts.last, facts.time)}"),
        ("items with a row of text", f"{facts.described:,}"),
        ("words of an item (without its description)", f"{facts.words / max(1, facts.described):.2f}"),
        ("distinct words", f"{facts.vocabulary:,}"),
        *((f"items without {column}", f"{facts.empty[column]:,}") for column in recipe.columns),
    ]  # fmt: skip
    read = [("events read", f"{facts.read:,}"), ("of them broken, or without user, item or time", f"{facts.broken:,}"),
            ("metadata rows that are broken or without an item", f"{facts.broken_rows:,}"),
            ("further metadata rows of one item (the first with a title is taken)", f"{facts.repeated_rows:,}")]  # fmt: skip
    files = "\n".join(f"| `{name}` | {size:,} | `{sha}` |" for name, size, sha in sorted(raw))
    filters = (
        "".join(f"{number}. {one}\n" for number, one in enumerate(recipe.filters, start=1))
        or "No user and no item is left out.\n"
    )
    ratings = ", `rating:float`" if recipe.rated else ""
    reviews = ", `review:token` (a hash of the review's text)" if recipe.reviewed else ""
    page = f", <{recipe.source.page}>" if recipe.source.page else ""
    cited = (
        f"Please cite the source:\n\n```bibtex\n{recipe.source.reference}\n```\n\n"
        if recipe.source.reference
        else ""
    )
    return f"""# {recipe.name}: {recipe.title}

Source: {recipe.source.name}{page}\\
Licence: {recipe.source.licence}\\
Made by `recbole_llm` {__version__}: `python run_recbole_llm.py prepare {
        recipe.arguments or recipe.name
    }`

{cited}## What was done

{filters}
Texts: entities and tags resolved, page scripts and style rules emptied, control characters and runs of white space made one space{
        ", characters outside of ASCII made spaces" if recipe.ascii_only else ""
    }.
Events are ordered by user, time and their order in the raw file.

{"".join(f"- {note}" + chr(10) for note in recipe.notes)}
{_table(read, "reading")}

## What is in it

{_table(rows, "")}

`{recipe.name}.inter`: `user_id:token`, `item_id:token`{ratings}, `timestamp:float` ({facts.time}){
        reviews
    }.
`{recipe.name}.item`: `item_id:token`, {
        ", ".join(f"`{column}:token_seq`" for column in recipe.columns)
    }; unknown is empty.
`{recipe.name}.yaml`: settings that runs on this dataset have by default.

## Raw files

| file | bytes | sha256 |
| --- | ---: | --- |
{files}
"""


def _moment(time: float, kind: str) -> str:
    """A time, and its day where it is counted from 1970 and such a day exists."""
    unit = {"seconds": 1, "milliseconds": 1000}.get(kind.partition(" since 1970 (UTC)")[0])
    with suppress(OverflowError, TypeError):
        return f"{time:.0f} ({(datetime(1970, 1, 1) + timedelta(seconds=time / unit)).date()})"
    return f"{time:.0f}"


def _table(rows: list[tuple[str, str]], head: str) -> str:
    return "\n".join(
        [f"| {head} | |", "| --- | ---: |", *(f"| {name} | {value} |" for name, value in rows)]
    )
