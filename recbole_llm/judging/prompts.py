"""Prompts that ask whether a user takes a candidate: read once up to the candidate, with any number of candidates behind."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..collate import IGNORED, WORDS, Pieces, Tokens
from ..errors import UserError
from ..wording import Wording, frame, harmless, turn

NOTHING = "NULL"  # what a section without content says, as in the paper's code


def answer_tokens(tokenizer, before: str) -> tuple[int, int]:
    """The tokens that 'Yes' and 'No' begin with behind a text. Raises UserError if that is the same one."""
    found = []
    for word in ("Yes", "No"):
        bare, whole = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (before, before + word)
        )
        same = next(
            (at for at, (one, other) in enumerate(zip(bare, whole)) if one != other),
            min(len(bare), len(whole)),
        )
        found.append(whole[same])
    if found[0] == found[1]:
        raise UserError(
            f"backbone: its tokenizer begins 'Yes' and 'No' with the same token, {tokenizer.convert_ids_to_tokens(found[0])!r}; give another"
        )
    return tuple(found)


class Before(NamedTuple):
    """What precedes a candidate: int64 tokens, how many items were left out, and whether the summary was cut."""

    tokens: np.ndarray
    left_out: int
    cut: bool


@dataclass
class JudgeEncoder(Pieces):
    """Instruction, summary, newest items | candidate, end of the turn.

    Attributes
    ----------
    summarised : whether prompts have a summary; else they are TALLRec's.
    room : most tokens of a candidate, of all prompts alike, so that what stands before it does not depend on it.
    shortened : how many candidates are longer than that.
    alike : int64 [candidates], the same number for those of the same tokens: of equal texts, and of texts that differ in their marks or behind the cut alone.
    """

    wording: Wording | None = None
    summarised: bool = True
    room: int = 0
    shortened: int = 0
    alike: np.ndarray | None = None

    @cached_property
    def frame(self) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """int64 tokens that open and close the user's turn, and those of the two answers behind it."""
        return *frame(self.tokenizer), answer_tokens(self.tokenizer, turn(self.tokenizer)[1])

    @cached_property
    def heads(self) -> tuple[np.ndarray, ...]:
        """int64: what opens a prompt, up to the summary if there is one; what precedes the items; what precedes the candidate."""
        summary, items, candidate = self.wording.judge_heads
        said = (
            [self.wording.judge, f"\n\n{summary}\n"]
            if self.summarised
            else [self.wording.judge_history]
        )
        opening = np.concatenate([self.frame[0], *map(self.piece, said)])
        return opening, self.piece(f"\n\n{items}"), self.piece(f"\n\n{candidate}\n")

    def for_candidates(self, candidates: Sequence[str]) -> "JudgeEncoder":
        """With room for the longest of these, but at most for a third of a prompt's data. Raises UserError if `max_length` leaves too little for any data."""
        fixed = sum(map(len, [*self.heads, self.frame[1]]))
        left = self.max_length - fixed
        if left < 4 * WORDS:
            raise UserError(
                f"max_length: what a prompt always says takes {fixed} tokens, expected at least {fixed + 4 * WORDS}, found {self.max_length}"
            )
        lengths = [len(self.piece(harmless(text))) for text in candidates]
        self.room = max(WORDS, min(left // 3, max(lengths)))
        self.shortened = sum(length > self.room for length in lengths)
        numbers: dict[str | bytes, int] = {}
        kept = (
            harmless(text) if size < self.room else self.behind(text).tobytes()
            for text, size in zip(candidates, lengths, strict=True)
        )
        self.alike = np.array([numbers.setdefault(own, len(numbers)) for own in kept])
        return self

    def before(self, summary: str | None, items: Sequence[str]) -> Before:
        """A summary may have half of the room, and what the items leave. The oldest items are left out first; the newest is cut at its end if it must be."""
        opening, items_head, candidate_head = self.heads
        left = self.max_length - self.room - sum(map(len, [*self.heads, self.frame[1]]))
        lines = [
            np.concatenate([self.piece("\n"), self.piece(harmless(item))]) for item in items
        ] or [self.piece(f"\n{NOTHING}")]
        whole = (
            self.piece(harmless(summary) if summary else NOTHING)
            if self.summarised
            else self.piece("")
        )
        told = whole[: max(left // 2, left - sum(map(len, lines)))]
        left -= len(told)
        kept: list[np.ndarray] = []
        for line in reversed(lines):
            if len(line) > left and kept:
                break
            kept.append(line[:left])
            left -= len(kept[-1])
        tokens = np.concatenate([opening, told, items_head, *kept[::-1], candidate_head])
        return Before(tokens, len(lines) - len(kept), len(told) < len(whole))

    def behind(self, candidate: str) -> np.ndarray:
        """int64 tokens of a candidate, cut at its end, and of the end of the turn."""
        return np.concatenate([self.piece(harmless(candidate))[: self.room], self.frame[1]])

    def row(
        self,
        before: np.ndarray,
        candidates: Sequence[np.ndarray],
        answers: Sequence[bool] = (),
        whole: bool = False,
    ) -> Tokens:
        """Candidates behind what they share. The last shared token stands in each candidate's part, so that every token is told by one before it in its part.

        The roles of a token are its part, 1 for what is shared and 2, 3, … for the candidates, and its position.
        answers : what is learned at the end of each part; nothing where not given. whole : the prompt's own tokens are learned too.
        """
        parts = [
            before[:-1],
            *(np.concatenate([before[-1:], candidate]) for candidate in candidates),
        ]
        sizes = [len(part) for part in parts]
        starts = [0] + [sizes[0]] * len(candidates)
        roles = np.stack(
            [
                np.repeat(np.arange(1, len(parts) + 1), sizes),
                np.concatenate([start + np.arange(size) for start, size in zip(starts, sizes)]),
            ]
        )
        following = [
            np.append(parts[0][1:], before[-1]),
            *(np.append(part[1:], IGNORED) for part in parts[1:]),
        ]
        labels = (
            np.concatenate(following) if whole else np.full(sum(sizes), IGNORED, dtype=np.int64)
        )
        if len(answers):
            labels[np.cumsum(sizes)[1:] - 1] = np.array(self.frame[2])[
                [0 if answer else 1 for answer in answers]
            ]
        learned = labels != IGNORED
        weight = np.where(roles[0] == 1, len(candidates), 1)
        return Tokens(
            np.concatenate(parts),
            learned,
            sum(sizes),
            int((learned * weight).sum()),
            0,
            labels=labels,
            roles=roles,
        )
