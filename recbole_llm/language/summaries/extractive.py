"""Summaries without a language model.

They consist of the most frequent attribute values, and of the sentences nearest to all others.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
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
    """Writes attributes with their most frequent values, then the most central sentences.

    The sentences are those nearest to the TF-IDF centroid of all. A summary of summaries adds up
    the counts in them: of the VALUES most frequent values of each, so that of a long history a
    count may be too low.

    Parameters
    ----------
    counted : frozenset of str
        Names of the attributes whose values are counted; the others are read as sentences.
    """

    counted: frozenset[str] = frozenset()
    paid = False

    @classmethod
    def of(cls, text: ItemText) -> "Extractive":
        """Make the engine of a catalogue.

        Attributes are counted of which at most half of the values differ.

        Parameters
        ----------
        text : ItemText
            The texts of all items.

        Returns
        -------
        Extractive
            The engine.
        """
        counted = set()
        for name, column in zip(text.names, zip(*text.values, strict=True), strict=True):
            known = [value for value in column if value != UNKNOWN]
            if known and 2 * len(set(known)) <= len(known):
                counted.add(name)
        return cls(frozenset(counted))

    @property
    def name(self) -> str:
        """Everything that decides the texts beside their requests."""
        return repr(("extractive", versions()["code"], sorted(self.counted)))

    def write(
        self,
        requests: Sequence[Request],
        take: Callable[[int, WrittenText], None],
        again: bool = False,
    ) -> None:
        """Write the text of each request, see `writing.Engine`.

        Parameters
        ----------
        requests : sequence of Request
            The texts to be written.
        take : callable
            Takes the number of a request and its text.
        again : bool
            Not used.
        """
        for number, text in enumerate(self.texts(requests)):
            take(number, WrittenText(text))

    def texts(self, requests: Sequence[Request]) -> list[str]:
        """Write the text of each request.

        Parameters
        ----------
        requests : sequence of Request
            The texts to be written.

        Returns
        -------
        list of str
            The texts.
        """
        return [self._summary(request) for request in requests]

    def _summary(self, request: Request) -> str:
        counts: dict[str, Counter] = {}
        sentences: list[str] = []
        for text in request.previous:
            self._read_summary(text, counts, sentences)
        for item in request.items:
            for name, value in item:
                if value == UNKNOWN:
                    continue
                if name in self.counted:
                    counts.setdefault(name, Counter())[value.replace(";", ",")] += 1
                else:
                    sentences += [self._quoted(sentence) for sentence in _sentences(value)]
        lines = []
        for name, counter in counts.items():
            values = [f"{value} x{times}" for value, times in _most_frequent(counter)]
            lines.append(f"{name}: {'; '.join(values)}.")
        return "\n".join([*lines, *nearest(sentences)]) or UNKNOWN

    def _quoted(self, sentence: str) -> str:
        """Put a sentence that reads like a line of counts into quotation marks."""
        return sentence if self._parse_counts(sentence) is None else f"“{sentence}”"

    def _read_summary(self, text: str, counts: dict[str, Counter], sentences: list[str]) -> None:
        """Add the counts and sentences of a summary of ours."""
        for line in text.splitlines():
            parsed = self._parse_counts(line)
            if parsed:
                name, values = parsed
                counts.setdefault(name, Counter()).update(values)
            elif line != UNKNOWN:
                sentences.append(line)

    def _parse_counts(self, line: str) -> tuple[str, dict[str, int]] | None:
        """Read the attribute and the count of each value of a line; None for a sentence."""
        name, _, rest = line.removesuffix(".").partition(": ")
        if name not in self.counted:
            return None
        values = {}
        for part in rest.split("; "):
            match = TIMES.fullmatch(part)
            if match is None:
                return None
            values[match[1]] = int(match[2])
        return name, values


def _sentences(value: str) -> list[str]:
    """Split what is longer than a title into sentences, without fragments.

    Each ends like a sentence, since a prompt has them in one line, and titles would run together.
    """
    parts = [value]
    if count(value) > TITLE:
        parts = [part for part in SENTENCE_END.split(value) if count(part) > 2]
    stripped = [part.strip() for part in parts]
    return [part if part.endswith(ENDS) else f"{part}." for part in stripped if part]


def _most_frequent(counter: Counter) -> list[tuple[str, int]]:
    # sorted is stable: of equal counts the first come first
    return sorted(counter.items(), key=lambda pair: -pair[1])[:VALUES]


def _length(vector: dict[str, float]) -> float:
    return math.sqrt(sum(weight**2 for weight in vector.values()))


def nearest(sentences: Sequence[str]) -> list[str]:
    """Choose the distinct sentences nearest to the TF-IDF centroid of all by cosine.

    Parameters
    ----------
    sentences : sequence of str
        All sentences.

    Returns
    -------
    list of str
        Up to SENTENCES words together, in the order of the sentences; at least one sentence, cut to
        so many words.
    """
    distinct = list(dict.fromkeys(sentences))
    if not distinct:
        return []
    tokens = [words(sentence) for sentence in distinct]
    frequency: Counter = Counter()  # sentences with a word
    for sentence_words in tokens:
        frequency.update(set(sentence_words))
    vectors: list[dict[str, float]] = []
    for sentence_words in tokens:
        vector = {}
        for word, times in Counter(sentence_words).items():
            vector[word] = times * math.log(1 + len(distinct) / frequency[word])
        vectors.append(vector)
    lengths = [_length(vector) or 1.0 for vector in vectors]
    centroid: dict[str, float] = dict.fromkeys(frequency, 0)
    for vector, length in zip(vectors, lengths, strict=True):
        for word, weight in vector.items():
            centroid[word] += weight / length
    scores = []
    for vector, length in zip(vectors, lengths, strict=True):
        product = sum(weight * centroid[word] for word, weight in vector.items())
        scores.append(product / length)
    order = np.argsort(-np.array(scores), kind="stable")
    total_words = np.cumsum([count(distinct[place]) for place in order])
    chosen = order[: max(1, int(np.searchsorted(total_words, SENTENCES, side="right")))]
    return [cut(distinct[place], SENTENCES) for place in sorted(chosen)]
