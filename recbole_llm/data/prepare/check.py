"""A prepared dataset beside the figures that papers print of theirs."""

import csv
from collections.abc import Mapping
from pathlib import Path

from ...errors import UserError
from ..sample import locate
from ..texts.text import ItemText
from ..texts.words import words

PAPERS = Path(__file__).with_name("paper_statistics.csv")
NAMES = {  # figure -> (how it is called, digits)
    "users": ("users", 0), "items": ("items met", 0), "interactions": ("events", 0), "duplicate_share": ("share of repeated events", 3),
    "words_per_item": ("words of an item", 2), "word_vocabulary": ("distinct words", 0), "history_items": ("history items of a user", 2),
}  # fmt: skip


def check(name: str, data_path: Path) -> list[str]:
    """Lines of a table: our figure, the paper's, the difference. Raises UserError if the dataset is not prepared or no paper counts it."""
    with open(PAPERS, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    mine = [row for row in rows if row["dataset"] == name]
    if not mine:
        raise UserError(
            f"--check: expected a dataset that a paper counts ({', '.join(dict.fromkeys(row['dataset'] for row in rows))}), found {name}"
        )
    if not (data_path / name / f"{name}.inter").is_file():
        raise UserError(f"--check: {data_path / name} is not there; prepare {name} first")
    own = figures(name, data_path)
    lines = [
        f"{name}, as runs see it, beside {', '.join(dict.fromkeys(row['paper'] for row in mine))}",
        f"{'':<28}{'ours':>12}{'paper':>12}{'difference':>12}",
    ]
    for row in mine:
        shown, digits = NAMES[row["figure"]]
        ours, theirs = own[row["figure"]], float(row["value"])
        lines.append(
            f"{shown:<28}{ours:>12,.{digits}f}{theirs:>12,.{digits}f}{ours / theirs - 1:>+12.1%}"
        )
    return lines


def figures(name: str, data_path: Path) -> Mapping[str, float]:
    """Statistics of a dataset behind its default filters; text: all attributes that its items have by default."""
    from ...settings import layers
    from ..recbole.datasets import load_tables

    settings = layers.resolve("LIR", name, [], {"data_path": str(data_path)})
    every_user = {
        "user_inter_num_interval": None
    }  # duplicates are counted before users are left out
    tables, single, every = (
        load_tables(locate.configured(settings | changed)[1])
        for changed in ({}, every_user, every_user | {"dedup": "none"})
    )
    text = ItemText.from_tables(tables, settings["text_fields"], None)
    found = [words(text.plain(item)) for item in range(len(text))]
    return {
        "users": len(tables.users), "items": len(tables.items), "interactions": len(tables.item), "duplicate_share": 1 - len(single.item) / len(every.item),
        "words_per_item": sum(map(len, found)) / len(found), "word_vocabulary": len({word for row in found for word in row}),
        "history_items": len(tables.item) / len(tables.users) - 1,
    }  # fmt: skip
