"""Summaries of many users' histories.

Each text is written once and kept on disk, and what went wrong is reported.
"""

import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol, cast

from filelock import FileLock

from ...settings.layers import digest
from ...storage.content_cache import Lines, name_of
from ...storage.progress import progress
from .extractive import Extractive
from .schedules import Request, Summary, SummaryPlan, WrittenText, run_plans

THOUGHT = re.compile(r"\s*<think>")  # begins what a reasoning model says to itself first
THOUGHT_END = "</think>"
AGAIN = 0.7  # least temperature of a second attempt: a greedy one would write the same
FLUSH = 5.0  # seconds between writes to disk of texts that cost nothing
PATIENCE = 20  # unusable texts in a row until that is reported or ends the work
FAULTS = {  # what may be wrong with a text, and how the log says it
    "empty": "came back empty",
    "too_long": "too long",
    "refused": "refused",
    "failed": "without an answer",
}
REMEDY = {
    "empty": "look at what the model writes",
    "thought": (
        "the model thinks before it writes: have that switched off, as by "
        "--summarizer_extra='{chat_template_kwargs: {enable_thinking: false}}', or set "
        "--summary_tokens to more"
    ),
    "too_long": "set --summary_tokens to more",
    "refused": "mend what the server refuses",
    "failed": "mend the server",
}


class PendingText(str):
    """Stands in a forecast for a text that is not written yet."""


class Engine(Protocol):
    """Writes texts."""

    @property
    def name(self) -> str:
        """Everything that decides the texts beside their requests."""

    @property
    def paid(self) -> bool:
        """Whether each text is to be on disk as soon as it is there."""

    def write(
        self,
        requests: Sequence[Request],
        take: Callable[[int, WrittenText], None],
        again: bool = False,
    ) -> None:
        """Write the text of each request.

        Parameters
        ----------
        requests : sequence of Request
            The texts to be written.
        take : callable
            Takes the number of a request and its text, as soon as it is written.
        again : bool
            Whether the first attempt was unusable.
        """


class PaidEngine(Engine, Protocol):
    """Writes texts that cost money or time.

    Attributes
    ----------
    max_length : int
        Most tokens of a prompt and its text together.
    max_new : int
        Most tokens of a text.
    """

    max_length: int
    max_new: int

    def size(self, request: Request) -> int:
        """Count the tokens of the prompt of a request.

        Parameters
        ----------
        request : Request
            The text to be written.

        Returns
        -------
        int
            Number of tokens, or an estimate that is rather too large.
        """


