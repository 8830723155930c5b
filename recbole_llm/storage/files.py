"""Atomic writing of files, and messages about disks that are full or refuse a file."""

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# a file or a folder of that name is in the way
OCCUPIED = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG, *OCCUPIED)


def storage_fault(error: BaseException | None) -> OSError | None:
    """Find the error of the disk behind an exception.

    Such an error is a full or read-only disk, or a file that must not be written. Libraries wrap
    it as the cause or the context of their own error, or mention it in their message only.

    Parameters
    ----------
    error : exception or None
        Any exception.

    Returns
    -------
    OSError or None
        An error with errno, strerror and filename (None if unknown); None if no disk is to blame.
    """
    is_direct = True
    while error is not None:
        if not isinstance(error, OSError):
            fault = _fault_in_text(str(error))
            if fault is not None:
                return fault
        # a refused file that a library handled before it failed otherwise is not to blame
        elif error.errno in FULL or (is_direct and error.errno in REFUSED and error.filename):
            return OSError(error.errno, os.strerror(error.errno), error.filename)
        is_direct = error.__cause__ is not None
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _fault_in_text(text: str) -> OSError | None:
    for code in (*FULL, errno.EROFS):
        reason = os.strerror(code)
        if reason in text:
            path = re.search(re.escape(reason) + r": '([^']+)'", text)
            return OSError(code, reason, path and path[1])
    return None


def fault_line(fault: OSError) -> str:
    """Describe an error of the disk in one line.

    Parameters
    ----------
    fault : OSError
        An error that `storage_fault` returned.

    Returns
    -------
    str
        Which file, why, and what to do.
    """
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
        folders = Path(fault.filename).absolute().parents
        existing = next(folder for folder in folders if folder.is_dir())
        with suppress(OSError):
            room = f", {shutil.disk_usage(existing).free / 2**20:.1f} MiB are free in {existing}"
    return (
        f"{path} cannot be written: {fault.strerror}{room}; free space there, or name a folder on "
        "another disk, and give the same command again: it goes on from what is stored"
    )


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make errors of the disk inside a block name a file.

    Parameters
    ----------
    path : Path
        The file that the block writes.

    Raises
    ------
    OSError
        With `path` as its filename, in place of an error of the disk that the block raises.
    """
    try:
        yield
    except Exception as error:
        fault = storage_fault(error)
        if fault is None:
            raise
        raise OSError(fault.errno, fault.strerror, str(path)) from error


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Replace a file by what a block writes, or leave it unchanged if the block fails.

    Parameters
    ----------
    path : Path
        The file.

    Yields
    ------
    Path
        A temporary path for the block to write to.

    Raises
    ------
    OSError
        With `path` as its filename, for a full disk and the like, whatever library has written.
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
    """Replace a folder by the one that a block writes, or leave it unchanged if the block fails.

    Parameters
    ----------
    folder : Path
        The folder.

    Yields
    ------
    Path
        A temporary path at which the block makes the new folder.

    Raises
    ------
    OSError
        With `folder` as its filename, for a full disk and the like.
    """
    temporary, old = (folder.with_name(folder.name + suffix) for suffix in (".tmp", ".old"))
    shutil.rmtree(temporary, ignore_errors=True)
    # a process that was killed between the two replacements leaves the old folder aside
    _restore(old, folder)
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
    """Put a folder that was moved aside back, or remove it if a new one has taken its place."""
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Parameters
    ----------
    path : Path
        The file, in UTF-8.
    text : str
        Its text; the file ends with one line end, whether the text does or not.
    """
    with atomically(path) as temporary:
        temporary.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def append(path: Path, content: bytes) -> None:
    """Append all of some bytes to a file or none of them, one process at a time.

    Parameters
    ----------
    path : Path
        The file, which need not exist.
    content : bytes
        What to append.

    Raises
    ------
    OSError
        With `path` as its filename, for a full disk and the like. The file is then unchanged.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    with naming(path), lock, open(path, "ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            remaining = memoryview(content)
            # a disk that becomes full may write a part only, without an error
            while remaining:
                remaining = remaining[file.write(remaining) :]
        except BaseException:
            file.truncate(size)
            raise


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Append a JSON object as a line.

    Parameters
    ----------
    path : Path
        The file. Its last line may lack its end, as when a process was killed.
    content : mapping of str to object
        The object; values that JSON does not know are converted by `str`.
    """
    line = json.dumps(content, default=str, ensure_ascii=False) + "\n"
    with suppress(FileNotFoundError), open(path, "rb") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line
    append(path, line.encode("utf-8", "surrogatepass"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON objects, one a line.

    Lines that hold no JSON object are skipped, with a warning that gives their numbers.

    Parameters
    ----------
    path : Path
        The file; it may be missing.

    Returns
    -------
    list of dict
        The objects.
    """
    if not path.is_file():
        return []
    objects, damaged = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        content = parse(line)
        if isinstance(content, dict):
            objects.append(content)
        else:
            damaged.append(number)
    if damaged:
        numbers = ", ".join(map(str, damaged[:5])) + (", …" if len(damaged) > 5 else "")
        logging.getLogger().warning(
            f"{path}, line {numbers}: expected a JSON object, found something else or a damaged "
            "line; passed over"
        )
    return objects


def parse(content: bytes) -> Any:
    """Parse JSON.

    Parameters
    ----------
    content : bytes
        A JSON document in UTF-8, or anything else.

    Returns
    -------
    object or None
        The value; None if `content` is no JSON.
    """
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        # json raises RecursionError for what is nested too deeply
        return None
