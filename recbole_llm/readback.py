"""Stored weights are the trained ones: what is read back from a run's folder is compared with what was saved there."""

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from . import store
from .data.splits import Cases
from .errors import UserError

FILE = "readback.json"
CASES, COLUMNS = 8, 64  # scores that are kept: little to compute, enough to tell other weights
TOLERANCE = {"fp32": 1e-4, "bf16": 0.02, "fp16": 0.02}  # of the largest score


def fingerprint(tensor: torch.Tensor) -> str:
    """16 hex digits over a tensor's type, shape and bits."""
    flat = tensor.detach().cpu().contiguous().flatten()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


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

    A model with a method `probe` (cases -> array [cases, ...]) answers by that, which is cheaper
    than its scores where these need texts to be written or a catalogue to be encoded.

    Returns
    -------
    float64 [cases, columns], at most COLUMNS of them, evenly drawn.
    """
    from .evaluation import loop

    training = model.training
    model.eval()
    try:
        with own_generators(torch.device(model.device)):
            if hasattr(model, "probe"):
                with model.autocast():
                    found = model.probe(cases)
            elif loop._scores_all(model):
                found = loop.catalogue_scores(model, dataset, cases)
            else:
                items = torch.arange(1, min(dataset.item_num, COLUMNS + 1))
                pairs = items.expand(len(cases), -1)
                found = loop._predict(model, dataset, dataset.case_batch(cases), pairs)
    finally:
        model.train(training)
    if torch.is_tensor(found):
        found = found.float().cpu().numpy()
    rows = np.asarray(found, dtype=np.float64).reshape(len(cases), -1)
    columns = np.unique(np.linspace(0, rows.shape[1] - 1, COLUMNS).astype(int))
    return rows[:, columns]


def agree(first: np.ndarray, second: np.ndarray, precision: str) -> bool:
    """Whether two answers of `probe` are the same but for the order of sums."""
    if first.shape != second.shape:
        return False
    finite = np.abs(first[np.isfinite(first)])
    scale = finite.max() if len(finite) else 0.0
    return np.allclose(first, second, rtol=0, atol=TOLERANCE[precision] * scale, equal_nan=True)


def forget(folder: Path) -> None:
    """To be called before weights are written: half of two savings is no saving."""
    (folder / FILE).unlink(missing_ok=True)


def remember(
    folder: Path, tensors: Mapping[str, torch.Tensor], scores: np.ndarray | None, precision: str
) -> None:
    """To be called after weights are written.

    Parameters
    ----------
    tensors : everything that training changes and the folder stores, by name.
    scores : of `probe`; None where there are none that can be compared.
    """
    content = {
        "tensors": {name: fingerprint(tensor) for name, tensor in tensors.items()},
        "precision": precision,
        "scores": None if scores is None else scores.tolist(),
    }
    store.write_json(folder / FILE, content)


def check(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    probe: Callable[[], np.ndarray] | None = None,
) -> None:
    """Compare a model that has been read from a folder with the one that was saved there.

    A folder without the file (of an earlier version, or of a process that was killed while it
    saved) is taken as it is.

    Parameters
    ----------
    tensors : what the model holds now, by name; more than was saved is no fault.
    probe : gives the scores of the same cases as at the saving; None compares tensors alone.

    Raises
    ------
    UserError : if a tensor differs in any bit, or the scores differ by more than rounding.
    """
    path = folder / FILE
    if not path.is_file():
        return
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        known, precision, scores = saved["tensors"], saved["precision"], saved["scores"]
        wrong = [
            name
            for name, digest in known.items()
            if name not in tensors or fingerprint(tensors[name]) != digest
        ]
        before = None if scores is None else np.array(scores, dtype=np.float64)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged; remove {folder} and run again") from None
    if wrong:
        raise UserError(
            f"{folder}: what was read back is not what was trained: {len(wrong)} of {len(known)} "
            f"tensors differ, the first is {wrong[0]}; remove {folder} and run again"
        )
    if probe is None or before is None:
        return
    now = probe()
    if not agree(before, now, precision):
        raise UserError(
            f"{folder}: the weights that were read back score otherwise than those that were "
            f"saved ({before.flat[0]:.6g} became {now.flat[0]:.6g}), so that something the scores "
            f"depend on was changed or not stored; remove {folder} and run again"
        )
