"""Turn texts into token ids, cut to a limit, and token ids into padded batches."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ...contracts.models import PASS_COST
from ...storage.arrays import index_type
from ..prompts.templates import Example, Template, TextForm, item_prefix
from .store import Form, TokenStore, open_store
from .tokenizing import TextTokenizer, Tokenizer

IGNORED = -100  # label of a token that is not learned
STORED_TEXTS = 50_000  # so many items have their tokens in a file
MIN_ITEM_TOKENS = 8  # tokens of an item's own text that must fit into a sequence


@dataclass(frozen=True)
class Tokens:
    """One encoded text: a history, followed by its target if it has one.

    Attributes
    ----------
    ids : ndarray of int64 [length]
        Token ids.
    learned : ndarray of bool [length]
        The tokens whose loss counts.
    target : int
        Index of the target's first token; `length` for a text without a target.
    items : int
        Number of items that are learned.
    cut : int
        Number of items that were left out.
    labels : ndarray of int64 [length], optional
        What is to be predicted at each token; the token itself where None.
    roles : ndarray of int64 [2, length], optional
        Two numbers for each token, whose meaning is the encoder's.
    """

    ids: np.ndarray
    learned: np.ndarray
    target: int
    items: int
    cut: int
    labels: np.ndarray | None = None
    roles: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)


def _after_space(item: str) -> str:
    return f" {item}"


def tokenizer_corpus(template: Template, items: Sequence[str]) -> list[str]:
    """Collect the pieces that a HistoryEncoder tokenises, to train a tokenizer on.

    Parameters
    ----------
    template : Template
        The sentences around the items. Each of them counts as much as all items together.
    items : sequence of str
        The texts of all items.

    Returns
    -------
    list of str
        Every piece as often as it is to count.
    """
    sentences = [template.head, item_prefix(template, 0), item_prefix(template, 1), template.target]
    used = [sentence for sentence in sentences if sentence]
    return [_after_space(item) for item in items] + used * len(items)


@dataclass
class PieceTokenizer:
    """Tokenises pieces of text, each of them once, so that examples can be put together from them.

    The text of an item is data: nothing in it becomes a special token and, since every piece is
    tokenised by itself, nothing in it changes the tokens around it.

    Parameters
    ----------
    tokenizer : Tokenizer
        The tokenizer of the language model.
    max_length : int
        Most tokens of a text.
    pieces : dict
        The pieces tokenised so far.
    store : TokenStore or None
        The pieces of the items, where there are many items.
    """

    tokenizer: Tokenizer
    max_length: int
    pieces: dict[tuple[str, bool, bool], np.ndarray] = field(default_factory=dict)
    store: TokenStore | None = None

    @cached_property
    def spelling(self) -> TextTokenizer:
        """The tokenizer, told where in a text a piece stands."""
        return TextTokenizer(self.tokenizer)

    @property
    def item_forms(self) -> list[Form]:
        """What may precede the text of an item, and whether both open a text."""
        return []

    def prepare(self, texts: Sequence[str], folder: Path, show_progress: bool = False) -> None:
        """Tokenise the texts of all items at once, where there are many.

        Parameters
        ----------
        texts : sequence of str
            The texts.
        folder : Path
            Where their tokens are stored for further runs, and mapped into memory.
        show_progress : bool
            Whether a bar is drawn.
        """
        if len(texts) >= STORED_TEXTS:
            adds_space = self.spelling.adds_space
            forms = [(before, opens and adds_space) for before, opens in self.item_forms]
            self.store = open_store(self.spelling, texts, forms, folder, show_progress)

    def piece(self, text: str, end: bool = False, opens: bool = False) -> np.ndarray:
        """Tokenise a piece, or look it up if it was tokenised before.

        Parameters
        ----------
        text : str
            The piece, with the white space before it.
        end : bool
            Whether the end token follows it.
        opens : bool
            Whether it opens a text, so that nothing stands before it.

        Returns
        -------
        ndarray of int64 [length]
            Token ids.
        """
        key = (text, end, opens and self.spelling.adds_space)
        if key in self.pieces:
            return self.pieces[key]
        end_ids = [self.tokenizer.eos_token_id] if end else []
        stored = self.store.find(text, key[2]) if self.store else None
        if stored is not None:
            return np.append(stored, end_ids).astype(np.int64)
        ids = self.spelling.encode(text, opens)
        self.pieces[key] = np.append(ids, end_ids).astype(np.int64)
        return self.pieces[key]

    @cached_property
    def special_affixes(self) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that the tokenizer puts before and behind any text, int64 each."""
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        start = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
        before, behind = whole[:start], whole[start + len(bare) :]
        return np.array(before, dtype=np.int64), np.array(behind, dtype=np.int64)


