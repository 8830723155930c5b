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
        template = self.template
        parts = [template.head]
        for index, item in enumerate(self.items):
            parts.append(f" {template.first} {item}" if index == 0 else f"{template.next} {item}")
        parts.append(template.next if self.target is None else f"{template.next} {self.target}")
        return "".join(parts)
