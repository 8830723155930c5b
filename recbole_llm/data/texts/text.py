"""Item texts: named attributes in a fixed order, read from the item table."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ...contracts.interactions import Interactions
from ...errors import UserError
from .words import cut

UNKNOWN = "Unknown"


@dataclass(frozen=True)
class ItemText:
    """The attributes of every item.

    Attributes
    ----------
    names : tuple of str
        Names of the attributes.
    values : tuple of tuple of str, [n_items][n_attributes]
        Values of the attributes, cut to their numbers of words; a missing one is `Unknown`.
    log : tuple of str
        Which texts are missing, one line each.
    """

    names: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    log: tuple[str, ...] = ()

    @classmethod
    def from_interactions(
        cls,
        interactions: Interactions,
        fields: Mapping[str, str],
        words: Mapping[str, int] | None = None,
    ) -> "ItemText":
        """Make attributes of columns of the item table.

        Parameters
        ----------
        interactions : Interactions
            The dataset.
        fields : mapping of str to str
            Attribute name -> column, or `item_id` for the item's id. A column that the dataset
            lacks is skipped and logged.
        words : mapping of str to int, or None
            Attribute name -> largest number of words, counted as in `words.cut` (CALRec: 25 for the
            title and 15 for each other attribute). None cuts nothing.

        Returns
        -------
        ItemText
            The texts of all items.

        Raises
        ------
        UserError
            If no column is there, no item has any text, or the item table describes other items.
        """
        columns: dict[str, Any] = {
            "item_id": interactions.items.astype(str),
            **interactions.item_table,
        }
        present = {name: column for name, column in fields.items() if column in columns}
        log = [
            f"no column {column}: the text has no {name}"
            for name, column in fields.items()
            if name not in present
        ]
        _check_columns(interactions, fields, present)
        limits = words or {}
        by_attribute = []
        for name, column in present.items():
            limit = limits.get(name)
            by_attribute.append([cut(cell, limit) or UNKNOWN for cell in columns[column]])
        values = tuple(zip(*by_attribute, strict=True))
        without_text = values.count((UNKNOWN,) * len(present))
        if without_text == len(values):
            raise UserError(
                f"dataset {interactions.name}: every cell of {', '.join(present.values())} is "
                "empty; text models need at least one text"
            )
        if without_text:
            log.append(
                f"{without_text} of {len(values)} items have no text at all: "
                f"all their attributes are {UNKNOWN}"
            )
        return cls(tuple(present), values, tuple(log))

    def numbered(self, interactions: Interactions) -> "ItemText":
        """Put a number before the other attributes of each item, as the attribute `id`.

        Parameters
        ----------
        interactions : Interactions
            The dataset of these texts.

        Returns
        -------
        ItemText
            The texts with `id`: the item's row in the .item file, counted from 1, which no filter
            changes; the item's own id, if it has no row.
        """
        rows = np.full(len(self), -1) if interactions.item_row is None else interactions.item_row
        values = []
        for row, item, attributes in zip(rows, interactions.items, self.values, strict=True):
            number = str(row + 1) if row >= 0 else str(item)
            values.append((number, *attributes))
        return replace(self, names=("id", *self.names), values=tuple(values))

    def __len__(self) -> int:
        return len(self.values)

    def sentence(self, item: int) -> str:
        """Write an item as CALRec does: `Title: A. Category: B.`.

        Parameters
        ----------
        item : int
            Index of the item.

        Returns
        -------
        str
            Names and values of all attributes.
        """
        return " ".join(
            f"{name}: {value}." for name, value in zip(self.names, self.values[item], strict=True)
        )

    def plain(self, item: int) -> str:
        """Write an item as lexical matching reads it.

        Parameters
        ----------
        item : int
            Index of the item.

        Returns
        -------
        str
            The known attribute values, joined by spaces.
        """
        return " ".join(value for value in self.values[item] if value != UNKNOWN)

    @cached_property
    def unique(self) -> tuple[np.ndarray, np.ndarray]:
        """Number the distinct texts.

        Equal texts are encoded and scored once and the result is scattered, so that items with
        equal texts have exactly equal scores.

        Returns
        -------
        first : ndarray of int64, [n_texts]
            The first item with each text.
        inverse : ndarray of int64, [n_items]
            Number of each item's text.
        """
        number: dict[tuple[str, ...], int] = {}
        inverse = np.array(
            [number.setdefault(row, len(number)) for row in self.values], dtype=np.int64
        )
        first = np.unique(inverse, return_index=True)[1]
        return first, inverse


def _check_columns(
    interactions: Interactions, fields: Mapping[str, str], present: Mapping[str, str]
) -> None:
    """Raise UserError if none of the columns is there, or the item table is about other items."""
    if not present:
        raise UserError(
            f"dataset {interactions.name} has no text: expected one of the columns "
            f"{', '.join(fields.values())}, "
            f"found {', '.join(map(str, interactions.item_table)) or 'no item file'}; "
            "set text_fields"
        )
    if interactions.strangers:
        raise UserError(
            f"dataset {interactions.name}: {interactions.strangers}; "
            "write the ids alike in both files"
        )
