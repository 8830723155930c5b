"""Sampling: many continuations of each prompt, the same whoever shares its batch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .cache import SharedPrompts, decoding, prefill

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


@torch.no_grad()
def sample(backbone, prompts: Sequence[np.ndarray], keys: np.ndarray, *, samples: int, temperature: float, max_new: int) -> list[Generated]:
    """Draw `samples` continuations of every prompt at the given temperature.

    Each draw takes one uniform number of (key, sample, step), so that a prompt's texts do not depend on who
    shares its batch.

    Parameters
    ----------
    prompts : int64 token arrays. keys : uint64 [prompts], see `stream_key`.
    """
    tokenizer, end = backbone.tokenizer, backbone.tokenizer.eos_token_id
    cache, hidden = prefill(backbone.model, prompts, tokenizer.pad_token_id, samples, max_new)
    device = hidden.device
    last = hidden[torch.arange(len(prompts)), cache.lengths - 1]
    logits = backbone.logits(last)[:, None].expand(-1, samples, -1)
    user = np.repeat(np.arange(len(prompts))[:, None], samples, axis=1)  # of each place in the grid
    number = np.repeat(np.arange(samples)[None], len(prompts), axis=0)
    alive = np.ones_like(user, dtype=bool)
    drawn = np.full((len(prompts), samples, max_new), -1, dtype=np.int64)
    logprobs = np.zeros((len(prompts), samples))
    with decoding(backbone.model, cache) as read:
        for step in range(max_new):
            tokens, logprob = _draw(logits, uniform(keys[user], number, step), temperature)
            drawn[user[alive], number[alive], step] = tokens[alive]
            logprobs[user[alive], number[alive]] += logprob[alive]
            alive &= tokens != end
            if not alive.any() or step == max_new - 1:
                break
            tokens, user, number, alive = _compact(cache, tokens, user, number, alive)
            logits = backbone.logits(read(torch.from_numpy(tokens).to(device)))
    return [_collect(drawn[row], logprobs[row], end) for row in range(len(prompts))]


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


def _compact(cache: SharedPrompts, tokens, user, number, alive):
    """Let finished samples leave the grid once they are many: decoding costs only what still runs."""
    rows = np.flatnonzero(alive.any(axis=1))
    width = int(alive.sum(axis=1).max())
    if len(rows) * width > 0.75 * alive.size:
        return tokens, user, number, alive
    order = np.argsort(~alive[rows], axis=1, kind="stable")[:, :width]
    device = cache.lengths.device
    cache.keep(torch.from_numpy(rows).to(device), torch.from_numpy(order).to(device))
    return [np.take_along_axis(array[rows], order, axis=1) for array in (tokens, user, number, alive)]


def _collect(drawn: np.ndarray, logprobs: np.ndarray, end: int) -> Generated:
    ids, ended = [], np.zeros(len(drawn), dtype=bool)
    for row, tokens in enumerate(drawn):
        stop = np.flatnonzero((tokens == end) | (tokens < 0))
        ended[row] = len(stop) > 0 and tokens[stop[0]] == end
        ids.append(tokens[: stop[0]] if len(stop) else tokens)
    return Generated(ids, logprobs, ended)
