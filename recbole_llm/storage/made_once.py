"""Folders that are made once for many processes, and by one of them at a time."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from .files import naming


def make_once(
    target: Path, is_whole: Callable[[Path], bool], build: Callable[[Path], None], content: str
) -> None:
    """Make a folder, unless it is there.

    A killed process leaves nothing behind that is taken for the folder. What it leaves is removed
    by the next one that makes a folder beside it.

    Parameters
    ----------
    target : Path
        The folder.
    is_whole : callable
        Whether a folder is what it should be.
    build : callable
        Writes the content into an empty folder.
    content : str
        What the folder holds, for the log.
    """
    if is_whole(target):
        return
    log = logging.getLogger()
    with naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(target.parent, target.name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info(f"another process makes {target} ({content}): waiting for it")
            lock.acquire()
        try:
            if not is_whole(target):
                _remove_leftovers(target)
                _make(target, build)
                size = sum(path.stat().st_size for path in target.iterdir())
                log.info(f"{content} ({size / 2**20:.1f} MiB) is in {target}, which may be deleted")
        finally:
            lock.release()


def _lock(folder: Path, name: str) -> FileLock:
    return FileLock(folder / f".{name}.lock")


def _make(target: Path, build: Callable[[Path], None]) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        partial.mkdir()
        build(partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_leftovers(target: Path) -> None:
    """Remove what killed processes have left of any folder beside this one, whose lock is held."""
    for left in target.parent.glob(".*.tmp"):
        name = left.name.split(".")[1]
        if name == target.name:
            shutil.rmtree(left, ignore_errors=True)
            continue
        lock = _lock(target.parent, name)
        try:
            lock.acquire(timeout=0)
        except Timeout:  # it is being made
            continue
        shutil.rmtree(left, ignore_errors=True)
        lock.release()
