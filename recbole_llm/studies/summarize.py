"""Summaries of a dataset's histories, written without a recommender: what LLMTRSR then finds, and a file for people to read."""

import csv
import logging
from pathlib import Path

from ..contracts.cases import Cases
from ..data.cases.splits import draw, make_split
from ..data.texts.text import ItemText
from ..errors import UserError
from ..language.summaries.schedules import Summary
from ..language.summaries.summarizer import Summarizer
from ..runs.checks import check
from ..runs.spec import describe
from ..settings.layers import digest
from ..storage.files import atomically
from ..storage.run_log import RunLog
from ..storage.screen import printable
from ..training.corpora import Corpus


def summarize(settings: dict) -> list[str]:
    """Write the summaries that runs of these settings of LLMTRSR read. Returns lines that say where they are.

    Raises
    ------
    UserError : for settings without summaries, or a summarizer that cannot be.
    """
    if settings["summary"] == "none":
        raise UserError("summarize: expected --summary=hierarchical or recurrent, found none")
    prepared = describe(settings)
    check(prepared)
    config, tables = prepared.config, prepared.interactions
    text = ItemText.from_tables(tables, config["text_fields"], config["text_words"])
    split = make_split(tables, config["eval_args"]["split"], config["eval_args"]["part"])
    parts = {
        "train": Corpus(tables, text, split.train).newest(config["targets"]),
        "valid": draw(split.valid, config["valid_users"] or 0),
        "test": draw(split.test, config["test_users"] or 0),
    }
    histories = {part: cases.histories(tables) for part, cases in parts.items()}
    with RunLog() as log:
        log.start()
        summarizer = Summarizer(config, text, logging.getLogger())
        found = summarizer.prepare(histories)
    deciding = [
        config[key]
        for key in (
            "summary",
            "summary_items",
            "block_size",
            "fan_in",
            "targets",
            "valid_users",
            "test_users",
            "text_fields",
            "text_words",
        )
    ]
    key = digest(
        [
            summarizer.texts.engine.name,
            prepared.measure["fingerprint"],
            prepared.measure["split"],
            *deciding,
        ]
    )
    path = (
        Path(config["checkpoint_dir"])
        / "summaries"
        / f"{prepared.dataset}-{config['summary']}-{key}.tsv"
    )
    _write(path, tables.users, parts, found)
    return [f"summaries of {sum(map(len, parts.values()))} histories: {path}"]


def _write(path: Path, users, parts: dict[str, Cases], found: dict[str, list[Summary]]) -> None:
    """A row for every text: user, part, items of the history, level, printable text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomically(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(["user", "part", "items", "level", "text"])
        for part, cases in parts.items():
            for user, size, summary in zip(
                users[cases.user], cases.end - cases.begin, found[part], strict=True
            ):
                for level, texts in enumerate(summary.levels):
                    rows.writerows(
                        [user, part, size, level, printable(" ".join(text.split()))]
                        for text in texts
                    )
