"""Sample many continuations of each prompt; they do not depend on who shares the batch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .shared_prompts import decoding, prefill

# Constants of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class Continuations:
    """The continuations of one prompt.

    Attributes
    ----------
    ids : list of ndarray of int64
        Tokens of each sample, without the end token.
    logprobs : ndarray of float64 [samples]
        Sums of untempered token log-probabilities, that of the end token included.
    ended : ndarray of bool [samples]
        Whether the sample ended by itself; False where the length ran out.
    """

    ids: list[np.ndarray]
    logprobs: np.ndarray
    ended: np.ndarray


def stream_key(seed: int, *tokens: str) -> np.uint64:
    """Make the key of one prompt's random numbers.

    Parameters
    ----------
    seed : int
        The seed of the run.
    *tokens : str
        Names of the prompt, rather than numbers that depend on the order of the data.

    Returns
    -------
    numpy.uint64
        The key.
    """
    content = "\0".join([str(seed), *tokens]).encode()
    return np.frombuffer(hashlib.sha256(content).digest()[:8], np.uint64)[0]


def uniform(keys: np.ndarray, samples: np.ndarray, step: int | np.ndarray) -> np.ndarray:
    """Draw uniform numbers by a counter-based generator (SplitMix64's mixing function).

    Parameters
    ----------
    keys : ndarray of uint64 [n]
        Key of each prompt.
    samples : ndarray of int64 [n]
        Number of each sample.
    step : int or ndarray of int64 [n]
        Number of the token.

    Returns
    -------
    ndarray of float64 [n]
        Numbers in (0, 1).
    """
    with np.errstate(over="ignore"):
        counter = (samples.astype(np.uint64) << np.uint64(32)) | np.asarray(step, np.uint64)
        x = keys + GOLDEN * (counter + np.uint64(1))
        x = (x ^ (x >> np.uint64(30))) * MIX_1
        x = (x ^ (x >> np.uint64(27))) * MIX_2
        x ^= x >> np.uint64(31)
    return ((x >> np.uint64(12)).astype(np.float64) + 0.5) / 2**52


@torch.no_grad()
def sample(
    backbone: Any,
    prompts: Sequence[np.ndarray],
    keys: np.ndarray,
    *,
    samples: int,
    temperature: float,
    max_new: int,
    budget: int = 8192,
    ends: Sequence[int] = (),
) -> list[Continuations]:
    """Draw continuations of every prompt.

    Each draw takes one uniform number of (key, sample, step), so that the texts of a prompt do not
    depend on who shares its batch.

    Parameters
    ----------
    backbone : Backbone
        A causal LM.
    prompts : sequence of ndarray of int64
        Token ids of the prompts.
    keys : ndarray of uint64 [prompts]
        Keys of their random numbers, see `stream_key`.
    samples, max_new : int
        Number of continuations of each prompt, and most tokens of a continuation.
    temperature : float
        Divides the logits; 0 is greedy.
    budget : int
        Most prompt tokens of a pass.
    ends : sequence of int
        Tokens that end a continuation; the tokenizer's end token where it is empty.

    Returns
    -------
    list of Continuations
        The continuations of each prompt.
    """
    end_tokens = np.array(ends or [backbone.tokenizer.eos_token_id])
    cache, last = prefill(backbone.model, prompts, backbone.tokenizer.pad_token_id, max_new, budget)
    logits = backbone.logits(last)
    drawn = np.full((len(prompts), samples, max_new), -1, dtype=np.int64)
    logprobs = np.zeros((len(prompts), samples))
    # one entry a sample that goes on: its prompt, its number and its slot in the cache
    slot = prompt = np.repeat(np.arange(len(prompts)), samples)
    number = np.tile(np.arange(samples), len(prompts))
    with decoding(backbone.model, cache) as read:
        for step in range(max_new):
            tokens, logprob = draw(logits, slot, uniform(keys[prompt], number, step), temperature)
            drawn[prompt, number, step] = tokens
            logprobs[prompt, number] += logprob
            going = ~np.isin(tokens, end_tokens)
            prompt, number, slot, tokens = prompt[going], number[going], slot[going], tokens[going]
            if not len(tokens) or step == max_new - 1:
                break
            parents, branch_tokens, branch = _branches(slot, tokens, logits.shape[1])
            slots = cache.advance(parents)
            logits = backbone.logits(read(slots, branch_tokens))
            slot = slots[branch]
    return [_collect(ids, sums, end_tokens) for ids, sums in zip(drawn, logprobs, strict=True)]


def _branches(
    slot: np.ndarray, tokens: np.ndarray, vocabulary: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merge samples of the same slot that have drawn the same token.

    Returns the slot and the token of each branch, and the branch of each sample.
    """
    branches, branch = np.unique(slot * vocabulary + tokens, return_inverse=True)
    parents, branch_tokens = np.divmod(branches, vocabulary)
    return parents, branch_tokens, branch


def draw(
    logits: torch.Tensor, slot: np.ndarray, chance: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw tokens by inverting the tempered distributions of the samples' slots.

    Parameters
    ----------
    logits : Tensor [slots, vocabulary]
        Logits of every slot.
    slot : ndarray of int64 [samples]
        The slot of each sample.
    chance : ndarray of float64 [samples]
        Uniform numbers.
    temperature : float
        Divides the logits; 0 is greedy.

    Returns
    -------
    tuple of (ndarray of int64 [samples], ndarray of float64 [samples])
        Tokens, and their untempered log-probabilities.
    """
    logits, device = logits.float(), logits.device
    index = torch.from_numpy(slot).to(device)
    if temperature == 0:
        tokens = logits.argmax(dim=1)[index]
    else:
        cumulated = (logits / temperature).softmax(dim=1).cumsum(dim=1)
        order = np.argsort(slot, kind="stable")
        counts = np.bincount(slot, minlength=len(logits))
        rank = np.empty_like(slot)  # of a sample among those of its slot
        rank[order] = np.arange(len(slot)) - np.repeat(np.cumsum(counts) - counts, counts)
        chances = np.zeros((len(logits), counts.max()))
        chances[slot, rank] = chance
        threshold = torch.from_numpy(chances).to(cumulated) * cumulated[:, -1:]
        place = torch.searchsorted(cumulated, threshold)[index, torch.from_numpy(rank).to(device)]
        tokens = place.clamp(max=logits.shape[1] - 1)
    logprob = logits[index, tokens] - logits.logsumexp(dim=1)[index]
    return tokens.cpu().numpy(), logprob.double().cpu().numpy()


def _collect(drawn: np.ndarray, logprobs: np.ndarray, end_tokens: np.ndarray) -> Continuations:
    """Cut the tokens of each sample, int64 [samples, max_new], before its end token."""
    ids, ended = [], np.zeros(len(drawn), dtype=bool)
    for row, tokens in enumerate(drawn):
        stop = np.flatnonzero(np.isin(tokens, end_tokens) | (tokens < 0))
        ended[row] = len(stop) > 0 and tokens[stop[0]] >= 0
        ids.append(tokens[: stop[0]] if len(stop) else tokens)
    return Continuations(ids, logprobs, ended)
