"""From texts to token batches: the only module that knows tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch

from ...contracts.models import PASS_COST
from ..prompts.templates import Example, Template, TextForm, item_prefix
from .tokenizing import TextTokenizer

IGNORED = -100  # label of a token that is not learned
MIN_ITEM_TOKENS = 8  # tokens of an item's own text that there must be room for


@dataclass(frozen=True)
class Tokens:
    """One encoded text. What comes before `target` is history; a text without a target has it at its end."""

    ids: np.ndarray  # int64 [length]
    learned: np.ndarray  # bool [length], the tokens whose loss counts
    target: int  # index of the target's first token
    items: int  # how many items are learned
    cut: int  # how many items were left out
    labels: np.ndarray | None = (
        None  # int64 [length], what is learned at a token; None: the token itself
    )
    roles: np.ndarray | None = None  # int64 [2, length], see AttributeEncoder; None for all others

    def __len__(self) -> int:
        return len(self.ids)


def _after_space(item: str) -> str:
    return f" {item}"


def tokenizer_corpus(template: Template, items: Sequence[str]) -> list[str]:
    """What an Encoder tokenises piece by piece, for a tokenizer to be trained on: every sentence of the template counts as much as all items together."""
    sentences = [template.head, item_prefix(template, 0), item_prefix(template, 1), template.target]
    return [_after_space(item) for item in items] + [
        sentence for sentence in sentences if sentence
    ] * len(items)


@dataclass
class PieceTokenizer:
    """Tokenises pieces of text, each once, for examples to be put together from them.

    Item text is data: nothing in it becomes a special token, and since every piece is tokenised for itself,
    nothing in it changes the tokens around it.
    """

    tokenizer: object
    max_length: int
    pieces: dict[tuple[str, bool, bool], np.ndarray] = field(default_factory=dict)

    @cached_property
    def spelling(self) -> TextTokenizer:
        """The tokenizer, told where in a text a piece stands."""
        return TextTokenizer(self.tokenizer)

    def piece(self, text: str, end: bool = False, opens: bool = False) -> np.ndarray:
        """int64 tokens of a piece inside a text, or at its beginning if it `opens` it, tokenised once; with the end token behind it if asked."""
        key = (text, end, opens and self.spelling.adds_space)
        if key not in self.pieces:
            ids = self.spelling.encode(text, opens)
            self.pieces[key] = np.append(ids, [self.tokenizer.eos_token_id] * end).astype(np.int64)
        return self.pieces[key]

    @cached_property
    def special_affixes(self) -> tuple[np.ndarray, np.ndarray]:
        """int64: what the tokenizer puts before and behind any text."""
        bare, whole = (
            self.tokenizer("a", add_special_tokens=False)["input_ids"],
            self.tokenizer("a")["input_ids"],
        )
        at = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
        return np.array(whole[:at], dtype=np.int64), np.array(
            whole[at + len(bare) :], dtype=np.int64
        )


class HistoryEncoder(PieceTokenizer):
    """For causal LMs. Every item ends with the end token, which is what stops decoding."""

    @cached_property
    def opening(self) -> np.ndarray:
        """int64: what the tokenizer puts before any text (the begin token of Llama's and Gemma's)."""
        bare = self.tokenizer("")["input_ids"]
        return np.array(
            [token for token in bare if token != self.tokenizer.eos_token_id], dtype=np.int64
        )

    def item(self, text: str) -> np.ndarray:
        return self.piece(_after_space(text), end=True)

    def encode_item(self, text: str) -> Tokens:
        """An item without prefix or history: all of it is target."""
        ids = self.item(text)
        return Tokens(ids, np.zeros(len(ids), dtype=bool), 0, 0, 0)

    def encode(self, example: Example, reserve: int = 0) -> Tokens:
        """Cut by whole items, oldest first, to max_length - reserve tokens; the newest item always stays.

        Of the items that are learned, the first that is left is not: there is nothing to tell it from. Prefixes
        never are.
        """
        template = example.template
        head = np.concatenate([self.opening, self.piece(template.head, opens=True)])
        before = self.piece(template.target)
        target = (
            self.item(example.target) if example.target is not None else np.zeros(0, dtype=np.int64)
        )
        first, following = (self.piece(item_prefix(template, index)) for index in (0, 1))
        room = self.max_length - reserve - len(head) - len(first) - len(before) - len(target)
        items, size = [], -len(following)
        for text in reversed(example.items):  # no older ones are read than fit
            item = self.item(text)
            size += len(item) + len(following)
            if items and size > room:
                break
            items.append(item)
        items.reverse()
        cut = len(example.items) - len(items)
        flags = [False] * len(items) if example.learned is None else example.learned[cut:]
        parts, learned = [head], [False]
        for index, item in enumerate(items):
            parts += [first if index == 0 else following, item]
            learned += [False, index > 0 and flags[index]]
        parts += [before, target]
        learned += [False, True]
        sizes = [len(part) for part in parts]
        ids = np.concatenate(parts)
        return Tokens(
            ids,
            np.repeat(learned, sizes),
            len(ids) - len(target),
            int(sum(learned[2::2])) - (len(target) == 0),
            cut,
        )


@dataclass
class SentenceEncoder(PieceTokenizer):
    """For sentence encoders: one text, an item's or a sequence's, with the tokens around it that the tokenizer always puts there.

    form : how sequences are written. marks : ids of its four marks, sequence start, item start, item end and sequence end.
    """

    form: TextForm = TextForm()
    marks: tuple[int, ...] = ()

    @cached_property
    def frame(self) -> tuple[np.ndarray, ...]:
        """int64: what opens a sequence, precedes an item, follows it, stands between two, and closes the sequence."""
        start, before, after, close = (
            np.array([mark] if self.form.marked else [], dtype=np.int64) for mark in self.marks
        )
        head = self.piece(self._spaced(self.form.instruction)[0], opens=True)
        between = self.piece(self._spaced(self.form.separator)[0])
        return np.concatenate([head, start]), before, after, between, close

    def _spaced(self, text: str) -> tuple[str, str]:
        """What stands before an item, without the white space that is of the item's first token, and that white space; a mark is no item."""
        return (text, "") if self.form.marked else self.spelling.split_space(text)

    @property
    def min_length(self) -> int:
        """Tokens of a sequence of one item of WORDS tokens."""
        head, before, after, _, close = self.frame
        return self._size([*self.special_affixes, head, before, after, close]) + MIN_ITEM_TOKENS

    def item(self, text: str) -> Tokens:
        """An item alone; its text is cut at its end if it is too long."""
        return self._whole(
            [self._item(text, "", self.max_length - self._size(self.special_affixes))], 0
        )

    def sequence(self, texts: Sequence[str]) -> Tokens:
        """Items, oldest first. Too many: the oldest are left out; the newest stays, and is cut at its end if it must be."""
        head, _, _, between, close = self.frame
        lead, gap = self._spaced(self.form.instruction)[1], self._spaced(self.form.separator)[1]
        room = self.max_length - self._size(self.special_affixes) - len(head) - len(close)
        first, others = self._item(texts[-1], lead, room), []  # others: the newest first
        for newer, older in pairwise(reversed(texts)):  # none older is read than what fits
            behind = np.concatenate([between, self._item(newer, gap)])
            oldest = self._item(older, lead)
            if len(oldest) + len(behind) > room:
                break
            room -= len(behind)
            first = oldest
            others.append(behind)
        return self._whole([head, first, *others[::-1], close], len(texts) - 1 - len(others))

    def _item(self, text: str, space: str, room: int | None = None) -> np.ndarray:
        """Tokens of an item with its marks. space : before its text; none where it opens a text."""
        _, before, after, _, _ = self.frame
        opens = self.spelling.adds_space_after_special if self.form.marked else not space
        tokens = self.piece(space + text, opens=opens)
        if room is not None:
            tokens = tokens[: max(1, room - len(before) - len(after))]
        return np.concatenate([before, tokens[~np.isin(tokens, self.marks)], after])

    def _whole(self, parts: list[np.ndarray], cut: int) -> Tokens:
        ids = np.concatenate([self.special_affixes[0], *parts, self.special_affixes[1]])
        return Tokens(ids, np.zeros(len(ids), dtype=bool), len(ids), 0, cut)

    @staticmethod
    def _size(parts: Sequence[np.ndarray]) -> int:
        return sum(map(len, parts))


