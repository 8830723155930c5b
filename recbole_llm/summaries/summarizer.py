"""The summaries of a dataset's histories, as settings say."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np

from ..data.splits import Cases
from ..data.tables import Tables
from ..data.text import ItemText
from ..wording import Wording
from . import engines
from .extractive import Extractive
from .plan import Request, Round, Summary, hierarchical, recurrent, run
from .writing import Summaries


class Summarizer:
    """Condenses histories by the settings `summary`, `block_size`, `fan_in` and those of the summarizer.

    Attributes
    ----------
    known : the summary of each history that was asked for in this process, by its first and end event.
    """

    def __init__(self, config, tables: Tables, text: ItemText, logger):
        self.config, self.tables, self.logger, self.extractive = config, tables, logger, Extractive.of(text)
        self.items = [tuple(zip(text.names, values, strict=True)) for values in text.values]
        self.known: dict[tuple[int, int], Summary] = {}

    @cached_property
    def texts(self) -> Summaries:
        """What is written, in a file below `checkpoint_dir`."""
        self.logger.info(f"summaries: {engines.told(self.config)}")
        engine = engines.make(self.config, Wording.named(self.config["domain"]), self.extractive)
        return Summaries(engine, self.extractive, Path(self.config["checkpoint_dir"]) / "cache" / "summaries", self.config["show_progress"])

    def plan(self, history: np.ndarray) -> Round:
        """The rounds by which a history, int [n] item numbers, is condensed."""
        items, size = [self.items[item] for item in history], self.config["block_size"]
        return hierarchical(items, size, self.config["fan_in"]) if self.config["summary"] == "hierarchical" else recurrent(items, size)

    def forecast(self, parts: Iterable[Cases]) -> str:
        """One line on how much there is to write at most: equal texts are written once, and those on disk not at all."""
        texts = characters = histories = 0

        def count(requests: list[Request], level: int) -> list[str]:
            nonlocal texts, characters
            texts += len(requests)
            characters += sum(len(value) for request in requests for item in request.items for _, value in item)
            return [""] * len(requests)

        for cases in parts:
            run((self.plan(self.tables.item[begin:end]) for begin, end in zip(cases.begin, cases.end, strict=True)), count)
            histories += len(cases)
        most = texts * self.config["summary_tokens"] / 1e6
        tokens = f", {characters / 4e6:.2f} M tokens of items to read and at most {most:.2f} M to write"
        tokens = "" if self.config["summarizer"] == engines.EXTRACTIVE else tokens
        return f"forecast: at most {texts} texts for {histories} histories{tokens}; equal ones are written once, and those that are there are not"

    def of(self, cases: Cases) -> list[Summary]:
        """The summary of each case's history."""
        names = list(zip(cases.begin.tolist(), cases.end.tolist(), strict=True))
        if missing := [name for name in dict.fromkeys(names) if name not in self.known]:
            written = self.texts.of([self.plan(self.tables.item[begin:end]) for begin, end in missing])
            self.known |= dict(zip(missing, written, strict=True))
        return [self.known[name] for name in names]
