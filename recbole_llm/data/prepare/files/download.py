"""Files from the net: resumed where a download was cut, checked before they count, and never half there."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

import requests
from filelock import FileLock

from ....errors import UserError
from ....storage.progress import progress
from .raw import Net, Remote, check

ATTEMPTS, WAIT, TIMEOUT, BLOCK = (
    5,
    1.0,
    30,
    2**16,
)  # tries, seconds before the second one (doubled each time), seconds, bytes lost by a cut


class Failed(Exception):
    """An address that did not give the file. unreachable : nothing answers there."""

    def __init__(self, reason: str, unreachable: bool = False):
        super().__init__(reason)
        self.unreachable = unreachable


def download(url: str, remote: Remote, folder: Path, net: Net) -> Path:
    """The file in `folder`, where another process may have put it by now. Raises Failed."""
    folder.mkdir(parents=True, exist_ok=True)
    target, part = folder / remote.name, folder / f"{remote.name}.part"
    with FileLock(folder / f".{remote.name}.lock"):
        if target.is_file():
            return target
        wait = WAIT
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _continue(url, remote.name, part, net)
                break
            except requests.RequestException as fault:
                unreachable = isinstance(fault, requests.ConnectionError)
                if attempt == (
                    2 if unreachable and not part.is_file() else ATTEMPTS
                ):  # 2: nothing ever came from there
                    raise Failed(_reason(fault), unreachable) from None
                time.sleep(wait)
                wait *= 2
        try:
            check(part, remote)
        except UserError as fault:
            _forget(part)
            raise Failed(str(fault)) from None
        os.replace(part, target)
        _forget(part)
    return target


def _reason(fault: Exception) -> str:
    if isinstance(fault, requests.Timeout):
        return "no answer"
    return (
        "no connection"
        if isinstance(fault, requests.ConnectionError)
        else str(fault) or type(fault).__name__
    )


def _continue(url: str, name: str, part: Path, net: Net) -> None:
    """Append what is missing of a partial file. It is begun anew where the server has another version by now, or cannot tell."""
    notes, begun = part.with_name(part.name + ".json"), {}
    if part.is_file():
        with suppress(OSError, ValueError):  # notes that a killed process left unfinished are none
            begun = json.loads(notes.read_text())
    have, headers = 0, {"Accept-Encoding": "identity"}
    if begun.get("url") == url and begun["version"] and part.stat().st_size:
        have = part.stat().st_size
        headers |= {"Range": f"bytes={have}-", "If-Range": begun["version"]}
    proxies = {"http": net.proxy, "https": net.proxy} if net.proxy else None
    with requests.get(
        url, headers=headers, stream=True, timeout=TIMEOUT, proxies=proxies
    ) as answer:
        if answer.status_code == 416:  # nothing is missing, or the notes are wrong
            if have == begun.get("total"):
                return
            _forget(part)
        if answer.status_code in (416, 429) or answer.status_code >= 500:
            raise requests.HTTPError(f"HTTP {answer.status_code}")
        if answer.status_code >= 400:
            raise Failed(f"HTTP {answer.status_code}")
        have = (
            have
            if answer.status_code == 206
            and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            else 0
        )
        if answer.status_code == 206 and not have:
            _forget(part)
            raise requests.HTTPError("another part than was asked for")
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        strong = version and not version.startswith("W/")  # a weak one does not promise equal bytes
        notes.write_text(
            json.dumps({"url": url, "version": version if strong else None, "total": total})
        )
        with (
            open(part, "ab" if have else "wb") as file,
            progress(
                desc=name,
                total=total,
                initial=have,
                unit="B",
                unit_scale=True,
                disable=not net.show_progress,
            ) as bar,
        ):
            for block in answer.iter_content(BLOCK):
                file.write(block)
                bar.update(len(block))


def _forget(part: Path) -> None:
    for path in (part, part.with_name(part.name + ".json")):
        path.unlink(missing_ok=True)
