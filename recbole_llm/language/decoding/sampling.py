"""Sampling: many continuations of each prompt, the same whoever shares its batch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .shared_prompts import decoding, prefill

GOLDEN, MIX_1, MIX_2 = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
)


@dataclass(frozen=True)
class Continuations:
    """The continuations of one prompt.

    ids: one int64 array per sample, without the end token. logprobs: float64 [samples], sum of untempered token
    log-probabilities, the end token's included. ended: bool [samples], False where the length ran out.
    """

    ids: list[np.ndarray]
    logprobs: np.ndarray
    ended: np.ndarray


def stream_key(seed: int, *tokens: str) -> np.uint64:
    """The key of one prompt's random numbers, from names rather than numbers that depend on the data's order."""
    return np.frombuffer(
        hashlib.sha256("\0".join([str(seed), *tokens]).encode()).digest()[:8], np.uint64
    )[0]


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
def sample(backbone, prompts: Sequence[np.ndarray], keys: np.ndarray, *, samples: int, temperature: float, max_new: int, budget: int = 8192,
           ends: Sequence[int] = ()) -> list[Continuations]:  # fmt: skip
    """Draw `samples` continuations of every prompt at the given temperature.

    Each draw takes one uniform number of (key, sample, step), so that a prompt's texts do not depend on who
    shares its batch. Samples that have drawn the same tokens so far are one continuation.

    Parameters
    ----------
    prompts : int64 token arrays. keys : uint64 [prompts], see `stream_key`. budget : most prompt tokens per pass.
    ends : tokens that end a continuation; the tokenizer's end token where not given.
    """
    ends = np.array(ends or [backbone.tokenizer.eos_token_id])
    cache, last = prefill(backbone.model, prompts, backbone.tokenizer.pad_token_id, max_new, budget)
    logits = backbone.logits(last)
    drawn = np.full((len(prompts), samples, max_new), -1, dtype=np.int64)
    logprobs = np.zeros((len(prompts), samples))
    slot = prompt = np.repeat(np.arange(len(prompts)), samples)  # of every sample that goes on
    number = np.tile(np.arange(samples), len(prompts))
    with decoding(backbone.model, cache) as read:
        for step in range(max_new):
            tokens, logprob = _draw(logits, slot, uniform(keys[prompt], number, step), temperature)
            drawn[prompt, number, step] = tokens
            logprobs[prompt, number] += logprob
            going = ~np.isin(tokens, ends)
            prompt, number, slot, tokens = (
                array[going] for array in (prompt, number, slot, tokens)
            )
            if not len(tokens) or step == max_new - 1:
                break
            nodes, node = np.unique(slot * logits.shape[1] + tokens, return_inverse=True)
            parents, taken = np.divmod(nodes, logits.shape[1])
            slots = cache.advance(parents)
            logits = backbone.logits(read(slots, taken))
            slot = slots[node]
    return [_collect(*one, ends) for one in zip(drawn, logprobs, strict=True)]


def _draw(
    logits: torch.Tensor, slot: np.ndarray, chance: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of samples by inverting the tempered distributions of their slots at `chance`, and their untempered log-probabilities.

    logits [slots, vocabulary]; slot, chance [samples].
    """
    logits, device = logits.float(), logits.device
    index = torch.from_numpy(slot).to(device)
    if temperature == 0:
        tokens = logits.argmax(dim=1)[index]
    else:
        cumulated = (logits / temperature).softmax(dim=1).cumsum(dim=1)
        order = np.argsort(slot, kind="stable")
        counts = np.bincount(slot, minlength=len(logits))
        rank = np.empty_like(slot)
        rank[order] = np.arange(len(slot)) - np.repeat(np.cumsum(counts) - counts, counts)
        chances = np.zeros((len(logits), counts.max()))
        chances[slot, rank] = chance
        threshold = torch.from_numpy(chances).to(cumulated) * cumulated[:, -1:]
        tokens = torch.searchsorted(cumulated, threshold)[
            index, torch.from_numpy(rank).to(device)
        ].clamp(max=logits.shape[1] - 1)
    logprob = logits[index, tokens] - logits.logsumexp(dim=1)[index]
    return tokens.cpu().numpy(), logprob.double().cpu().numpy()


def _collect(drawn: np.ndarray, logprobs: np.ndarray, last: np.ndarray) -> Continuations:
    ids, ended = [], np.zeros(len(drawn), dtype=bool)
    for row, tokens in enumerate(drawn):
        stop = np.flatnonzero(np.isin(tokens, last) | (tokens < 0))
        ended[row] = len(stop) > 0 and tokens[stop[0]] >= 0
        ids.append(tokens[: stop[0]] if len(stop) else tokens)
    return Continuations(ids, logprobs, ended)
