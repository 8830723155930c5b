"""What was computed once: vectors on disk, named by what they were computed from."""

import hashlib
import os
import uuid
import zipfile
from collections.abc import Callable, Sequence
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
    with FileLock(folder / ".lock"):
        stored, rows = _read(folder)
        missing = np.array(list({name: index for index, name in enumerate(names) if name not in rows}.values()), dtype=np.int64)
        for begin in range(0, len(missing), BLOCK):
            chosen = missing[begin : begin + BLOCK]
            part = compute(chosen).astype(np.float32, copy=False)
            _write(folder, [names[index] for index in chosen], part)
            rows |= {names[index]: len(rows) + number for number, index in enumerate(chosen)}
            stored.append(part)
    return np.concatenate(stored)[[rows[name] for name in names]]


def _read(folder: Path) -> tuple[list[np.ndarray], dict[bytes, int]]:
    """Stored parts, and name -> row of all of them together. A damaged part is removed."""
    stored, rows = [], {}
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path) as file:
                names, part = file["names"], file["vectors"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            path.unlink()
            continue
        first = sum(map(len, stored))
        rows |= {name.tobytes(): first + number for number, name in enumerate(names)}
        stored.append(part)
    return stored, rows


def _write(folder: Path, names: list[bytes], part: np.ndarray) -> None:
    path = folder / f"{uuid.uuid4().hex}.npz"
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        np.savez(file, names=np.frombuffer(b"".join(names), dtype=np.uint8).reshape(len(names), -1), vectors=part)
    os.replace(temporary, path)
