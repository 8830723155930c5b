"""Encode prompts that ask whether a user takes a candidate.

Everything before the candidate is read once, and any number of candidates may follow it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ...errors import UserError
from ..prompts.chat import TurnTokens, answer_markup, tokenize_turn
from ..prompts.instructions import Instructions
from ..prompts.marks import neutralize_marks
from .batches import IGNORED, MIN_ITEM_TOKENS, PieceTokenizer, Tokens
from .tokenizing import TextTokenizer, Tokenizer

NOTHING = "NULL"  # stands for a section without content, as in the code of the LLM-TRSR paper


def answer_tokens(tokenizer: Tokenizer, yes: str, no: str) -> tuple[np.ndarray, tuple[int, int]]:
    """Find where two texts that end with the answers Yes and No begin to differ.

    Parameters
    ----------
    tokenizer : Tokenizer
        The tokenizer of the language model.
    yes, no : str
        The texts.

    Returns
    -------
    tuple of (ndarray of int64 [length], tuple of (int, int))
        The tokens that both texts begin with, and the first token of each answer.

    Raises
    ------
    UserError
        If the texts have the same first token of an answer.
    """
    spelling = TextTokenizer(tokenizer)
    yes_ids, no_ids = (spelling.encode(text, special=True) for text in (yes, no))
    same = yes_ids[: len(no_ids)] == no_ids[: len(yes_ids)]
    if same.all():
        token = tokenizer.convert_ids_to_tokens([yes_ids[-1]])[0]
        raise UserError(
            f"backbone: its tokenizer begins 'Yes' and 'No' with the same token, {token!r}; "
            "give another"
        )
    common = int(same.argmin())
    return yes_ids[:common], (int(yes_ids[common]), int(no_ids[common]))


class SharedPrefix(NamedTuple):
    """What precedes the candidates of a case.

    Attributes
    ----------
    tokens : ndarray of int64 [length]
        Token ids.
    left_out : int
        Number of items that were left out.
    cut : bool
        Whether the summary was cut.
    """

    tokens: np.ndarray
    left_out: int
    cut: bool


@dataclass
class JudgeEncoder(PieceTokenizer):
    """Encodes prompts: instruction, summary and newest items | candidate and end of the turn.

    With a summary a prompt is that of LLM-TRSR, without one that of TALLRec.

    Parameters
    ----------
    instructions : Instructions
        The instructions of the dataset's domain.
    summarised : bool
        Whether prompts have a summary.

    Attributes
    ----------
    candidate_length : int
        Most tokens of a candidate. It is the same for all prompts, so that what precedes a
        candidate does not depend on it.
    cut_candidates : int
        Number of candidates that are longer than that.
    token_groups : ndarray of int64 [candidates]
        The same number for candidates of the same tokens: for equal texts, and for texts that
        differ only in their marks or behind the cut.
    """

    instructions: Instructions = field(kw_only=True)
    summarised: bool = True
    candidate_length: int = 0
    cut_candidates: int = 0
    token_groups: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @cached_property
    def frame(self) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """Tokens that open the user's turn, tokens that close it, first tokens of both answers.

        The first two are int64 arrays; the second reaches up to the answer.
        """
        yes, no = (answer_markup(self.tokenizer, word) for word in ("Yes", "No"))
        closing, answers = answer_tokens(self.tokenizer, yes, no)
        return self._turn.opening, closing, answers

    @property
    def item_forms(self):
        """See `PieceTokenizer.item_forms`; the texts have no marks."""
        return [(self._space, False)]

    @cached_property
    def _turn(self) -> TurnTokens:
        return tokenize_turn(self.tokenizer)

    @cached_property
    def heads(self) -> tuple[np.ndarray, ...]:
        """The fixed parts of a prompt, int64 each.

        The first opens the prompt, up to the summary if there is one, the second precedes the
        items, and the third precedes the candidate.
        """
        summary, items, candidate = self.instructions.judge_heads
        instruction = self.instructions.judge_history
        if self.summarised:
            instruction = self.instructions.judge
        opening = [
            self._turn.opening,
            self.piece(self._turn.space + instruction, opens=self._turn.opens),
        ]
        if self.summarised:
            opening.append(self.piece(f"\n\n{summary}{self._line}"))
        return (
            np.concatenate(opening),
            self.piece(f"\n\n{items}"),
            self.piece(f"\n\n{candidate}{self._line}"),
        )

    @cached_property
    def _line(self) -> str:
        """The part of a line break that is tokenised before the text behind it."""
        return self.spelling.split_space("\n")[0]

    @cached_property
    def _space(self) -> str:
        """The part of a line break that is tokenised with the text behind it."""
        return self.spelling.split_space("\n")[1]

    def _text(self, text: str) -> np.ndarray:
        """Tokens of the text of a line, int64. The text is data, without marks."""
        return self.piece(self._space + text)

    def for_candidates(self, candidates: Sequence[str]) -> "JudgeEncoder":
        """Reserve room for the longest candidate, at most a third of a prompt's data.

        Parameters
        ----------
        candidates : sequence of str
            The texts of all candidates.

        Returns
        -------
        JudgeEncoder
            This encoder.

        Raises
        ------
        UserError
            If `max_length` leaves too little room for any data.
        """
        fixed = sum(map(len, [*self.heads, self.frame[1]]))
        room = self.max_length - fixed
        if room < 4 * MIN_ITEM_TOKENS:
            raise UserError(
                f"max_length: the fixed text of a prompt takes {fixed} tokens, expected at least "
                f"{fixed + 4 * MIN_ITEM_TOKENS}, found {self.max_length}"
            )
        lengths = [len(self._text(neutralize_marks(text))) for text in candidates]
        self.candidate_length = max(MIN_ITEM_TOKENS, min(room // 3, max(lengths)))
        self.cut_candidates = sum(length > self.candidate_length for length in lengths)
        numbers: dict[str | bytes, int] = {}
        groups = []
        for text, length in zip(candidates, lengths, strict=True):
            key: str | bytes = neutralize_marks(text)
            if length >= self.candidate_length:
                key = self.candidate_suffix(text).tobytes()
            groups.append(numbers.setdefault(key, len(numbers)))
        self.token_groups = np.array(groups)
        return self

    def shared_prefix(self, summary: str | None, items: Sequence[str]) -> SharedPrefix:
        """Encode what precedes the candidates of a case.

        The summary may take half of the room, and what the items leave. The oldest items are left
        out first; the newest is cut at its end if it is too long.

        Parameters
        ----------
        summary : str or None
            The summary of the user's history.
        items : sequence of str
            The user's newest items, oldest first.

        Returns
        -------
        SharedPrefix
            The tokens, and what was left out.
        """
        opening, items_head, candidate_head = self.heads
        fixed = sum(map(len, [*self.heads, self.frame[1]]))
        room = self.max_length - self.candidate_length - fixed
        lines = [self._item_line(item) for item in items]
        if not lines:
            lines = [self.piece(f"\n{NOTHING}")]
        whole_summary = self.piece("")
        if self.summarised:
            whole_summary = self._text(neutralize_marks(summary) if summary else NOTHING)
        kept_summary = whole_summary[: max(room // 2, room - sum(map(len, lines)))]
        room -= len(kept_summary)
        newest: list[np.ndarray] = []
        for line in reversed(lines):
            if len(line) > room and newest:
                break
            newest.append(line[:room])
            room -= len(newest[-1])
        parts = [opening, kept_summary, items_head, *newest[::-1], candidate_head]
        return SharedPrefix(
            np.concatenate(parts),
            left_out=len(lines) - len(newest),
            cut=len(kept_summary) < len(whole_summary),
        )

    def _item_line(self, item: str) -> np.ndarray:
        return np.concatenate([self.piece(self._line), self._text(neutralize_marks(item))])

    def candidate_suffix(self, candidate: str) -> np.ndarray:
        """Encode a candidate, cut at its end, and the end of the turn.

        Parameters
        ----------
        candidate : str
            The text of the candidate.

        Returns
        -------
        ndarray of int64 [length]
            Token ids.
        """
        ids = self._text(neutralize_marks(candidate))[: self.candidate_length]
        return np.concatenate([ids, self.frame[1]])

    def row(
        self,
        prefix: np.ndarray,
        candidates: Sequence[np.ndarray],
        answers: Sequence[bool] = (),
        whole: bool = False,
    ) -> Tokens:
        """Put candidates behind the prefix that they share.

        Each candidate's part begins with the last token of the prefix, so that each part contains
        the token preceding its first, which predicts it. The roles of a token are the number of its
        part, 1 for the prefix and 2, 3, … for the candidates, and its position.

        Parameters
        ----------
        prefix : ndarray of int64 [length]
            Tokens of the shared prefix.
        candidates : sequence of ndarray of int64
            Tokens of each candidate, with the end of the turn.
        answers : sequence of bool
            For each candidate, whether Yes is to be learned at the end of its part; nothing is
            learned there where it is empty.
        whole : bool
            Whether the tokens of the prompt are learned too.

        Returns
        -------
        Tokens
            The row, with labels and roles.
        """
        suffixes = [np.concatenate([prefix[-1:], candidate]) for candidate in candidates]
        parts = [prefix[:-1], *suffixes]
        sizes = [len(part) for part in parts]
        starts = [0] + [sizes[0]] * len(candidates)
        positions = [start + np.arange(size) for start, size in zip(starts, sizes)]
        part_numbers = np.repeat(np.arange(1, len(parts) + 1), sizes)
        labels = np.full(sum(sizes), IGNORED, dtype=np.int64)
        if whole:
            following = [np.append(part[1:], IGNORED) for part in suffixes]
            labels = np.concatenate([np.append(parts[0][1:], prefix[-1]), *following])
        if len(answers):
            yes, no = self.frame[2]
            ends = np.cumsum(sizes)[1:] - 1
            labels[ends] = np.array([yes if answer else no for answer in answers])
        learned = labels != IGNORED
        weight = np.where(part_numbers == 1, len(candidates), 1)
        return Tokens(
            np.concatenate(parts),
            learned,
            target=sum(sizes),
            items=int((learned * weight).sum()),
            cut=0,
            labels=labels,
            roles=np.stack([part_numbers, np.concatenate(positions)]),
        )
