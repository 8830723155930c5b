"""Summaries of many users' histories: each text written once, kept on disk, and what went wrong reported."""

import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from ..cache import Lines, name_of
from ..config import digest
from ..progress import progress
from .extractive import Extractive
from .plan import Request, Round, Summary, Text, run

THOUGHT = re.compile(r"\s*<think>")  # begins what a reasoning model says to itself first
THOUGHT_END = "</think>"
AGAIN = 0.7  # least temperature of a second attempt: a greedy one would write the same
FLUSH = 5.0  # seconds between writes to disk of texts that cost nothing
PATIENCE = 20  # texts in a row, none of them any good, until that is said or ends the work
FAULTS = {  # what may be wrong with a text, and what is said of it
    "empty": "came back empty",
    "too_long": "too long",
    "refused": "refused",
    "failed": "without an answer",
}
REMEDY = {
    "empty": "look at what the model writes",
    "thought": "the model thinks before it writes: have that switched off, as by --summarizer_extra='{chat_template_kwargs: {enable_thinking: false}}', or set --summary_tokens to more",
    "too_long": "set --summary_tokens to more",
    "refused": "mend what the server refuses",
    "failed": "mend the server",
}


class Unwritten(str):
    """What stands in a forecast for a text that is not written yet."""


class Engine(Protocol):
    """Writes texts.

    name : all that decides them beside their requests.
    paid : whether each is to be on disk as soon as it is there. Paid engines have `max_length` and
        `max_new`, in tokens, and `size`, the tokens of a request's prompt.
    """

    name: str
    paid: bool

    def write(
        self, requests: Sequence[Request], take: Callable[[int, Text], None], again: bool = False
    ) -> None:
        """Give each request's text by its number as soon as it is written. again : the first attempt was no good."""


