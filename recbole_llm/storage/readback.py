"""Checks that the weights read back from a run's folder are those that were saved there."""

import hashlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from . import run_folders
from .files import parse

FILE = "readback.json"
# largest difference of two scores by rounding, as a share of the largest score
TOLERANCE = {"fp32": 1e-4, "bf16": 0.02, "fp16": 0.02}
# suffixes of files with weights; libraries read those of the first kind that exists
WEIGHT_KINDS = ("safetensors", "bin", "gguf")


def fingerprint(tensor: torch.Tensor) -> str:
    """Hash a tensor's type, shape and bits.

    Parameters
    ----------
    tensor : Tensor
        The tensor.

    Returns
    -------
    str
        16 hex digits.
    """
    flat = tensor.detach().cpu().contiguous().flatten()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Hash a file, which is read again only if its size or time of modification changes.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    str
        16 hex digits.
    """
    status = path.stat()
    return _file_digest(path.absolute(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=2**16)
def _file_digest(path: Path, size: int, time: int) -> str:
    digest = hashlib.sha256()
    # hashlib.file_digest does not exist in Python 3.10
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:16]


def weight_digests(folder: Path) -> dict[str, str]:
    """Hash the files of weights in a model's folder.

    The modules that sentence-transformers lists in modules.json are included, other folders inside
    are not.

    Parameters
    ----------
    folder : Path
        The model's folder.

    Returns
    -------
    dict of str to str
        Path below `folder` -> `file_digest`.
    """
    parts = ["", *_listed_modules(folder)]
    for kind in WEIGHT_KINDS:
        paths: set[Path] = set()
        for part in parts:
            paths.update((folder / part).glob(f"*.{kind}"))
        if paths:
            names = {path: path.relative_to(folder).as_posix() for path in sorted(paths)}
            return {name: file_digest(path) for path, name in names.items()}
    return {}


def _listed_modules(folder: Path) -> list[str]:
    """The folders of the modules of a model of sentence-transformers; none for other models."""
    path = folder / "modules.json"
    modules = parse(path.read_bytes()) if path.is_file() else None
    if not isinstance(modules, list):
        return []
    paths = [module.get("path") for module in modules if isinstance(module, dict)]
    return [path for path in paths if isinstance(path, str)]


def run_digests(folder: Path) -> dict[str, str]:
    """Hash the files of weights in a run's folder, those of its language model included.

    Parameters
    ----------
    folder : Path
        The run's folder.

    Returns
    -------
    dict of str to str
        Path below `folder` -> `file_digest`.
    """
    backbone = weight_digests(folder / run_folders.BACKBONE)
    inside = {f"{run_folders.BACKBONE}/{name}": digest for name, digest in backbone.items()}
    return weight_digests(folder) | inside


def agree(first: np.ndarray, second: np.ndarray, precision: str) -> bool:
    """Compare two results of `probe`, which may differ by the order of summation.

    Parameters
    ----------
    first, second : ndarray of float
        Scores.
    precision : {"fp32", "bf16", "fp16"}
        Precision of the model.

    Returns
    -------
    bool
        Whether shapes are equal and scores differ by no more than rounding.
    """
    if first.shape != second.shape:
        return False
    finite = np.abs(first[np.isfinite(first)])
    scale = finite.max() if len(finite) else 0.0
    return np.allclose(first, second, rtol=0, atol=TOLERANCE[precision] * scale, equal_nan=True)


def forget(folder: Path) -> None:
    """Remove the record of the saved weights, before others are written.

    A process that is killed in between then leaves no record of weights that are gone.

    Parameters
    ----------
    folder : Path
        The run's folder.
    """
    (folder / FILE).unlink(missing_ok=True)


def remember(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    scores: np.ndarray | None,
    precision: str,
    base: str | None = None,
) -> None:
    """Record the weights that have been written.

    Parameters
    ----------
    folder : Path
        The run's folder.
    tensors : mapping of str to Tensor
        Name -> tensor, of everything that training changes and the folder stores.
    scores : ndarray of float or None
        Result of `probe`; None if scores cannot be compared.
    precision : {"fp32", "bf16", "fp16"}
        Precision of the model.
    base : str, optional
        Digest of frozen weights that the folder refers to without storing them, from
        `base_digest` of `language/backbones/sources.py`.
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
    """Compare a model that was read from a folder with the one that was saved there.

    A folder without a record (of an earlier version, or of a process that was killed while it
    saved) is accepted.

    Parameters
    ----------
    folder : Path
        The run's folder.
    tensors : mapping of str to Tensor
        Name -> tensor, of the model that was read. It may have tensors that were not saved.
    probe : callable, optional
        Returns the scores of the cases that were scored before saving; without it, only tensors
        are compared.

    Raises
    ------
    UserError
        If a tensor differs in any bit, scores differ by more than rounding, or the record is
        damaged.
    """
    record = _read(folder)
    if record is None:
        return
    try:
        digests, precision, scores = record["tensors"], record["precision"], record["scores"]
        differing = []
        for name, digest in digests.items():
            if name not in tensors or fingerprint(tensors[name]) != digest:
                differing.append(name)
        before = None if scores is None else np.array(scores, dtype=np.float64)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _damaged(folder) from None
    if differing:
        raise UserError(
            f"{folder}: what was read back is not what was trained: {len(differing)} of "
            f"{len(digests)} tensors differ, the first is {differing[0]}; remove {folder} and run "
            "again"
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

    This is for runs that start from the weights of another run, possibly under other names. A
    folder whose record lists no files is accepted.

    Parameters
    ----------
    folder : Path
        The folder of the run that was trained.
    inside : str
        Prefix of the paths, below `folder`, of the files to compare.

    Raises
    ------
    UserError
        If a file is missing or differs in any bit, or the record is damaged.
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
    """Read the digest of the frozen weights that a run's folder refers to.

    Parameters
    ----------
    folder : Path
        The run's folder.

    Returns
    -------
    str or None
        The `base` that `remember` recorded; None if there is none.

    Raises
    ------
    UserError
        If the record is damaged.
    """
    return (_read(folder) or {}).get("base")


def _read(folder: Path) -> dict[str, Any] | None:
    """The record of a run's folder; None if there is none."""
    path = folder / FILE
    if not path.is_file():
        return None
    record = parse(path.read_bytes())
    if not isinstance(record, dict):
        raise _damaged(folder)
    return record


def _damaged(folder: Path) -> UserError:
    return UserError(f"{folder / FILE} is damaged; remove {folder} and run again")
