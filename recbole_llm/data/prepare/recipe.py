"""What a source says of one of its datasets: files, tables, filters, text, terms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .files.raw import Remote

Files = Mapping[str, Path]  # raw files by their names


@dataclass(frozen=True)
class Source:
    """Who gives the data out. reference : BibTeX entry that its users are asked to cite."""

    name: str
    page: str
    licence: str
    reference: str


def judged(domain: str) -> dict:
    """Settings of the models whose prompts have words of their own for a domain."""
    return {model: {"domain": domain} for model in ("LLMTRSR", "TALLRec")}


def title_alone(*models: str, column: str = "title") -> dict:
    """Settings of models whose item text is the title, whatever text a dataset gives to the others.

    A dataset's `text_fields` come after a model's own and would replace them, so a recipe that sets
    `text_fields` names these models, too.
    """
    return {model: {"text_fields": {"Title": column}} for model in models}


@dataclass(frozen=True)
class Recipe:
    """One dataset, from raw files to RecBole's atomic files.

    events : SQL of the rows "user", "item", "rating", "time" in the order of the raw file; a line that is broken is a row of NULLs. A user without
        ids in the source is a number, a time without times the place in the sequence.
    items : SQL of the rows "item" and the columns that `text` reads, in the order of the raw file.
    text : the raw columns of one item -> the columns of .item, still to be cleaned.
    reads : the raw file that `events` and the one that `items` read; quoted : those of them that are delimited files with quoted cells.
    core : fewest events of a user and of an item that the source promises, 0 where it promises that some have fewer, None where it promises nothing.
    reviewed : whether `events` has a further column "review", a hash of what the user wrote.
    users : share of the users that is drawn first. least : fewest events of a user and of an item, reached by leaving out in turns.
    length : fewest and most events of a user. described : whether events of items without a row or a title are left out.
    time_column : the raw column of times that may be dates, or numbers of any unit; `events` then has
        the columns of `times.time_columns`.
    settings : what runs on the dataset set by default, in its own settings file. ascii_only : see `clean`.
    arguments : of `prepare`, where the name is not enough.
    notes : what a reader of the numbers must know of the mapping, a sentence each.
    """

    name: str
    title: str
    source: Source
    files: tuple[Remote, ...]
    events: Callable[[Files], str]
    items: Callable[[Files], str]
    text: Callable[[dict], dict[str, str]]
    columns: tuple[str, ...]
    reads: tuple[str, str]
    quoted: tuple[str, ...] = ()
    core: int | None = None
    users: float = 1.0
    least: tuple[int, int] = (1, 1)
    length: tuple[int, int] | None = None
    described: bool = False
    rated: bool = True
    reviewed: bool = False
    time: str = "seconds since 1970 (UTC)"
    time_column: str = ""
    ascii_only: bool = False
    arguments: str = ""
    settings: dict = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def title_column(self) -> str:
        """The column of .item that texts begin with."""
        return "title" if "title" in self.columns else self.columns[0]

    @property
    def filters(self) -> list[str]:
        """What is left out, in words and in order."""
        found = []
        if self.users < 1:
            found.append(f"{self.users:.0%} of the users, drawn by the md5 of their ids")
        if self.described:
            found.append("items without a row or a title in the metadata left out")
        if self.least != (1, 1):
            found.append(
                f"users with at least {self.least[0]} and items with at least {self.least[1]} events, until both hold; a repeated row counts once"
            )
        if self.length:
            found.append(f"sequences of {self.length[0]} to {self.length[1]} events")
        return found