Item = tuple[tuple[str, str], ...]  # names and values of an item's attributes


def attribute_corpus(items: Iterable[Item]) -> list[str]:
    """What an AttributeEncoder tokenises piece by piece, for a tokenizer to be trained on."""
    return [_after_space(part) for item in items for attribute in item for part in attribute]


@dataclass
class AttributeEncoder(PieceTokenizer):
    """For encoders that are told what each token is: an opening token, then items, the newest first, as names and values of their attributes.

    The roles of a token are its type, OPENING, NAME or VALUE, and the number of its item: 1 for the newest, 0 for the opening token.

    Parameters
    ----------
    marks : tokens that no text can contain. The first opens a text and the second hides a token, where the tokenizer has none for that.
    attribute_tokens : most tokens of an attribute, its name among them.
    max_items : most items of a text.
    """

    marks: tuple[int, ...] = ()
    attribute_tokens: int = 32
    max_items: int = 50
    items: dict[Item, np.ndarray] = field(default_factory=dict)

    OPENING: ClassVar[int] = 0
    NAME: ClassVar[int] = 1
    VALUE: ClassVar[int] = 2

    @cached_property
    def opening(self) -> np.ndarray:
        """int64: what the tokenizer puts before any text, or the first mark."""
        return (
            self.special_affixes[0]
            if len(self.special_affixes[0])
            else np.array(self.marks[:1], dtype=np.int64)
        )

    @property
    def mask(self) -> int:
        """The token that hides another."""
        return (
            self.marks[1] if self.tokenizer.mask_token_id is None else self.tokenizer.mask_token_id
        )

    def item(self, item: Item) -> np.ndarray:
        """int64 [2, length]: tokens of an item and their types, put together once."""
        if item not in self.items:
            parts = []
            for attribute in item:
                tokenizer_corpus = [self.piece(_after_space(part)) for part in attribute]
                tokenizer_corpus = [
                    piece[~np.isin(piece, self.marks)] for piece in tokenizer_corpus
                ]
                types = np.repeat([self.NAME, self.VALUE], list(map(len, tokenizer_corpus)))
                parts.append(
                    np.stack([np.concatenate(tokenizer_corpus), types])[:, : self.attribute_tokens]
                )
            self.items[item] = np.concatenate(parts, axis=1)
        return self.items[item]

    def sequence(self, items: Sequence[Item]) -> Tokens:
        """Items, oldest first. Too many: the oldest are left out; the newest stays, and is cut at its end if it must be."""
        room = self.max_length - len(self.opening)
        parts = [self.item(items[-1])[:, : max(1, room)]]
        for item in items[: -self.max_items - 1 : -1][1:]:
            room -= parts[-1].shape[1]
            older = self.item(item)
            if older.shape[1] > room:
                break
            parts.append(older)
        start = np.stack([self.opening, np.full(len(self.opening), self.OPENING)])
        ids, types = np.concatenate([start, *parts], axis=1)
        number = np.repeat(np.arange(len(parts) + 1), [part.shape[1] for part in [start, *parts]])
        return Tokens(
            ids,
            np.zeros(len(ids), dtype=bool),
            len(ids),
            0,
            len(items) - len(parts),
            roles=np.stack([types, number]),
        )

    def masked(self, tokens: Tokens, share: float, rng: np.random.Generator) -> Tokens:
        """A text with a share of its items' tokens to be found again: of those, 80 % are masked, 10 % are others and 10 % stay (BERT, section 3.1)."""
        learned = (rng.random(len(tokens)) < share) & (tokens.roles[1] > 0)
        how, other = rng.random(len(tokens)), rng.integers(len(self.tokenizer), size=len(tokens))
        ids = np.where(learned & (how < 0.9), np.where(how < 0.8, self.mask, other), tokens.ids)
        return replace(
            tokens, ids=ids, learned=learned, items=int(learned.sum()), labels=tokens.ids
        )