class HistoryEncoder(PieceTokenizer):
    """Encodes histories for causal LMs.

    Every item ends with the end token, which is what stops decoding.
    """

    @property
    def item_forms(self):
        """See `PieceTokenizer.item_forms`."""
        return [(_after_space(""), False)]

    @cached_property
    def opening(self) -> np.ndarray:
        """Tokens before any text, int64, such as the begin token of Llama and Gemma."""
        bare = self.tokenizer("")["input_ids"]
        opening = [token for token in bare if token != self.tokenizer.eos_token_id]
        return np.array(opening, dtype=np.int64)

    def item(self, text: str) -> np.ndarray:
        """Return the tokens of an item inside a history, the end token included.

        Parameters
        ----------
        text : str
            The item.

        Returns
        -------
        ndarray of int64 [length]
            Token ids.
        """
        return self.piece(_after_space(text), end=True)

    def encode_item(self, text: str) -> Tokens:
        """Encode an item without prefix and history: all of it is target.

        Parameters
        ----------
        text : str
            The item.

        Returns
        -------
        Tokens
            The encoded item, of which nothing is learned.
        """
        ids = self.item(text)
        return Tokens(ids, np.zeros(len(ids), dtype=bool), target=0, items=0, cut=0)

    def encode(self, example: Example, reserve: int = 0) -> Tokens:
        """Encode a history and its target, cut by whole items to `max_length - reserve` tokens.

        The oldest items are left out first; the newest item always stays. Of the items that are
        learned, the first one that stays is not learned, since nothing before it predicts it.
        Prefixes are never learned.

        Parameters
        ----------
        example : Example
            The history and its target.
        reserve : int
            Number of tokens to keep free.

        Returns
        -------
        Tokens
            The encoded example.
        """
        head, first_prefix, next_prefix, target_prefix = self._frame(example.template)
        target = np.zeros(0, dtype=np.int64)
        if example.target is not None:
            target = self.item(example.target)
        room = self.room(example.template) - reserve - len(target)
        items = self._newest_items(example.items, len(next_prefix), room)
        cut = len(example.items) - len(items)
        flags = [False] * len(items) if example.learned is None else example.learned[cut:]
        parts, learned = [head], [False]
        for index, item in enumerate(items):
            parts += [first_prefix if index == 0 else next_prefix, item]
            learned += [False, index > 0 and flags[index]]
        parts += [target_prefix, target]
        learned += [False, True]
        ids = np.concatenate(parts)
        return Tokens(
            ids,
            np.repeat(learned, [len(part) for part in parts]),
            target=len(ids) - len(target),
            items=int(sum(learned[2::2])) - (len(target) == 0),
            cut=cut,
        )

    def _frame(self, template: Template) -> tuple[np.ndarray, ...]:
        """What opens a text, and what precedes its first item, each other item and the target."""
        return (
            np.concatenate([self.opening, self.piece(template.head, opens=True)]),
            self.piece(item_prefix(template, 0)),
            self.piece(item_prefix(template, 1)),
            self.piece(template.target),
        )

    def room(self, template: Template) -> int:
        """Tokens that a text leaves to its items and its target."""
        head, first_prefix, _, target_prefix = self._frame(template)
        return self.max_length - len(head) - len(first_prefix) - len(target_prefix)

    def prefix_size(self, template: Template) -> int:
        """Tokens before each item but the first."""
        return len(self.piece(item_prefix(template, 1)))

    def _newest_items(
        self, texts: Sequence[str], prefix_size: int, room: int
    ) -> Sequence[np.ndarray]:
        """Return the newest items that fit into `room` tokens, oldest first, but at least one."""
        items: list[np.ndarray] = []
        size = -prefix_size  # the first item has a prefix of its own
        for text in reversed(texts):  # reads no items older than those that fit
            item = self.item(text)
            size += len(item) + prefix_size
            if items and size > room:
                break
            items.append(item)
        items.reverse()
        return items


