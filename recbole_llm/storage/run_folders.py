"""Run folders and the results file: their names, locks and contents, and how runs are found."""

import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from . import files
from .screen import say

if TYPE_CHECKING:
    from filelock import BaseFileLock

RUN, RESULTS, RANKS, TOP = "run.json", "results.jsonl", "{part}.ranks.npz", "{part}.top.npz"
TEXTS = "{part}.{key}.texts.jsonl.gz"
WEIGHTS = "model.safetensors"
# folder inside a run's folder that holds its language model
BACKBONE = "backbone"
# between a run's id and a step whose weights it has kept, in the name of their folder
KEPT = "@"
# pause between two attempts to get a lock
POLL_SECONDS = 0.1
# packages that results may depend on
PACKAGES = (
    "recbole",
    "torch",
    "transformers",
    "sentence-transformers",
    "numpy",
    "pandas",
    "bm25s",
)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically.

    Parameters
    ----------
    path : Path
        The file.
    content : mapping of str to object
        The object; values that JSON does not know are converted by `str`.
    """
    files.write_text(path, json.dumps(content, indent=1, default=str, ensure_ascii=False))


def ranked_again(folder: Path) -> str:
    """Tell the user how to restore lost ranks of a run.

    Parameters
    ----------
    folder : Path
        The run's folder.

    Returns
    -------
    str
        The end of an error message.
    """
    if kept_step(folder.name)[1] is not None:
        return (
            f"nothing has ranked the weights kept of a step; evaluate --checkpoint={folder.name} "
            "does, and compare takes its run"
        )
    if (folder / WEIGHTS).is_file():
        return f"--resume={folder} ranks again by the stored weights"
    return "give the command that wrote it again: it ranks again by the stored weights"


def kept_step(name: str) -> tuple[str, int | None]:
    """Split the name of a run into its id and the step whose weights it names, if any."""
    run, _, step = name.rpartition(KEPT)
    return (run, int(step)) if run and step.isdigit() else (name, None)


def find_run(name: str, saved: Path) -> Path:
    """Find the folder of a run.

    Parameters
    ----------
    name : str
        Its folder, its id or a unique prefix of its id; behind it `@STEP` for the weights that it
        has kept of a step.
    saved : Path
        The folder that contains the runs' folders.

    Returns
    -------
    Path
        The run's folder.

    Raises
    ------
    UserError
        If no run or more than one matches.
    """
    for folder in (Path(name), saved / name):
        if (folder / RUN).is_file():
            return folder
    existing = sorted(path.parent for path in saved.glob(f"*/{RUN}"))
    run, step = kept_step(name)
    matches = []
    for folder in existing:
        of_run, of_step = kept_step(folder.name)
        if of_run.startswith(run) and of_step == step:
            matches.append(folder)
    if len(matches) == 1:
        return matches[0]
    found = ", ".join(folder.name for folder in (matches or existing)[:5]) or "none"
    raise UserError(f"run {name!r}: expected a run folder or id below {saved}, found {found}")


def backbone_run(name: str, saved: Path) -> Path | None:
    """Find the run that a backbone comes from.

    Parameters
    ----------
    name : str
        Name of the backbone: `run:<id>`, a folder, or a model of the hub.
    saved : Path
        The folder that contains the runs' folders.

    Returns
    -------
    Path or None
        The run's folder; None if the backbone is not the one of a run.

    Raises
    ------
    UserError
        If `name` is `run:<id>` and there is no such run.
    """
    if name.startswith("run:"):
        return find_run(name.removeprefix("run:"), saved)
    folder = Path(name).expanduser().resolve()
    return folder.parent if folder.name == BACKBONE and (folder.parent / RUN).is_file() else None


def model_id(name: str, saved: Path) -> str:
    """Identify a language model independently of how it was named.

    Parameters
    ----------
    name : str
        Name of the backbone: `run:<id>`, a folder, or a model of the hub.
    saved : Path
        The folder that contains the runs' folders.

    Returns
    -------
    str
        `run:<id>` for the backbone of a run, a digest of the files of another folder, else `name`.
    """
    run = backbone_run(name, saved)
    if run:
        return f"run:{run.name}"
    folder = Path(name).expanduser()
    return fingerprint(folder) if folder.is_dir() else name


def fingerprint(folder: Path) -> str:
    """Hash the files of a model's folder.

    Parameters
    ----------
    folder : Path
        The folder.

    Returns
    -------
    str
        8 hex digits.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    states = tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths)
    return _fingerprint(folder, states)


