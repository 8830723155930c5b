"""What was computed once: vectors on disk, named by what they were computed from, and lines of what was written."""

import gzip
import hashlib
import json
import logging
import uuid
import zipfile
import zlib
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

from .files import append, atomically

BLOCK = 16384  # vectors computed before they are stored: what a killed process loses at most


def name_of(content: bytes) -> bytes:
    """16 bytes by which a content is known."""
    return hashlib.sha256(content).digest()[:16]


def vectors(
    folder: Path, names: Sequence[bytes], compute: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
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
            return (file["vectors"][rows] if rows else np.zeros((0, 0), dtype=np.float32)), [
                of[row] for row in rows
            ]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        path.unlink()
        return np.zeros((0, 0), dtype=np.float32), []


def _write(folder: Path, names: list[bytes], part: np.ndarray) -> None:
    path = folder / f"{uuid.uuid4().hex}.npz"
    with atomically(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            names=np.frombuffer(b"".join(names), dtype=np.uint8).reshape(len(names), -1),
            vectors=part,
        )


class Lines:
    """JSON objects in a gzip file of lines (`zcat FILE | less`).

    Every batch is appended by one write, so that a killed process loses the batch it was at and processes may share a file.
    """

    def __init__(self, path: Path):
        self.path = path

    @property
    def size(self) -> int:
        """Bytes of the file, 0 where there is none."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def read(self, take: Callable[[dict], object] = lambda line: line) -> list:
        """What `take` makes of each object; from a damaged file, of those before the damage, and the file is mended."""
        lines, found = [], []
        try:
            with gzip.open(self.path, "rt", encoding="utf-8") as file:
                for line in file:
                    found.append(take(json.loads(line)))
                    lines.append(line)
        except FileNotFoundError:
            return []
        except (EOFError, KeyError, OSError, TypeError, ValueError, zlib.error) as fault:
            logging.getLogger().warning(
                f"{self.path} is damaged ({type(fault).__name__}): {len(lines)} lines of it are taken, the others written again"
            )
            with atomically(self.path) as temporary:
                temporary.write_bytes(gzip.compress("".join(lines).encode()))
        return found

    def append(self, objects: Iterable[dict]) -> None:
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects)
        append(self.path, gzip.compress(lines.encode()))
