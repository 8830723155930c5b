"""A dataset's card, README.md: what it is, where it is from, what was done, what it contains."""

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

    Attributes
    ----------
    read : int
        Lines of the raw file of interactions.
    broken : int
        Those of them that are broken or lack user, item or time.
    broken_rows : int
        Metadata rows that are broken or lack the item.
    repeated_rows : int
        Metadata rows of an item after its first one.
    described : int
        Items with a row in .item.
    empty : Counter of str
        Empty cells of each column of .item.
    words : int
        Words of all items, without the columns in `items.UNCOUNTED`.
    vocabulary : int
        Distinct words among them.
    users, items, events : int
        Users, items and interactions in .inter.
    repeated_events : int
        Interactions that repeat another one.
    tied : int
        Users with different items at one time.
    first, last : float or None
        First and last time.
    lengths : tuple of (int, float, float, int)
        Minimum, median, mean and maximum of the interactions of a user.
    time : str
        Unit of the times, in words.
    """

    read: int = 0
    broken: int = 0
    broken_rows: int = 0
    repeated_rows: int = 0
    described: int = 0
    empty: Counter[str] = field(default_factory=Counter)
    words: int = 0
    vocabulary: int = 0
    users: int = 0
    items: int = 0
    events: int = 0
    repeated_events: int = 0
    tied: int = 0
    first: float | None = None
    last: float | None = None
    lengths: tuple[int, float, float, int] = (0, 0.0, 0.0, 0)
    time: str = ""

    def count(self, engine: Engine, reviewed: bool) -> None:
        """Count what is in the table `events`.

        Parameters
        ----------
        engine : Engine
            The tables.
        reviewed : bool
            Whether an interaction repeats another only if it follows it directly and has the same
            review.
        """
        self.users, self.items, self.events, self.first, self.last = engine.run(
            'SELECT count(DISTINCT "user"), count(DISTINCT "item"), count(*), '
            'min("time"), max("time") FROM events'
        ).fetchone()
        self.repeated_events = engine.value(_REPEATED_REVIEWS if reviewed else _REPEATED)
        tied = 'SELECT "user" FROM events GROUP BY "user", "time" HAVING min("item") <> max("item")'
        self.tied = engine.value(f'SELECT count(DISTINCT "user") FROM ({tied})')
        lengths = 'SELECT count(*) AS n FROM events GROUP BY "user"'
        self.lengths = engine.run(
            f"SELECT min(n), median(n), avg(n), max(n) FROM ({lengths})"
        ).fetchone()


_REPEATED = """SELECT coalesce(sum(times - 1), 0)::BIGINT FROM (
    SELECT count(*) AS times FROM events GROUP BY "user", "item", "time", "rating")"""
_ROW = '("item", "time", "rating", "review")'
_REPEATED_REVIEWS = f"""SELECT count(*) FILTER ({_ROW} IS NOT DISTINCT FROM before) FROM (
    SELECT *, lag({_ROW}) OVER (PARTITION BY "user" ORDER BY "time", {PLACE}) AS before
    FROM events)"""


def card(recipe: Recipe, facts: Facts, raw: Sequence[tuple[str, int, str]]) -> str:
    """Write the README.md of a dataset.

    Parameters
    ----------
    recipe : Recipe
        The dataset.
    facts : Facts
        What was counted.
    raw : sequence of (str, int, str)
        Name, size in bytes and SHA-256 of each raw file.

    Returns
    -------
    str
        Markdown.
    """
    filters = "".join(f"{number}. {line}\n" for number, line in enumerate(recipe.filters, start=1))
    if not filters:
        filters = "No user and no item is left out.\n"
    ascii_only = ", characters outside of ASCII made spaces" if recipe.ascii_only else ""
    notes = "".join(f"- {note}\n" for note in recipe.notes)
    ratings = ", `rating:float`" if recipe.rated else ""
    reviews = ", `review:token` (a hash of the review's text)" if recipe.reviewed else ""
    columns = ", ".join(f"`{column}:token_seq`" for column in recipe.columns)
    files = "\n".join(f"| `{name}` | {size:,} | `{sha}` |" for name, size, sha in sorted(raw))
    return f"""{_heading(recipe)}## What was done

