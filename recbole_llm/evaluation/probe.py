"""What a model scores a few cases by: little to compute, and enough to tell other weights."""

import random
from contextlib import contextmanager

import numpy as np
import torch

from ..contracts.cases import Cases
from .recbole_scorer import scorer_of

CASES, COLUMNS = 8, 64  # scores that are kept of a run


@contextmanager
def own_generators(device: torch.device):
    """Within it, random numbers on the CPU and a device are those of a fixed seed.

    Outside of it, nothing has been drawn.
    """
    python, numpy = random.getstate(), np.random.get_state()
    # of other GPUs, torch would occupy memory to ask for their state, and warn
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@torch.no_grad()
def probe(model, dataset, cases: Cases) -> np.ndarray:
    """What a model scores a few cases by.

    See `Scorer.probe`, which is cheaper than scores where these need texts to be written or a
    catalogue to be encoded.

    Returns
    -------
    float64 [cases, columns], at most COLUMNS of them, evenly drawn.
    """
    scorer = scorer_of(model, dataset)
    training = scorer.training
    scorer.eval()
    try:
        with own_generators(torch.device(scorer.device)):
            found = scorer.probe(cases)
    finally:
        scorer.train(training)
    if torch.is_tensor(found):
        found = found.float().cpu().numpy()
    rows = np.asarray(found, dtype=np.float64).reshape(len(cases), -1)
    columns = np.unique(np.linspace(0, rows.shape[1] - 1, COLUMNS).astype(int))
    return rows[:, columns]
