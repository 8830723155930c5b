"""What a source says about one of its datasets: files, tables, filters, texts, terms of use."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .files.raw import Remote

Files = Mapping[str, Path]  # raw files by their names


@dataclass(frozen=True)
class Source:
    """The publisher of a dataset.

    Attributes
    ----------
    name : str
        Name of the source.
    page : str
        Address of its page.
    licence : str
        Terms of use, in a sentence.
    reference : str
        BibTeX entry that users are asked to cite.
    """

    name: str
    page: str
    licence: str
    reference: str


def judged(domain: str) -> dict[str, Any]:
    """Make the settings of the models whose prompts have wordings for each domain.

    Parameters
    ----------
    domain : str
        Name of the domain, such as `movies`.

    Returns
    -------
    dict
        Model -> settings.
    """
    return {model: {"domain": domain} for model in ("LLMTRSR", "TALLRec")}


def title_alone(*models: str, column: str = "title") -> dict[str, Any]:
    """Make the settings of models whose item text is the title, whatever the text of the others.

    A dataset's `text_fields` come after a model's own and would replace them. A recipe that sets
    `text_fields` therefore names these models, too.

    Parameters
    ----------
    *models
        Names of the models.
    column : str
        The column of titles.

    Returns
    -------
    dict
        Model -> settings.
    """
    return {model: {"text_fields": {"Title": column}} for model in models}


@dataclass(frozen=True)
class Recipe:
    """How to make one dataset: from raw files to RecBole's atomic files.

    Attributes
    ----------
    name : str
        Name of the dataset.
    title : str
        What it is, in a few words.
    source : Source
        Its publisher.
    files : tuple of Remote
        The raw files.
    events : callable
        Raw files -> SQL of the rows "user", "item", "rating", "time" in the order of the raw file.
        A broken line is a row of NULLs. Without user ids in the source, users are numbers; without
        times, the time is the position in the sequence.
    items : callable
        Raw files -> SQL of the rows "item" and the columns that `text` reads, in the order of the
        raw file.
    text : callable
        The raw columns of one item -> the columns of .item, which are cleaned afterwards.
    columns : tuple of str
        The columns of .item without the id.
    reads : tuple of (str, str)
        Names of the raw files that `events` and `items` read.
    quoted : tuple of str
        Those of them that are delimited files with quoted cells.
    core : int or None
        The k of the k-core that the source promises: 5, or 0 for a file in which some users and
        items have fewer interactions; None for no promise.
    users : float
        Fraction of users to sample before anything is filtered.
    least : tuple of (int, int)
        Smallest numbers of interactions of a user and of an item, applied until both hold.
    length : tuple of (int, int) or None
        Smallest and largest number of interactions of a user.
    described : bool
        Whether interactions with items without a row or a title are left out.
    rated : bool
        Whether .inter has ratings.
    reviewed : bool
        Whether `events` has a further column "review", a hash of the text of the review.
    time : str
        Unit of the times, in words.
    time_column : str
        The raw column of times that may be dates, or numbers of any unit; `events` then has the
        columns of `times.time_columns`.
    ascii_only : bool
        Whether texts are reduced to ASCII; see `clean.clean`.
    arguments : str
        The arguments of `prepare` that make this dataset, if the name is not enough.
    settings : dict
        The defaults of runs on the dataset, written into its settings file.
    notes : tuple of str
        What a reader of the figures must know about the mapping, a sentence each.
    """

    name: str
    title: str
    source: Source
    files: tuple[Remote, ...]
    events: Callable[[Files], str]
    items: Callable[[Files], str]
    text: Callable[[dict[str, Any]], dict[str, str]]
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
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def title_column(self) -> str:
        """The column of .item that texts begin with."""
        return "title" if "title" in self.columns else self.columns[0]

    @property
    def filters(self) -> list[str]:
        """The filters in words, in the order in which they are applied."""
        lines = []
        if self.users < 1:
            lines.append(f"{self.users:.0%} of the users, drawn by the md5 of their ids")
        if self.described:
            lines.append("items without a row or a title in the metadata left out")
        if self.least != (1, 1):
            lines.append(
                f"users with at least {self.least[0]} and items with at least {self.least[1]} "
                "events, until both hold; a repeated row counts once"
            )
        if self.length:
            lines.append(f"sequences of {self.length[0]} to {self.length[1]} events")
        return lines
