"""Stored weights are the trained ones: what is read back from a run's folder is compared with what was saved there."""

import hashlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from . import run_folders
from .files import parse

FILE = "readback.json"
TOLERANCE = {"fp32": 1e-4, "bf16": 0.02, "fp16": 0.02}  # of the largest score
WEIGHT_KINDS = ("safetensors", "bin", "gguf")  # libraries read the first of them that is there


def fingerprint(tensor: torch.Tensor) -> str:
    """16 hex digits over a tensor's type, shape and bits."""
    flat = tensor.detach().cpu().contiguous().flatten()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """16 hex digits over a file's bytes, which are read again only if its size or time changes."""
    status = path.stat()
    return _file_digest(path.absolute(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=2**16)
def _file_digest(path: Path, size: int, time: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:  # hashlib.file_digest is not in Python 3.10
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:16]


def weight_digests(folder: Path) -> dict[str, str]:
    """The files of weights in a model's folder: path below it -> `file_digest`.

    Those of the modules that sentence-transformers lists in modules.json are among them, those of
    other folders inside are not.
    """
    modules = folder / "modules.json"
    listed = parse(modules.read_bytes()) if modules.is_file() else None
    inside = [
        one["path"]
        for one in (listed if isinstance(listed, list) else [])
        if isinstance(one, dict) and isinstance(one.get("path"), str)
    ]
    for kind in WEIGHT_KINDS:
        paths = {path for part in ("", *inside) for path in (folder / part).glob(f"*.{kind}")}
        if paths:
            return {
                path.relative_to(folder).as_posix(): file_digest(path) for path in sorted(paths)
            }
    return {}


def run_digests(folder: Path) -> dict[str, str]:
    """`weight_digests` of a run's folder, the weights of its language model among them."""
    backbone = weight_digests(folder / run_folders.BACKBONE)
    inside = {f"{run_folders.BACKBONE}/{name}": digest for name, digest in backbone.items()}
    return weight_digests(folder) | inside


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
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    scores: np.ndarray | None,
    precision: str,
    base: str | None = None,
) -> None:
    """To be called after weights are written.

    Parameters
    ----------
    tensors : everything that training changes and the folder stores, by name.
    scores : of `probe`; None where there are none that can be compared.
    base : `backbone.base_digest` of frozen weights that the folder names and does not store.
    """
    content = {
        "tensors": {name: fingerprint(tensor) for name, tensor in tensors.items()},
        "precision": precision,
        "scores": None if scores is None else scores.tolist(),
        "files": run_digests(folder),
        "base": base,
    }
    run_folders.write_json(folder / FILE, content)


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
    saved = _read(folder)
    if saved is None:
        return
    try:
        known, precision, scores = saved["tensors"], saved["precision"], saved["scores"]
        wrong = [
            name
            for name, digest in known.items()
            if name not in tensors or fingerprint(tensors[name]) != digest
        ]
        before = None if scores is None else np.array(scores, dtype=np.float64)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _damaged(folder) from None
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


def check_files(folder: Path, inside: str = "") -> None:
    """Compare the files of weights in a run's folder with those that were written there.

    This is for whoever begins with weights of another run, and may hold them under other names
    than that run did. A folder whose record does not tell of files is taken as it is.

    Parameters
    ----------
    inside : beginning of the paths, below `folder`, of the files that are read.

    Raises
    ------
    UserError : if a file is missing or differs in any bit.
    """
    files = (_read(folder) or {}).get("files")
    if files is None:
        return
    if not isinstance(files, dict):
        raise _damaged(folder)
    for name, digest in files.items():
        path = folder / name
        if name.startswith(inside) and not (path.is_file() and file_digest(path) == digest):
            raise UserError(
                f"{folder}: {name} is not what was trained and stored there, so that nothing can "
                f"start from it; remove {folder} and train that run again"
            )


def stored_base(folder: Path) -> str | None:
    """The `base` that `remember` was given for a run's folder; None where nothing tells of it."""
    return (_read(folder) or {}).get("base")


def _read(folder: Path) -> dict | None:
    path = folder / FILE
    if not path.is_file():
        return None
    saved = parse(path.read_bytes())
    if not isinstance(saved, dict):
        raise _damaged(folder)
    return saved


def _damaged(folder: Path) -> UserError:
    return UserError(f"{folder / FILE} is damaged; remove {folder} and run again")
