"""Append-only files in which a damaged byte costs one entry, and a cache of vectors in them."""

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
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock

from .files import append, atomically, parse

T = TypeVar("T")

# vectors that are computed before they are stored: the most that a killed process loses
BLOCK = 16384
# length of a name in bytes
NAME = 16
# key of the checksum in a line's record
SEAL = "checksum"
# the first bytes of every gzip member
MAGIC = b"\x1f\x8b\x08"
# what decoding an entry of another program or version may raise
FOREIGN = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)


def name_of(content: bytes) -> bytes:
    """Hash a content, to identify it.

    Parameters
    ----------
    content : bytes
        Any bytes.

    Returns
    -------
    bytes
        16 bytes.
    """
    return hashlib.sha256(content).digest()[:NAME]


def members(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Find the undamaged gzip members in some data, whatever lies between them.

    Parameters
    ----------
    data : bytes
        Contents of a file.

    Yields
    ------
    begin, end : int
        The member is data[begin:end].
    content : bytes
        Its decompressed content, which agrees with its checksum.
    """
    begin = data.find(MAGIC)
    while begin >= 0:
        content, end = _member(data, begin)
        if content is None:
            begin = data.find(MAGIC, begin + 1)
        else:
            yield begin, end, content
            begin = data.find(MAGIC, end)


def _member(data: bytes, begin: int) -> tuple[bytes | None, int]:
    """Content and end of the gzip member that begins at `begin`; None if it is damaged.

    The data are decompressed in pieces that end at the next magic number, which nearly always
    begins the next member: zlib copies what a call does not use, and would otherwise copy the rest
    of the file for each of its members.
    """
    decompressor, pieces, position = zlib.decompressobj(31), [], begin
    try:
        while not decompressor.eof and position < len(data):
            following = data.find(MAGIC, position + 1)
            following = len(data) if following < 0 else following
            pieces.append(decompressor.decompress(data[position:following]))
            position = following
    except zlib.error:
        return None, position
    if not decompressor.eof:
        return None, position
    return b"".join(pieces), position - len(decompressor.unused_data)


class Entries:
    """An append-only file of entries, each a gzip member with a checksum.

    A damaged byte costs the entry that contains it. Several processes may append to one file.

    Parameters
    ----------
    path : Path
        The file, which need not exist.
    level : int
        Level of compression, 0 to 9.
    """

    def __init__(self, path: Path, level: int = 6) -> None:
        self.path, self.level = path, level
        self.lock = FileLock(path.with_name(f".{path.name}.lock"))

    @property
    def size(self) -> int:
        """Bytes of the file, 0 if there is none."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def read(self, decode: Callable[[bytes], T]) -> list[T]:
        """Read all undamaged entries.

        A file with anything else in it is copied and then repaired, with a warning.

        Parameters
        ----------
        decode : callable
            Decodes an entry. If it raises one of `FOREIGN`, the entry counts as damaged.

        Returns
        -------
        list
            The decoded entries, in their order.
        """
        entries, is_damaged = self._read(decode)
        if is_damaged:
            try:
                # read again, because another process may have been writing its last entry
                with self.lock:
                    entries, is_damaged = self._read(decode, repair=True)
            except OSError as error:
                # the lock raises this in a folder that cannot be written
                logging.getLogger().warning(
                    f"{self.path} is damaged and cannot be mended ({error.strerror}): "
                    f"{len(entries)} whole entries are read"
                )
        return entries

    def append(self, entries: Iterable[bytes]) -> None:
        """Append entries, all of them or none.

        Parameters
        ----------
        entries : iterable of bytes
            The entries.
        """
        packed = b"".join(gzip.compress(entry, self.level, mtime=0) for entry in entries)
        append(self.path, packed)

    def _read(self, decode: Callable[[bytes], T], repair: bool = False) -> tuple[list[T], bool]:
        """The decoded entries, and whether the file contains anything else."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return [], False
        entries, intact = [], []
        for begin, end, content in members(data):
            try:
                entries.append(decode(content))
            except FOREIGN:
                continue
            intact.append(data[begin:end])
        is_damaged = sum(map(len, intact)) < len(data)
        if is_damaged and repair:
            self._repair(intact)
        return entries, is_damaged

    def _repair(self, intact: list[bytes]) -> None:
        """Replace the file by its undamaged members."""
        try:
            aside = keep_aside(self.path)
            with atomically(self.path) as temporary:
                temporary.write_bytes(b"".join(intact))
            outcome = f"the damaged file is kept as {aside.name}"
        except OSError as error:
            outcome = f"it cannot be mended ({error.strerror})"
        logging.getLogger().warning(
            f"{self.path} is damaged: {len(intact)} whole entries are read, the others are made "
            f"again; {outcome}"
        )


def keep_aside(path: Path) -> Path:
    """Copy a damaged file to `<name>.damaged`, or `<name>.damaged-2` and so on.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    Path
        The copy.
    """
    aside, number = path.with_name(f"{path.name}.damaged"), 2
    while aside.exists():
        aside = path.with_name(f"{path.name}.damaged-{number}")
        number += 1
    shutil.copyfile(path, aside)
    return aside


class Lines:
    """JSON objects in a compressed file of lines (`zcat FILE | less`), one entry each.

    Parameters
    ----------
    path : Path
        The file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.entries = Entries(path)

    @property
    def path(self) -> Path:
        """The file."""
        return self.entries.path

    @property
    def size(self) -> int:
        """Bytes of the file, 0 if there is none."""
        return self.entries.size

    def read(self, take: Callable[[dict[str, Any]], Any] = lambda line: line) -> list[Any]:
        """Read all undamaged objects; a damaged file is repaired, see `Entries.read`.

        Parameters
        ----------
        take : callable
            Converts an object. If it raises one of `FOREIGN`, the object counts as damaged.

        Returns
        -------
        list
            The converted objects, in their order.
        """

        # older files have several lines in an entry
        def decode(content: bytes) -> list[Any]:
            return [take(json.loads(line)) for line in content.decode().split("\n") if line]

        objects: list[Any] = []
        for entry in self.entries.read(decode):
            objects += entry
        return objects

    def append(self, objects: Iterable[Mapping[str, Any]]) -> None:
        """Append objects, all of them or none.

        Parameters
        ----------
        objects : iterable of mapping
            The objects.
        """
        lines = (json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in objects)
        self.entries.append(lines)


def sealed(record: dict[str, Any]) -> str:
    """Encode a record as a line of JSON with a checksum, for plain files of lines.

    Parameters
    ----------
    record : dict
        The record.

    Returns
    -------
    str
        The line, without its end.
    """
    return json.dumps(record | {SEAL: _seal(record)}, ensure_ascii=False)


def unsealed(line: str) -> dict[str, Any] | None:
    """Decode a line that `sealed` encoded.

    Parameters
    ----------
    line : str
        The line. Lines of older versions have no checksum.

    Returns
    -------
    dict or None
        The record; None if the line is damaged.
    """
    record = parse(line.encode("utf-8", "surrogatepass"))
    if not isinstance(record, dict):
        return None
    seal = record.pop(SEAL, None)
    return record if seal in (None, _seal(record)) else None


def _seal(record: dict[str, Any]) -> str:
    return name_of(json.dumps(record, sort_keys=True).encode()).hex()[:8]


class _Collected:
    """Vectors by the names of their contents, while some of them are still missing.

    Attributes
    ----------
    rows : dict of bytes to list of int
        Name of each missing vector -> its rows in `vectors`.
    vectors : ndarray of float32, [n_names, width]
        The vectors; [0, 0] until the first one is known, which tells the width.
    """

    def __init__(self, names: Sequence[bytes]) -> None:
        self.count = len(names)
        self.rows: dict[bytes, list[int]] = {}
        for index, name in enumerate(names):
            self.rows.setdefault(name, []).append(index)
        self.vectors = np.zeros((0, 0), dtype=np.float32)

    def add(self, vectors: Iterable[np.ndarray], names: Sequence[bytes]) -> None:
        """Add vectors; those that are known already are ignored.

        Two parts have the same vector if it was stored again because one of them is damaged.
        """
        for vector, name in zip(vectors, names, strict=True):
            if not self.vectors.size:
                self.vectors = np.zeros((self.count, len(vector)), dtype=np.float32)
            if name in self.rows:
                self.vectors[self.rows.pop(name)] = vector


def vectors(
    folder: Path, names: Sequence[bytes], compute: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Look up the vectors of contents in a folder, and compute and store those that are missing.

    A second process with the same folder waits, so that no vector is computed twice.

    Parameters
    ----------
    folder : Path
        The cache. Everything that determines the vector of a content must determine the folder.
    names : sequence of bytes
        `name_of` each content.
    compute : callable
        Takes indices into `names`, int64 [m], and returns vectors, float32 [m, width].

    Returns
    -------
    ndarray of float32, [n_names, width]
        The vectors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    collected = _Collected(names)
    with FileLock(folder / ".lock"):
        for path in sorted(folder.glob("*.npz")):
            collected.add(*_read_npz(path, collected.rows.keys()))
        for path in sorted(folder.glob("*.vectors.gz")):
            collected.add(*_read_vectors(path, collected.rows.keys()))
        missing = np.array([rows[0] for rows in collected.rows.values()], dtype=np.int64)
        for begin in range(0, len(missing), BLOCK):
            indices = missing[begin : begin + BLOCK]
            part_names = [names[index] for index in indices]
            part = compute(indices).astype(np.float32, copy=False)
            _write_vectors(folder, part_names, part)
            collected.add(part, part_names)
    return collected.vectors


def _read_vectors(path: Path, wanted: Container[bytes]) -> tuple[list[np.ndarray], list[bytes]]:
    """The wanted vectors in a part, and their names."""

    def decode(content: bytes) -> tuple[np.ndarray, bytes] | None:
        name = content[:NAME]
        return (np.frombuffer(content, "<f4", offset=NAME), name) if name in wanted else None

    pairs = [pair for pair in Entries(path).read(decode) if pair is not None]
    return [vector for vector, _ in pairs], [name for _, name in pairs]


def _write_vectors(folder: Path, names: Sequence[bytes], part: np.ndarray) -> None:
    """Store a part, all of it or nothing."""
    path = folder / f"{uuid.uuid4().hex}.vectors.gz"
    rows = part.astype("<f4", copy=False)
    with atomically(path) as temporary, open(temporary, "wb") as file:
        for name, row in zip(names, rows, strict=True):
            # level 0, because compression does not shorten floats
            file.write(gzip.compress(name + row.tobytes(), 0, mtime=0))


def _read_npz(
    path: Path, wanted: Container[bytes]
) -> tuple[Sequence[np.ndarray] | np.ndarray, list[bytes]]:
    """Like `_read_vectors`, for a part of an older version; a damaged one is renamed."""
    data = io.BytesIO(path.read_bytes())
    try:
        with np.load(data) as file:
            names = [name.tobytes() for name in file["names"]]
            rows = [row for row, name in enumerate(names) if name in wanted]
            return (file["vectors"][rows] if rows else []), [names[row] for row in rows]
    # readers of numpy and zip raise exceptions of many types
    except Exception as fault:
        aside = path.with_name(f"{path.name}.damaged")
        os.replace(path, aside)
        logging.getLogger().warning(
            f"{path} is damaged ({type(fault).__name__}): its vectors are computed again; "
            f"the damaged file is kept as {aside.name}"
        )
        return [], []
