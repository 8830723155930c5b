"""Keep the keys and values of a prompt once under many continuations.

The continuations of a prompt are further query rows over its keys and values, which are computed
once and never copied per continuation or concatenated; the keys and values of each continuation go
into a preallocated slot. This works for every causal LM of transformers that takes its attention
from `ALL_ATTENTION_FUNCTIONS`, full or over a sliding window.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..backbones.attention import attention_by, empty_mask
from ..tokens.batches import by_length, padded_size

# With a smaller share of the slots in use, all continuations move together: copying them costs less
# than computing empty slots.
FULL = 0.8

Layer = tuple[torch.Tensor, torch.Tensor]  # keys and values of one layer


class SharedPrompts:
    """Keys and values of B prompts and their continuations, as a cache for transformers' models.

    It is made by `prefill`. A continuation lives in a slot, whichever prompt it belongs to, so that
    a step computes hardly more than the continuations that go on; at first there is one slot per
    prompt.

    Parameters
    ----------
    layers : list of (Tensor, Tensor)
        Keys and values of the prompts, [B, heads, P, d] per layer.
    lengths : Tensor of int64 [B]
        Tokens of each prompt.
    steps : int
        Most tokens of a continuation.

    Attributes
    ----------
    prompt : list of (Tensor, Tensor)
        Keys and values of the prompts that still have continuations.
    continuations : list of (Tensor, Tensor)
        Keys and values of the continuations, [slots, heads, steps, d] per layer, of which the first
        `step` tokens are written.
    owner : ndarray of int64 [slots]
        Index of each slot's prompt.
    step : int
        Tokens of the continuations that were read so far.
    """

    is_compileable = False

    def __init__(self, layers: list[Layer], lengths: torch.Tensor, steps: int):
        self.prompt, self.lengths = layers, lengths
        self.step, self.steps = 0, steps
        self.owner = np.arange(len(lengths))
        self._mask_padding()
        self._allocate(len(lengths))
        self._arrange(self.owner)

    def _mask_padding(self) -> None:
        """Make `padding`, float32 [B, P], which is -inf behind the end of each prompt."""
        keys = self.prompt[0][0]
        self.place = torch.arange(keys.shape[2], device=keys.device)
        self.padding = torch.zeros(
            len(self.lengths), keys.shape[2], dtype=torch.float32, device=keys.device
        )
        self.padding.masked_fill_(self.place >= self.lengths[:, None], -torch.inf)

    def _allocate(self, slots: int) -> None:
        """Make room for the keys and values of continuations."""
        self.continuations: list[Layer] = []
        for keys, values in self.prompt:
            heads = keys.shape[1]
            self.continuations.append(
                (
                    keys.new_empty(slots, heads, self.steps, keys.shape[3]),
                    values.new_empty(slots, heads, self.steps, values.shape[3]),
                )
            )

    def _arrange(self, slot: np.ndarray) -> None:
        """Place the used slots in the grid [B, rows] in which they attend to their prompts.

        `slots` says which slot stands in each cell of the grid, and `cells` in which cell each slot
        stands.
        """
        owner = self.owner[slot]
        counts = np.bincount(owner, minlength=len(self.lengths))
        rank = np.empty_like(owner)  # of a slot among those of its prompt
        rank[np.argsort(owner, kind="stable")] = np.arange(len(owner)) - np.repeat(
            np.cumsum(counts) - counts, counts
        )
        self.rows = int(padded_size(counts.max()))
        slots = np.zeros(len(counts) * self.rows, dtype=np.int64)
        cells = np.zeros(len(self.owner), dtype=np.int64)
        slots[owner * self.rows + rank] = slot
        cells[slot] = owner * self.rows + rank
        device = self.lengths.device
        self.slots = torch.from_numpy(slots).to(device)
        self.cells = torch.from_numpy(cells).to(device)
        self.positions = self.lengths[torch.from_numpy(self.owner).to(device)] + self.step

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens that were read, as transformers asks for it.

        Parameters
        ----------
        layer_idx : int
            Number of the layer.

        Returns
        -------
        int
            Tokens of the continuations.
        """
        return self.step

    def update(self, keys, values, layer_idx, *args, **kwargs):
        """Store the keys and values of a step, as transformers asks for it.

        Parameters
        ----------
        keys, values : Tensor [1, heads, slots, d]
            Keys and values of the newest token of each slot.
        layer_idx : int
            Number of the layer.

        Returns
        -------
        tuple of (Tensor, Tensor)
            The same keys and values; `attend` reads the stored ones.
        """
        for stored, new in zip(self.continuations[layer_idx], (keys, values), strict=True):
            stored[:, :, self.step] = new[0].transpose(0, 1)
        return keys, values

    def advance(self, parent: np.ndarray) -> np.ndarray:
        """Assign slots to the continuations that go on.

        The first continuation of a parent stays in its slot, and only the others copy what the
        parent has, so that equal beginnings are computed and kept once. Where there are too few
        slots, or too many, all continuations move.

        Parameters
        ----------
        parent : ndarray of int64 [n]
            The slot that each continuation continues.

        Returns
        -------
        ndarray of int64 [n]
            The slot of each continuation.
        """
        size = len(self.owner)
        if not FULL * size <= len(parent) <= size:
            return self._move(parent)
        used, first = np.unique(parent, return_index=True)
        branch = np.delete(np.arange(len(parent)), first)
        slot = parent.copy()
        slot[branch] = np.delete(np.arange(size), used)[: len(branch)]
        self.owner[slot] = self.owner[parent]
        if len(branch):
            old = torch.from_numpy(parent[branch]).to(self.lengths.device)
            new = torch.from_numpy(slot[branch]).to(self.lengths.device)
            for layer in self.continuations:
                for part in layer:
                    part[new, :, : self.step] = part[old, :, : self.step]
        self._arrange(slot)
        return slot

    def _move(self, parent: np.ndarray) -> np.ndarray:
        """Move all continuations into new slots, and drop prompts without continuations."""
        before, owner = self.continuations, self.owner[parent]
        alive = np.unique(owner)
        if len(alive) < FULL * len(self.lengths):
            index = torch.from_numpy(alive).to(self.lengths.device)
            self.prompt = [(keys[index], values[index]) for keys, values in self.prompt]
            self.lengths, owner = self.lengths[index], np.searchsorted(alive, owner)
            self._mask_padding()
        self.owner = np.zeros(int(padded_size(len(parent))), dtype=np.int64)
        self.owner[: len(parent)] = owner
        self._allocate(len(self.owner))
        rows = torch.from_numpy(parent).to(self.lengths.device)
        for old_layer, new_layer in zip(before, self.continuations, strict=True):
            for old, new in zip(old_layer, new_layer, strict=True):
                new[: len(parent), :, : self.step] = old[rows, :, : self.step]
                new[len(parent) :, :, : self.step] = 0  # old numbers may be slow
        slot = np.arange(len(parent))
        self._arrange(slot)
        return slot

    def attend(self, module, query, keys, values, scaling, softcap, window, dropout):
        """Compute the attention of one layer, see AttentionRule.

        Each slot, one query [1, H, slots, d], attends to its prompt and to its own tokens. Both
        parts are merged by their log-sum-exps (FlashAttention, Dao et al. 2022, section 3.1).
        """
        prompt_keys, prompt_values = self.prompt[module.layer_idx]
        batch, shared = prompt_keys.shape[:2]
        _, heads, slots, width = query.shape
        query = (query[0] * scaling).view(shared, heads // shared, slots, width)
        bias = self.padding
        if window is not None:
            outside = self.place <= (self.lengths + self.step - window)[:, None]
            bias = bias.masked_fill(outside, -torch.inf)
        grid = (
            query[:, :, self.slots]
            .unflatten(2, (batch, self.rows))
            .permute(2, 0, 1, 3, 4)
            .flatten(2, 3)
        )  # [B, shared, heads / shared * rows, d]
        mixed, total, top = (
            part.unflatten(2, (-1, self.rows))
            .permute(1, 2, 0, 3, 4)
            .flatten(2, 3)[:, :, self.cells]
            for part in weigh(grid, prompt_keys, prompt_values, softcap, bias[:, None, None])
        )
        first = 0 if window is None else max(0, self.step + 1 - window)
        keys, values = (
            part.flatten(0, 1)[:, first : self.step + 1]
            for part in self.continuations[module.layer_idx]
        )
        rows = query.permute(2, 0, 1, 3).flatten(0, 1)
        own_mixed, own_total, own_top = (
            part.unflatten(0, (slots, shared)).permute(1, 2, 0, 3)
            for part in weigh(rows, keys, values, softcap, None)
        )
        highest = torch.maximum(top, own_top)
        share, own_share = (top - highest).exp(), (own_top - highest).exp()
        mixed = (mixed * share + own_mixed * own_share) / (total * share + own_total * own_share)
        return mixed.to(query.dtype).flatten(0, 1).transpose(0, 1)[None]


def weigh(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    softcap: float | None,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute attention that is not yet divided by its total weight.

    Parameters
    ----------
    query : Tensor [..., n, d]
        Scaled queries.
    keys, values : Tensor [..., m, d]
        Keys and values.
    softcap : float or None
        Soft limit of the products.
    bias : Tensor or None
        Added to the products.

    Returns
    -------
    tuple of (Tensor [..., n, d], Tensor [..., n, 1], Tensor [..., n, 1])
        Weighted sums of the values, total weights, and the largest products, which the weights are
        relative to.
    """
    scores = query @ keys.transpose(-1, -2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias
    # at least finite: a window may have left the whole prompt behind
    top = scores.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    weight = (scores - top).exp_()
    mixed = (weight.to(values.dtype) @ values).to(scores.dtype)
    return mixed, weight.sum(dim=-1, keepdim=True), top


def cache_arguments(model: Any, cache: Any) -> dict[str, Any]:
    """Pass a cache as the model's forward pass takes it: as `cache` since transformers 5.24.

    Parameters
    ----------
    model : PreTrainedModel
        The model.
    cache : object
        The cache.

    Returns
    -------
    dict of str to object
        Arguments of the forward pass.
    """
    parameters = inspect.signature(model.base_model.forward).parameters
    return {"cache" if "cache" in parameters else "past_key_values": cache, "use_cache": True}


@torch.no_grad()
def prefill(
    model: Any, prompts: Sequence[np.ndarray], pad_id: int, steps: int, budget: int = 8192
) -> tuple[SharedPrompts, torch.Tensor]:
    """Read prompts once.

    Parameters
    ----------
    model : PreTrainedModel
        A causal LM.
    prompts : sequence of ndarray of int64
        Token ids of the prompts.
    pad_id : int
        Id of the padding token.
    steps : int
        Most tokens behind every prompt.
    budget : int
        Most padded tokens of a pass.

    Returns
    -------
    tuple of (SharedPrompts, Tensor [prompts, width])
        The cache, and the last hidden state of the last token of each prompt.
    """
    from transformers import DynamicCache

    device, sizes = next(model.parameters()).device, [len(prompt) for prompt in prompts]
    longest = int(padded_size(max(sizes)))
    layers: list[Layer] = []
    last: dict[int, torch.Tensor] = {}
    for rows in by_length(sizes, budget):
        width = int(padded_size(max(sizes[row] for row in rows)))
        ids = torch.full((len(rows), width), pad_id, device=device)
        for at, row in enumerate(rows):
            ids[at, : sizes[row]] = torch.from_numpy(prompts[row])
        # without a config no layer drops what its window has left behind: shorter prompts still
        # need it
        cache: Any = DynamicCache()
        output = model.base_model(input_ids=ids, **cache_arguments(model, cache))
        pass_layers = [(layer.keys, layer.values) for layer in cache.layers]
        if not layers:
            layers = _empty_layers(pass_layers, len(prompts), longest)
        index = torch.from_numpy(rows.copy()).to(device)
        for whole_layer, pass_layer in zip(layers, pass_layers, strict=True):
            for whole, part in zip(whole_layer, pass_layer, strict=True):
                whole[index, :, :width] = part.to(whole.dtype)
        for at, row in enumerate(rows):
            last[row] = output.last_hidden_state[at, sizes[row] - 1]
    states = torch.stack([last[row] for row in range(len(prompts))])
    return SharedPrompts(layers, torch.tensor(sizes, device=device), steps), states


def _empty_layers(layers: list[Layer], prompts: int, length: int) -> list[Layer]:
    """Make zeros for the keys and values of all prompts, like those of one pass.

    Under autocast they have its type: it would convert all of them again at every step.
    """
    keys = layers[0][0]
    kind, device = keys.dtype, keys.device
    if torch.is_autocast_enabled(device.type):
        kind = torch.get_autocast_dtype(device.type)
    empty: list[Layer] = []
    for layer in layers:
        key_zeros, value_zeros = (
            torch.zeros(prompts, part.shape[1], length, part.shape[3], dtype=kind, device=device)
            for part in layer
        )
        empty.append((key_zeros, value_zeros))
    return empty


@contextmanager
def decoding(
    model: Any, cache: SharedPrompts
) -> Iterator[Callable[[np.ndarray, np.ndarray], torch.Tensor]]:
    """Let a model continue the prompts of a cache, within this context.

    Parameters
    ----------
    model : PreTrainedModel
        The causal LM that has read the prompts.
    cache : SharedPrompts
        The prompts and their continuations.

    Yields
    ------
    callable
        Takes slots and their next tokens, ndarray of int64 [n] each, and returns the last hidden
        states, Tensor [slots, width], after each of these slots has read its token. The states of
        other slots mean nothing.
    """

    def read(slot: np.ndarray, tokens: np.ndarray) -> torch.Tensor:
        device = cache.lengths.device
        ids = np.zeros((1, len(cache.owner)), dtype=np.int64)
        ids[0, slot] = tokens
        output = model.base_model(
            input_ids=torch.from_numpy(ids).to(device),
            position_ids=cache.positions[None],
            attention_mask=empty_mask(device, model.dtype),
            **cache_arguments(model, cache),
        )
        cache.step += 1
        return output.last_hidden_state[0]

    with attention_by(model, cache):
        yield read
