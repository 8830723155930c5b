"""Run folders and the results file: what a run was, what it gave, and how it is found again."""

import hashlib
import json
import os
import platform
import shutil
import sys
import time
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..errors import UserError
from . import files
from .screen import say

RUN, RESULTS, RANKS, TOP = "run.json", "results.jsonl", "{part}.ranks.npz", "{part}.top.npz"
TEXTS = "{part}.{key}.texts.jsonl.gz"
WEIGHTS = "model.safetensors"
POLL_SECONDS = 0.1  # between two attempts to get a lock
BACKBONE = "backbone"  # the folder of a run with its language model


def write_json(path: Path, content: dict) -> None:
    files.write_text(path, json.dumps(content, indent=1, default=str, ensure_ascii=False))


def ranked_again(folder: Path) -> str:
    """What to type so that cases whose ranks in this folder are lost are ranked again."""
    if (folder / WEIGHTS).is_file():
        return f"--resume={folder} ranks again by the stored weights"
    return "give the command that wrote it again: it ranks again by the stored weights"


def find_run(name: str, saved: Path) -> Path:
    """A run by folder, id or unique beginning of its id."""
    for folder in (Path(name), saved / name):
        if (folder / RUN).is_file():
            return folder
    there = sorted(path.parent for path in saved.glob(f"*/{RUN}"))
    matches = [folder for folder in there if folder.name.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    found = ", ".join(folder.name for folder in (matches or there)[:5]) or "none"
    raise UserError(f"run {name!r}: expected a run folder or id below {saved}, found {found}")


def backbone_run(name: str, saved: Path) -> Path | None:
    """The run that a backbone's name means: `run:<id>`, or the folder in which a run keeps its backbone."""
    if name.startswith("run:"):
        return find_run(name.removeprefix("run:"), saved)
    folder = Path(name).expanduser().resolve()
    return folder.parent if folder.name == BACKBONE and (folder.parent / RUN).is_file() else None


def model_id(name: str, saved: Path) -> str:
    """A language model by what it is, however it was named: a run's id, the files of a folder, else its name."""
    run, folder = backbone_run(name, saved), Path(name).expanduser()
    return f"run:{run.name}" if run else fingerprint(folder) if folder.is_dir() else name


def fingerprint(folder: Path) -> str:
    """8 hex digits over the files of a model's folder."""
    return _fingerprint(
        folder,
        tuple(
            (path, path.stat().st_size, path.stat().st_mtime_ns)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ),
    )


@lru_cache
def _fingerprint(folder: Path, files: tuple) -> str:
    digest = hashlib.sha256()
    for path, *_ in files:
        digest.update(path.relative_to(folder).as_posix().encode())
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()[:8]


def append_result(saved: Path, row: dict) -> None:
    """Add the row of a run; rows of parallel runs never mix."""
    files.append_line(saved / RESULTS, row)


def versions() -> dict[str, str]:
    """Versions of what a number can depend on."""
    from .. import __version__

    found = {"python": platform.python_version(), "recbole_llm": __version__, "code": code()}
    for package in (
        "recbole",
        "torch",
        "transformers",
        "sentence-transformers",
        "numpy",
        "pandas",
        "bm25s",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


@lru_cache
def code() -> str:
    """8 hex digits over the sources of this package."""
    digest = hashlib.sha256()
    folder = Path(__file__).parents[1]
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def check_writable(folder: Path, key: str = "checkpoint_dir") -> None:
    """Raise UserError, naming the setting `key`, if nothing can be written below a folder that may not be there yet. Writes nothing."""
    there = next(
        parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists()
    )
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"{key} {folder}: expected a folder to write to, but {there} is "
            f"{'not writable' if there.is_dir() else 'a file'}"
        )


@contextmanager
def locked(folder: Path, waiting=say):
    """One process at a time writes to a run's folder, which is made; what a killed one left unfinished is removed."""
    from filelock import FileLock, Timeout

    lock, told = FileLock(folder / ".lock"), False
    try:
        while not lock.is_locked:
            # anew each time: whom we wait for may fail, and remove the folder
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except FileNotFoundError:
                continue
            except Timeout:
                if not told:
                    waiting(f"another process works on {folder.name}: waiting for it")
                told = True
                time.sleep(POLL_SECONDS)
    except OSError as error:
        raise UserError(f"checkpoint_dir: {folder} cannot be written ({error.strerror})") from None
    try:
        for path in folder.glob("*.tmp"):  # of a process that was killed
            if path.is_file():
                path.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def clear(folder: Path) -> None:
    """Remove what a run's folder holds, while it is locked."""
    for path in folder.iterdir():
        if path.name == ".lock":
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def peak_memory() -> float:
    """MiB of main memory: the most this process has held so far."""
    with suppress(
        OSError
    ):  # Linux: getrusage would count what the parent held when it started this process
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 2**10, 1)
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
            2**20 if sys.platform == "darwin" else 2**10
        )
    except ImportError:  # Windows
        import psutil

        peak = psutil.Process().memory_info().peak_wset / 2**20
    return round(peak, 1)
