"""A prepared dataset beside the figures that papers report about theirs."""

import csv
from collections.abc import Mapping
from pathlib import Path

from ...errors import UserError
from ..sample import locate
from ..texts.text import ItemText
from ..texts.words import words

PAPERS = Path(__file__).with_name("paper_statistics.csv")
LABELS = {  # figure -> (label, decimal places)
    "users": ("users", 0),
    "items": ("items met", 0),
    "interactions": ("events", 0),
    "duplicate_share": ("share of repeated events", 3),
    "words_per_item": ("words of an item", 2),
    "word_vocabulary": ("distinct words", 0),
    "history_items": ("history items of a user", 2),
}


def check(name: str, data_path: Path) -> list[str]:
    """Compare a prepared dataset with the figures of papers.

    Parameters
    ----------
    name : str
        Name of the dataset.
    data_path : Path
        Folder of the prepared datasets.

    Returns
    -------
    list of str
        Lines of a table: our figure, the paper's, and the difference.

    Raises
    ------
    UserError
        If the dataset is not prepared, or no paper reports figures of it.
    """
    with open(PAPERS, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    reported = [row for row in rows if row["dataset"] == name]
    if not reported:
        datasets = dict.fromkeys(row["dataset"] for row in rows)
        raise UserError(
            f"--check: expected a dataset with figures in a paper ({', '.join(datasets)}), "
            f"found {name}"
        )
    if not (data_path / name / f"{name}.inter").is_file():
        raise UserError(f"--check: {data_path / name} is not there; prepare {name} first")
    ours = figures(name, data_path)
    papers = dict.fromkeys(row["paper"] for row in reported)
    lines = [
        f"{name}, as runs see it, beside {', '.join(papers)}",
        f"{'':<28}{'ours':>12}{'paper':>12}{'difference':>12}",
    ]
    for row in reported:
        label, digits = LABELS[row["figure"]]
        our, paper = ours[row["figure"]], float(row["value"])
        lines.append(
            f"{label:<28}{our:>12,.{digits}f}{paper:>12,.{digits}f}{our / paper - 1:>+12.1%}"
        )
    return lines


def figures(name: str, data_path: Path) -> Mapping[str, float]:
    """Count what runs see of a prepared dataset, with its default filters and item texts.

    Parameters
    ----------
    name : str
        Name of the dataset.
    data_path : Path
        Folder of the prepared datasets.

    Returns
    -------
    mapping of str to float
        The figures in `LABELS`. Words are those of all attributes that item texts have by default.
        Duplicates are counted before users with few interactions are left out.
    """
    from ...settings import layers
    from ..recbole.datasets import load_interactions

    settings = layers.resolve("LIR", name, [], {"data_path": str(data_path)})
    every_user = settings | {"user_inter_num_interval": None}
    interactions = load_interactions(locate.located(settings))
    deduplicated = load_interactions(locate.located(every_user))
    everything = load_interactions(locate.located(every_user | {"dedup": "none"}))
    text = ItemText.from_interactions(interactions, settings["text_fields"], None)
    item_words = [words(text.plain(item)) for item in range(len(text))]
    vocabulary: set[str] = set()
    vocabulary.update(*item_words)
    return {
        "users": len(interactions.users),
        "items": len(interactions.items),
        "interactions": len(interactions.item),
        "duplicate_share": 1 - len(deduplicated.item) / len(everything.item),
        "words_per_item": sum(len(row) for row in item_words) / len(item_words),
        "word_vocabulary": len(vocabulary),
        "history_items": len(interactions.item) / len(interactions.users) - 1,
    }
