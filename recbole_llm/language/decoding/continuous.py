"""Continue many prompts, a fixed number at once: where one ends, another takes its place.

A batch that is decoded to its end waits for its longest text, with fewer and fewer others beside
it. Here a slot that becomes free is given to a prompt that waits (continuous batching; Yu et al.,
"Orca", OSDI 2022), so that each step of the model continues as many texts as there are slots.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ...errors import UserError
from ..backbones.attention import attention_by, empty_mask
from ..passes import fits
from ..tokens.batches import padded_size
from .sampling import draw, uniform
from .shared_prompts import cache_arguments, prefill, weigh

ADMITTED = 0.25  # share of the slots that is free before prompts are read, a pass for all of them
Take = Callable[[int, np.ndarray, bool], None]


class Slots:
    """Keys and values of texts that are continued together, as a cache for transformers' models.

    Each text stands in a slot, from the slot's beginning on, and has a length of its own.

    Parameters
    ----------
    count : int
        Number of slots.
    length : int
        Most tokens of a text.

    Attributes
    ----------
    layers : list of (Tensor, Tensor)
        Keys and values, [slots, heads, length, d] per layer; none before the first `put`.
    lengths : ndarray of int64 [slots]
        Tokens of each text that were read.
    """

    is_compileable = False

    def __init__(self, count: int, length: int):
        self.length = length
        self.lengths = np.zeros(count, dtype=np.int64)
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def put(self, slots: np.ndarray, layers: Sequence, lengths: np.ndarray) -> None:
        """Put texts that were read into free slots.

        Parameters
        ----------
        slots : ndarray of int64 [n]
            The slots.
        layers : sequence of (Tensor, Tensor)
            Keys and values of the texts, [n, heads, padded length, d] per layer.
        lengths : ndarray of int64 [n]
            Tokens of each text.
        """
        if not self.layers:
            self.layers = [(self._empty(keys), self._empty(values)) for keys, values in layers]
        index = torch.from_numpy(slots).to(self.layers[0][0].device)
        width = min(self.length, int(layers[0][0].shape[2]))
        for whole_layer, layer in zip(self.layers, layers, strict=True):
            for whole, part in zip(whole_layer, layer, strict=True):
                whole[index, :, :width] = part[:, :, :width]
        self.lengths[slots] = lengths

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        _, heads, _, width = like.shape
        return like.new_zeros(len(self.lengths), heads, self.length, width)

    def keep(self, slots: np.ndarray) -> None:
        """Give up all other slots; those that stay are numbered anew."""
        index = torch.from_numpy(slots).to(self.layers[0][0].device)
        self.layers = [(keys[index], values[index]) for keys, values in self.layers]
        self.lengths = self.lengths[slots]

    def start(self, used: np.ndarray) -> None:
        """Prepare a step, in which the texts of some slots, bool [slots], read a token each."""
        device = self.layers[0][0].device
        # a slot without a text has one, of one token, whose numbers nobody reads
        self.lengths[~used] = 0
        self.place = torch.from_numpy(self.lengths).to(device)
        self.width = min(self.length, int(padded_size(self.lengths.max() + 1)))
        self.row = torch.arange(len(self.lengths), device=device)
        self.positions = torch.arange(self.width, device=device)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens that were read, as transformers asks for it."""
        return int(self.lengths.max())

    def update(self, keys, values, layer_idx, *args, **kwargs):
        """Store the keys and values of a step, [slots, heads, 1, d]; `attend` reads them."""
        for stored, new in zip(self.layers[layer_idx], (keys, values), strict=True):
            stored[self.row, :, self.place] = new[:, :, 0].to(stored.dtype)
        return keys, values

    def attend(self, module, query, keys, values, scaling, softcap, window, dropout):
        """Compute the attention of one layer, see AttentionRule."""
        keys, values = (part[:, :, : self.width] for part in self.layers[module.layer_idx])
        seen = self.positions <= self.place[:, None]
        if window is not None:
            seen = seen & (self.positions > self.place[:, None] - window)
        query = query.to(keys.dtype)
        groups = query.shape[1] // keys.shape[1]
        if softcap is None:
            mask, grouped = seen[:, None, None], groups > 1
            mixed = F.scaled_dot_product_attention(
                query, keys, values, attn_mask=mask, scale=scaling, enable_gqa=grouped
            )
            return mixed.transpose(1, 2)
        bias = torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -torch.inf)
        rows = (query * scaling).unflatten(1, (-1, groups))[:, :, :, 0]
        mixed, total, _ = weigh(rows, keys, values, softcap, bias[:, None, None])
        return (mixed / total).to(query.dtype).flatten(1, 2)[:, None]


