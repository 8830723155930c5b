"""Quasi-round-robin: one score per item from several scored texts (CALRec, section 3.5)."""

from collections import Counter
from collections.abc import Sequence

import numpy as np


def quasi_round_robin(
    columns: np.ndarray, logprobs: np.ndarray, epsilon: float = 1 / 5000
) -> np.ndarray:
    """Compute item scores from the BM25 scores of several generated texts.

    The scores of each text are scaled to [0, 1] and multiplied by exp(epsilon * s), where s is the
    log-probability of the text; an item gets the highest of its scores. The best item of each text
    scores about 1, so that the texts take turns in the order of their log-probabilities. A text
    whose scores are all equal says nothing, and its scores are scaled to 0.

    Parameters
    ----------
    columns : ndarray of float [texts, items]
        BM25 scores.
    logprobs : ndarray of float [texts]
        Log-probability of each text.
    epsilon : float
        Weight of the log-probabilities.

    Returns
    -------
    ndarray of float64 [items]
        Scores; zeros if there is no text.
    """
    if len(columns) == 0:
        return np.zeros(columns.shape[1])
    columns = columns.astype(np.float64)
    lowest = columns.min(axis=1, keepdims=True)
    span = columns.max(axis=1, keepdims=True) - lowest
    scaled = np.divide(columns - lowest, span, out=np.zeros_like(columns), where=span > 0)
    return (scaled * np.exp(epsilon * np.asarray(logprobs, np.float64))[:, None]).max(axis=0)


def distinct_texts(
    texts: Sequence[str], logprobs: np.ndarray
) -> tuple[list[str], list[float], list[int]]:
    """Find the distinct texts, most probable first.

    Parameters
    ----------
    texts : sequence of str
        Generated texts.
    logprobs : ndarray of float [texts]
        Their log-probabilities. Of equal texts the most probable one counts.

    Returns
    -------
    tuple of (list of str, list of float, list of int)
        The distinct texts, the log-probability of each, and how often it was generated.
    """
    order = np.argsort(-np.asarray(logprobs), kind="stable")
    best: dict[str, float] = {}
    for index in order:
        best.setdefault(texts[index], float(logprobs[index]))
    times = Counter(texts)
    return list(best), list(best.values()), [times[text] for text in best]