@dataclass(frozen=True)
class Batch:
    """Texts padded on the right."""

    input_ids: torch.Tensor  # int64 [rows, length]
    labels: torch.Tensor  # int64 [rows, length], IGNORED where not learned
    lengths: torch.Tensor  # int64 [rows]
    target: torch.Tensor  # int64 [rows], see Tokens
    roles: torch.Tensor | None = None  # int64 [rows, 2, length], 0 in the padding

    def to(self, device) -> "Batch":
        return Batch(
            *(value if value is None else value.to(device) for value in vars(self).values())
        )

    def means(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [rows, 2, width] from hidden states [rows, length, width]: the mean over the history and over the target; 0 where there is none."""
        place = torch.arange(hidden.shape[1], device=hidden.device)
        target, length = self.target[:, None], self.lengths[:, None]
        return mean_states(
            hidden, torch.stack([place < target, (place >= target) & (place < length)], dim=1)
        )


def mean_states(hidden: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """float32 [rows, n, width], means of hidden states [rows, length, width] over places, bool [rows, n, length]; 0 over none. A sum would overflow fp16."""
    with torch.autocast(hidden.device.type, enabled=False):
        weight = of.float() / of.sum(dim=2, keepdim=True).clamp(min=1)
        return weight @ hidden.float()


def padded_size(size):
    """The next of eight sizes from one power of two to the next: at most an eighth more.

    Kernels are made for each shape: a CPU's bf16 ones cost 3 MB and as much time as some hundred tokens the first time.
    """
    step = 2 ** np.maximum(np.floor(np.log2(np.maximum(size, 1))).astype(np.int64) - 3, 0)
    return -(-size // step) * step


def pad(rows: Sequence[Tokens], *, pad_id: int) -> Batch:
    length = int(padded_size(max(map(len, rows))))
    ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    labels = np.full((len(rows), length), IGNORED, dtype=np.int64)
    roles = None if rows[0].roles is None else np.zeros((len(rows), 2, length), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row.ids
        labels[index, : len(row)] = np.where(
            row.learned, row.ids if row.labels is None else row.labels, IGNORED
        )
        if roles is not None:
            roles[index, :, : len(row)] = row.roles
    lengths, targets = (
        np.array([value(row) for row in rows], dtype=np.int64)
        for value in (len, lambda row: row.target)
    )
    return Batch(
        *(
            array if array is None else torch.from_numpy(array)
            for array in (ids, labels, lengths, targets, roles)
        )
    )


def by_length(
    lengths: Sequence[int], budget: int, most: int | None = None, cost: int = PASS_COST
) -> list[np.ndarray]:
    """Indices in groups of similar length, longest first, for passes that cost as little as can be.

    A padded group stays within `budget` tokens (one row may exceed it) and `most` rows. A pass costs its padded
    tokens and `cost` more, so that short rows are worth a pass of their own only where it saves more than that.
    Rows are dealt in eights where the budget has room for eight, since kernels are made for each shape.
    """
    lengths = np.asarray(lengths)
    order = np.argsort(lengths, kind="stable")[::-1]
    longest = padded_size(np.maximum(lengths[order], 1))
    unit = 8 if len(order) and 8 * longest[0] <= budget and (most or 8) >= 8 else 1
    begins, ends = (
        np.arange(0, len(order), unit),
        np.minimum(np.arange(0, len(order), unit) + unit, len(order)),
    )
    least, start = np.zeros(len(begins) + 1), np.zeros(len(begins) + 1, dtype=np.int64)
    lowest = 0  # the first unit that a group ending with this one may begin with: it only moves on
    for last, end in enumerate(ends):
        while lowest < last and (
            longest[begins[lowest]] * (end - begins[lowest]) > budget
            or end - begins[lowest] > (most or end)
        ):
            lowest += 1
        first = begins[lowest : last + 1]
        own = least[lowest : last + 1] + longest[first] * (end - first) + cost
        start[last + 1] = lowest + int(own.argmin())
        least[last + 1] = own.min()
    groups, last = [], len(begins)
    while last:
        groups.append(order[begins[start[last]] : ends[last - 1]])
        last = start[last]
    return groups[::-1]


def shuffled_steps(
    lengths: Sequence[int], size: int, rng: np.random.Generator, near: int = 16
) -> list[np.ndarray]:
    """An epoch's steps of `size` indices in random order. Each holds like lengths: every `near` steps are drawn at random and dealt out by length."""
    lengths = np.asarray(lengths)
    order = rng.permutation(len(lengths))
    drawn = [order[at : at + near * size] for at in range(0, len(order), near * size)]
    order = (
        np.concatenate([rows[np.argsort(lengths[rows], kind="stable")] for rows in drawn])
        if drawn
        else order
    )
    steps = [order[at : at + size] for at in range(0, len(order), size)]
    return [steps[index] for index in rng.permutation(len(steps))]
