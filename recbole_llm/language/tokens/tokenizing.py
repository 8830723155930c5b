"""Tokenise a piece of text as it stands inside a longer text, with tokenizers of any kind."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from itertools import chain
from typing import Any, Protocol

import numpy as np

# One of these stands before a piece while the piece is tokenised. There are several, since a
# tokenizer may have a token that reaches from the first one over the beginning of the piece.
ANCHORS = (".", "x", "1", "|", ")", ";")
SPACES = ("▁", "Ġ")  # how SentencePiece and byte-level BPE write a space


class Tokenizer(Protocol):
    """The part of transformers' tokenizers (`PreTrainedTokenizerBase`) that this package uses.

    Attributes
    ----------
    bos_token : str or None
        The begin token.
    bos_token_id : int or None
        Its id.
    eos_token_id : int
        Id of the end token.
    pad_token_id : int
        Id of the padding token.
    unk_token_id : int or None
        Id of the token of unknown words.
    mask_token_id : int or None
        Id of the token that hides another.
    all_special_ids : list of int
        Ids of all named special tokens.
    vocab_size : int
        Number of tokens without those that were added later.
    chat_template : str or None
        Jinja template of a chat.
    """

    bos_token: str | None
    bos_token_id: int | None
    eos_token_id: int
    pad_token_id: int
    unk_token_id: int | None
    mask_token_id: int | None
    all_special_ids: list[int]
    vocab_size: int
    chat_template: Any

    def __call__(self, text: str | list[str], **options: Any) -> Any:
        """Tokenise a text; `["input_ids"]` of the result is a list of int."""

    def __len__(self) -> int:
        """Return the number of tokens, added ones included."""

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """Return the token of an id, or the tokens of several."""

    def decode(self, token_ids: Any, **options: Any) -> Any:
        """Return the text of token ids."""

    def batch_decode(self, sequences: Any, **options: Any) -> Any:
        """Return the texts of several sequences of token ids."""

    def get_chat_template(self) -> str:
        """Return the Jinja template of a chat."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Return the text of a chat."""

    def save_pretrained(self, save_directory: Any) -> Any:
        """Write the tokenizer's files."""