{filters}
Texts: entities and tags resolved, page scripts and style rules emptied, control characters \
and runs of white space made one space{ascii_only}.
Events are ordered by user, time and their order in the raw file.

{notes}
{_table(_raw_rows(facts), "reading")}

## What is in it

{_table(_statistics(recipe, facts), "")}

`{recipe.name}.inter`: `user_id:token`, `item_id:token`{ratings}, \
`timestamp:float` ({facts.time}){reviews}.
`{recipe.name}.item`: `item_id:token`, {columns}; unknown is empty.
`{recipe.name}.yaml`: settings that runs on this dataset have by default.

## Raw files

| file | bytes | sha256 |
| --- | ---: | --- |
{files}
"""


def _heading(recipe: Recipe) -> str:
    """Title, source, licence and reference of a dataset."""
    source = recipe.source
    page = f", <{source.page}>" if source.page else ""
    command = f"python run_recbole_llm.py prepare {recipe.arguments or recipe.name}"
    cited = ""
    if source.reference:
        cited = f"Please cite the source:\n\n```bibtex\n{source.reference}\n```\n\n"
    return f"""# {recipe.name}: {recipe.title}

Source: {source.name}{page}\\
Licence: {source.licence}\\
Made by `recbole_llm` {__version__}: `{command}`

{cited}"""


def _raw_rows(facts: Facts) -> list[tuple[str, str]]:
    """What was read of the raw files, as rows of a table."""
    return [
        ("events read", f"{facts.read:,}"),
        ("of them broken, or without user, item or time", f"{facts.broken:,}"),
        ("metadata rows that are broken or without an item", f"{facts.broken_rows:,}"),
        (
            "further metadata rows of one item (the first with a title is taken)",
            f"{facts.repeated_rows:,}",
        ),
    ]


def _statistics(recipe: Recipe, facts: Facts) -> list[tuple[str, str]]:
    """What the dataset contains, as rows of a table."""
    shortest, median, mean, longest = facts.lengths
    first, last = _moment(facts.first, facts.time), _moment(facts.last, facts.time)
    share = facts.repeated_events / facts.events
    rows = [
        ("users", f"{facts.users:,}"),
        ("items met", f"{facts.items:,}"),
        ("events", f"{facts.events:,}"),
        (
            "events that repeat another (left out at load by `dedup`)",
            f"{facts.repeated_events:,} ({share:.1%})",
        ),
        ("density", f"{facts.events / facts.users / facts.items:.4%}"),
        (
            "events of a user: least, median, mean, most",
            f"{shortest}, {median:g}, {mean:.2f}, {longest}",
        ),
        ("users with several items at one time", f"{facts.tied:,}"),
        (f"times ({facts.time})", f"{first} to {last}"),
        ("items with a row of text", f"{facts.described:,}"),
        (
            "words of an item (without its description)",
            f"{facts.words / max(1, facts.described):.2f}",
        ),
        ("distinct words", f"{facts.vocabulary:,}"),
    ]
    rows += [(f"items without {column}", f"{facts.empty[column]:,}") for column in recipe.columns]
    return rows


def _moment(time: float | None, unit: str) -> str:
    """A time, with its date if it is one since 1970 and such a date exists."""
    if time is None:
        raise ValueError("a dataset without interactions has no times")
    per_second = {"seconds": 1, "milliseconds": 1000}.get(unit.partition(" since 1970 (UTC)")[0])
    if per_second:
        with suppress(OverflowError):
            date = (datetime(1970, 1, 1) + timedelta(seconds=time / per_second)).date()
            return f"{time:.0f} ({date})"
    return f"{time:.0f}"


def _table(rows: Sequence[tuple[str, str]], head: str) -> str:
    """A Markdown table of two columns."""
    lines = [f"| {head} | |", "| --- | ---: |", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines)
