"""Write the summaries of a dataset's histories, without training a recommender.

Later runs of LLMTRSR read the stored summaries. A table of the same texts is for people to read.
"""

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..contracts.cases import Cases
from ..data.cases.splits import draw
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

# the settings that decide which texts are written, beside the dataset and the split
DECIDING_KEYS = (
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


def summarize(settings: dict) -> list[str]:
    """Write the summaries that runs of LLMTRSR with these settings read.

    Parameters
    ----------
    settings : dict
        Resolved settings of LLMTRSR.

    Returns
    -------
    list of str
        Lines that say where the table is.

    Raises
    ------
    UserError
        If the settings ask for no summaries, or no run can have them.
    """
    if settings["summary"] == "none":
        raise UserError("summarize: expected --summary=hierarchical or recurrent, found none")
    spec = describe(settings)
    check(spec)
    config, tables, split, text = spec.config, spec.interactions, spec.split, spec.inputs.text
    cases = {
        "train": Corpus(tables, text, split.train).newest(config["targets"]),
        "valid": draw(split.valid, config["valid_users"] or 0),
        "test": split.test,
    }
    histories = {part: part_cases.histories(tables) for part, part_cases in cases.items()}
    with RunLog() as log:
        log.start()
        summarizer = Summarizer(config, text, logging.getLogger())
        summaries = summarizer.prepare(histories)
    measure = spec.measure
    identity = [summarizer.texts.engine.name, measure["fingerprint"], measure["split"]]
    key = digest([*identity, *(config[key] for key in DECIDING_KEYS)])
    folder = Path(config["checkpoint_dir"]) / "summaries"
    path = folder / f"{spec.dataset}-{config['summary']}-{key}.tsv"
    _write(path, tables.users, cases, summaries)
    return [f"summaries of {sum(map(len, cases.values()))} histories: {path}"]


def _write(
    path: Path,
    users: np.ndarray,
    cases: Mapping[str, Cases],
    summaries: Mapping[str, Sequence[Summary]],
) -> None:
    """Write one row per text: user, part, items of the history, level of the text, text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomically(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(["user", "part", "items", "level", "text"])
        for part, part_cases in cases.items():
            case_users, sizes = users[part_cases.user], part_cases.end - part_cases.begin
            for user, size, summary in zip(case_users, sizes, summaries[part], strict=True):
                for level, texts in enumerate(summary.levels):
                    for text in texts:
                        one_line = printable(" ".join(text.split()))
                        rows.writerow([user, part, size, level, one_line])
