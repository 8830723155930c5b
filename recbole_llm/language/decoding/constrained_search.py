"""Decoding constrained to the catalogue: every generation is an item, with its exact log-probability."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .shared_prompts import decoding, prefill


class Catalogue:
    """Token sequences as a prefix tree, held as sorted rows: the sequences that begin alike stand together.

    A node is a range of rows and a depth; `starts[depth]` says where the nodes of depth + 1 begin.

    Parameters
    ----------
    sequences : int64 arrays, none a beginning of another (all end with the end token). Equal ones are reached together.
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
        return self.tokens.shape[1]

    def children(
        self, depth: int, low: np.ndarray, high: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of the nodes (low, high) at a depth: (index of the node, token, low, high) of every child."""
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
    """The sequences a search reached for one prompt, best first, with their exact log-probabilities."""

    sequences: np.ndarray  # int64 [reached]
    logprobs: np.ndarray  # float64 [reached]


@torch.no_grad()
def search(
    backbone, prompts: Sequence[np.ndarray], catalogue: Catalogue, beams: int, budget: int = 8192
) -> list[SearchResult]:
    """Beam search over the catalogue: the `beams` most probable sequences of every prompt, exactly where beams suffice.

    A beam that cannot reach the best `beams` ended ones any more is given up: log-probabilities only fall.
    budget : most prompt tokens per pass. Raises FloatingPointError where the logits are no numbers.
    """
    tokenizer, end, count = backbone.tokenizer, backbone.tokenizer.eos_token_id, len(prompts)
    cache, last = prefill(backbone.model, prompts, tokenizer.pad_token_id, catalogue.depth, budget)
    logits = backbone.logits(last)
    prompt = slot = np.arange(count)
    low, high, score = (
        np.zeros(count, dtype=np.int64),
        np.full(count, len(catalogue.tokens)),
        np.zeros(count),
    )
    ended = [(np.zeros(0, dtype=np.int64), np.zeros(0)) for _ in range(count)]
    with decoding(backbone.model, cache) as read:
        for depth in range(catalogue.depth):
            node, token, begin, close = catalogue.children(depth, low, high)
            logprob = logits.float().log_softmax(dim=-1)
            place = (torch.from_numpy(index).to(logits.device) for index in (slot[node], token))
            total = score[node] + logprob[tuple(place)].double().cpu().numpy()
            done, owner = token == end, prompt[node]
            for one in np.unique(owner[done]):
                mine = np.flatnonzero(done & (owner == one))
                rows = np.concatenate([catalogue.order[begin[leaf] : close[leaf]] for leaf in mine])
                _keep(ended, one, rows, np.repeat(total[mine], close[mine] - begin[mine]), beams)
            worst = np.array(
                [logprobs[-1] if len(logprobs) == beams else -np.inf for _, logprobs in ended]
            )
            open_ = np.flatnonzero(~done & (total > worst[owner]))
            open_ = open_[np.lexsort([-total[open_], owner[open_]])]
            sizes = np.bincount(owner[open_], minlength=count)
            open_ = open_[
                np.arange(len(open_)) - np.repeat(np.cumsum(sizes) - sizes, sizes) < beams
            ]
            if not len(open_):
                break
            prompt, parent, token, low, high, score = (
                array[open_] for array in (owner, slot[node], token, begin, close, total)
            )
            slot = cache.advance(parent)
            logits = backbone.logits(read(slot, token))
    if not all(len(sequences) for sequences, _ in ended):
        raise FloatingPointError("logits: NaN, so that a search reaches nothing")
    return [SearchResult(*found) for found in ended]


def _keep(ended: list, number: int, sequences: np.ndarray, totals: np.ndarray, beams: int) -> None:
    sequences, totals = (
        np.concatenate(pair) for pair in zip(ended[number], (sequences, totals), strict=True)
    )
    best = np.argsort(-totals, kind="stable")[:beams]
    ended[number] = (sequences[best], totals[best])
