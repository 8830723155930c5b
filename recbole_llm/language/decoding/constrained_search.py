"""Decoding constrained to the catalogue.

Every generation is an item, with its exact log-probability.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .shared_prompts import decoding, prefill


class Catalogue:
    """A prefix tree of token sequences, held as sorted rows.

    Sequences that begin alike stand together, so that a node is a range of rows and a depth;
    `starts[depth]` says where the nodes of depth + 1 begin.

    Parameters
    ----------
    sequences : sequence of ndarray of int64
        Token sequences, none of which is a beginning of another (all end with the end token).
        Equal ones are reached together.
    """

    def __init__(self, sequences: Sequence[np.ndarray]):
        depth = max(map(len, sequences))
        rows = np.full((len(sequences), depth), -1, dtype=np.int64)
        for row, sequence in enumerate(sequences):
            rows[row, : len(sequence)] = sequence
        self.order = np.lexsort(rows.T[::-1])  # sorted row -> sequence
        self.tokens = rows[self.order]
        new = np.ones(len(rows), dtype=bool)
        new[1:] = False
        self.starts = []
        for column in range(depth):
            new[1:] |= self.tokens[1:, column] != self.tokens[:-1, column]
            self.starts.append(np.flatnonzero(new))

    @property
    def depth(self) -> int:
        """Length of the longest sequence."""
        return self.tokens.shape[1]

    def children(
        self, depth: int, low: np.ndarray, high: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """List the children of nodes.

        Parameters
        ----------
        depth : int
            Depth of the nodes.
        low, high : ndarray of int64 [n]
            First and end row of each node.

        Returns
        -------
        tuple of ndarray of int64 [m]
            For every child: the index of its node, its token, its first row and its end row.
        """
        starts = self.starts[depth]
        first, last = np.searchsorted(starts, low), np.searchsorted(starts, high)
        counts = last - first
        node = np.repeat(np.arange(len(low)), counts)
        child = (
            np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[node]
        )
        begin = starts[child]
        end = np.append(starts, len(self.tokens))[child + 1]
        return node, self.tokens[begin, depth], begin, end


@dataclass(frozen=True)
class SearchResult:
    """The sequences that a search reached for one prompt, best first.

    Attributes
    ----------
    sequences : ndarray of int64 [reached]
        Numbers of the sequences.
    logprobs : ndarray of float64 [reached]
        Their exact log-probabilities.
    """

    sequences: np.ndarray
    logprobs: np.ndarray


@torch.no_grad()
def search(
    backbone: Any,
    prompts: Sequence[np.ndarray],
    catalogue: Catalogue,
    beams: int,
    budget: int = 8192,
) -> list[SearchResult]:
    """Search the catalogue by beams for the most probable sequences of every prompt.

    The result is exact where `beams` suffice. A beam is given up as soon as it cannot reach the
    best `beams` ended sequences any more: log-probabilities only fall.

    Parameters
    ----------
    backbone : Backbone
        A causal LM.
    prompts : sequence of ndarray of int64
        Token ids of the prompts.
    catalogue : Catalogue
        The sequences to reach.
    beams, budget : int
        Number of beams and of results of each prompt, and most prompt tokens of a pass.

    Returns
    -------
    list of SearchResult
        The result of each prompt.

    Raises
    ------
    FloatingPointError
        If the logits are NaN.
    """
    tokenizer, end, count = backbone.tokenizer, backbone.tokenizer.eos_token_id, len(prompts)
    cache, last = prefill(backbone.model, prompts, tokenizer.pad_token_id, catalogue.depth, budget)
    logits = backbone.logits(last)
    # one entry a beam: its prompt, its slot in the cache, its node and its log-probability
    prompt = slot = np.arange(count)
    low, high = np.zeros(count, dtype=np.int64), np.full(count, len(catalogue.tokens))
    score = np.zeros(count)
    ended = [(np.zeros(0, dtype=np.int64), np.zeros(0)) for _ in range(count)]
    with decoding(backbone.model, cache) as read:
        for depth in range(catalogue.depth):
            node, token, begin, close = catalogue.children(depth, low, high)
            total = score[node] + _logprobs(logits, slot[node], token)
            done, owner = token == end, prompt[node]
            for number in np.unique(owner[done]):
                leaves = np.flatnonzero(done & (owner == number))
                ranges = begin[leaves], close[leaves]
                _keep_best(ended, number, catalogue, ranges, total[leaves], beams)
            going = _going_beams(ended, done, owner, total, beams)
            if not len(going):
                break
            prompt, parent, token = owner[going], slot[node][going], token[going]
            low, high, score = begin[going], close[going], total[going]
            slot = cache.advance(parent)
            logits = backbone.logits(read(slot, token))
    if not all(len(sequences) for sequences, _ in ended):
        raise FloatingPointError("logits: NaN, so that a search reaches nothing")
    return [SearchResult(sequences, logprobs) for sequences, logprobs in ended]


def _logprobs(logits: torch.Tensor, slot: np.ndarray, token: np.ndarray) -> np.ndarray:
    """Compute the log-probabilities of tokens behind slots, float64 [n]."""
    at_slot = torch.from_numpy(slot).to(logits.device)
    at_token = torch.from_numpy(token).to(logits.device)
    logprob = logits.float().log_softmax(dim=-1)
    return logprob[at_slot, at_token].double().cpu().numpy()


def _keep_best(
    ended: list[tuple[np.ndarray, np.ndarray]],
    number: int,
    catalogue: Catalogue,
    ranges: tuple[np.ndarray, np.ndarray],
    scores: np.ndarray,
    beams: int,
) -> None:
    """Add ended sequences to those of a prompt, and keep the best `beams` of them.

    The sequences of a leaf are those of its range of rows, and have its score.
    """
    begin, close = ranges
    rows = [catalogue.order[low:high] for low, high in zip(begin, close, strict=True)]
    old_sequences, old_totals = ended[number]
    sequences = np.concatenate([old_sequences, *rows])
    totals = np.concatenate([old_totals, np.repeat(scores, close - begin)])
    best = np.argsort(-totals, kind="stable")[:beams]
    ended[number] = (sequences[best], totals[best])


def _going_beams(
    ended: list[tuple[np.ndarray, np.ndarray]],
    done: np.ndarray,
    owner: np.ndarray,
    total: np.ndarray,
    beams: int,
) -> np.ndarray:
    """Choose the `beams` best of each prompt that may still enter its results, int64 indices."""
    worst = np.full(len(ended), -np.inf)  # of the results of each prompt, where they are complete
    for number, (_, logprobs) in enumerate(ended):
        if len(logprobs) == beams:
            worst[number] = logprobs[-1]
    going = np.flatnonzero(~done & (total > worst[owner]))
    going = going[np.lexsort([-total[going], owner[going]])]
    sizes = np.bincount(owner[going], minlength=len(ended))
    rank = np.arange(len(going)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return going[rank < beams]
