"""Files that are written whole or not at all, and what is said where a disk does not take them."""

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OCCUPIED = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR)  # by a file or a folder of that name
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG, *OCCUPIED)


def storage_fault(error: BaseException | None) -> OSError | None:
    """The disk's own error behind an exception: a full or read-only disk, or a file that must not be written.

    Libraries wrap it: as the cause or the context of their own error, or in its text alone.

    Returns
    -------
    OSError with errno, strerror and filename (None where nobody tells it); None if no disk is to blame.
    """
    direct = True
    while error is not None:
        if isinstance(error, OSError):
            # whoever handles a refused file and then fails at something else is not refused
            if error.errno in FULL or (direct and error.errno in REFUSED and error.filename):
                return OSError(error.errno, os.strerror(error.errno), error.filename)
        elif found := _in_text(str(error)):
            return found
        direct = error.__cause__ is not None
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _in_text(text: str) -> OSError | None:
    for code in (*FULL, errno.EROFS):
        reason = os.strerror(code)
        if reason in text:
            path = re.search(re.escape(reason) + r": '([^']+)'", text)
            return OSError(code, reason, path and path[1])
    return None


def fault_line(fault: OSError) -> str:
    """One line about an error of `storage_fault`: which file, why, and what to do."""
    path = str(fault.filename) if fault.filename else "a file"
    if fault.errno in OCCUPIED:
        return f"{path[:300]}: {fault.strerror}; remove or rename what is in its place"
    if fault.errno not in FULL:
        return (
            f"{path[:300]}: {fault.strerror}; let it be read and written, or name another one "
            "(checkpoint_dir is where runs are stored, data_path where datasets are)"
        )
    room = ""
    if fault.filename:
        there = next(
            folder for folder in Path(fault.filename).absolute().parents if folder.is_dir()
        )
        with suppress(OSError):
            room = f", {shutil.disk_usage(there).free / 2**20:.1f} MiB are free in {there}"
    return (
        f"{path} cannot be written: {fault.strerror}{room}; free space there, or name a folder on "
        "another disk, and give the same command again: it goes on from what is stored"
    )


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the disk that comes up inside is raised as an OSError that names `path`."""
    try:
        yield
    except Exception as error:
        fault = storage_fault(error)
        if fault is None:
            raise
        raise OSError(fault.errno, fault.strerror, str(path)) from error


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the block ends.

    Where the block fails, nothing of it is left and `path` is as it was. Raises OSError, naming `path`, for a full disk
    and the like, whatever library has written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """`atomically` for a folder: the block makes the one that it is given, with all that is in it."""
    temporary, old = (folder.with_name(folder.name + suffix) for suffix in (".tmp", ".old"))
    shutil.rmtree(temporary, ignore_errors=True)
    _restore(old, folder)  # of a process that was killed between the two
    try:
        with naming(folder):
            yield temporary
            if folder.exists():
                os.replace(folder, old)
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _restore(old, folder)


def _restore(old: Path, folder: Path) -> None:
    """Put back what was moved aside, or remove it where something new is in its place."""
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text that ends with one line end, atomically."""
    with atomically(path) as temporary:
        temporary.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def append(path: Path, content: bytes) -> None:
    """Append all of `content` or nothing, one process at a time.

    Raises OSError, naming `path`, for a full disk and the like; the file then ends where it did before.
    """
    with naming(path), FileLock(path.with_name(f".{path.name}.lock")):
        with open(path, "ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                left = memoryview(content)
                while left:  # a disk that becomes full takes a part, and says nothing
                    left = left[file.write(left) :]
            except BaseException:
                file.truncate(size)
                raise


def append_line(path: Path, content: dict) -> None:
    """Append a JSON object as a line of its own, even after one that a killed process left without its end."""
    line = json.dumps(content, default=str, ensure_ascii=False) + "\n"
    with suppress(FileNotFoundError), open(path, "rb") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line
    append(path, line.encode("utf-8", "surrogatepass"))


def read_lines(path: Path) -> list[dict]:
    """The JSON objects of a file of lines. Lines that are none are passed over, which a warning tells with their numbers."""
    if not path.is_file():
        return []
    found, damaged = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        content = parse(line)
        if isinstance(content, dict):
            found.append(content)
        else:
            damaged.append(number)
    if damaged:
        numbers = ", ".join(map(str, damaged[:5])) + (", …" if len(damaged) > 5 else "")
        logging.getLogger().warning(
            f"{path}, line {numbers}: expected a JSON object, found something else or a damaged "
            "line; passed over"
        )
    return found


def parse(content: bytes):
    """What some JSON says, None where it is none."""
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):  # RecursionError: nested too deep
        return None
