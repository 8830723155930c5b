"""Sampling many continuations of each prompt over one copy of the prompt's cache.

The samples of a prompt are further query rows over its keys and values, which are computed once and never
copied or concatenated; each sample's own keys and values go into a preallocated buffer. Works for every
transformers causal LM that takes its attention from `ALL_ATTENTION_FUNCTIONS`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

ATTENTION = "recbole_llm_samples"
GOLDEN, MIX_1, MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class Generated:
    """The continuations of one prompt.

    ids: one int64 array per sample, without the end token. logprobs: float64 [samples], sum of untempered token
    log-probabilities, the end token's included. ended: bool [samples], False where the length ran out.
    """

    ids: list[np.ndarray]
    logprobs: np.ndarray
    ended: np.ndarray


def stream_key(seed: int, *tokens: str) -> np.uint64:
    """The key of one prompt's random numbers, from names rather than numbers that depend on the data's order."""
    return np.frombuffer(hashlib.sha256("\0".join([str(seed), *tokens]).encode()).digest()[:8], np.uint64)[0]


def uniform(keys: np.ndarray, samples: np.ndarray, step: int) -> np.ndarray:
    """float64 in (0, 1) for (key, sample, step): a counter-based generator (SplitMix64's mixing function)."""
    with np.errstate(over="ignore"):
        counter = (samples.astype(np.uint64) << np.uint64(32)) | np.uint64(step)
        x = keys + GOLDEN * (counter + np.uint64(1))
        x = (x ^ (x >> np.uint64(30))) * MIX_1
        x = (x ^ (x >> np.uint64(27))) * MIX_2
        x ^= x >> np.uint64(31)
    return ((x >> np.uint64(12)).astype(np.float64) + 0.5) / 2**52


class _SampleCache:
    """Keys and values of B prompts x n samples, in the form transformers models expect of a cache."""

    is_compileable = False

    def __init__(self, prompt, lengths: torch.Tensor, samples: int, steps: int):
        self.prompt = [(layer.keys, layer.values) for layer in prompt.layers]  # [B, heads, P, d] each
        size = self.prompt[0][0].shape[2]
        outside = torch.arange(size, device=lengths.device) >= lengths[:, None]
        self.bias = torch.zeros(outside.shape, dtype=self.prompt[0][0].dtype, device=lengths.device).masked_fill(outside, -torch.inf)
        self.step = 0
        self.own = [
            tuple(part.new_zeros(part.shape[0], part.shape[1], samples, steps, part.shape[3]) for part in layer)
            for layer in self.prompt
        ]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.step

    def update(self, keys, values, layer_idx, *args, **kwargs):
        own_keys, own_values = self.own[layer_idx]
        own_keys[:, :, :, self.step], own_values[:, :, :, self.step] = keys, values
        return keys, values

    def keep(self, users: torch.Tensor, samples: torch.Tensor) -> None:
        """Keep prompts `users` [B'] and, of each, `samples` [B', n']."""
        self.prompt = [(keys[users], values[users]) for keys, values in self.prompt]
        self.bias = self.bias[users]

        def pick(part):
            part = part[users]
            index = samples[:, None, :, None, None].expand(-1, part.shape[1], -1, self.step, part.shape[4])
            kept = part.new_zeros(len(users), part.shape[1], samples.shape[1], *part.shape[3:])
            kept[:, :, :, : self.step] = part[:, :, :, : self.step].gather(2, index)
            return kept

        self.own = [(pick(keys), pick(values)) for keys, values in self.own]

    def attend(self, layer: int, query: torch.Tensor, scaling: float) -> torch.Tensor:
        """query [B, H, n, d] -> [B, n, H, d]: attention over the shared prompt and each sample's own tokens."""
        prompt_keys, prompt_values = self.prompt[layer]
        end = self.step + 1
        own_keys, own_values = (part[:, :, :, :end] for part in self.own[layer])
        batch, heads, samples, width = query.shape
        shared = prompt_keys.shape[1]
        query = (query * scaling).view(batch, shared, heads // shared, samples, width)
        flat = query.reshape(batch, shared, -1, width)
        over_prompt = (flat @ prompt_keys.transpose(2, 3) + self.bias[:, None, None, :]).view(*query.shape[:-1], -1)
        over_own = torch.einsum("bkgnd,bknsd->bkgns", query, own_keys)
        weight = torch.cat([over_prompt, over_own], dim=-1).softmax(dim=-1)
        split = over_prompt.shape[-1]
        mixed = (weight[..., :split].reshape(batch, shared, -1, split) @ prompt_values).view(query.shape)
        mixed = mixed + torch.einsum("bkgns,bknsd->bkgnd", weight[..., split:], own_values)
        return mixed.reshape(batch, heads, samples, width).transpose(1, 2)


_active: list[_SampleCache] = []  # the cache of the decoding step that is running


def _attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _active[-1].attend(module.layer_idx, query, scaling), None


@torch.no_grad()
def sample(
    model, tokenizer, prompts: Sequence[np.ndarray], keys: np.ndarray, *, samples: int, temperature: float, max_new: int,
) -> list[Generated]:  # fmt: skip
    """Draw `samples` continuations of every prompt at the given temperature.

    Each draw takes one uniform number of (key, sample, step), so that a prompt's texts do not depend on who
    shares its batch.

    Parameters
    ----------
    prompts : int64 token arrays. keys : uint64 [prompts], see `stream_key`.
    """
    from transformers import AttentionInterface, DynamicCache

    AttentionInterface.register(ATTENTION, _attention)
    device = next(model.parameters()).device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    ids = torch.full((len(prompts), int(lengths.max())), tokenizer.pad_token_id, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.from_numpy(prompt)
    mask = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
    prefix = DynamicCache(config=model.config)
    last = model.base_model(input_ids=ids, attention_mask=mask, past_key_values=prefix, use_cache=True).last_hidden_state
    head = model.get_output_embeddings()
    logits = head(last[torch.arange(len(prompts)), lengths - 1])[:, None].expand(-1, samples, -1)

    cache = _SampleCache(prefix, lengths, samples, max_new)
    user = np.repeat(np.arange(len(prompts))[:, None], samples, axis=1)  # of each place in the grid
    number = np.repeat(np.arange(samples)[None], len(prompts), axis=0)
    alive = np.ones_like(user, dtype=bool)
    drawn = np.full((len(prompts), samples, max_new), -1, dtype=np.int64)
    logprobs = np.zeros((len(prompts), samples))
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    _active.append(cache)
    try:
        for step in range(max_new):
            tokens, logprob = _draw(logits, uniform(keys[user], number, step), temperature)
            drawn[user[alive], number[alive], step] = tokens[alive]
            logprobs[user[alive], number[alive]] += logprob[alive]
            alive &= tokens != tokenizer.eos_token_id
            if not alive.any() or step == max_new - 1:
                break
            tokens, user, number, alive, lengths = _compact(cache, tokens, user, number, alive, lengths)
            grid = torch.from_numpy(tokens).to(device)
            unused = torch.zeros(1, 1, 1, 1, device=device, dtype=last.dtype)  # a ready mask keeps transformers from building one
            hidden = model.base_model(
                input_ids=grid, position_ids=(lengths[:, None] + step).expand(-1, grid.shape[1]), attention_mask=unused,
                past_key_values=cache, use_cache=True,
            ).last_hidden_state  # fmt: skip
            cache.step += 1
            logits = head(hidden)
    finally:
        _active.pop()
        model.set_attn_implementation(before)
    return [_collect(drawn[row], logprobs[row], tokenizer.eos_token_id) for row in range(len(prompts))]


def _draw(logits: torch.Tensor, chance: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Tokens by inverting the tempered distribution at `chance`, and their untempered log-probabilities."""
    logits = logits.float()
    if temperature == 0:
        tokens = logits.argmax(dim=-1)
    else:
        cumulated = (logits / temperature).softmax(dim=-1).cumsum(dim=-1)
        threshold = torch.from_numpy(chance).to(cumulated) * cumulated[..., -1]
        tokens = torch.searchsorted(cumulated, threshold[..., None]).squeeze(-1).clamp(max=logits.shape[-1] - 1)
    logprob = logits.gather(-1, tokens[..., None]).squeeze(-1) - logits.logsumexp(dim=-1)
    return tokens.cpu().numpy(), logprob.double().cpu().numpy()


def _compact(cache: _SampleCache, tokens, user, number, alive, lengths):
    """Let finished samples leave the grid once they are many: decoding costs only what still runs."""
    rows = np.flatnonzero(alive.any(axis=1))
    width = int(alive.sum(axis=1).max())
    if len(rows) * width > 0.75 * alive.size:
        return tokens, user, number, alive, lengths
    order = np.argsort(~alive[rows], axis=1, kind="stable")[:, :width]
    cache.keep(torch.from_numpy(rows).to(lengths.device), torch.from_numpy(order).to(lengths.device))
    kept = [np.take_along_axis(array[rows], order, axis=1) for array in (tokens, user, number, alive)]
    return *kept, lengths[torch.from_numpy(rows).to(lengths.device)]


def _collect(drawn: np.ndarray, logprobs: np.ndarray, end: int) -> Generated:
    ids, ended = [], np.zeros(len(drawn), dtype=bool)
    for row, tokens in enumerate(drawn):
        stop = np.flatnonzero((tokens == end) | (tokens < 0))
        ended[row] = len(stop) > 0 and tokens[stop[0]] == end
        ids.append(tokens[: stop[0]] if len(stop) else tokens)
    return Generated(ids, logprobs, ended)