class SummaryStore:
    """The texts of one engine, in a file that outlives any process.

    Parameters
    ----------
    engine : Engine
        Writes the texts.
    extractive : Extractive
        Writes what the engine cannot.
    folder : Path
        Where the file lies.
    show_progress : bool
        Whether a bar is drawn.
    retry : bool
        Whether the engine is asked again for texts that an earlier process has replaced by
        extracts.
    tried : set of str, optional
        Names of texts that were replaced in this process, which are not asked for again; those that
        are replaced are added.
    counts : Counter, optional
        The counts of an earlier object, which go on.

    Attributes
    ----------
    counts : Counter
        Texts that were asked for (`asked`), that were on disk (`known`), and that are extracts in
        place of what the engine wrote (`replaced`); attempts with each of FAULTS; `requests` to the
        engine, those of second attempts among them; and tokens `read` and `written`.
    known : dict of str to (str, bool)
        The texts by the names of their requests, and whether they are extracts in place of what the
        engine wrote.
    """

    def __init__(
        self,
        engine: Engine,
        extractive: Extractive,
        folder: Path,
        show_progress: bool = False,
        *,
        retry: bool = False,
        tried: set[str] | None = None,
        counts: Counter | None = None,
    ):
        self.engine, self.extractive, self.show_progress = engine, extractive, show_progress
        self.retry = retry
        self.tried = set() if tried is None else tried
        self.counts: Counter = Counter() if counts is None else counts
        path = folder / f"{digest([engine.name])}.jsonl.gz"
        self.lock, self.lines = FileLock(path.with_suffix(".lock")), Lines(path)
        self.known: dict[str, tuple[str, bool]] = {}
        self.size = 0  # bytes of the file that were read into `known`
        # faults of the first answers; None as soon as one was usable, or the faults were reported
        self.first_faults: Counter | None = Counter()

    def of(self, plans: Iterable[SummaryPlan]) -> list[Summary]:
        """Write the summaries of histories.

        Parameters
        ----------
        plans : iterable of SummaryPlan
            The plan of each history.

        Returns
        -------
        list of Summary
            The summary of each history.
        """
        self.lines.path.parent.mkdir(parents=True, exist_ok=True)
        with self.lock:  # another process at the same texts waits, and finds them
            self._read()
            try:
                return run_plans(plans, self._write)
            finally:
                self.size = self.lines.size

    def forecast(self, parts: Mapping[str, Iterable[SummaryPlan]]) -> dict[str, Counter]:
        """Predict what summaries are going to cost if every first attempt is usable.

        A text is counted once, in the first part that asks for it, and not at all if it is on disk.

        Parameters
        ----------
        parts : mapping of str to iterable of SummaryPlan
            The plans of each part of the data.

        Returns
        -------
        dict of str to Counter
            For each part, `requests`, `read` (tokens of their prompts, the instructions and earlier
            summaries among them) and `written` (most tokens of the answers).
        """
        if self.lines.path.exists():  # a forecast writes nothing
            with self.lock:
                self._read()
        forecasts: dict[str, Counter] = {}
        counted: set[str] = set()
        for part, plans in parts.items():
            costs: Counter = Counter()

            def write(
                requests: Sequence[Request], level: int, costs: Counter = costs
            ) -> list[tuple[str, bool]]:
                texts: list[tuple[str, bool]] = []
                for request in requests:
                    name = _name(request)
                    if name in self.known:
                        texts.append((self.known[name][0], False))
                        continue
                    if name not in counted:
                        counted.add(name)
                        costs.update(self._cost(request))
                    texts.append((PendingText(name), False))
                return texts

            run_plans(plans, write)
            forecasts[part] = costs
        return forecasts

    def describe(self) -> str:
        """Describe in one line what was done so far.

        Returns
        -------
        str
            A line for the log.
        """
        counts = self.counts
        faults = [f"{counts[name]} {said}" for name, said in FAULTS.items() if counts[name]]
        line = f"summaries: {counts['asked']} texts, of which {counts['known']} were there"
        if counts["read"]:
            line += f", {counts['read']} tokens read and {counts['written']} written"
        if self.engine.paid and counts["requests"]:
            line += f" by {counts['requests']} requests"
        if faults:
            line += f"; {' and '.join(faults)}"
        if counts["replaced"]:
            line += (
                f"; {counts['replaced']} are extracts instead, which --summaries=retry asks for "
                "again"
            )
        return line

    def _read(self) -> None:
        """Read what other processes have added to the file."""
        if self.lines.size == self.size:
            return
        lines = self.lines.read(_checked)
        self.known = {}
        for line in lines:
            self.known[line["name"]] = (line["text"], line["replaced"])
        if self.retry:
            for name, (_, replaced) in list(self.known.items()):
                if replaced and name not in self.tried:
                    del self.known[name]
        self.size = self.lines.size

    def _cost(self, request: Request) -> dict[str, int]:
        if not self.engine.paid:
            return {"requests": 1}
        engine = cast(PaidEngine, self.engine)
        written = tuple(text for text in request.previous if not isinstance(text, PendingText))
        pending = len(request.previous) - len(written)
        most, room = engine.max_new, engine.max_length - engine.max_new
        size = engine.size(replace(request, previous=written)) + pending * most
        return {"requests": 1, "read": min(size, room), "written": most}

    def _write(self, requests: Sequence[Request], level: int) -> list[tuple[str, bool]]:
        names = [_name(request) for request in requests]
        missing = {
            name: request
            for name, request in zip(names, requests, strict=True)
            if name not in self.known
        }
        self.counts.update(asked=len(requests), known=sum(name not in missing for name in names))
        unusable = self._attempt(missing, level, again=False)
        self._warn()
        unusable = self._attempt(unusable, level, again=True)
        if unusable:
            self.tried.update(unusable)
            extracts = self.extractive.texts(list(unusable.values()))
            self._keep(dict(zip(unusable, extracts, strict=True)), replaced=True)
        texts = [self.known[name] for name in names]
        self.counts["replaced"] += sum(replaced for _, replaced in texts)
        return texts

    def _attempt(self, missing: dict[str, Request], level: int, again: bool) -> dict[str, Request]:
        """Write texts and keep those that are usable; return the requests of the others."""
        if not missing:
            return {}
        attempt = _Attempt(self, missing)
        with progress(
            total=len(missing),
            desc=f"Summaries, level {level}{', again' if again else ''}",
            disable=not self.show_progress,
        ) as bar:

            def take(number: int, text: WrittenText) -> None:
                attempt.take(number, text)
                written = self.counts["written"]
                bar.update()
                bar.set_postfix_str(f"{written} tokens written" if written else "")

            try:
                self.engine.write(list(missing.values()), take, again)
            finally:
                attempt.flush()
        return attempt.unusable

    def _count(self, fault: str, text: WrittenText) -> None:
        """Count an unusable text."""
        self.counts[fault] += 1
        if text.why and self.counts[fault] == 1:
            logging.getLogger().warning(
                f"summaries: a text is {FAULTS[fault]} ({text.why}), which costs this text alone; "
                "more of them are counted"
            )
        faults = self.first_faults
        if faults is not None:
            only_thoughts = text.text.strip() and not _without_thoughts(text.text)
            faults["thought" if only_thoughts else fault] += 1
            silent = faults["refused"] + faults["failed"]  # which end the work by themselves
            if faults.total() == PATIENCE > silent:
                self._warn()

    def _warn(self) -> None:
        """Report that none of the first answers is usable."""
        if not self.first_faults:
            return
        ((most, count),) = self.first_faults.most_common(1)
        logging.getLogger().warning(
            f"!!! summaries: of the first {self.first_faults.total()} texts none is any good: "
            f"{count} {FAULTS.get(most, 'are thoughts alone')}; {REMEDY[most]}; they become "
            "extracts !!!"
        )
        self.first_faults = None

    def _keep(self, texts: dict[str, str], replaced: bool = False) -> None:
        if texts:
            self.lines.append(
                {"name": name, "text": text, "replaced": replaced} for name, text in texts.items()
            )
            self.known.update({name: (text, replaced) for name, text in texts.items()})


