"""Quasi-round-robin: several scored texts of one user into one score per item (CALRec, section 3.5)."""

from collections import Counter

import numpy as np


def quasi_round_robin(
    columns: np.ndarray, logprobs: np.ndarray, epsilon: float = 1 / 5000
) -> np.ndarray:
    """Item scores from the BM25 scores of several generated texts.

    Every column is scaled to [0, 1] and multiplied by exp(epsilon * s); an item gets its best column. Each
    text's best item scores about 1, so the texts take turns in the order of their log-probabilities s. A column
    whose scores are all equal says nothing and is scaled to 0.

    Parameters
    ----------
    columns : float [texts, items] BM25 scores.
    logprobs : float [texts] log-probability of each text.

    Returns
    -------
    float64 [items]; zeros if there is no text.
    """
    if len(columns) == 0:
        return np.zeros(columns.shape[1])
    columns = columns.astype(np.float64)
    low = columns.min(axis=1, keepdims=True)
    span = columns.max(axis=1, keepdims=True) - low
    scaled = np.divide(columns - low, span, out=np.zeros_like(columns), where=span > 0)
    return (scaled * np.exp(epsilon * np.asarray(logprobs, np.float64))[:, None]).max(axis=0)


def distinct_texts(
    texts: list[str], logprobs: np.ndarray
) -> tuple[list[str], list[float], list[int]]:
    """The distinct texts, most probable first, the log-probability of each and how often it is there; of equal texts the most probable one counts."""
    order = np.argsort(-np.asarray(logprobs), kind="stable")
    first: dict[str, float] = {}
    for index in order:
        first.setdefault(texts[index], float(logprobs[index]))
    times = Counter(texts)
    return list(first), list(first.values()), [times[text] for text in first]
