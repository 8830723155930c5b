"""Quasi-round-robin: several scored texts of one user into one score per item (CALRec, section 3.4)."""

import numpy as np


def quasi_round_robin(columns: np.ndarray, logprobs: np.ndarray, epsilon: float = 1 / 5000) -> np.ndarray:
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


def keep_best(texts: list[str], logprobs: np.ndarray, count: int) -> tuple[list[str], np.ndarray]:
    """The `count` most probable distinct texts, best first; of equal texts the most probable stays."""
    order = np.argsort(-np.asarray(logprobs), kind="stable")
    first = list(dict.fromkeys(texts[index] for index in order))[:count]
    best = {texts[index]: logprobs[index] for index in order[::-1]}
    return first, np.array([best[text] for text in first])
