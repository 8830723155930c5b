"""Write items and histories as text, for each kind of model; no tokenizer is involved."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...data.texts.text import UNKNOWN
from .marks import neutralize_separators

# What stands around the newest items of a history in the released code of TASTE (CIKM 2023)
TASTE_PROMPT = ("Here is the visit history list of user: ", " recommend next item ")
ITEM_SEPARATOR = ", "  # between two items, for TASTE and for text forms without marks
ST5SEQ_INSTRUCTION = (
    "A user bought the following items, in chronological order. Each item is written as "
    "Title: <item title>. The purchase history is: "
)


@dataclass(frozen=True)
class Template:
    """The fixed sentences around the items of a history.

    One space separates a prefix from its item. CALRec's `target` is its `next`; GPT4Rec has no
    prefixes but one sentence after the history.

    Parameters
    ----------
    head : str
        Opens the text.
    first : str
        Precedes the first item.
    next : str
        Precedes every other item.
    target : str
        Precedes what the model is to write.
    """

    head: str
    first: str
    next: str
    target: str

    @classmethod
    def from_config(cls, template: Mapping[str, str]) -> "Template":
        """Make a template from the setting `template`.

        Parameters
        ----------
        template : mapping of str to str
            The four sentences by name.

        Returns
        -------
        Template
            The template.
        """
        return cls(**template)


class LazyTexts(Sequence):
    """The texts of a history, each looked up when it is read.

    Only the newest items of a long history are read, so that the others cost nothing.

    Parameters
    ----------
    table : sequence
        The text of each item, or whatever stands for it.
    items : sequence or ndarray of int [n]
        The items of the history, oldest first.
    """

    def __init__(self, table: Sequence, items: Sequence[int] | np.ndarray):
        self.table, self.items = table, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return LazyTexts(self.table, self.items[index])
        return self.table[self.items[index]]


@dataclass(frozen=True)
class Example:
    """One history, and the target where it is known.

    Parameters
    ----------
    template : Template
        The sentences around the items.
    items : sequence of str
        The texts of the history, oldest first.
    target : str, optional
        The text that follows; it is a training target.
    learned : sequence of bool, optional
        For each item whether its text is a training target too; no item is where None.
    """

    template: Template
    items: Sequence[str]
    target: str | None = None
    learned: Sequence[bool] | np.ndarray | None = None


def item_prefix(template: Template, index: int) -> str:
    """Return what stands before an item.

    Parameters
    ----------
    template : Template
        The sentences around the items.
    index : int
        Index of the item in the history.

    Returns
    -------
    str
        The prefix; a space separates that of the first item from the head.
    """
    if index != 0:
        return template.next
    return f" {template.first}" if template.first else ""


def item_line(attributes: Iterable[tuple[str, str]]) -> str:
    """Write an item in one line: `Title: A; Brand: B`.

    Unknown values are left out, and no value can be read as another attribute.

    Parameters
    ----------
    attributes : iterable of (str, str)
        Names and values.

    Returns
    -------
    str
        The line; UNKNOWN for an item of which nothing is known.
    """
    pairs = list(attributes)
    names = [name for name, _ in pairs]
    parts = [
        f"{name}: {neutralize_separators(value, names)}"
        for name, value in pairs
        if value != UNKNOWN
    ]
    return "; ".join(parts) or UNKNOWN


def taste_item_text(attributes: Iterable[tuple[str, str]]) -> str:
    """Write an item as TASTE does: `id: 12 title: A`.

    Parameters
    ----------
    attributes : iterable of (str, str)
        Names and values; unknown values are left out.

    Returns
    -------
    str
        The text; UNKNOWN for an item of which nothing is known.
    """
    parts = [f"{name.lower()}: {value}" for name, value in attributes if value != UNKNOWN]
    return " ".join(parts) or UNKNOWN


@dataclass(frozen=True)
class TextForm:
    """How a sentence encoder reads items and sequences of them (ST5-Seq, table A.3).

    Parameters
    ----------
    marked : bool
        Whether special tokens open and close a sequence and each item, and attributes are named.
        Otherwise there is the bare text, with `separator` between items.
    instruction : str
        What a sequence begins with.
    """

    marked: bool = True
    instruction: str = ""

    @classmethod
    def named(cls, name: str) -> "TextForm":
        """Return the form that the setting `text_form` names.

        Parameters
        ----------
        name : str
            `structured`, `unstructured`, or one of them behind `instruction_`.

        Returns
        -------
        TextForm
            The form.
        """
        return cls(
            marked=name.removeprefix("instruction_") == "structured",
            instruction=ST5SEQ_INSTRUCTION if name.startswith("instruction_") else "",
        )

    @property
    def separator(self) -> str:
        """What stands between two items."""
        return "" if self.marked else ITEM_SEPARATOR

    def item(self, names: Sequence[str], values: Sequence[str]) -> str:
        """Write an item: `TITLE: … DESCRIPTION: …`, or the values alone.

        Parameters
        ----------
        names, values : sequence of str
            The attributes; an unknown value becomes `NAME not available`.

        Returns
        -------
        str
            The text.
        """
        parts = []
        for name, value in zip(names, values, strict=True):
            text = f"{name.lower()} not available" if value == UNKNOWN else value
            parts.append(f"{name.upper()}: {text}" if self.marked else text)
        return " ".join(parts)
