"""From texts to token batches: the only module that knows tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from .prompts import Example

IGNORED = -100  # label of a token that is not learned


@dataclass(frozen=True)
class Tokens:
    """One encoded example. `learned` marks the tokens whose loss counts; `cut` counts the items left out."""

    ids: np.ndarray  # int64 [length]
    learned: np.ndarray  # bool [length]
    cut: int

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Encoder:
    """Tokenises pieces of text once and puts examples together from them.

    Item text is data: nothing in it becomes a special token, and since every piece is tokenised on its own,
    nothing in it changes the tokens around it. Every item ends with the end token, which is what stops decoding.
    """

    tokenizer: object
    max_length: int
    pieces: dict[tuple[str, bool], np.ndarray] = field(default_factory=dict)
    cut_items: int = 0
    seen_items: int = 0

    def piece(self, text: str, end: bool = False) -> np.ndarray:
        """int64 tokens of a text, tokenised once; with the end token behind it if asked."""
        key = (text, end)
        if key not in self.pieces:
            ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            self.pieces[key] = np.array(ids + [self.tokenizer.eos_token_id] * end, dtype=np.int64)
        return self.pieces[key]

    def item(self, text: str) -> np.ndarray:
        return self.piece(f" {text}", end=True)

    def encode(self, example: Example, learn: str = "last", reserve: int = 0) -> Tokens:
        """Cut by whole items, oldest first, to max_length - reserve tokens; the newest item always stays.

        Parameters
        ----------
        learn : "last" marks the target, "all" also every item after the first; prefixes are never learned.
        """
        template = example.template
        head = self.piece(template.head)
        first, following = self.piece(f" {template.first}"), self.piece(template.next)
        items = [self.item(text) for text in example.items]
        target = self.item(example.target) if example.target is not None else None
        room = self.max_length - reserve - len(head) - len(first) - len(following) - (0 if target is None else len(target))
        sizes = np.cumsum([len(item) + len(following) for item in reversed(items)]) - len(following)
        kept = max(1, int(np.searchsorted(sizes, room, side="right"))) if items else 0
        cut = len(items) - kept
        self.cut_items += cut
        self.seen_items += len(items)
        items = items[cut:]
        parts, learned = [head], [False]
        for index, item in enumerate(items):
            parts += [first if index == 0 else following, item]
            learned += [False, learn == "all" and index > 0]
        parts.append(following)
        learned.append(False)
        if target is not None:
            parts.append(target)
            learned.append(True)
        return Tokens(np.concatenate(parts), np.repeat(learned, [len(part) for part in parts]), cut)


@dataclass(frozen=True)
class Batch:
    """Padded tokens; all tensors are [rows, length]."""

    input_ids: torch.Tensor  # int64
    attention_mask: torch.Tensor  # int64, 1 for a real token
    position_ids: torch.Tensor  # int64, 0 for the first real token whatever the padding
    labels: torch.Tensor  # int64, IGNORED where not learned

    def to(self, device) -> "Batch":
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def pad(rows: Sequence[Tokens], *, pad_id: int, side: str = "right") -> Batch:
    """Pad examples to the longest, on the given side."""
    if side not in ("left", "right"):
        raise ValueError(f"side: expected left or right, found {side!r}")
    length = max(map(len, rows))
    ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), length), dtype=np.int64)
    labels = np.full((len(rows), length), IGNORED, dtype=np.int64)
    for index, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids[index, place] = row.ids
        mask[index, place] = 1
        labels[index, place] = np.where(row.learned, row.ids, IGNORED)
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    return Batch(*(torch.from_numpy(array) for array in (ids, mask, positions, labels)))


def by_length(lengths: Sequence[int], budget: int, fill: float = 0.75, most: int | None = None) -> list[np.ndarray]:
    """Indices in groups of similar length, of `most` rows at most.

    A padded group stays within `budget` tokens (one row may exceed it), and no row is shorter than `fill` times
    the longest of its group: a further pass costs less than the padding it saves.
    """
    lengths = np.asarray(lengths)
    order = np.argsort(lengths, kind="stable")[::-1]
    groups, begin = [], 0
    while begin < len(order):
        longest = max(1, int(lengths[order[begin]]))
        rows = max(1, min(budget // longest, int((lengths[order[begin:]] >= fill * longest).sum()), most or len(order)))
        groups.append(order[begin : begin + rows])
        begin += rows
    return groups