@dataclass
class SentenceEncoder(PieceTokenizer):
    """Encodes items and sequences for sentence encoders (ST5-Seq).

    Each text stands between the tokens that the tokenizer always puts around a text.

    Parameters
    ----------
    form : TextForm
        How sequences are written.
    marks : tuple of int
        Ids of the four marks: sequence start, item start, item end and sequence end.
    """

    form: TextForm = TextForm()
    marks: tuple[int, ...] = ()

    @cached_property
    def frame(self) -> tuple[np.ndarray, ...]:
        """The fixed parts of a sequence, int64 each.

        They open the sequence, precede an item, follow an item, separate two items, and close the
        sequence.
        """
        start, before, after, close = (
            np.array([mark] if self.form.marked else [], dtype=np.int64) for mark in self.marks
        )
        head = self.piece(self._split_space(self.form.instruction)[0], opens=True)
        separator = self.piece(self._split_space(self.form.separator)[0])
        return np.concatenate([head, start]), before, after, separator, close

    def _split_space(self, text: str) -> tuple[str, str]:
        """Split off the white space that belongs to the first token of the following item.

        Nothing is split off where a mark follows.
        """
        return (text, "") if self.form.marked else self.spelling.split_space(text)

    @property
    def item_forms(self):
        """See `PieceTokenizer.item_forms`."""
        spaces = ["", *(self._split_space(part)[1] for part in self._before_items)]
        return [(space, self._opens(space)) for space in spaces]

    @property
    def _before_items(self) -> tuple[str, str]:
        """What precedes the first item of a sequence, and each other item."""
        return self.form.instruction, self.form.separator

    def _opens(self, space: str) -> bool:
        """Whether an item behind some space is tokenised like the first text."""
        return self.spelling.adds_space_after_special if self.form.marked else not space

    @property
    def min_length(self) -> int:
        """Tokens of a sequence of one item of MIN_ITEM_TOKENS tokens."""
        head, before, after, _, close = self.frame
        return _size([*self.special_affixes, head, before, after, close]) + MIN_ITEM_TOKENS

    def item(self, text: str) -> Tokens:
        """Encode an item alone.

        Parameters
        ----------
        text : str
            The item, which is cut at its end if it is too long.

        Returns
        -------
        Tokens
            The encoded item.
        """
        room = self.max_length - _size(self.special_affixes)
        return self._assemble([self._item(text, "", room)], cut=0)

    def sequence(self, texts: Sequence[str]) -> Tokens:
        """Encode a sequence of items, oldest first.

        The oldest items are left out where there are too many. The newest item stays, and is cut
        at its end if it is too long.

        Parameters
        ----------
        texts : sequence of str
            At least one item.

        Returns
        -------
        Tokens
            The encoded sequence.
        """
        head, _, _, separator, close = self.frame
        first_space, next_space = (self._split_space(part)[1] for part in self._before_items)
        room = self.max_length - _size(self.special_affixes) - len(head) - len(close)
        oldest = self._item(texts[-1], first_space, room)
        others: list[np.ndarray] = []  # separators and items, the newest first
        for newer, older in pairwise(reversed(texts)):  # reads none older than what fits
            following = np.concatenate([separator, self._item(newer, next_space)])
            candidate = self._item(older, first_space)
            if len(candidate) + len(following) > room:
                break
            room -= len(following)
            oldest = candidate
            others.append(following)
        return self._assemble([head, oldest, *others[::-1], close], len(texts) - 1 - len(others))

    def _item(self, text: str, space: str, room: int | None = None) -> np.ndarray:
        """Tokenise an item with its marks; `space` precedes it, unless it opens a text."""
        _, before, after, _, _ = self.frame
        tokens = self.piece(space + text, opens=self._opens(space))
        if room is not None:
            tokens = tokens[: max(1, room - len(before) - len(after))]
        return np.concatenate([before, tokens[~np.isin(tokens, self.marks)], after])

    def _assemble(self, parts: list[np.ndarray], cut: int) -> Tokens:
        before, behind = self.special_affixes
        ids = np.concatenate([before, *parts, behind])
        return Tokens(ids, np.zeros(len(ids), dtype=bool), target=len(ids), items=0, cut=cut)


