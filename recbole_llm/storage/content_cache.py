"""Stores on disk that lose no more than what is damaged: entries in gzip members, and vectors in such files."""

import gzip
import hashlib
import io
import json
import logging
import os
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

from .files import append, atomically, parse

BLOCK = 16384  # vectors computed before they are stored: what a killed process loses at most
NAME = 16  # bytes of a name
SEAL = "checksum"  # of a line's record, beside its other values
MAGIC = b"\x1f\x8b\x08"  # with which every gzip member begins
FOREIGN = (  # what decoding an entry of another program, or of another version, may raise
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)


def name_of(content: bytes) -> bytes:
    """16 bytes by which a content is known."""
    return hashlib.sha256(content).digest()[:NAME]


def members(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Whole gzip members in `data`, by their checksums, whatever lies between them.

    Yields
    ------
    (begin, end, content) : where in `data` the member lies, and what is packed in it.
    """
    begin = data.find(MAGIC)
    while begin >= 0:
        unpack, content, at = zlib.decompressobj(31), [], begin
        try:
            # In pieces up to the next magic, which nearly always is the next member: what one call
            # does not use is copied, and a file would be copied once for each of its members.
            while not unpack.eof and at < len(data):
                following = data.find(MAGIC, at + 1)
                following = len(data) if following < 0 else following
                content.append(unpack.decompress(data[at:following]))
                at = following
        except zlib.error:
            pass
        if unpack.eof:
            end = at - len(unpack.unused_data)
            yield begin, end, b"".join(content)
            begin = data.find(MAGIC, end)
        else:
            begin = data.find(MAGIC, begin + 1)


class Entries:
    """An append-only file of entries, each a gzip member with the checksum that gzip gives it.

    A damaged byte costs the entry that it hits. Processes may append to the same file.

    Parameters
    ----------
    path : the file, which need not be there yet.
    level : of compression, 0 to 9.
    """

    def __init__(self, path: Path, level: int = 6):
        self.path, self.level = path, level
        self.lock = FileLock(path.with_name(f".{path.name}.lock"))

    @property
    def size(self) -> int:
        """Bytes of the file, 0 where there is none."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def read(self, decode: Callable[[bytes], object]) -> list:
        """What `decode` makes of each entry that is whole, in their order.

        A file with anything else in it is kept as a copy beside it, and mended; the log says so.
        """
        found, damaged = self._read(decode)
        if damaged:
            try:
                with self.lock:  # another process may have been at its last entry
                    found, damaged = self._read(decode, mend=True)
            except OSError as error:  # of the lock, in a folder that cannot be written
                logging.getLogger().warning(
                    f"{self.path} is damaged and cannot be mended ({error.strerror}): {len(found)} "
                    "whole entries are read"
                )
        return found

    def append(self, entries: Iterable[bytes]) -> None:
        """Add entries by one write."""
        packed = b"".join(gzip.compress(entry, self.level, mtime=0) for entry in entries)
        append(self.path, packed)

    def _read(self, decode, mend: bool = False) -> tuple[list, bool]:
        """(decoded entries, whether the file holds anything else)."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return [], False
        found, whole = [], []
        for begin, end, content in members(data):
            try:
                found.append(decode(content))
            except FOREIGN:
                continue
            whole.append((begin, end))
        damaged = sum(end - begin for begin, end in whole) < len(data)
        if damaged and mend:
            self._mend(b"".join(data[begin:end] for begin, end in whole), len(whole))
        return found, damaged

    def _mend(self, content: bytes, count: int) -> None:
        try:
            aside = keep_aside(self.path)
            with atomically(self.path) as temporary:
                temporary.write_bytes(content)
            told = f"the damaged file is kept as {aside.name}"
        except OSError as error:
            told = f"it cannot be mended ({error.strerror})"
        logging.getLogger().warning(
            f"{self.path} is damaged: {count} whole entries are read, the others are made again; "
            f"{told}"
        )


def keep_aside(path: Path) -> Path:
    """Copy a damaged file to `<name>.damaged`, or `<name>.damaged-2` and so on; returns the copy."""
    aside, number = path.with_name(f"{path.name}.damaged"), 2
    while aside.exists():
        aside = path.with_name(f"{path.name}.damaged-{number}")
        number += 1
    shutil.copyfile(path, aside)
    return aside


class Lines:
    """JSON objects in a gzip file of lines (`zcat FILE | less`), each an entry of its own."""

    def __init__(self, path: Path):
        self.entries = Entries(path)

    @property
    def path(self) -> Path:
        return self.entries.path

    @property
    def size(self) -> int:
        """Bytes of the file, 0 where there is none."""
        return self.entries.size

    def read(self, take: Callable[[dict], object] = lambda line: line) -> list:
        """What `take` makes of each object; of a damaged file, see `Entries.read`."""

        def decode(content: bytes) -> list:  # older files have several lines in an entry
            return [take(json.loads(line)) for line in content.decode().split("\n") if line]

        return [one for entry in self.entries.read(decode) for one in entry]

    def append(self, objects: Iterable[dict]) -> None:
        self.entries.append(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in objects)


def sealed(record: dict) -> str:
    """A line of JSON with a checksum, for a file of lines that people read as it is."""
    return json.dumps(record | {SEAL: _seal(record)}, ensure_ascii=False)


def unsealed(line: str) -> dict | None:
    """The record of a line that `sealed` wrote, or that has no checksum; None if it is damaged."""
    record = parse(line.encode("utf-8", "surrogatepass"))
    if not isinstance(record, dict):
        return None
    seal = record.pop(SEAL, None)
    return record if seal in (None, _seal(record)) else None


def _seal(record: dict) -> str:
    return name_of(json.dumps(record, sort_keys=True).encode()).hex()[:8]


def vectors(
    folder: Path, names: Sequence[bytes], compute: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """float32 [n, width], computed where they are not stored in `folder` yet, and stored there.

    The folder stands for everything that decides a vector beside its content; another setting is
    another folder. Two processes never compute the same: the second waits.

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

    def put(part: Iterable[np.ndarray], of: Sequence[bytes]) -> None:
        nonlocal found
        for row, name in zip(part, of, strict=True):
            if not found.size:
                found = np.zeros((len(names), len(row)), dtype=np.float32)
            if name in wanted:  # which a damaged part may have left to be stored a second time
                found[wanted.pop(name)] = row

    with FileLock(folder / ".lock"):
        for path in sorted(folder.glob("*.npz")):
            put(*_read_npz(path, wanted.keys()))
        for path in sorted(folder.glob("*.vectors.gz")):
            put(*_read_vectors(path, wanted.keys()))
        missing = np.array([indices[0] for indices in wanted.values()], dtype=np.int64)
        for begin in range(0, len(missing), BLOCK):
            of = [names[index] for index in missing[begin : begin + BLOCK]]
            part = compute(missing[begin : begin + BLOCK]).astype(np.float32, copy=False)
            _write_vectors(folder, of, part)
            put(part, of)
    return found


def _read_vectors(path: Path, wanted: Container[bytes]) -> tuple[list[np.ndarray], list[bytes]]:
    """Those of the wanted vectors that a part has, and their names."""

    def decode(content: bytes) -> tuple[np.ndarray, bytes] | None:
        name = content[:NAME]
        return (np.frombuffer(content, "<f4", offset=NAME), name) if name in wanted else None

    found = [one for one in Entries(path).read(decode) if one is not None]
    return [vector for vector, _ in found], [name for _, name in found]


def _write_vectors(folder: Path, names: list[bytes], part: np.ndarray) -> None:
    """Store a part, which appears whole or not at all."""
    path = folder / f"{uuid.uuid4().hex}.vectors.gz"
    rows = part.astype("<f4", copy=False)
    with atomically(path) as temporary, open(temporary, "wb") as file:
        for name, row in zip(names, rows, strict=True):  # floats do not get shorter: level 0
            file.write(gzip.compress(name + row.tobytes(), 0, mtime=0))


def _read_npz(path: Path, wanted: Container[bytes]) -> tuple[np.ndarray, list[bytes]]:
    """As `_read_vectors`, of a part that an older version has stored; a damaged one is set aside."""
    nothing, data = np.zeros((0, 0), dtype=np.float32), io.BytesIO(path.read_bytes())
    try:
        with np.load(data) as file:
            of = [name.tobytes() for name in file["names"]]
            rows = [row for row, name in enumerate(of) if name in wanted]
            return (file["vectors"][rows] if rows else nothing), [of[row] for row in rows]
    except Exception as fault:  # whatever numpy's and zip's readers raise
        os.replace(path, aside := path.with_name(f"{path.name}.damaged"))
        logging.getLogger().warning(
            f"{path} is damaged ({type(fault).__name__}): its vectors are computed again; "
            f"the damaged file is kept as {aside.name}"
        )
        return nothing, []
