"""Tokens of a piece of text as it stands inside a longer text, for tokenizers of any kind."""

from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property

import numpy as np

# One of them stands before a piece while it is tokenised. Several, since a tokenizer may have a token
# that reaches from the first over the beginning of the piece.
ANCHORS = (".", "x", "1", "|", ")", ";")
SPACES = ("▁", "Ġ")  # what a space is written as by SentencePiece and by byte-level BPE


@dataclass
class TextTokenizer:
    """A tokenizer that is told where in a text a piece stands.

    SentencePiece's tokenizers put a space before every text that they are given (Llama 2, Mistral, T5),
    which a piece inside a text must not get. Others tokenise a piece alike wherever it stands.
    """

    tokenizer: object

    @cached_property
    def adds_space(self) -> bool:
        """Whether the tokenizer puts a space before a text."""
        return self._tokens("a")[0].startswith(SPACES)

    @cached_property
    def splits_words(self) -> bool:
        """Whether no token reaches from one word into the next, as in byte-level BPE without a regular expression."""
        words = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "pre_tokenizer", None)
        return getattr(words, "use_regex", True)

    @cached_property
    def space_leads(self) -> bool:
        """Whether a space between two words is of one token with the second; it is not where spaces are left out (WordPiece)."""
        return self.splits_words and any(
            token.startswith(SPACES) for token in self._tokens("a b")[1:]
        )

    @cached_property
    def adds_space_after_special(self) -> bool:
        """Whether a text behind a special token gets a space of its own, as the first one does."""
        mark = next(iter(self.tokenizer.all_special_ids), None)
        if mark is None or not self.adds_space:
            return False
        text = self.tokenizer.convert_ids_to_tokens(mark) + "a"
        return self._ids(text, special=True) == [mark, *self._ids("a")]

    @cached_property
    def blanks(self) -> str:
        """Characters that, at the end of a piece, belong to the next one."""
        if not self.space_leads:
            return ""
        one_line = self.adds_space and self._ids("a\nb") == self._ids("a b")
        return " \n" if one_line else " "

    def split_space(self, before: str) -> tuple[str, str]:
        """A text without the white space at its end, and that white space, if it is to open the next piece."""
        kept = before.rstrip(self.blanks) if self.blanks else before
        return kept, before[len(kept) :]

    def encode(self, text: str, opens: bool = False, special: bool = False) -> np.ndarray:
        """Tokens of a piece.

        Parameters
        ----------
        text : the piece, with the white space before it.
        opens : whether nothing stands before it.
        special : whether special tokens are read as such. Else they are ordinary text; where a
            tokenizer finds one all the same (Unigram has them among its words), it is left out.

        Returns
        -------
        int64 [length].
        """
        ids = np.array(self._piece(text, opens, special), dtype=np.int64)
        if special:
            return ids
        return ids[~np.isin(ids, self._reserved)]

    def _piece(self, text: str, opens: bool, special: bool) -> list[int]:
        if text and self.adds_space and not opens:
            for anchor, before in self._anchors:
                whole = self._ids(anchor + text, special)
                if whole[: len(before)] == before:
                    return whole[len(before) :]
        return self._ids(text, special)

    def count_differences(self, ids: np.ndarray) -> int:
        """How many tokens of a text that was put together from pieces are others than in the whole text.

        Pieces are tokenised each for itself, so that a token which would reach over the border of two
        is missed. Texts between special tokens are compared each for itself.
        """
        edges = np.flatnonzero(np.isin(ids, list(self._special)))
        parts = np.split(np.asarray(ids), np.unique(np.concatenate([edges, edges + 1])))
        return sum(
            self._others(part.tolist(), number == 0)
            for number, part in enumerate(parts)
            if len(part) and part[0] not in self._special
        )

    def _others(self, ids: list[int], opens: bool) -> int:
        anchor = [] if opens or not self._anchors else self._anchors[0][1]
        text = self._text(anchor + ids)[len(self._text(anchor)) :]
        whole = self.encode(text, opens=opens).tolist()
        for tokens in (ids, whole):  # a space before a special token may be dropped
            while tokens and self.tokenizer.convert_ids_to_tokens(tokens[-1]) in SPACES:
                tokens.pop()
        matcher = SequenceMatcher(None, ids, whole, autojunk=False)
        return len(ids) - sum(block.size for block in matcher.get_matching_blocks())

    @cached_property
    def _anchors(self) -> list[tuple[str, list[int]]]:
        found = [(anchor, self._ids(anchor)) for anchor in ANCHORS]
        return [pair for pair in found if pair[1] and self.tokenizer.unk_token_id not in pair[1]]

    @cached_property
    def _special(self) -> set[int]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        marked = {token for token, content in added.items() if content.special}
        return marked | set(self.tokenizer.all_special_ids)

    @cached_property
    def _reserved(self) -> np.ndarray:
        """Tokens that no ordinary text becomes; an unknown word may become the unknown token."""
        return np.array(sorted(self._special - {self.tokenizer.unk_token_id}), dtype=np.int64)

    def _ids(self, text: str, special: bool = False) -> list[int]:
        return self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=not special, verbose=False
        )["input_ids"]

    def _tokens(self, text: str) -> list[str]:
        return self.tokenizer.convert_ids_to_tokens(self._ids(text))

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
