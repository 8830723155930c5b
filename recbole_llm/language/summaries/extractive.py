"""Summaries without a language model: what is counted most often, and the sentences that lie nearest to all others."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...data.texts.text import UNKNOWN, ItemText
from ...data.texts.words import count, cut, words
from ...storage.run_folders import versions
from .schedules import Request, WrittenText

VALUES, SENTENCES = 4, 60  # values named of an attribute; most words of the sentences
TITLE = 15  # words of a text that is taken for one sentence
TIMES = re.compile(r"(.+) x(\d+)")
ENDS = (".", "!", "?", "。", "！", "？")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*")


@dataclass(frozen=True)
class Extractive:
    """Attributes with their most frequent values, then the sentences nearest to the TF-IDF centroid of all.

    A summary of summaries adds up the counts that it finds in them: of the VALUES most frequent values of each, so that of a long history a count may be
    too low.

    counted : names of the attributes whose values are counted; the others are read as sentences.
    """

    counted: frozenset[str] = frozenset()
    paid = False

    @classmethod
    def of(cls, text: ItemText) -> "Extractive":
        """For a catalogue: what is counted are attributes of which at most half of the values differ."""
        columns = {
            name: [value for value in column if value != UNKNOWN]
            for name, column in zip(text.names, zip(*text.values, strict=True), strict=True)
        }
        return cls(
            frozenset(
                name
                for name, known in columns.items()
                if known and 2 * len(set(known)) <= len(known)
            )
        )

    @property
    def name(self) -> str:
        return repr(("extractive", versions()["code"], sorted(self.counted)))

    def write(self, requests, take, again=False):
        for number, text in enumerate(self.texts(requests)):
            take(number, WrittenText(text))

    def texts(self, requests: Sequence[Request]) -> list[str]:
        return [self._summary(request) for request in requests]

    def _summary(self, request: Request) -> str:
        counts: dict[str, Counter] = {}
        sentences: list[str] = []
        for text in request.previous:
            self._read(text, counts, sentences)
        for item in request.items:
            for name, value in item:
                if value == UNKNOWN:
                    continue
                if name in self.counted:
                    counts.setdefault(name, Counter())[value.replace(";", ",")] += 1
                else:
                    sentences += [
                        sentence if self._counts(sentence) is None else f"“{sentence}”"
                        for sentence in _sentences(value)
                    ]
        lines = [
            f"{name}: {'; '.join(f'{value} x{times}' for value, times in _most(counter))}."
            for name, counter in counts.items()
        ]
        return "\n".join([*lines, *nearest(sentences)]) or UNKNOWN

    def _read(self, text: str, counts: dict[str, Counter], sentences: list[str]) -> None:
        """Take a summary of ours apart again."""
        for line in text.splitlines():
            if found := self._counts(line):
                name, values = found
                counts.setdefault(name, Counter()).update(values)
            elif line != UNKNOWN:
                sentences.append(line)

    def _counts(self, line: str) -> tuple[str, dict[str, int]] | None:
        """(name, value: times) of a line of counts; None for a sentence."""
        name, _, rest = line.removesuffix(".").partition(": ")
        found = [TIMES.fullmatch(part) for part in rest.split("; ")]
        return (
            (name, {match[1]: int(match[2]) for match in found})
            if name in self.counted and all(found)
            else None
        )


def _sentences(value: str) -> list[str]:
    """Of what is longer than a title, without fragments. Each ends like one, since a prompt has them in one line, and titles would run together."""
    found = (
        [value]
        if count(value) <= TITLE
        else [part for part in SENTENCE_END.split(value) if count(part) > 2]
    )
    return [part if part.endswith(ENDS) else f"{part}." for part in map(str.strip, found) if part]


def _most(counter: Counter) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda one: -one[1])[
        :VALUES
    ]  # stable: of equal counts, what came first


def nearest(sentences: Sequence[str]) -> list[str]:
    """Distinct sentences in their order: the nearest to the centroid of all by cosine, up to SENTENCES words together; at least one, cut to so many."""
    distinct = list(dict.fromkeys(sentences))
    if not distinct:
        return []
    tokens = [words(sentence) for sentence in distinct]
    spread = Counter(word for own in tokens for word in set(own))
    vectors = [
        {
            word: times * math.log(1 + len(distinct) / spread[word])
            for word, times in Counter(own).items()
        }
        for own in tokens
    ]
    lengths = [math.sqrt(sum(weight**2 for weight in vector.values())) or 1.0 for vector in vectors]
    centroid: Counter = Counter()
    for vector, length in zip(vectors, lengths, strict=True):
        for word, weight in vector.items():
            centroid[word] += weight / length
    scores = np.array(
        [
            sum(weight * centroid[word] for word, weight in vector.items()) / length
            for vector, length in zip(vectors, lengths, strict=True)
        ]
    )
    order = np.argsort(-scores, kind="stable")
    filled = np.cumsum([count(distinct[place]) for place in order])
    kept = order[: max(1, int(np.searchsorted(filled, SENTENCES, side="right")))]
    return [cut(distinct[place], SENTENCES) for place in sorted(kept)]
