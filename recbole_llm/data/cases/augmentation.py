"""Augmented views of a sequence: crop, reorder, drop (Xie et al., "Contrastive Learning for Sequential Recommendation", ICDE 2022)."""

import numpy as np


def crop(items: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A contiguous part of 1 to share · n items."""
    length = rng.integers(1, max(1, int(share * len(items))) + 1)
    begin = rng.integers(len(items) - length + 1)
    return items[begin : begin + length]


def reorder(items: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A contiguous part of 2 to share · n items is shuffled, as far as there are so many."""
    length = min(len(items), rng.integers(2, max(2, int(share * len(items))) + 1))
    begin = rng.integers(len(items) - length + 1)
    shuffled = items.copy()
    shuffled[begin : begin + length] = rng.permutation(items[begin : begin + length])
    return shuffled


def drop(items: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """1 to share · n items are left out, and one at least stays."""
    out = min(len(items) - 1, rng.integers(1, max(1, int(share * len(items))) + 1))
    return items[np.sort(rng.permutation(len(items))[: len(items) - out])]


def drop_words(text: str, share: float, rng: np.random.Generator) -> str:
    """Each word is left out with this chance, and one at least stays (UniSRec, section 2.2)."""
    return " ".join([word for word in text.split() if rng.random() >= share] or text.split()[:1])


def augment(items: np.ndarray, shares: dict[str, float], rng: np.random.Generator) -> np.ndarray:
    """One of the three, drawn at random; shares : `crop`, `reorder` and `drop` with their shares of a sequence's items."""
    return (crop, reorder, drop)[kind := rng.integers(3)](
        items, shares[("crop", "reorder", "drop")[kind]], rng
    )