def _size(parts: Sequence[np.ndarray]) -> int:
    return sum(map(len, parts))


Item = tuple[tuple[str, str], ...]  # names and values of an item's attributes


def attribute_corpus(items: Iterable[Item]) -> list[str]:
    """Collect the pieces that an AttributeEncoder tokenises, to train a tokenizer on.

    Parameters
    ----------
    items : iterable of Item
        The attributes of all items.

    Returns
    -------
    list of str
        Names and values of the attributes.
    """
    corpus: list[str] = []
    for item in items:
        for name, value in item:
            corpus += [_after_space(name), _after_space(value)]
    return corpus


@dataclass
class AttributeEncoder(PieceTokenizer):
    """Encodes histories for encoders that are told what each token is (RecFormer, KDD 2023).

    A text is an opening token, followed by the items, the newest first, as names and values of
    their attributes. The roles of a token are its type, OPENING, NAME or VALUE, and the number of
    its item: 1 for the newest item, 0 for the opening token.

    Parameters
    ----------
    marks : tuple of int
        Ids of tokens that no text can contain. The first opens a text, and the second masks a
        token, where the tokenizer has none for that.
    attribute_tokens : int
        Most tokens of an attribute, its name among them.
    max_items : int
        Most items of a text.
    items : dict
        The items encoded so far.
    """

    marks: tuple[int, ...] = ()
    attribute_tokens: int = 32
    max_items: int = 50
    items: dict[Item, np.ndarray] = field(default_factory=dict)

    OPENING: ClassVar[int] = 0
    NAME: ClassVar[int] = 1
    VALUE: ClassVar[int] = 2

    @property
    def item_forms(self):
        """See `PieceTokenizer.item_forms`; the texts are those of attributes."""
        return [(_after_space(""), False)]

    @cached_property
    def opening(self) -> np.ndarray:
        """Tokens that the tokenizer puts before any text, or the first mark, int64."""
        before, _ = self.special_affixes
        return before if len(before) else np.array(self.marks[:1], dtype=np.int64)

    @property
    def mask(self) -> int:
        """Id of the token that hides another."""
        mask_id = self.tokenizer.mask_token_id
        return self.marks[1] if mask_id is None else mask_id

    def item(self, item: Item) -> np.ndarray:
        """Return the tokens of an item and their types.

        Parameters
        ----------
        item : Item
            Its attributes.

        Returns
        -------
        ndarray of int64 [2, length]
            Token ids and types.
        """
        if item in self.items:
            return self.items[item]
        tokens = np.concatenate([self._attribute(name, value) for name, value in item], axis=1)
        if self.store is None:  # else there are too many of them
            self.items[item] = tokens
        return tokens

    def _attribute(self, name: str, value: str) -> np.ndarray:
        """Return token ids and types of an attribute, int64 [2, length]."""
        parts = [self.piece(_after_space(part)) for part in (name, value)]
        parts = [part[~np.isin(part, self.marks)] for part in parts]
        types = np.repeat([self.NAME, self.VALUE], [len(part) for part in parts])
        return np.stack([np.concatenate(parts), types])[:, : self.attribute_tokens]

    def sequence(self, items: Sequence[Item]) -> Tokens:
        """Encode a sequence of items, given oldest first.

        The oldest items are left out where there are too many. The newest item stays, and is cut
        at its end if it is too long.

        Parameters
        ----------
        items : sequence of Item
            At least one item.

        Returns
        -------
        Tokens
            The encoded sequence, with roles.
        """
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
            target=len(ids),
            items=0,
            cut=len(items) - len(parts),
            roles=np.stack([types, number]),
        )

    def masked(self, tokens: Tokens, share: float, rng: np.random.Generator) -> Tokens:
        """Mask a share of the tokens of a text's items (BERT, section 3.1).

        Of the chosen tokens 80 % are masked, 10 % are replaced by random ones and 10 % stay.

        Parameters
        ----------
        tokens : Tokens
            A text of this encoder.
        share : float
            Probability of a token to be chosen.
        rng : numpy.random.Generator
            Source of randomness.

        Returns
        -------
        Tokens
            The masked text, with the original tokens as labels.
        """
        assert tokens.roles is not None
        learned = (rng.random(len(tokens)) < share) & (tokens.roles[1] > 0)
        chance = rng.random(len(tokens))
        random_ids = rng.integers(len(self.tokenizer), size=len(tokens))
        replacement = np.where(chance < 0.8, self.mask, random_ids)
        ids = np.where(learned & (chance < 0.9), replacement, tokens.ids)
        return replace(
            tokens, ids=ids, learned=learned, items=int(learned.sum()), labels=tokens.ids
        )


