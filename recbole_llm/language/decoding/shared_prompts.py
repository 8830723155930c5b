"""One prompt's keys and values under many continuations.

The continuations of a prompt are further query rows over its keys and values, which are computed once and never
copied per continuation or concatenated; each continuation's own keys and values go into a preallocated slot. Works for
every transformers causal LM that takes its attention from `ALL_ATTENTION_FUNCTIONS`, full or over a sliding window.
"""

import inspect
from collections.abc import Sequence
from contextlib import contextmanager

import numpy as np
import torch

from ..tokens.batches import by_length, padded_size
from .attention import attention_by, empty_mask

FULL = 0.8  # share of the slots in use below which what goes on moves together: copying it costs less than computing empty slots


class SharedPrompts:
    """Keys and values of B prompts and of everything that is written after them, in the form transformers models expect of a cache.

    Made by `prefill`. A continuation lives in a slot, whichever prompt it belongs to, so that a step computes hardly more
    than what goes on; at first there is one slot per prompt. `owner` is int64 [slots]: the place of a slot's prompt.
    """

    is_compileable = False

    def __init__(
        self, layers: list[tuple[torch.Tensor, torch.Tensor]], lengths: torch.Tensor, steps: int
    ):
        self.prompt, self.lengths, self.step = (
            layers,
            lengths,
            0,
        )  # keys and values [B, heads, P, d] per layer, int64 [B], tokens read so far
        self.steps, self.owner = steps, np.arange(len(lengths))
        self._masks()
        self._allocate(len(lengths))
        self._arrange(self.owner)

    def _masks(self) -> None:
        keys = self.prompt[0][0]
        self.place = torch.arange(keys.shape[2], device=keys.device)
        self.padding = torch.zeros(
            len(self.lengths), keys.shape[2], dtype=torch.float32, device=keys.device
        )
        self.padding.masked_fill_(self.place >= self.lengths[:, None], -torch.inf)

    def _allocate(self, slots: int) -> None:
        """The continuations' own keys and values, [slots, heads, steps, d] per layer, of which what is written counts."""
        self.own = [
            tuple(part.new_empty(slots, part.shape[1], self.steps, part.shape[3]) for part in layer)
            for layer in self.prompt
        ]

    def _arrange(self, slot: np.ndarray) -> None:
        """Where the used slots stand in the grid [B, rows] in which continuations look at their prompts, and the reverse."""
        owner = self.owner[slot]
        counts = np.bincount(owner, minlength=len(self.lengths))
        rank = np.empty_like(owner)
        rank[np.argsort(owner, kind="stable")] = np.arange(len(owner)) - np.repeat(
            np.cumsum(counts) - counts, counts
        )
        self.rows = int(padded_size(counts.max()))
        slots, cells = (
            np.zeros(len(counts) * self.rows, dtype=np.int64),
            np.zeros(len(self.owner), dtype=np.int64),
        )
        slots[owner * self.rows + rank], cells[slot] = slot, owner * self.rows + rank
        device = self.lengths.device
        self.slots, self.cells = (
            torch.from_numpy(slots).to(device),
            torch.from_numpy(cells).to(device),
        )
        self.positions = self.lengths[torch.from_numpy(self.owner).to(device)] + self.step

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.step

    def update(self, keys, values, layer_idx, *args, **kwargs):
        for own, new in zip(self.own[layer_idx], (keys, values), strict=True):
            own[:, :, self.step] = new[0].transpose(0, 1)
        return keys, values

    def advance(self, parent: np.ndarray) -> np.ndarray:
        """Slots for the continuations that go on, int64 [n], each from its parent's slot.

        The first continuation of a parent stays where it is and only the others copy what the parent has, so that
        equal beginnings are computed and kept once. Where there is no room, or too much of it, all move.
        """
        size = len(self.owner)
        if not FULL * size <= len(parent) <= size:
            return self._move(parent)
        own, first = np.unique(parent, return_index=True)
        branch = np.delete(np.arange(len(parent)), first)
        slot = parent.copy()
        slot[branch] = np.delete(np.arange(size), own)[: len(branch)]
        self.owner[slot] = self.owner[parent]
        if len(branch):
            old, new = (
                torch.from_numpy(index[branch]).to(self.lengths.device) for index in (parent, slot)
            )
            for part in (part for layer in self.own for part in layer):
                part[new, :, : self.step] = part[old, :, : self.step]
        self._arrange(slot)
        return slot

    def _move(self, parent: np.ndarray) -> np.ndarray:
        old, owner = self.own, self.owner[parent]
        alive = np.unique(owner)
        if len(alive) < FULL * len(self.lengths):
            kept = torch.from_numpy(alive).to(self.lengths.device)
            self.prompt = [(keys[kept], values[kept]) for keys, values in self.prompt]
            self.lengths, owner = self.lengths[kept], np.searchsorted(alive, owner)
            self._masks()
        self.owner = np.zeros(int(padded_size(len(parent))), dtype=np.int64)
        self.owner[: len(parent)] = owner
        self._allocate(len(self.owner))
        rows = torch.from_numpy(parent).to(self.lengths.device)
        for before, after in zip(
            (part for layer in old for part in layer),
            (part for layer in self.own for part in layer),
            strict=True,
        ):
            after[: len(parent), :, : self.step] = before[rows, :, : self.step]
            after[len(parent) :, :, : self.step] = (
                0  # whatever stood there might be slow to compute with
            )
        slot = np.arange(len(parent))
        self._arrange(slot)
        return slot

    def attend(self, module, query, keys, values, scaling, softcap, window, dropout):
        """query [1, H, slots, d] -> [1, slots, H, d]: attention over each slot's prompt and over its own tokens, merged by their log-sum-exps."""
        keys, values = self.prompt[module.layer_idx]
        (batch, shared), (_, heads, slots, width) = keys.shape[:2], query.shape
        query = (query[0] * scaling).view(shared, heads // shared, slots, width)
        bias = self.padding
        if window is not None:
            bias = bias.masked_fill(
                self.place <= (self.lengths + self.step - window)[:, None], -torch.inf
            )
        grid = (
            query[:, :, self.slots]
            .unflatten(2, (batch, self.rows))
            .permute(2, 0, 1, 3, 4)
            .flatten(2, 3)
        )  # [B, shared, heads / shared * rows, d]
        parts = _weigh(grid, keys, values, softcap, bias[:, None, None])
        over_prompt = [
            part.unflatten(2, (-1, self.rows))
            .permute(1, 2, 0, 3, 4)
            .flatten(2, 3)[:, :, self.cells]
            for part in parts
        ]
        first = 0 if window is None else max(0, self.step + 1 - window)
        keys, values = (
            part.flatten(0, 1)[:, first : self.step + 1] for part in self.own[module.layer_idx]
        )
        parts = _weigh(query.permute(2, 0, 1, 3).flatten(0, 1), keys, values, softcap, None)
        over_own = [part.unflatten(0, (slots, shared)).permute(1, 2, 0, 3) for part in parts]
        (mixed, total, top), (own_mixed, own_total, own_top) = over_prompt, over_own
        highest = torch.maximum(top, own_top)
        share, own_share = (top - highest).exp(), (own_top - highest).exp()
        mixed = (mixed * share + own_mixed * own_share) / (total * share + own_total * own_share)
        return mixed.to(query.dtype).flatten(0, 1).transpose(0, 1)[None]


def _weigh(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    softcap: float | None,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """Attention [..., n, d] before it is divided by its total weight [..., n, 1], which is relative to the exp of the third, [..., n, 1]."""
    scores = query @ keys.transpose(-1, -2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias
    top = scores.amax(dim=-1, keepdim=True).clamp(
        min=torch.finfo(scores.dtype).min
    )  # a window may have left the whole prompt behind
    weight = (scores - top).exp_()
    return (
        (weight.to(values.dtype) @ values).to(scores.dtype),
        weight.sum(dim=-1, keepdim=True),
        top,
    )


def _given(model, cache) -> dict:
    """A cache as the model's forward pass takes it: by the name `cache` since transformers 5.24."""
    known = inspect.signature(model.base_model.forward).parameters
    return {"cache" if "cache" in known else "past_key_values": cache, "use_cache": True}


@torch.no_grad()
def prefill(
    model, prompts: Sequence[np.ndarray], pad_id: int, steps: int, budget: int = 8192
) -> tuple[SharedPrompts, torch.Tensor]:
    """Read prompts (int64 token arrays) once, in passes of at most `budget` tokens.

    Returns
    -------
    The cache, with room for `steps` tokens after every prompt, and the last hidden state of each prompt's last token, [prompts, width].
    """
    from transformers import DynamicCache

    device, sizes = next(model.parameters()).device, [len(prompt) for prompt in prompts]
    longest, layers, last = int(padded_size(max(sizes))), [], [None] * len(prompts)
    for rows in by_length(sizes, budget):
        ids = torch.full(
            (len(rows), int(padded_size(max(sizes[row] for row in rows)))), pad_id, device=device
        )
        for at, row in enumerate(rows):
            ids[at, : sizes[row]] = torch.from_numpy(prompts[row])
        # without a config no layer drops what its window has left behind: shorter prompts still need it
        read = DynamicCache()
        hidden = model.base_model(input_ids=ids, **_given(model, read)).last_hidden_state
        found = [(layer.keys, layer.values) for layer in read.layers]
        # in the type that products take them in: autocast would turn all of them again at every step
        kind = (
            torch.get_autocast_dtype(device.type)
            if torch.is_autocast_enabled(device.type)
            else found[0][0].dtype
        )
        layers = layers or [
            tuple(
                torch.zeros(
                    len(prompts), part.shape[1], longest, part.shape[3], dtype=kind, device=device
                )
                for part in layer
            )
            for layer in found
        ]
        for whole, part in zip(
            (part for layer in layers for part in layer),
            (part for layer in found for part in layer),
            strict=True,
        ):
            whole[torch.from_numpy(rows.copy()).to(device), :, : ids.shape[1]] = part.to(kind)
        for at, row in enumerate(rows):
            last[row] = hidden[at, sizes[row] - 1]
    return SharedPrompts(layers, torch.tensor(sizes, device=device), steps), torch.stack(last)


@contextmanager
def decoding(model, cache: SharedPrompts):
    """Within it, `read` reads the next token of every continuation."""

    def read(slot: np.ndarray, tokens: np.ndarray) -> torch.Tensor:
        """Last hidden states [slots, width] after each of these slots has taken its token; other slots hold nothing."""
        device = cache.lengths.device
        ids = np.zeros((1, len(cache.owner)), dtype=np.int64)
        ids[0, slot] = tokens
        inputs = {
            "input_ids": torch.from_numpy(ids).to(device),
            "position_ids": cache.positions[None],
            "attention_mask": empty_mask(device, model.dtype),
        }
        output = model.base_model(**inputs, **_given(model, cache))
        cache.step += 1
        return output.last_hidden_state[0]

    with attention_by(model, cache):
        yield read
