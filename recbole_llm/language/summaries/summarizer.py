"""The summaries of a dataset's histories, as settings say."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from ...data.texts.text import ItemText
from ..prompts.instructions import Instructions
from . import engines
from .extractive import Extractive
from .schedules import Summary, SummaryPlan, hierarchical, recurrent
from .writing import SummaryStore


class Summarizer:
    """Condenses histories, int [n] item numbers, by the settings `summary`, `summary_items`, `block_size`, `fan_in` and those of the summarizer.

    Attributes
    ----------
    known : the summary of each history that was asked for in this process, by its items.
    counts : see Summaries.
    forecasts, bills : what `prepare` has expected and counted, by part of the data: `requests`, and the tokens `read` and `written`.
    """

    def __init__(self, config, text: ItemText, logger):
        self.config, self.logger, self.extractive = config, logger, Extractive.of(text)
        self.items = [tuple(zip(text.names, values, strict=True)) for values in text.values]
        self.known: dict[bytes, Summary] = {}
        self.counts: Counter = Counter()
        self.tried: set[str] = set()
        self.forecasts: dict[str, Counter] = {}
        self.bills: dict[str, Counter] = {}
        self.logger.info(f"summaries: {engines.describe_summarizer(config)}")

    @cached_property
    def texts(self) -> SummaryStore:
        """What is written, in a file below `checkpoint_dir`."""
        engine = engines.make_engine(
            self.config, Instructions.of_domain(self.config["domain"]), self.extractive
        )
        return SummaryStore(
            engine,
            self.extractive,
            Path(self.config["checkpoint_dir"]) / "cache" / "summaries",
            self.config["show_progress"],
            retry=self.config["summaries"] == "retry",
            tried=self.tried,
            counts=self.counts,
        )

    def release(self) -> None:
        """Give back the memory of a local model, until something is to be written again."""
        self.__dict__.pop("texts", None)

    def plan(self, history: np.ndarray) -> SummaryPlan:
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

    def prepare(self, parts: Mapping[str, Sequence[np.ndarray]]) -> dict[str, list[Summary]]:
        """`of` the histories of each part of the data, with lines in the log on what it will cost at most, and what it has cost."""
        self.forecasts = self.texts.forecast(
            {part: map(self.plan, histories) for part, histories in parts.items()}
        )
        histories = sum(map(len, parts.values()))
        texts = sum(costs["requests"] for costs in self.forecasts.values())
        told = f"forecast: at most {texts} texts for {histories} histories"
        if self.texts.engine.paid:
            told += f" ({_told(self.forecasts)}), if each is good at once; a second request may be made for any"
        self.logger.info(told)
        found = {}
        for part, own in parts.items():
            before = self.counts.copy()
            try:
                found[part] = self.of(own)
            finally:
                self.bills[part] = self.counts - before
        if self.texts.engine.paid:
            self.logger.info(f"bill: {_told(self.bills)}")
        self.logger.info(self.texts.told())
        return found

    def costs(self) -> dict[str, dict]:
        """`forecasts` and `bills` for a run's record; nothing where no engine is paid."""
        if not self.forecasts or self.config["summarizer"] == engines.EXTRACTIVE:
            return {}
        columns = {"requests": "requests", "read": "prompt_tokens", "written": "answer_tokens"}
        kinds = {"forecast": self.forecasts, "bill": self.bills}
        return {
            kind: {
                part: {name: costs[key] for key, name in columns.items()}
                for part, costs in parts.items()
            }
            for kind, parts in kinds.items()
        }

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


def _told(parts: Mapping[str, Counter]) -> str:
    """What each part costs, and all of them."""
    lines = list(parts.items())
    if len(lines) > 1:
        lines.append(("in all", sum(parts.values(), Counter())))
    texts = [
        f"{part} {costs['requests']} requests, {costs['read']} tokens read, {costs['written']} written"
        for part, costs in lines
    ]
    return "; ".join(texts)