@dataclass(frozen=True)
class Batch:
    """Texts padded on the right.

    Attributes
    ----------
    input_ids : Tensor of int64 [rows, length]
        Token ids.
    labels : Tensor of int64 [rows, length]
        What is to be predicted at each token; IGNORED where nothing is learned.
    lengths : Tensor of int64 [rows]
        Numbers of tokens without the padding.
    target : Tensor of int64 [rows]
        Index of the first token of each target.
    roles : Tensor of int64 [rows, 2, length], optional
        Roles of the tokens, 0 in the padding.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    lengths: torch.Tensor
    target: torch.Tensor
    roles: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """Copy the batch to a device.

        Parameters
        ----------
        device : torch.device or str
            Where to.

        Returns
        -------
        Batch
            The copy.
        """
        return Batch(
            self.input_ids.to(device),
            self.labels.to(device),
            self.lengths.to(device),
            self.target.to(device),
            None if self.roles is None else self.roles.to(device),
        )

    def means(self, hidden: torch.Tensor) -> torch.Tensor:
        """Average hidden states over the history and over the target of each text.

        Parameters
        ----------
        hidden : Tensor [rows, length, width]
            Hidden states.

        Returns
        -------
        Tensor of float32 [rows, 2, width]
            Means of the history and of the target; 0 where there is none.
        """
        place = torch.arange(hidden.shape[1], device=hidden.device)
        target, length = self.target[:, None], self.lengths[:, None]
        in_history, in_target = place < target, (place >= target) & (place < length)
        return mean_states(hidden, torch.stack([in_history, in_target], dim=1))


def mean_states(hidden: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Average hidden states over chosen tokens.

    Parameters
    ----------
    hidden : Tensor [rows, length, width]
        Hidden states.
    chosen : Tensor of bool [rows, n, length]
        The tokens of each of n means.

    Returns
    -------
    Tensor of float32 [rows, n, width]
        The means; 0 over no tokens.
    """
    with torch.autocast(hidden.device.type, enabled=False):  # a sum would overflow fp16
        weight = chosen.float() / chosen.sum(dim=2, keepdim=True).clamp(min=1)
        return weight @ hidden.float()