class Summaries:
    """The texts of one engine, in a file that outlives any process.

    Parameters
    ----------
    extractive : writes what the engine cannot.
    retry : ask the engine again for texts that an earlier process has replaced by extracts.
    tried : names of texts that were replaced in this process, which are not asked for again; those
        that are replaced are added.
    counts : what is counted; those of an earlier object may go on.

    Attributes
    ----------
    counts : texts that were asked for, that were on disk, and that are extracts in place of what the engine wrote; attempts with each of FAULTS;
        requests to the engine, those of second attempts among them, and tokens read and written.
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
        self.counts = Counter() if counts is None else counts
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{digest([engine.name])}.jsonl.gz"
        self.lock, self.lines = FileLock(path.with_suffix(".lock")), Lines(path)
        self.known: dict[
            str, tuple[str, bool]
        ] = {}  # a request's name: its text, and whether that is an extract in place of what the engine wrote
        self.size = 0  # bytes of the file that `known` has
        self.bad: Counter | None = Counter()  # first answers, until one is good or that is said

    def of(self, rounds: Iterable[Round]) -> list[Summary]:
        """The summary of each history, by the rounds of its plan."""
        with self.lock:  # another process at the same texts waits, and finds them
            self._read()
            try:
                return run(rounds, self._write)
            finally:
                self.size = self.lines.size

    def forecast(self, parts: Mapping[str, Iterable[Round]]) -> dict[str, Counter]:
        """What the summaries of each part of the data are going to cost, if every first attempt is good.

        Counts `requests`, `read` (tokens of their prompts, the instructions and earlier summaries
        among them) and `written` (most tokens of the answers). A text is counted once, in the first
        part that asks for it, and not at all if it is on disk.
        """
        with self.lock:
            self._read()
        found, counted = {}, set()
        for part, rounds in parts.items():
            costs: Counter = Counter()

            def write(requests: Sequence[Request], level: int, costs=costs):
                texts = []
                for request in requests:
                    name = _name(request)
                    if name in self.known:
                        texts.append((self.known[name][0], False))
                        continue
                    if name not in counted:
                        counted.add(name)
                        costs.update(self._cost(request))
                    texts.append((Unwritten(name), False))
                return texts

            run(rounds, write)
            found[part] = costs
        return found

    def told(self) -> str:
        """One line on what was done so far."""
        counts = self.counts
        faults = [f"{counts[name]} {said}" for name, said in FAULTS.items() if counts[name]]
        told = f"summaries: {counts['asked']} texts, of which {counts['known']} were there"
        if counts["read"]:
            told += f", {counts['read']} tokens read and {counts['written']} written"
        if self.engine.paid and counts["requests"]:
            told += f" by {counts['requests']} requests"
        if faults:
            told += f"; {' and '.join(faults)}"
        if counts["replaced"]:
            told += f"; {counts['replaced']} are extracts instead, which --summaries=retry asks for again"
        return told

    def _read(self) -> None:
        """Take what is on disk."""
        if self.lines.size == self.size:
            return
        self.known = {
            line["name"]: (line["text"], line["replaced"]) for line in self.lines.read(_checked)
        }
        if self.retry:
            self.known = {
                name: (text, replaced)
                for name, (text, replaced) in self.known.items()
                if not replaced or name in self.tried
            }
        self.size = self.lines.size

    def _cost(self, request: Request) -> dict[str, int]:
        if not self.engine.paid:
            return {"requests": 1}
        written = tuple(text for text in request.previous if not isinstance(text, Unwritten))
        unwritten = len(request.previous) - len(written)
        most, room = self.engine.max_new, self.engine.max_length - self.engine.max_new
        size = self.engine.size(replace(request, previous=written)) + unwritten * most
        return {"requests": 1, "read": min(size, room), "written": most}

    def _write(self, requests: Sequence[Request], level: int) -> list[tuple[str, bool]]:
        names = [_name(request) for request in requests]
        missing = {
            name: request
            for name, request in zip(names, requests, strict=True)
            if name not in self.known
        }
        self.counts.update(asked=len(requests), known=sum(name not in missing for name in names))
        first = self._attempt(missing, level, again=False)
        self._warn()
        if bad := self._attempt(first, level, again=True):
            self.tried.update(bad)
            self._keep(
                dict(zip(bad, self.extractive.texts(list(bad.values())), strict=True)),
                replaced=True,
            )
        found = [self.known[name] for name in names]
        self.counts["replaced"] += sum(replaced for _, replaced in found)
        return found

    def _attempt(self, missing: dict[str, Request], level: int, again: bool) -> dict[str, Request]:
        """Write texts and keep those that are good; returns the requests of the others."""
        if not missing:
            return {}
        names, requests = list(missing), list(missing.values())
        waiting: dict[str, str] = {}
        bad: dict[str, Request] = {}
        saved = time.monotonic()

        def take(number: int, text: Text) -> None:
            nonlocal saved
            said = text.text.strip()
            if self.engine.paid:  # an extract has words of items alone, whatever they look like
                said = _without_thoughts(said)
            fault = text.fault
            if fault is None and not any(char.isalnum() for char in said):
                fault = "empty"
            elif fault is None and not text.whole:
                fault = "too_long"
            if not fault:
                waiting[names[number]] = said
            if self.engine.paid or time.monotonic() - saved > FLUSH:
                self._keep(waiting)
                waiting.clear()
                saved = time.monotonic()
            self.counts.update(requests=text.requests, read=text.tokens[0], written=text.tokens[1])
            if fault:
                bad[names[number]] = requests[number]
                self._count(fault, text)
            else:
                self.bad = None
            bar.update()
            bar.set_postfix_str(
                f"{self.counts['written']} tokens written" if self.counts["written"] else ""
            )

        with progress(
            total=len(names),
            desc=f"Summaries, level {level}{', again' * again}",
            disable=not self.show_progress,
        ) as bar:
            try:
                self.engine.write(requests, take, again)
            finally:
                self._keep(waiting)
        return bad

    def _count(self, fault: str, text: Text) -> None:
        """Count a text that is no good."""
        self.counts[fault] += 1
        if text.why and self.counts[fault] == 1:
            logging.getLogger().warning(
                f"summaries: a text is {FAULTS[fault]} ({text.why}), which costs this text alone; more of them are counted"
            )
        if self.bad is not None:
            thought = text.text.strip() and not _without_thoughts(text.text)
            self.bad["thought" if thought else fault] += 1
            silent = self.bad["refused"] + self.bad["failed"]  # which end the work by themselves
            if self.bad.total() == PATIENCE > silent:
                self._warn()

    def _warn(self) -> None:
        """Say that none of the first answers is any good."""
        if not self.bad:
            return
        ((most, _),) = self.bad.most_common(1)
        logging.getLogger().warning(
            f"!!! summaries: of the first {self.bad.total()} texts none is any good: {self.bad[most]} "
            f"{FAULTS.get(most, 'are thoughts alone')}; {REMEDY[most]}; they become extracts !!!"
        )
        self.bad = None

    def _keep(self, texts: dict[str, str], replaced: bool = False) -> None:
        if texts:
            self.lines.append(
                {"name": name, "text": text, "replaced": replaced} for name, text in texts.items()
            )
            self.known.update({name: (text, replaced) for name, text in texts.items()})


def _without_thoughts(text: str) -> str:
    """What a model writes behind its thoughts, which may begin in its prompt; may be empty."""
    said = text.rpartition(THOUGHT_END)[2]
    return "" if THOUGHT.match(said) else said.strip()


def _name(request: Request) -> str:
    return name_of(json.dumps(asdict(request)).encode()).hex()


def _checked(line: dict) -> dict:
    """A line of the file; TypeError or KeyError if it is none of ours."""
    if not isinstance(line["name"], str) or not isinstance(line["text"], str):
        raise TypeError("a name and a text were expected")
    return line | {"replaced": bool(line["replaced"])}
