"""What was computed once: vectors on disk, named by what they were computed from."""

import hashlib
import os
import uuid
import zipfile
from collections.abc import Callable, Container, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

BLOCK = 16384  # vectors computed before they are stored: what a killed process loses at most


def name_of(content: bytes) -> bytes:
    """16 bytes by which a content is known."""
    return hashlib.sha256(content).digest()[:16]


def vectors(folder: Path, names: Sequence[bytes], compute: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """float32 [n, width], computed where they are not stored in `folder` yet, and stored there.

    The folder stands for everything that decides a vector beside its content; another setting is another folder. Two
    processes never compute the same: the second waits.

    Parameters
    ----------
    names : `name_of` each content.
    compute : int64 [m] indices into names -> float32 [m, width].
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted: dict[bytes, list[int]] = {}
    for index, name in enumerate(names):
        wanted.setdefault(name, []).append(index)
    found = np.zeros((0, 0), dtype=np.float32)

    def put(part: np.ndarray, of: Sequence[bytes]) -> None:
        nonlocal found
        if not found.size:
            found = np.zeros((len(names), part.shape[1]), dtype=np.float32)
        for row, name in zip(part, of, strict=True):
            found[wanted.pop(name)] = row

    with FileLock(folder / ".lock"):
        for path in sorted(folder.glob("*.npz")):
            part, of = _read(path, wanted.keys())
            put(part, of)
        missing = np.array([indices[0] for indices in wanted.values()], dtype=np.int64)
        for begin in range(0, len(missing), BLOCK):
            of = [names[index] for index in missing[begin : begin + BLOCK]]
            part = compute(missing[begin : begin + BLOCK]).astype(np.float32, copy=False)
            _write(folder, of, part)
            put(part, of)
    return found


def _read(path: Path, wanted: Container[bytes]) -> tuple[np.ndarray, list[bytes]]:
    """What a part has of the wanted vectors, and their names. A damaged part is removed."""
    try:
        with np.load(path) as file:
            of = [name.tobytes() for name in file["names"]]
            rows = [row for row, name in enumerate(of) if name in wanted]
            return (file["vectors"][rows] if rows else np.zeros((0, 0), dtype=np.float32)), [of[row] for row in rows]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        path.unlink()
        return np.zeros((0, 0), dtype=np.float32), []


def _write(folder: Path, names: list[bytes], part: np.ndarray) -> None:
    path = folder / f"{uuid.uuid4().hex}.npz"
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        np.savez(file, names=np.frombuffer(b"".join(names), dtype=np.uint8).reshape(len(names), -1), vectors=part)
    os.replace(temporary, path)
