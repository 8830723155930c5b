"""Prompts as text: what a model reads and writes, with no tokenizer in sight."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...data.texts.text import UNKNOWN
from .marks import neutralize_separators


@dataclass(frozen=True)
class Template:
    """The fixed sentences around the items of a history.

    head opens the text, first precedes its first item, next every other item, and target what is to be written;
    one space separates a prefix from its item. CALRec's `target` is its `next`; GPT4Rec has no prefixes but one
    sentence after the history.
    """

    head: str
    first: str
    next: str
    target: str

    @classmethod
    def from_config(cls, template: Mapping[str, str]) -> "Template":
        return cls(**template)


class LazyTexts(Sequence):
    """The texts of a history, each looked up when it is read: of a long history, that is the newest ones alone.

    Parameters
    ----------
    table : text of each item, or whatever stands for it.
    items : int [n], the items of the history, oldest first.
    """

    def __init__(self, table: Sequence, items: Sequence[int]):
        self.table, self.items = table, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return LazyTexts(self.table, self.items[index])
        return self.table[self.items[index]]


@dataclass(frozen=True)
class Example:
    """One history, and the target where it is known. Items are texts, oldest first.

    learned : for every item whether its text is a training target too; the target always is. None: no item is.
    """

    template: Template
    items: Sequence[str]
    target: str | None = None
    learned: Sequence[bool] | None = None


def item_line(attributes: Iterable[tuple[str, str]]) -> str:
    """`Title: A; Brand: B`: an item in one line, without what is not known; no value reads like another attribute."""
    known = list(attributes)
    names = [name for name, _ in known]
    parts = [
        f"{name}: {neutralize_separators(value, names)}"
        for name, value in known
        if value != UNKNOWN
    ]
    return "; ".join(parts) or UNKNOWN


def item_prefix(template: Template, index: int) -> str:
    """What stands before item `index`; a first sentence is set off from the head by a space."""
    return (template.first and f" {template.first}") if index == 0 else template.next


def taste_item_text(attributes: Iterable[tuple[str, str]]) -> str:
    """`id: 12 title: A`: an item as TASTE writes it, without what is not known."""
    return (
        " ".join(f"{name.lower()}: {value}" for name, value in attributes if value != UNKNOWN)
        or UNKNOWN
    )


TASTE_PROMPT = (
    "Here is the visit history list of user: ",
    " recommend next item ",
)  # what stands around the newest items (TASTE's released code)

ITEM_SEPARATOR = ", "  # of two items, of a history of TASTE and of a text form without marks

ST5SEQ_INSTRUCTION = "A user bought the following items, in chronological order. Each item is written as Title: <item title>. The purchase history is: "


@dataclass(frozen=True)
class TextForm:
    """How a sentence encoder reads items and sequences of them (ST5-Seq, table A.3).

    marked : special tokens open and close a sequence and each item, whose attributes are named; else there is the bare text,
        with `between` from item to item. instruction : what a sequence begins with.
    """

    marked: bool = True
    instruction: str = ""

    @classmethod
    def named(cls, name: str) -> "TextForm":
        """`structured`, `unstructured`, or one of them behind `instruction_`."""
        return cls(
            name.removeprefix("instruction_") == "structured",
            ST5SEQ_INSTRUCTION if name.startswith("instruction_") else "",
        )

    @property
    def separator(self) -> str:
        return "" if self.marked else ITEM_SEPARATOR

    def item(self, names: Sequence[str], values: Sequence[str]) -> str:
        """`TITLE: … DESCRIPTION: …`, or the values alone; of what is not known, that it is not."""
        known = [
            f"{name.lower()} not available" if value == UNKNOWN else value
            for name, value in zip(names, values, strict=True)
        ]
        return " ".join(
            f"{name.upper()}: {value}" if self.marked else value
            for name, value in zip(names, known, strict=True)
        )
