"""Downloads: resumed where they were cut, checked before they count, never left half done."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

import requests
from filelock import FileLock

from ....errors import UserError
from ....storage.progress import progress
from .raw import Net, Remote, check_file

ATTEMPTS = 5
ATTEMPTS_WITHOUT_CONNECTION = 2  # if the host has never sent anything
WAIT = 1.0  # seconds before the second attempt, doubled for each further one
TIMEOUT = 30  # seconds
BLOCK = 2**16  # bytes that an interruption loses at most


class DownloadError(Exception):
    """An address from which the file could not be downloaded.

    Parameters
    ----------
    reason : str
        What happened.
    unreachable : bool
        Whether no connection to the host was possible.
    """

    def __init__(self, reason: str, unreachable: bool = False):
        super().__init__(reason)
        self.unreachable = unreachable


def download(url: str, remote: Remote, folder: Path, net: Net) -> Path:
    """Download a file, unless another process has done so in the meantime.

    Parameters
    ----------
    url : str
        Its address.
    remote : Remote
        The file, with its published checksums.
    folder : Path
        Where it is written. What an interrupted download has left there is continued.
    net : Net
        How to download.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    DownloadError
        If the address does not answer, or sends something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target, part = folder / remote.name, folder / f"{remote.name}.part"
    with FileLock(folder / f".{remote.name}.lock"):
        if target.is_file():
            return target
        _download_with_retries(url, remote.name, part, net)
        try:
            check_file(part, remote)
        except UserError as fault:
            _discard(part)
            raise DownloadError(str(fault)) from None
        os.replace(part, target)
        _discard(part)
    return target


def _download_with_retries(url: str, name: str, part: Path, net: Net) -> None:
    """Download into `part`; raise DownloadError after the last attempt."""
    wait = WAIT
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _resume(url, name, part, net)
            return
        except requests.RequestException as fault:
            unreachable = isinstance(fault, requests.ConnectionError)
            attempts = ATTEMPTS
            if unreachable and not part.is_file():
                attempts = ATTEMPTS_WITHOUT_CONNECTION
            if attempt == attempts:
                raise DownloadError(_reason(fault), unreachable) from None
            time.sleep(wait)
            wait *= 2


def _reason(fault: Exception) -> str:
    """A fault in words."""
    if isinstance(fault, requests.Timeout):
        return "no answer"
    if isinstance(fault, requests.ConnectionError):
        return "no connection"
    return str(fault) or type(fault).__name__


def _resume(url: str, name: str, part: Path, net: Net) -> None:
    """Append to a partial file what it lacks.

    The download begins anew if the server has another version now, or cannot tell versions apart.
    """
    notes = _read_notes(part)
    size, headers = 0, {"Accept-Encoding": "identity"}
    if notes.get("url") == url and notes["version"] and part.stat().st_size:
        size = part.stat().st_size
        headers |= {"Range": f"bytes={size}-", "If-Range": notes["version"]}
    proxies = {"http": net.proxy, "https": net.proxy} if net.proxy else None
    with requests.get(
        url, headers=headers, stream=True, timeout=TIMEOUT, proxies=proxies
    ) as answer:
        if answer.status_code == 416:  # the file is complete, or the notes are wrong
            if size == notes.get("total"):
                return
            _discard(part)
        _check_status(answer)
        size = _offset(answer, size)
        if answer.status_code == 206 and not size:
            _discard(part)
            raise requests.HTTPError("another part than was asked for")
        length = answer.headers.get("Content-Length")
        total = size + int(length) if length else None
        _write_notes(part, url, answer, total)
        with (
            open(part, "ab" if size else "wb") as file,
            progress(
                desc=name,
                total=total,
                initial=size,
                unit="B",
                unit_scale=True,
                disable=not net.show_progress,
            ) as bar,
        ):
            for block in answer.iter_content(BLOCK):
                file.write(block)
                bar.update(len(block))


def _check_status(answer: requests.Response) -> None:
    """Raise HTTPError for a status that may change, and DownloadError for one that will not."""
    if answer.status_code in (416, 429) or answer.status_code >= 500:
        raise requests.HTTPError(f"HTTP {answer.status_code}")
    if answer.status_code >= 400:
        raise DownloadError(f"HTTP {answer.status_code}")


def _offset(answer: requests.Response, size: int) -> int:
    """The place in the file where an answer's bytes belong: `size` if it continues, else 0."""
    sent = answer.headers.get("Content-Range", "")
    return size if answer.status_code == 206 and sent.startswith(f"bytes {size}-") else 0


def _notes_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_notes(part: Path) -> dict:
    """What is known of a partial file: url, version and total size; empty if nothing is."""
    if part.is_file():
        with suppress(OSError, ValueError):  # a killed process may have left half of them
            return json.loads(_notes_path(part).read_text())
    return {}


def _write_notes(part: Path, url: str, answer: requests.Response, total: int | None) -> None:
    """Note what a partial file is part of, so that another process can continue it."""
    version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
    if version and version.startswith("W/"):
        version = None  # a weak ETag does not promise equal bytes
    notes = {"url": url, "version": version or None, "total": total}
    _notes_path(part).write_text(json.dumps(notes))


def _discard(part: Path) -> None:
    """Remove a partial file and its notes."""
    part.unlink(missing_ok=True)
    _notes_path(part).unlink(missing_ok=True)
