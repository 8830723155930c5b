"""The summaries of a dataset's histories, as the settings say."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...data.texts.text import ItemText
from ..prompts.instructions import Instructions
from . import engines
from .extractive import Extractive
from .schedules import Summary, SummaryPlan, hierarchical, recurrent
from .writing import SummaryStore


class Summarizer:
    """Condenses histories of items into texts.

    Parameters
    ----------
    config : mapping
        The settings `summary`, `summary_items`, `block_size`, `fan_in` and those of the summarizer.
    text : ItemText
        The texts of all items.
    logger : logging.Logger
        The log of the run.

    Attributes
    ----------
    known : dict of bytes to Summary
        The summary of each history that was asked for in this process, by its items.
    counts : Counter
        See SummaryStore.
    forecasts, bills : dict of str to Counter
        What `prepare` has expected and counted for each part of the data: `requests`, and the
        tokens `read` and `written`.
    """

    def __init__(self, config: Mapping[str, Any], text: ItemText, logger: logging.Logger):
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
        """The texts of the engine, in a file below `checkpoint_dir`."""
        instructions = Instructions.of_domain(self.config["domain"])
        engine = engines.make_engine(self.config, instructions, self.extractive)
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
        """Free the memory of a local model, until something is to be written again."""
        self.__dict__.pop("texts", None)

    def plan(self, history: np.ndarray) -> SummaryPlan:
        """Plan the summary of the `summary_items` newest items of a history.

        Blocks are counted from the beginning of the history, so that leaving items out changes no
        other block.

        Parameters
        ----------
        history : ndarray of int [n]
            Item numbers, oldest first.

        Returns
        -------
        SummaryPlan
            The plan.
        """
        size = self.config["block_size"]
        begin = max(0, len(history) - self.config["summary_items"]) // size * size
        items = [self.items[item] for item in history[begin:]]
        if self.config["summary"] == "hierarchical":
            return hierarchical(items, size, self.config["fan_in"])
        return recurrent(items, size)

    def prepare(self, parts: Mapping[str, Sequence[np.ndarray]]) -> dict[str, list[Summary]]:
        """Summarise the histories of each part of the data.

        Lines in the log say what it will cost at most, and what it has cost.

        Parameters
        ----------
        parts : mapping of str to sequence of ndarray of int
            The histories of each part.

        Returns
        -------
        dict of str to list of Summary
            The summary of each history.
        """
        self.forecasts = self.texts.forecast(
            {part: map(self.plan, histories) for part, histories in parts.items()}
        )
        count = sum(map(len, parts.values()))
        texts = sum(costs["requests"] for costs in self.forecasts.values())
        line = f"forecast: at most {texts} texts for {count} histories"
        if self.texts.engine.paid:
            line += (
                f" ({_costs_line(self.forecasts)}), if each is good at once; a second request may "
                "be made for any"
            )
        self.logger.info(line)
        summaries = {}
        for part, histories in parts.items():
            before = self.counts.copy()
            try:
                summaries[part] = self.of(histories)
            finally:
                self.bills[part] = self.counts - before
        if self.texts.engine.paid:
            self.logger.info(f"bill: {_costs_line(self.bills)}")
        self.logger.info(self.texts.describe())
        return summaries

    def costs(self) -> dict[str, dict]:
        """Return forecasts and bills for the record of a run.

        Returns
        -------
        dict of str to dict
            `forecast` and `bill`, by part of the data; nothing where no engine is paid.
        """
        if not self.forecasts or self.config["summarizer"] == engines.EXTRACTIVE:
            return {}
        return {"forecast": _record(self.forecasts), "bill": _record(self.bills)}

    def of(self, histories: Sequence[np.ndarray]) -> list[Summary]:
        """Summarise histories.

        Parameters
        ----------
        histories : sequence of ndarray of int
            Item numbers of each history, oldest first.

        Returns
        -------
        list of Summary
            The summary of each history.
        """
        names = [np.asarray(history, dtype=np.int64).tobytes() for history in histories]
        missing = {
            name: history
            for name, history in zip(names, histories, strict=True)
            if name not in self.known
        }
        if missing:
            written = self.texts.of([self.plan(history) for history in missing.values()])
            self.known |= dict(zip(missing, written, strict=True))
        return [self.known[name] for name in names]


def _record(parts: Mapping[str, Counter]) -> dict[str, dict[str, int]]:
    """Name the costs of each part as the record of a run does."""
    record = {}
    for part, costs in parts.items():
        record[part] = {
            "requests": costs["requests"],
            "prompt_tokens": costs["read"],
            "answer_tokens": costs["written"],
        }
    return record


def _costs_line(parts: Mapping[str, Counter]) -> str:
    """Describe the costs of each part, and of all of them."""
    costs_of = list(parts.items())
    if len(costs_of) > 1:
        costs_of.append(("in all", sum(parts.values(), Counter())))
    texts = []
    for part, costs in costs_of:
        requests, read, written = costs["requests"], costs["read"], costs["written"]
        texts.append(f"{part} {requests} requests, {read} tokens read, {written} written")
    return "; ".join(texts)
