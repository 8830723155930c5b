"""Item texts: named attributes in a fixed order, read from the item table."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ...errors import UserError
from ..reading.tables import Tables
from .words import cut

UNKNOWN = "Unknown"


@dataclass(frozen=True)
class ItemText:
    """The attributes of every item.

    values[i][a] is attribute a of item i, cut to its number of words; a missing one is `Unknown`.
    """

    names: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    log: tuple[str, ...] = ()

    @classmethod
    def from_tables(
        cls, tables: Tables, fields: Mapping[str, str], words: Mapping[str, int] | None = None
    ) -> "ItemText":
        """Take columns of the item table as attributes.

        Parameters
        ----------
        fields : attribute name -> column, or item_id for the item's own id. A column the dataset lacks is left out and logged.
        words : attribute name -> most words kept, as `words.cut` counts them (CALRec: 25 / 15 / 15 / 15).

        Raises
        ------
        UserError : if no column is there, no item has any text, or the item table is about other items.
        """
        columns = {"item_id": tables.items.astype(str), **tables.item_table}
        present = {name: column for name, column in fields.items() if column in columns}
        log = [
            f"no column {fields[name]}: the text has no {name}"
            for name in fields
            if name not in present
        ]
        if not present:
            found = ", ".join(tables.item_table) or "no item file"
            raise UserError(
                f"dataset {tables.name} has no text: expected one of the columns {', '.join(fields.values())}, found {found}; set text_fields"
            )
        if tables.strangers:
            raise UserError(
                f"dataset {tables.name}: {tables.strangers}; write the ids alike in both files"
            )
        limits = words or {}
        cells = []
        for name, column in present.items():
            limit = limits.get(name)
            cells.append([cut(cell, limit) or UNKNOWN for cell in columns[column]])
        values = tuple(zip(*cells, strict=True))
        blank = sum(all(value == UNKNOWN for value in row) for row in values)
        if blank == len(values):
            raise UserError(
                f"dataset {tables.name}: every cell of {', '.join(present.values())} is empty; text models need at least one text"
            )
        if blank:
            log.append(
                f"{blank} of {len(values)} items have no text at all: all their attributes are {UNKNOWN}"
            )
        return cls(tuple(present), values, tuple(log))

    def numbered(self, tables: Tables) -> "ItemText":
        """With each item's number before its other attributes, `id`: its row in .item from 1 on, which no filter changes; without a row, its own id."""
        rows = np.full(len(self), -1) if tables.item_row is None else tables.item_row
        numbers = [
            str(row + 1) if row >= 0 else str(item)
            for row, item in zip(rows, tables.items, strict=True)
        ]
        return replace(
            self,
            names=("id", *self.names),
            values=tuple((number, *row) for number, row in zip(numbers, self.values, strict=True)),
        )

    def __len__(self) -> int:
        return len(self.values)

    def sentence(self, item: int) -> str:
        """`Title: A. Category: B.`: the item as CALRec writes it."""
        return " ".join(
            f"{name}: {value}." for name, value in zip(self.names, self.values[item], strict=True)
        )

    def plain(self, item: int) -> str:
        """The attribute values alone, joined by a space; what lexical matching sees."""
        return " ".join(value for value in self.values[item] if value != UNKNOWN)

    @cached_property
    def unique(self) -> tuple[np.ndarray, np.ndarray]:
        """(first, inverse): one item per distinct text, and for every item the number of its text.

        Equal texts are encoded and scored once and scattered, so that true ties stay ties.
        """
        number: dict[tuple[str, ...], int] = {}
        inverse = np.array(
            [number.setdefault(row, len(number)) for row in self.values], dtype=np.int64
        )
        first = np.unique(inverse, return_index=True)[1]
        return first, inverse