class _Attempt:
    """Takes the texts of an engine, one by one, and keeps the usable ones in the store.

    Parameters
    ----------
    store : SummaryStore
        The store.
    missing : dict of str to Request
        The requests by their names.

    Attributes
    ----------
    unusable : dict of str to Request
        The requests whose texts are unusable.
    """

    def __init__(self, store: SummaryStore, missing: dict[str, Request]):
        self.store, self.missing = store, missing
        self.names = list(missing)
        self.waiting: dict[str, str] = {}  # usable texts that are not on disk yet
        self.unusable: dict[str, Request] = {}
        self.saved = time.monotonic()

    def take(self, number: int, text: WrittenText) -> None:
        store, name = self.store, self.names[number]
        content = text.text.strip()
        if store.engine.paid:  # an extract has words of items alone, whatever they look like
            content = _without_thoughts(content)
        fault = text.fault
        if fault is None and not any(char.isalnum() for char in content):
            fault = "empty"
        elif fault is None and not text.whole:
            fault = "too_long"
        if not fault:
            self.waiting[name] = content
        if store.engine.paid or time.monotonic() - self.saved > FLUSH:
            self.flush()
            self.saved = time.monotonic()
        read, written = text.tokens
        store.counts.update(requests=text.requests, read=read, written=written)
        if fault:
            self.unusable[name] = self.missing[name]
            store._count(fault, text)
        else:
            store.first_faults = None

    def flush(self) -> None:
        self.store._keep(self.waiting)
        self.waiting.clear()


def _without_thoughts(text: str) -> str:
    """Remove the thoughts of a model, which may begin in its prompt; may leave nothing."""
    answer = text.rpartition(THOUGHT_END)[2]
    return "" if THOUGHT.match(answer) else answer.strip()


def _name(request: Request) -> str:
    return name_of(json.dumps(asdict(request)).encode()).hex()


def _checked(line: dict[str, Any]) -> dict[str, Any]:
    """Check a line of the file; raise TypeError or KeyError if it is none of ours."""
    if not isinstance(line["name"], str) or not isinstance(line["text"], str):
        raise TypeError("a name and a text were expected")
    return line | {"replaced": bool(line["replaced"])}
