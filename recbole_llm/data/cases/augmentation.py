"""Augmented views of a sequence: crop, reorder and drop.

They follow Xie et al., "Contrastive Learning for Sequential Recommendation", ICDE 2022.
"""

from collections.abc import Mapping

import numpy as np


def crop(items: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Keep a random contiguous part of a sequence.

    Parameters
    ----------
    items : ndarray, [n]
        The sequence.
    share : float
        Upper bound of the part's length, as a fraction of n.
    rng : Generator
        Source of randomness.

    Returns
    -------
    ndarray
        A view of between 1 and share · n items.
    """
    length = int(rng.integers(1, _at_most(share, items, 1) + 1))
    begin = int(rng.integers(len(items) - length + 1))
    return items[begin : begin + length]


def reorder(items: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Shuffle a random contiguous part of a sequence.

    Parameters
    ----------
    items : ndarray, [n]
        The sequence.
    share : float
        Upper bound of the part's length, as a fraction of n.
    rng : Generator
        Source of randomness.

    Returns
    -------
    ndarray, [n]
        A copy in which between 2 and share · n items are shuffled (all items, if n < 2).
    """
    length = min(len(items), int(rng.integers(2, _at_most(share, items, 2) + 1)))
    begin = int(rng.integers(len(items) - length + 1))
    shuffled = items.copy()
    shuffled[begin : begin + length] = rng.permutation(items[begin : begin + length])
    return shuffled


def drop(items: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Remove random items of a sequence.

    Parameters
    ----------
    items : ndarray, [n]
        The sequence.
    share : float
        Upper bound of the number of removed items, as a fraction of n.
    rng : Generator
        Source of randomness.

    Returns
    -------
    ndarray
        The other items in their order; at least one of them remains.
    """
    removed = min(len(items) - 1, int(rng.integers(1, _at_most(share, items, 1) + 1)))
    return items[np.sort(rng.permutation(len(items))[: len(items) - removed])]


def drop_words(text: str, share: float, rng: np.random.Generator) -> str:
    """Remove random words of a text (UniSRec, section 2.2).

    Parameters
    ----------
    text : str
        Words separated by white space.
    share : float
        Probability that a word is removed.
    rng : Generator
        Source of randomness.

    Returns
    -------
    str
        The remaining words; the first word, if none remains.
    """
    words = text.split()
    remaining = [word for word in words if rng.random() >= share]
    return " ".join(remaining or words[:1])


def augment(items: np.ndarray, shares: Mapping[str, float], rng: np.random.Generator) -> np.ndarray:
    """Apply one of `crop`, `reorder` and `drop`, chosen at random.

    Parameters
    ----------
    items : ndarray, [n]
        The sequence.
    shares : mapping of str to float
        The `share` of each of the three, by its name.
    rng : Generator
        Source of randomness.

    Returns
    -------
    ndarray
        The augmented sequence.
    """
    operation = (crop, reorder, drop)[int(rng.integers(3))]
    return operation(items, shares[operation.__name__], rng)


def _at_most(share: float, items: np.ndarray, least: int) -> int:
    """The product of `share` and the number of items, rounded down, but not below `least`."""
    return max(least, int(share * len(items)))
