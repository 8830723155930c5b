"""The summaries of a dataset's histories, as settings say."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from ..data.text import ItemText
from ..wording import Wording
from . import engines
from .extractive import Extractive
from .plan import Request, Round, Summary, hierarchical, recurrent, run
from .writing import Summaries


class Summarizer:
    """Condenses histories, int [n] item numbers, by the settings `summary`, `summary_items`, `block_size`, `fan_in` and those of the summarizer.

    Attributes
    ----------
    known : the summary of each history that was asked for in this process, by its items.
    """

    def __init__(self, config, text: ItemText, logger):
        self.config, self.logger, self.extractive = config, logger, Extractive.of(text)
        self.items = [tuple(zip(text.names, values, strict=True)) for values in text.values]
        self.known: dict[bytes, Summary] = {}
        self.logger.info(f"summaries: {engines.told(config)}")

    @cached_property
    def texts(self) -> Summaries:
        """What is written, in a file below `checkpoint_dir`."""
        engine = engines.make(self.config, Wording.named(self.config["domain"]), self.extractive)
        return Summaries(
            engine,
            self.extractive,
            Path(self.config["checkpoint_dir"]) / "cache" / "summaries",
            self.config["show_progress"],
        )

    def release(self) -> None:
        """Give back the memory of a local model, until something is to be written again."""
        self.__dict__.pop("texts", None)

    def plan(self, history: np.ndarray) -> Round:
        """The rounds by which a history is condensed: the blocks of its `summary_items` newest items.

        Blocks are counted from the history's beginning, so that what is left out changes no other block.
        """
        size = self.config["block_size"]
        begin = max(0, len(history) - self.config["summary_items"]) // size * size
        items = [self.items[item] for item in history[begin:]]
        return (
            hierarchical(items, size, self.config["fan_in"])
            if self.config["summary"] == "hierarchical"
            else recurrent(items, size)
        )

    def prepare(self, histories: Sequence[np.ndarray]) -> None:
        """`of`, with lines in the log on how much there is to write and what was done."""
        if self.texts.engine.paid:
            self.logger.info(self.forecast(histories))
        self.of(histories)
        self.logger.info(self.texts.told())

    def forecast(self, histories: Sequence[np.ndarray]) -> str:
        """One line on how much there is to write at most: equal texts are written once, and those on disk not at all."""
        texts = characters = 0

        def count(requests: list[Request], level: int) -> list[tuple[str, bool]]:
            nonlocal texts, characters
            texts += len(requests)
            characters += sum(
                len(value) for request in requests for item in request.items for _, value in item
            )
            return [("", False)] * len(requests)

        run(map(self.plan, histories), count)
        most = texts * self.config["summary_tokens"] / 1e6
        tokens = (
            f", {characters / 4e6:.2f} M tokens of items to read and at most {most:.2f} M to write"
        )
        tokens = "" if self.config["summarizer"] == engines.EXTRACTIVE else tokens
        return f"forecast: at most {texts} texts for {len(histories)} histories{tokens}; equal ones are written once, and those that are there are not"

    def of(self, histories: Sequence[np.ndarray]) -> list[Summary]:
        """The summary of each history."""
        names = [np.asarray(history, dtype=np.int64).tobytes() for history in histories]
        if missing := {
            name: history
            for name, history in zip(names, histories, strict=True)
            if name not in self.known
        }:
            written = self.texts.of([self.plan(history) for history in missing.values()])
            self.known |= dict(zip(missing, written, strict=True))
        return [self.known[name] for name in names]
