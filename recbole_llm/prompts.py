"""Prompts as text: what a model reads and writes, with no tokenizer in sight."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """The fixed sentences around the items of a history.

    head opens the text, first precedes its first item, next every other item and the target; one space
    separates a prefix from its item.
    """

    head: str
    first: str
    next: str

    @classmethod
    def from_config(cls, template: Mapping[str, str]) -> "Template":
        return cls(**template)


@dataclass(frozen=True)
class Example:
    """One history, and the target where it is known. Items are texts, oldest first."""

    template: Template
    items: tuple[str, ...]
    target: str | None = None

    def text(self) -> str:
        """The whole text as a reader sees it; the model's input is its pieces, tokenised one by one."""
        prefixes = [self.template.first] + [self.template.next] * (len(self.items) - 1)
        parts = [self.template.head, *(f" {prefix} {item}" if i == 0 else f"{prefix} {item}" for i, (prefix, item) in enumerate(zip(prefixes, self.items, strict=True)))]
        return "".join(parts) + self.template.next + (f" {self.target}" if self.target is not None else "")