@torch.no_grad()
def continue_each(
    backbone: Any,
    prompts: Sequence[np.ndarray],
    keys: np.ndarray,
    take: Take,
    *,
    slots: int,
    temperature: float,
    max_new: int,
    ends: Sequence[int] = (),
) -> None:
    """Continue every prompt once; each text depends on its prompt and its key alone.

    Where memory runs out, texts that are not complete begin again in half as many slots.

    Parameters
    ----------
    backbone : Backbone
        A causal LM.
    prompts : sequence of ndarray of int64
        Token ids of the prompts.
    keys : ndarray of uint64 [prompts]
        Keys of their random numbers, see `stream_key`.
    take : callable
        Takes the number of a prompt, the tokens that continue it without the end token, and whether
        it ended by itself, as soon as that is so.
    slots : int
        Texts that are continued at once.
    temperature : float
        Divides the logits; 0 is greedy.
    max_new : int
        Most tokens of a continuation.
    ends : sequence of int
        Tokens that end a continuation; the tokenizer's end token where it is empty.

    Raises
    ------
    UserError
        If memory does not hold one text.
    """
    remaining = set(range(len(prompts)))

    def taken(number: int, ids: np.ndarray, ended: bool) -> None:
        remaining.discard(number)
        take(number, ids, ended)

    while remaining:
        # the longest first, so that a text that does not fit is known at once
        order = sorted(remaining, key=lambda number: (-len(prompts[number]), number))
        run = _Run(
            backbone, prompts, keys, taken, min(slots, len(order)), temperature, max_new, ends
        )
        if fits(lambda run=run, order=order: run.all(order)):  # type: ignore[misc]
            return
        slots = _fewer(run.slots, len(prompts[order[0]]))


def _fewer(slots: int, longest: int) -> int:
    """Take half as many slots after memory ran out, or raise UserError if there was one."""
    if slots == 1:
        raise UserError(
            f"summarizer_length: memory does not hold a prompt of {longest} tokens and its text; "
            "set --summarizer_length to less, or take a smaller model"
        )
    logging.getLogger().warning(
        f"memory ran out: {slots // 2} texts at once from here on (summarizer_parallel)"
    )
    return slots // 2


class _Run:
    """One attempt at continuing prompts, with a fixed number of slots."""

    def __init__(
        self,
        backbone: Any,
        prompts: Sequence[np.ndarray],
        keys: np.ndarray,
        take: Take,
        slots: int,
        temperature: float,
        max_new: int,
        ends: Sequence[int],
    ):
        self.backbone, self.prompts, self.keys, self.take = backbone, prompts, keys, take
        self.temperature, self.max_new = temperature, max_new
        self.ends = set(ends or [backbone.tokenizer.eos_token_id])
        self.slots = slots
        self.owner = np.full(slots, -1)  # the prompt of each slot
        self.drawn: list[list[int]] = [[] for _ in range(slots)]

    def all(self, order: Sequence[int]) -> None:
        """Continue the prompts of some numbers, which are admitted in their order."""
        waiting = deque(order)
        longest = max(len(self.prompts[number]) for number in order) + self.max_new
        self.cache = Slots(self.slots, int(padded_size(longest)))
        while waiting or (self.owner >= 0).any():
            free = np.flatnonzero(self.owner < 0)
            if waiting and len(free) >= min(ADMITTED * len(self.owner), len(waiting)):
                self._admit(free[: len(waiting)], waiting)
            if not waiting:
                self._shrink()
            if (self.owner >= 0).any():
                self._step()

    def _admit(self, slots: np.ndarray, waiting: deque[int]) -> None:
        """Read the prompts of those that wait longest, and draw the first token of each."""
        numbers = [waiting.popleft() for _ in slots]
        prompts = [self.prompts[number] for number in numbers]
        pad_id = self.backbone.tokenizer.pad_token_id
        read, last = prefill(self.backbone.model, prompts, pad_id, 0)
        self.cache.put(slots, read.prompt, np.array([len(prompt) for prompt in prompts]))
        self.owner[slots] = numbers
        for slot in slots:
            self.drawn[slot] = []
        self._draw(slots, self.backbone.logits(last))

    def _draw(self, slots: np.ndarray, logits: torch.Tensor) -> None:
        """Draw the next token of some slots; give those up whose texts end."""
        numbers = self.owner[slots]
        steps = np.array([len(self.drawn[slot]) for slot in slots])
        chance = uniform(self.keys[numbers], np.zeros(len(slots), dtype=np.int64), steps)
        tokens, _ = draw(logits, np.arange(len(slots)), chance, self.temperature)
        for slot, number, token in zip(slots, numbers, tokens.tolist(), strict=True):
            ended = token in self.ends
            if not ended:
                self.drawn[slot].append(token)
            if ended or len(self.drawn[slot]) == self.max_new:
                self.owner[slot] = -1
                self.take(int(number), np.array(self.drawn[slot], dtype=np.int64), ended)

    def _step(self) -> None:
        """Read the newest token of each text, and draw the next."""
        model, cache, used = self.backbone.model, self.cache, self.owner >= 0
        cache.start(used)
        ids = np.zeros((len(self.owner), 1), dtype=np.int64)
        slots = np.flatnonzero(used)
        ids[slots, 0] = [self.drawn[slot][-1] for slot in slots]
        device = next(model.parameters()).device
        with attention_by(model, cache):
            output = model.base_model(
                input_ids=torch.from_numpy(ids).to(device),
                position_ids=cache.place[:, None],
                attention_mask=empty_mask(device, model.dtype),
                **cache_arguments(model, cache),
            )
        cache.lengths[slots] += 1
        index = torch.from_numpy(slots).to(device)
        self._draw(slots, self.backbone.logits(output.last_hidden_state[index, 0]))

    def _shrink(self) -> None:
        """Give up free slots for good, once they are half of all and nothing waits for them."""
        used = np.flatnonzero(self.owner >= 0)
        if 0 < 2 * len(used) <= len(self.owner):
            self.cache.keep(used)
            self.drawn = [self.drawn[slot] for slot in used]
            self.owner = self.owner[used]
