"""Prompts as text: what a model reads and writes, with no tokenizer in sight."""

from collections.abc import Mapping
from dataclasses import dataclass


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


@dataclass(frozen=True)
class Example:
    """One history, and the target where it is known. Items are texts, oldest first.

    learned : for every item whether its text is a training target too; the target always is. None: no item is.
    """

    template: Template
    items: tuple[str, ...]
    target: str | None = None
    learned: tuple[bool, ...] | None = None


def prefix(template: Template, index: int) -> str:
    """What stands before item `index`; a first sentence is set off from the head by a space."""
    return (template.first and f" {template.first}") if index == 0 else template.next