def padded_size(size: Any) -> Any:
    """Round a size up to the next of eight sizes between two powers of two.

    Kernels are made for each shape: a CPU's bf16 ones cost 3 MB, and the first time as much time
    as some hundred tokens. The padding is an eighth of the size at most.

    Parameters
    ----------
    size : int or ndarray of int
        Sizes.

    Returns
    -------
    numpy integer or ndarray of int64
        The sizes to pad to.
    """
    step = 2 ** np.maximum(np.floor(np.log2(np.maximum(size, 1))).astype(np.int64) - 3, 0)
    return -(-size // step) * step


def pad(rows: Sequence[Tokens], *, pad_id: int) -> Batch:
    """Pad texts on the right to one length.

    Parameters
    ----------
    rows : sequence of Tokens
        At least one text; all of them have roles, or none.
    pad_id : int
        Id of the padding token.

    Returns
    -------
    Batch
        The texts, on the CPU.
    """
    length = int(padded_size(max(map(len, rows))))
    ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    labels = np.full((len(rows), length), IGNORED, dtype=np.int64)
    roles = None
    if rows[0].roles is not None:
        roles = np.zeros((len(rows), 2, length), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row.ids
        row_labels = row.ids if row.labels is None else row.labels
        labels[index, : len(row)] = np.where(row.learned, row_labels, IGNORED)
        if roles is not None and row.roles is not None:
            roles[index, :, : len(row)] = row.roles
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(labels),
        torch.from_numpy(np.array([len(row) for row in rows], dtype=np.int64)),
        torch.from_numpy(np.array([row.target for row in rows], dtype=np.int64)),
        None if roles is None else torch.from_numpy(roles),
    )


def by_length(
    lengths: Sequence[int] | np.ndarray,
    budget: int,
    most: int | None = None,
    cost: int = PASS_COST,
) -> list[np.ndarray]:
    """Group texts of similar length into passes whose total cost is least.

    The cost of a pass is its number of padded tokens plus `cost`, so that short texts get a pass of
    their own only where it saves more than that. Where the budget has room for eight texts, they
    are dealt in eights, since kernels are made for each shape.

    Parameters
    ----------
    lengths : sequence of int [n]
        Tokens of each text.
    budget : int
        Most padded tokens of a pass; a single text may exceed it.
    most : int, optional
        Most texts of a pass.
    cost : int
        Fixed cost of a pass, in tokens.

    Returns
    -------
    list of ndarray of int64
        Indices of the texts of each pass, the longest first.
    """
    sizes = np.asarray(lengths)
    order = np.argsort(sizes, kind="stable")[::-1]
    longest = padded_size(np.maximum(sizes[order], 1))
    unit = 8 if len(order) and 8 * longest[0] <= budget and (most or 8) >= 8 else 1
    begins = np.arange(0, len(order), unit)
    ends = np.minimum(begins + unit, len(order))
    # least_cost[n] of the first n units; last_begin[n]: the unit with which their last pass begins
    least_cost = np.zeros(len(begins) + 1)
    last_begin = np.zeros(len(begins) + 1, dtype=np.int64)
    lowest = 0  # the first unit that the current pass may begin with; it never decreases
    for last, end in enumerate(ends):
        while lowest < last and (
            longest[begins[lowest]] * (end - begins[lowest]) > budget
            or end - begins[lowest] > (most or end)
        ):
            lowest += 1
        first = begins[lowest : last + 1]
        total_cost = least_cost[lowest : last + 1] + longest[first] * (end - first) + cost
        last_begin[last + 1] = lowest + int(total_cost.argmin())
        least_cost[last + 1] = total_cost.min()
    groups, last = [], len(begins)
    while last:
        groups.append(order[begins[last_begin[last]] : ends[last - 1]])
        last = last_begin[last]
    return groups[::-1]


class ShuffledSteps:
    """The training steps of an epoch: examples of similar length, in random order.

    The examples are shuffled. Those of every `near` steps, a chunk, are dealt to its steps by
    length, so that the lengths of a chunk must be known before its first step, and no others.

    Parameters
    ----------
    count : int
        Number of examples.
    size : int
        Examples of a step.
    rng : numpy.random.Generator
        Source of randomness.
    near : int
        Steps of a chunk.
    """

    def __init__(self, count: int, size: int, rng: np.random.Generator, near: int = 16):
        self.size, self.near = size, near
        self.order: np.ndarray = rng.permutation(count).astype(index_type(count))
        self.chunks = -(-count // (near * size))
        self.seeds = rng.integers(2**63, size=self.chunks)

    def __len__(self) -> int:
        return -(-len(self.order) // self.size)

    def chunk(self, number: int) -> np.ndarray:
        """Return the indices of a chunk's examples, int64."""
        begin = number * self.near * self.size
        return self.order[begin : begin + self.near * self.size]

    def deal(self, number: int, lengths: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Deal the examples of a chunk to its steps.

        Parameters
        ----------
        number : int
            Number of the chunk.
        lengths : sequence of int [n]
            Tokens of each example of `chunk(number)`.

        Returns
        -------
        list of ndarray of int64
            The examples of each step, as indices into the chunk.
        """
        order = np.argsort(np.asarray(lengths), kind="stable")
        steps = [order[at : at + self.size] for at in range(0, len(order), self.size)]
        shuffled = np.random.default_rng(self.seeds[number]).permutation(len(steps))
        return [steps[index] for index in shuffled]


def shuffled_steps(
    lengths: Sequence[int] | np.ndarray, size: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """List the steps of an epoch whose lengths are all known, see `ShuffledSteps`.

    Parameters
    ----------
    lengths : sequence of int [n]
        Tokens of each text.
    size : int
        Texts of a step.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    list of ndarray of int64
        Indices of the texts of each step.
    """
    sizes, steps = np.asarray(lengths), []
    epoch = ShuffledSteps(len(sizes), size, rng)
    for number in range(epoch.chunks):
        rows = epoch.chunk(number)
        steps += [rows[places] for places in epoch.deal(number, sizes[rows])]
    return steps
