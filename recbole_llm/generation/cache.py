"""One prompt's keys and values under many continuations.

The continuations of a prompt are further query rows over its keys and values, which are computed once and never
copied or concatenated; each continuation's own keys and values go into a preallocated buffer. Works for every
transformers causal LM that takes its attention from `ALL_ATTENTION_FUNCTIONS`, full or over a sliding window.
"""

from collections.abc import Sequence
from contextlib import contextmanager

import numpy as np
import torch

from ..collate import roomy
from ..errors import UserError

ATTENTION = "recbole_llm_shared_prompt"
SHRINK = 0.6  # of the grid in use, or less: copying what is left costs less than computing what has ended


class SharedPrompts:
    """Keys and values of B prompts with up to `rows` continuations each, in the form transformers models expect of a cache.

    Made by `prefill`. `lengths` is int64 [B]; `number` int64 [B] says which of the prompts given a place is, since
    prompts whose continuations have all ended leave; `width` is how many rows are in use.
    """

    is_compileable = False

    def __init__(self, layers: list[tuple[torch.Tensor, torch.Tensor]], lengths: torch.Tensor, rows: int, steps: int):
        self.prompt, self.lengths, self.step, self.width, self.rows = layers, lengths, 0, 1, rows  # keys and values [B, heads, P, d] per layer
        self.own = [tuple(part.new_zeros(part.shape[0], part.shape[1], rows, steps, part.shape[3]) for part in layer) for layer in layers]
        self.number = np.arange(len(lengths))
        self._masks()

    def _masks(self) -> None:
        keys = self.prompt[0][0]
        self.place = torch.arange(keys.shape[2], device=keys.device)
        self.padding = torch.zeros(len(self.lengths), keys.shape[2], dtype=keys.dtype, device=keys.device)
        self.padding.masked_fill_(self.place >= self.lengths[:, None], -torch.inf)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.step

    def update(self, keys, values, layer_idx, *args, **kwargs):
        own_keys, own_values = self.own[layer_idx]
        own_keys[:, :, : self.width, self.step], own_values[:, :, : self.width, self.step] = keys, values
        return keys, values

    def advance(self, prompt: np.ndarray, parent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows for the continuations that go on, each from its parent's row; sorted by (prompt, parent).

        The first continuation of a parent stays in its row and only the others copy what the parent has, so that
        equal beginnings are computed and kept once. Once few rows go on, the grid shrinks.

        Returns
        -------
        Their prompts and rows from now on.
        """
        counts = np.bincount(prompt, minlength=len(self.lengths))
        rank = np.arange(len(prompt)) - np.repeat(np.cumsum(counts) - counts, counts)
        alive = np.flatnonzero(counts)
        if len(alive) * counts.max() <= SHRINK * len(counts) * self.width:
            place = np.searchsorted(alive, prompt)
            rows = np.zeros((len(alive), counts.max()), dtype=np.int64)
            rows[place, rank] = parent
            self._shrink(alive, rows)
            return place, rank
        first = np.r_[True, (prompt[1:] != prompt[:-1]) | (parent[1:] != parent[:-1])]
        taken = np.zeros((len(counts), self.rows), dtype=bool)
        taken[prompt[first], parent[first]] = True
        free = np.argsort(taken, axis=1, kind="stable")
        row, branch = parent.copy(), np.flatnonzero(~first)
        if len(branch):
            branches = np.bincount(prompt[branch], minlength=len(counts))
            number = np.arange(len(branch)) - np.repeat(np.cumsum(branches) - branches, branches)
            row[branch] = free[prompt[branch], number]
            at, old, new = (torch.from_numpy(index).to(self.lengths.device) for index in (prompt[branch], parent[branch], row[branch]))
            for part in (part for layer in self.own for part in layer):
                part[at, :, new, : self.step] = part[at, :, old, : self.step]
        self.width = int(row.max()) + 1
        return prompt, row

    def _shrink(self, alive: np.ndarray, rows: np.ndarray) -> None:
        prompts, rows = (torch.from_numpy(index).to(self.lengths.device) for index in (alive, rows))
        if len(prompts) < len(self.lengths):
            self.prompt = [(keys[prompts], values[prompts]) for keys, values in self.prompt]
            self.lengths, self.number = self.lengths[prompts], self.number[alive]
            self._masks()

        def pick(part):
            kept = part.new_zeros(len(prompts), *part.shape[1:])
            kept[:, :, : rows.shape[1], : self.step] = part[prompts[:, None], :, rows, : self.step].transpose(1, 2)
            return kept

        self.own = [(pick(keys), pick(values)) for keys, values in self.own]
        self.width = rows.shape[1]

    def attend(self, layer: int, query: torch.Tensor, scaling: float, softcap: float | None, window: int | None) -> torch.Tensor:
        """query [B, H, n, d] -> [B, n, H, d]: attention over the shared prompt and each continuation's own tokens."""
        prompt_keys, prompt_values = self.prompt[layer]
        batch, heads, rows, width = query.shape
        first = 0 if window is None else max(0, self.step + 1 - window)
        own_keys, own_values = (part[:, :, :rows, first : self.step + 1] for part in self.own[layer])
        shared = prompt_keys.shape[1]
        query = (query * scaling).view(batch, shared, heads // shared, rows, width)
        over_prompt = query.reshape(batch, shared, -1, width) @ prompt_keys.transpose(2, 3)
        over_own = torch.einsum("bkgnd,bknsd->bkgns", query, own_keys)
        if softcap:
            over_prompt, over_own = (torch.tanh(part / softcap) * softcap for part in (over_prompt, over_own))
        bias = self.padding
        if window is not None:
            bias = bias.masked_fill(self.place <= (self.lengths + self.step - window)[:, None], -torch.inf)
        over_prompt = (over_prompt + bias[:, None, None, :]).view(*query.shape[:-1], -1)
        weight = torch.cat([over_prompt, over_own], dim=-1).softmax(dim=-1)
        split = over_prompt.shape[-1]
        mixed = (weight[..., :split].reshape(batch, shared, -1, split) @ prompt_values).view(query.shape)
        mixed = mixed + torch.einsum("bkgns,bknsd->bkgnd", weight[..., split:], own_values)
        return mixed.reshape(batch, heads, rows, width).transpose(1, 2)


_active: list[SharedPrompts] = []  # the cache of the decoding that is running


def _attention(module, query, key, value, attention_mask, scaling=None, softcap=None, sliding_window=None, s_aux=None, **kwargs):
    if s_aux is not None:
        raise UserError(f"{type(module).__name__} has attention sinks, which decoding here does not know; take another backbone")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _active[-1].attend(module.layer_idx, query, scaling, softcap, sliding_window), None


@torch.no_grad()
def prefill(model, prompts: Sequence[np.ndarray], pad_id: int, rows: int, steps: int) -> tuple[SharedPrompts, torch.Tensor]:
    """Read prompts (int64 token arrays) once.

    Returns
    -------
    The cache, with room for `rows` continuations of `steps` tokens each, and the last hidden state of each prompt's last token, [prompts, width].
    """
    from transformers import DynamicCache

    device = next(model.parameters()).device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    ids = torch.full((len(prompts), int(roomy(int(lengths.max())))), pad_id, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.from_numpy(prompt)
    # without a config no layer drops what its window has left behind: shorter prompts of the batch still need it
    read = DynamicCache()
    hidden = model.base_model(input_ids=ids, past_key_values=read, use_cache=True).last_hidden_state
    cache = SharedPrompts([(layer.keys, layer.values) for layer in read.layers], lengths, rows, steps)
    return cache, hidden[torch.arange(len(prompts), device=device), lengths - 1]


@contextmanager
def decoding(model, cache: SharedPrompts):
    """Within it, `read` reads the next token of every continuation."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attention)
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    _active.append(cache)

    def read(prompt: np.ndarray, row: np.ndarray, tokens: np.ndarray) -> torch.Tensor:
        """Last hidden states [B, rows, width] of the cache's grid after each of these rows has taken its token; other rows hold nothing."""
        device = cache.lengths.device
        grid = np.zeros((len(cache.lengths), cache.width), dtype=np.int64)
        grid[prompt, row] = tokens
        unused = torch.zeros(1, 1, 1, 1, device=device, dtype=model.dtype)  # a ready mask keeps transformers from building one
        place = (cache.lengths[:, None] + cache.step).expand(-1, cache.width)
        output = model.base_model(
            input_ids=torch.from_numpy(grid).to(device), position_ids=place, attention_mask=unused, past_key_values=cache, use_cache=True
        )
        cache.step += 1
        return output.last_hidden_state

    try:
        yield read
    finally:
        _active.pop()
        model.set_attn_implementation(before)