@dataclass
class TextTokenizer:
    """A tokenizer that is told where in a text a piece stands.

    The tokenizers of SentencePiece (Llama 2, Mistral, T5) put a space before every text, which a
    piece inside a text must not get. Others tokenise a piece alike wherever it stands.

    Parameters
    ----------
    tokenizer : Tokenizer
        Any tokenizer of transformers.
    """

    tokenizer: Tokenizer

    @cached_property
    def adds_space(self) -> bool:
        """Whether the tokenizer puts a space before a text."""
        return self._tokens("a")[0].startswith(SPACES)

    @cached_property
    def splits_words(self) -> bool:
        """Whether every token lies within one word; byte-level BPE may cross words."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        pre_tokenizer = getattr(backend, "pre_tokenizer", None)
        return getattr(pre_tokenizer, "use_regex", True)

    @cached_property
    def space_leads(self) -> bool:
        """Whether a space between two words is part of the second word's token.

        It is not where the tokenizer drops spaces (WordPiece).
        """
        if not self.splits_words:
            return False
        return any(token.startswith(SPACES) for token in self._tokens("a b")[1:])

    @cached_property
    def adds_space_after_special(self) -> bool:
        """Whether text behind a special token gets a space of its own, like the first text."""
        special_id = next(iter(self.tokenizer.all_special_ids), None)
        if special_id is None or not self.adds_space:
            return False
        text = self.tokenizer.convert_ids_to_tokens(special_id) + "a"
        return self._ids(text, special=True) == [special_id, *self._ids("a")]

    @cached_property
    def blanks(self) -> str:
        """Characters that belong to the next piece if they stand at the end of a piece."""
        if not self.space_leads:
            return ""
        newline_is_space = self.adds_space and self._ids("a\nb") == self._ids("a b")
        return " \n" if newline_is_space else " "

    def split_space(self, text: str) -> tuple[str, str]:
        """Split white space off the end of a text if it has to open the next piece.

        Parameters
        ----------
        text : str
            What stands before the next piece.

        Returns
        -------
        tuple of (str, str)
            The text without that white space, and the white space.
        """
        stripped = text.rstrip(self.blanks) if self.blanks else text
        return stripped, text[len(stripped) :]

    def encode(self, text: str, opens: bool = False, special: bool = False) -> np.ndarray:
        """Tokenise a piece.

        Parameters
        ----------
        text : str
            The piece, with the white space before it.
        opens : bool
            Whether the piece opens a text, so that nothing stands before it.
        special : bool
            Whether special tokens in the text are read as such. Otherwise they are ordinary text;
            where a tokenizer finds one all the same (Unigram has them among its words), it is
            left out.

        Returns
        -------
        ndarray of int64 [length]
            Token ids.
        """
        ids = np.array(self._piece(text, opens, special), dtype=np.int64)
        if special:
            return ids
        return ids[~np.isin(ids, self._reserved)]

    def encode_all(
        self, texts: Sequence[str], opens: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokenise many pieces at once, each as `encode` does.

        Fast tokenizers read a batch with all cores.

        Parameters
        ----------
        texts : sequence of str
            The pieces, with the white space before each.
        opens : bool
            Whether each opens a text.

        Returns
        -------
        ids : ndarray of int64
            Token ids of all pieces, one piece behind the other.
        lengths : ndarray of int64 [pieces]
            Tokens of each piece.
        """
        anchor, anchor_ids = "", list[int]()
        if self.adds_space and not opens and self._anchors:
            anchor, anchor_ids = self._anchors[0]
        rows = []
        for text, ids in zip(
            texts, self._ids_of_all([anchor + text for text in texts]), strict=True
        ):
            fits = ids[: len(anchor_ids)] == anchor_ids and text
            rows.append(ids[len(anchor_ids) :] if fits else self._piece(text, opens, False))
        owner = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        whole = np.array(list(chain.from_iterable(rows)), dtype=np.int64)
        kept = ~np.isin(whole, self._reserved)
        return whole[kept], np.bincount(owner[kept], minlength=len(rows))

    def fingerprint(self) -> str:
        """Describe the tokenizer so that two with equal descriptions tokenise alike."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            # padding and truncation are as the last call has left them
            parts = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
            return json.dumps([parts, self._reserved.tolist(), self.adds_space])
        vocabulary = sorted(self.tokenizer.get_vocab().items())  # type: ignore[attr-defined]
        return repr((type(self.tokenizer), self.tokenizer, vocabulary))

    def _piece(self, text: str, opens: bool, special: bool) -> list[int]:
        if text and self.adds_space and not opens:
            for anchor, anchor_ids in self._anchors:
                ids = self._ids(anchor + text, special)
                if ids[: len(anchor_ids)] == anchor_ids:
                    return ids[len(anchor_ids) :]
        return self._ids(text, special)

    def count_differences(self, ids: np.ndarray) -> int:
        """Count the tokens of a text made of pieces that differ from those of the whole text.

        Each piece is tokenised by itself, so that a token which would reach over the border of two
        pieces is missed. Texts between special tokens are compared each by itself.

        Parameters
        ----------
        ids : ndarray of int64 [length]
            The tokens of the pieces, one behind the other.

        Returns
        -------
        int
            Number of tokens that the whole text does not have.
        """
        special_places = np.flatnonzero(np.isin(ids, list(self._special)))
        borders = np.unique(np.concatenate([special_places, special_places + 1]))
        count = 0
        for number, segment in enumerate(np.split(np.asarray(ids), borders)):
            if len(segment) and segment[0] not in self._special:
                count += self._count_in_segment(segment.tolist(), opens=number == 0)
        return count

    def _count_in_segment(self, ids: list[int], opens: bool) -> int:
        anchor: list[int] = [] if opens or not self._anchors else self._anchors[0][1]
        text = self._text(anchor + ids)[len(self._text(anchor)) :]
        whole = self.encode(text, opens=opens).tolist()
        for tokens in (ids, whole):  # a space before a special token may be dropped
            while tokens and self.tokenizer.convert_ids_to_tokens(tokens[-1]) in SPACES:
                tokens.pop()
        matcher = SequenceMatcher(None, ids, whole, autojunk=False)
        return len(ids) - sum(block.size for block in matcher.get_matching_blocks())

    @cached_property
    def _anchors(self) -> list[tuple[str, list[int]]]:
        pairs = [(anchor, self._ids(anchor)) for anchor in ANCHORS]
        return [pair for pair in pairs if pair[1] and self.tokenizer.unk_token_id not in pair[1]]

    @cached_property
    def _special(self) -> set[int]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        marked = {token_id for token_id, token in added.items() if token.special}
        return marked | set(self.tokenizer.all_special_ids)

    @cached_property
    def _reserved(self) -> np.ndarray:
        """Ids of tokens that no ordinary text becomes, int64.

        An unknown word may become the unknown token.
        """
        return np.array(sorted(self._special - {self.tokenizer.unk_token_id}), dtype=np.int64)

    def _ids(self, text: str, special: bool = False) -> list[int]:
        return self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=not special, verbose=False
        )["input_ids"]

    def _ids_of_all(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]

    def _tokens(self, text: str) -> list[str]:
        return self.tokenizer.convert_ids_to_tokens(self._ids(text))

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
