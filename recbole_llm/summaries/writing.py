"""Summaries of many users' histories: each text written once, kept on disk, and what went wrong reported."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from filelock import FileLock
from tqdm import tqdm

from ..cache import Lines, name_of
from ..config import digest
from .extractive import Extractive
from .plan import Request, Round, Summary, Text, run

THOUGHT = re.compile(
    r"^\s*<think>.*?(</think>|$)", re.DOTALL
)  # what a reasoning model says to itself first
AGAIN = 0.7  # least temperature of a second attempt: a greedy one would write the same
FLUSH = 5.0  # seconds between writes to disk of texts that cost nothing


class Engine(Protocol):
    """Writes texts. name : all that decides them beside their requests. paid : whether each is to be on disk as soon as it is there."""

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

    Attributes
    ----------
    counts : texts that were asked for, that were on disk, and that are extracts in place of what the engine wrote; attempts that came back
        empty or too long; tokens read and written.
    """

    def __init__(
        self, engine: Engine, extractive: Extractive, folder: Path, show_progress: bool = False
    ):
        self.engine, self.extractive, self.show_progress, self.counts = (
            engine,
            extractive,
            show_progress,
            Counter(),
        )
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{digest([engine.name])}.jsonl.gz"
        self.lock, self.lines = FileLock(path.with_suffix(".lock")), Lines(path)
        self.known: dict[
            str, tuple[str, bool]
        ] = {}  # a request's name: its text, and whether that is an extract in place of what the engine wrote
        self.read = 0  # bytes of the file that `known` has

    def of(self, rounds: Iterable[Round]) -> list[Summary]:
        """The summary of each history, by the rounds of its plan."""
        with self.lock:  # another process at the same texts waits, and finds them
            if self.lines.size != self.read:
                self.known = {
                    line["name"]: (line["text"], line["replaced"]) for line in self.lines.read()
                }
            try:
                return run(rounds, self._write)
            finally:
                self.read = self.lines.size

    def told(self) -> str:
        """One line on what was done so far."""
        counts = self.counts
        faults = (
            f"; {counts['empty']} came back empty and {counts['too_long']} too long"
            if counts["empty"] + counts["too_long"]
            else ""
        )
        faults += f"; {counts['replaced']} are extracts instead" if counts["replaced"] else ""
        tokens = (
            f", {counts['read']} tokens read and {counts['written']} written"
            if counts["read"]
            else ""
        )
        return f"summaries: {counts['asked']} texts, of which {counts['known']} were there{tokens}{faults}"

    def _write(self, requests: Sequence[Request], level: int) -> list[tuple[str, bool]]:
        names = [name_of(json.dumps(asdict(request)).encode()).hex() for request in requests]
        missing = {
            name: request
            for name, request in zip(names, requests, strict=True)
            if name not in self.known
        }
        self.counts.update(asked=len(requests), known=sum(name not in missing for name in names))
        if bad := self._attempt(self._attempt(missing, level, again=False), level, again=True):
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
            self.counts.update(read=text.tokens[0], written=text.tokens[1])
            said = THOUGHT.sub("", text.text).strip()
            fault = (
                "empty"
                if not any(char.isalnum() for char in said)
                else None
                if text.whole
                else "too_long"
            )
            if fault:
                self.counts[fault] += 1
                bad[names[number]] = requests[number]
            else:
                waiting[names[number]] = said
            bar.update()
            bar.set_postfix_str(
                f"{self.counts['written']} tokens written" if self.counts["written"] else ""
            )
            if self.engine.paid or time.monotonic() - saved > FLUSH:
                self._keep(waiting)
                waiting.clear()
                saved = time.monotonic()

        with tqdm(
            total=len(names),
            desc=f"Summaries, level {level}{', again' * again}",
            disable=not self.show_progress,
            ncols=100,
        ) as bar:
            try:
                self.engine.write(requests, take, again)
            finally:
                self._keep(waiting)
        return bad

    def _keep(self, texts: dict[str, str], replaced: bool = False) -> None:
        if texts:
            self.lines.append(
                {"name": name, "text": text, "replaced": replaced} for name, text in texts.items()
            )
            self.known.update({name: (text, replaced) for name, text in texts.items()})
