"""Prompts that ask whether a user takes a candidate: read once up to the candidate, with any number of candidates behind."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ...errors import UserError
from ..prompts.instructions import Instructions, TurnTokens, answer_markup, tokenize_turn
from ..prompts.marks import neutralize_marks
from .batches import IGNORED, MIN_ITEM_TOKENS, PieceTokenizer, Tokens
from .tokenizing import TextTokenizer

NOTHING = "NULL"  # what a section without content says, as in the paper's code


def answer_tokens(tokenizer, yes: str, no: str) -> tuple[np.ndarray, tuple[int, int]]:
    """Where two texts part, whose last words are the answers Yes and No: the int64 tokens before that, and the first of each answer.

    Raises UserError where they do not part.
    """
    spelling = TextTokenizer(tokenizer)
    one, other = (spelling.encode(text, special=True) for text in (yes, no))
    same = one[: len(other)] == other[: len(one)]
    if same.all():
        token = tokenizer.convert_ids_to_tokens([one[-1]])[0]
        raise UserError(
            f"backbone: its tokenizer begins 'Yes' and 'No' with the same token, {token!r}; give another"
        )
    parted = int(same.argmin())
    return one[:parted], (int(one[parted]), int(other[parted]))


class SharedPrefix(NamedTuple):
    """What precedes a candidate: int64 tokens, how many items were left out, and whether the summary was cut."""

    tokens: np.ndarray
    left_out: int
    cut: bool


@dataclass
class JudgeEncoder(PieceTokenizer):
    """Instruction, summary, newest items | candidate, end of the turn.

    Attributes
    ----------
    summarised : whether prompts have a summary; else they are TALLRec's.
    room : most tokens of a candidate, of all prompts alike, so that what stands before it does not depend on it.
    shortened : how many candidates are longer than that.
    alike : int64 [candidates], the same number for those of the same tokens: of equal texts, and of texts that differ in their marks or behind the cut alone.
    """

    instructions: Instructions | None = None
    summarised: bool = True
    candidate_length: int = 0
    cut_candidates: int = 0
    token_groups: np.ndarray | None = None

    @cached_property
    def frame(self) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """int64 tokens that open the user's turn, and that close it up to the answer; and the first tokens of the two answers."""
        answers = (answer_markup(self.tokenizer, word) for word in ("Yes", "No"))
        return self._turn.opening, *answer_tokens(self.tokenizer, *answers)

    @cached_property
    def _turn(self) -> TurnTokens:
        return tokenize_turn(self.tokenizer)

    @cached_property
    def heads(self) -> tuple[np.ndarray, ...]:
        """int64: what opens a prompt, up to the summary if there is one; what precedes the items; what precedes the candidate."""
        summary, items, candidate = self.instructions.judge_heads
        instruction = (
            self.instructions.judge if self.summarised else self.instructions.judge_history
        )
        said = self.piece(self._turn.space + instruction, opens=self._turn.opens)
        opening = [self._turn.opening, said]
        if self.summarised:
            opening.append(self.piece(f"\n\n{summary}{self._line}"))
        return (
            np.concatenate(opening),
            self.piece(f"\n\n{items}"),
            self.piece(f"\n\n{candidate}{self._line}"),
        )

    @cached_property
    def _line(self) -> str:
        """What of a line break is tokenised before the text behind it; `_space` is tokenised with that text."""
        return self.spelling.split_space("\n")[0]

    @cached_property
    def _space(self) -> str:
        return self.spelling.split_space("\n")[1]

    def _text(self, text: str) -> np.ndarray:
        """int64 tokens of what a line says, which is data."""
        return self.piece(self._space + text)

    def for_candidates(self, candidates: Sequence[str]) -> "JudgeEncoder":
        """With room for the longest of these, but at most for a third of a prompt's data. Raises UserError if `max_length` leaves too little for any data."""
        fixed = sum(map(len, [*self.heads, self.frame[1]]))
        left = self.max_length - fixed
        if left < 4 * MIN_ITEM_TOKENS:
            raise UserError(
                f"max_length: what a prompt always says takes {fixed} tokens, expected at least {fixed + 4 * MIN_ITEM_TOKENS}, found {self.max_length}"
            )
        lengths = [len(self._text(neutralize_marks(text))) for text in candidates]
        self.candidate_length = max(MIN_ITEM_TOKENS, min(left // 3, max(lengths)))
        self.cut_candidates = sum(length > self.candidate_length for length in lengths)
        numbers: dict[str | bytes, int] = {}
        kept = (
            neutralize_marks(text)
            if size < self.candidate_length
            else self.candidate_suffix(text).tobytes()
            for text, size in zip(candidates, lengths, strict=True)
        )
        self.token_groups = np.array([numbers.setdefault(own, len(numbers)) for own in kept])
        return self

    def shared_prefix(self, summary: str | None, items: Sequence[str]) -> SharedPrefix:
        """A summary may have half of the room, and what the items leave. The oldest items are left out first; the newest is cut at its end if it must be."""
        opening, items_head, candidate_head = self.heads
        left = self.max_length - self.candidate_length - sum(map(len, [*self.heads, self.frame[1]]))
        lines = [
            np.concatenate([self.piece(self._line), self._text(neutralize_marks(item))])
            for item in items
        ] or [self.piece(f"\n{NOTHING}")]
        whole = self.piece("")
        if self.summarised:
            whole = self._text(neutralize_marks(summary) if summary else NOTHING)
        told = whole[: max(left // 2, left - sum(map(len, lines)))]
        left -= len(told)
        kept: list[np.ndarray] = []
        for line in reversed(lines):
            if len(line) > left and kept:
                break
            kept.append(line[:left])
            left -= len(kept[-1])
        tokens = np.concatenate([opening, told, items_head, *kept[::-1], candidate_head])
        return SharedPrefix(tokens, len(lines) - len(kept), len(told) < len(whole))

    def candidate_suffix(self, candidate: str) -> np.ndarray:
        """int64 tokens of a candidate, cut at its end, and of the end of the turn."""
        return np.concatenate(
            [self._text(neutralize_marks(candidate))[: self.candidate_length], self.frame[1]]
        )

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