@lru_cache
def _fingerprint(folder: Path, states: tuple[tuple[Path, int, int], ...]) -> str:
    """The hash of a folder; sizes and times in `states` are part of the cache's key only."""
    digest = hashlib.sha256()
    for path, _, _ in states:
        digest.update(path.relative_to(folder).as_posix().encode())
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()[:8]


def append_result(saved: Path, row: Mapping[str, Any]) -> None:
    """Append the row of a run to the results file; parallel runs may do so at the same time.

    Parameters
    ----------
    saved : Path
        The folder that contains the runs' folders.
    row : mapping of str to object
        The row.
    """
    files.append_line(saved / RESULTS, row)


def versions() -> dict[str, str]:
    """Collect the versions of everything that a result may depend on.

    Returns
    -------
    dict of str to str
        Name -> version; "absent" for a package that is not installed.
    """
    from .. import __version__

    result = {"python": platform.python_version(), "recbole_llm": __version__, "code": code()}
    return result | {package: _installed(package) for package in PACKAGES}


@lru_cache
def _installed(package: str) -> str:
    """The version of a package: a search through every folder of the import path."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


@lru_cache
def code() -> str:
    """Hash the source files of this package.

    Returns
    -------
    str
        8 hex digits.
    """
    digest = hashlib.sha256()
    folder = Path(__file__).parents[1]
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def check_writable(folder: Path, key: str = "checkpoint_dir") -> None:
    """Check that files can be written below a folder, without writing any.

    Parameters
    ----------
    folder : Path
        The folder, which need not exist.
    key : str
        The setting that names it, for the error message.

    Raises
    ------
    UserError
        If the closest existing parent is a file or is not writable.
    """
    candidates = (folder.absolute(), *folder.absolute().parents)
    existing = next(parent for parent in candidates if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"{key} {folder}: expected a folder to write to, but {existing} is "
            f"{'not writable' if existing.is_dir() else 'a file'}"
        )


@contextmanager
def locked(folder: Path, notify: Callable[[str], object] = say) -> Iterator[None]:
    """Create a run's folder and lock it, so that one process at a time writes to it.

    Temporary files of a killed process are removed.

    Parameters
    ----------
    folder : Path
        The run's folder.
    notify : callable
        Takes a line, if another process has the lock and this one waits.

    Raises
    ------
    UserError
        If the folder cannot be written.
    """
    from filelock import FileLock

    lock = FileLock(folder / ".lock")
    try:
        _acquire(lock, folder, notify)
    except OSError as error:
        raise UserError(f"checkpoint_dir: {folder} cannot be written ({error.strerror})") from None
    try:
        for path in folder.glob("*.tmp"):
            if path.is_file():
                path.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def _acquire(lock: "BaseFileLock", folder: Path, notify: Callable[[str], object]) -> None:
    from filelock import Timeout

    is_notified = False
    while not lock.is_locked:
        # in every attempt, because the process with the lock may fail and remove the folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except FileNotFoundError:
            continue
        except FileExistsError:  # a file, or a folder that was removed in this moment
            if folder.exists():
                raise
        except Timeout:
            if not is_notified:
                notify(f"another process works on {folder.name}: waiting for it")
            is_notified = True
            time.sleep(POLL_SECONDS)


def clear(folder: Path) -> None:
    """Remove the contents of a run's folder, except the lock, which the caller holds.

    Parameters
    ----------
    folder : Path
        The run's folder.
    """
    for path in folder.iterdir():
        if path.name == ".lock":
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def peak_memory(device: object = "cpu") -> float:
    """Measure the peak of the memory that this process has used so far.

    Parameters
    ----------
    device : torch.device or str
        Where the process computes: of a GPU, its memory is measured, and main memory otherwise.

    Returns
    -------
    float
        MiB.
    """
    if str(device).startswith("cuda"):
        import torch

        return round(torch.cuda.max_memory_allocated(str(device)) / 2**20, 1)
    # on Linux, getrusage includes the memory of the parent when it started this process
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 2**10, 1)
    if sys.platform == "win32":
        import psutil

        peak: float = psutil.Process().memory_info().peak_wset / 2**20
    else:
        import resource

        # bytes on macOS, KiB elsewhere
        units = 2**20 if sys.platform == "darwin" else 2**10
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units
    return round(peak, 1)
