"""A few scores of a model, cheap to compute, that tell its weights from others."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..contracts.cases import Cases
from .recbole_scorer import scorer_of

# number of cases, and of scores of each, that are stored with a run
CASES, COLUMNS = 8, 64


@contextmanager
def own_generators(device: torch.device) -> Iterator[None]:
    """Seed the random generators of Python, numpy and torch inside a block, and restore them.

    Parameters
    ----------
    device : torch.device
        Device whose generator is seeded beside that of the CPU.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    # torch would occupy memory of other GPUs to read their states, and warn
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@torch.no_grad()
def probe(model: Any, dataset: Any, cases: Cases) -> np.ndarray:
    """Compute `Scorer.probe` of a few cases in evaluation mode, with fixed seeds.

    It is cheaper than scores if these need generated texts or an encoded catalogue.

    Parameters
    ----------
    model : Scorer or recommender of RecBole
        The model, which is in its former mode afterwards.
    dataset : dataset of RecBole
        The data that it was built on.
    cases : Cases
        Cases, `CASES` for a stored run.

    Returns
    -------
    ndarray of float64, [n_cases, n_columns]
        At most `COLUMNS` numbers of each case, evenly spaced.
    """
    scorer = scorer_of(model, dataset)
    was_training = scorer.training
    scorer.eval()
    try:
        with own_generators(torch.device(scorer.device)):
            scores = scorer.probe(cases)
    finally:
        scorer.train(was_training)
    if isinstance(scores, torch.Tensor):
        scores = scores.float().cpu().numpy()
    rows: np.ndarray = np.asarray(scores, dtype=np.float64).reshape(len(cases), -1)
    columns = np.unique(np.linspace(0, rows.shape[1] - 1, COLUMNS).astype(int))
    return rows[:, columns]
