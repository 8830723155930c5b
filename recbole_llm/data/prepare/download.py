"""Files from the net: resumed where a download was cut, checked before they count, and never half there."""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import requests
from filelock import FileLock
from tqdm import tqdm

from ...errors import UserError
from .archives import unpack

ATTEMPTS, WAIT, TIMEOUT, BLOCK = 5, 1.0, 30, 2**16  # tries, seconds before the second one (doubled each time), seconds, bytes lost by a cut
MAGIC = {".gz": b"\x1f\x8b", ".zip": b"PK\x03\x04"}


@dataclass(frozen=True)
class Remote:
    """One file of a source.

    name : what it is called among the raw files. urls : where it can be had, best first; none if only by hand.
    also : other names under which people have it. size (bytes), sha256, md5 : what is published of it, if anything.
    members : of an archive, the files that are taken out of it, each with other names that it may have; they may also lie there by themselves.
    """

    name: str
    urls: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    members: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None


@dataclass(frozen=True)
class Net:
    """How files are fetched. mirror : address of a folder that has them, asked first. proxy : URL, for all addresses."""

    mirror: str | None = None
    proxy: str | None = None
    show_progress: bool = True

    def addresses(self, remote: Remote) -> tuple[str, ...]:
        own = (f"{self.mirror.rstrip('/')}/{remote.name}",) if self.mirror and remote.urls else ()
        return own + remote.urls


def fetch(remotes: Sequence[Remote], folder: Path, work: Path, page: str, net: Net) -> dict[str, Path]:
    """The files by name, in `folder`: those that lie there already, and the others downloaded. Archives are unpacked into `work`.

    Raises UserError naming all that could not be had, their addresses, and where files that are fetched by hand are looked for.
    """
    found, faults, left = {}, [], []
    offline: set[str] = set()  # hosts that could not be reached at all: not asked for the next file
    for remote in remotes:
        members = {name: _first(folder, (name, *also)) for name, also in remote.members.items()}
        if members and all(members.values()):
            found |= members
            continue
        if path := there(remote, folder):
            found[remote.name] = path
            continue
        for url in (url for url in net.addresses(remote) if urlsplit(url).netloc not in offline):
            try:
                found[remote.name] = _download(url, remote, folder, net)
                break
            except (Refused, requests.RequestException) as fault:
                if isinstance(fault, requests.ConnectionError):
                    offline.add(urlsplit(url).netloc)
                faults.append(f"{urlsplit(url).netloc}: {_reason(fault)}")
        else:
            left.append(remote)
    if left:
        files = " and ".join(f"{remote.urls[0] if remote.urls else remote.name}" for remote in left)
        why = f"cannot be downloaded ({'; '.join(faults)})" if faults else f"is given out at {page} by hand"
        raise UserError(f"{files} {why}: get what is missing yourself, put it into {folder} and run again, or name the folder that has it by --raw=FOLDER")
    for remote in remotes:
        if remote.members and remote.name in found:
            found |= unpack(found.pop(remote.name), remote.members, work)
    return found


def there(remote: Remote, folder: Path) -> Path | None:
    """The file, if it lies anywhere in a folder. Raises UserError if it is not whole, as far as can be told."""
    path = _first(folder, (remote.name, *remote.also))
    if path:
        _check(path, remote)
    return path


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    return next((path for name in names for path in sorted(folder.rglob(name)) if path.is_file()), None)


class Refused(Exception):
    """An address that will not give the file, however often it is asked."""


def _reason(fault: Exception) -> str:
    if isinstance(fault, requests.Timeout):
        return "no answer"
    return "no connection" if isinstance(fault, requests.ConnectionError) else str(fault) or type(fault).__name__


def _download(url: str, remote: Remote, folder: Path, net: Net) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    target, part = folder / remote.name, folder / f"{remote.name}.part"
    with FileLock(folder / f".{remote.name}.lock"):
        if target.is_file():  # by another process, in the meantime
            return target
        wait = WAIT
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _continue(url, remote.name, part, net)
                break
            except requests.RequestException as fault:
                unreachable = isinstance(fault, requests.ConnectionError) and not part.is_file()  # nothing ever came from there
                if attempt == (2 if unreachable else ATTEMPTS):
                    raise
                time.sleep(wait)
                wait *= 2
        try:
            _check(part, remote)
        except UserError as fault:
            _forget(part)
            raise Refused(str(fault)) from None
        os.replace(part, target)
        _forget(part)
    return target


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
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT, proxies=proxies) as answer:
        if answer.status_code == 416:  # nothing is missing, or the notes are wrong
            if have == begun.get("total"):
                return
            _forget(part)
        if answer.status_code in (416, 429) or answer.status_code >= 500:
            raise requests.HTTPError(f"HTTP {answer.status_code}")
        if answer.status_code >= 400:
            raise Refused(f"HTTP {answer.status_code}")
        have = have if answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-") else 0
        if answer.status_code == 206 and not have:
            _forget(part)
            raise requests.HTTPError("another part than was asked for")
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        strong = version and not version.startswith("W/")  # a weak one does not promise equal bytes
        notes.write_text(json.dumps({"url": url, "version": version if strong else None, "total": total}))
        with (
            open(part, "ab" if have else "wb") as file,
            tqdm(desc=name, total=total, initial=have, unit="B", unit_scale=True, disable=not net.show_progress, ncols=100) as bar,
        ):
            for block in answer.iter_content(BLOCK):
                file.write(block)
                bar.update(len(block))


def _check(path: Path, remote: Remote) -> None:
    """Raise UserError unless a file is what is published of it, as far as anything is."""
    size = path.stat().st_size
    if remote.size is not None and size != remote.size:
        raise UserError(f"{path}: expected {remote.size} bytes, found {size}; remove it and run again")
    with open(path, "rb") as file:
        begin = file.read(4)
    for suffix, magic in MAGIC.items():
        if path.name.removesuffix(".part").endswith(suffix) and not begin.startswith(magic):
            raise UserError(f"{path}: expected a {suffix} file, found something else (a page that asks for a login?); remove it and fetch it by hand")
    for kind in ("sha256", "md5"):
        if (expected := getattr(remote, kind)) and (found := digest(path, kind)) != expected:
            raise UserError(f"{path}: expected the {kind} {expected}, found {found}; remove it and run again")


def digest(path: Path, kind: str = "sha256") -> str:
    """Hex digest of a file's bytes."""
    value = hashlib.new(kind)
    with open(path, "rb") as file:
        while block := file.read(2**22):
            value.update(block)
    return value.hexdigest()


def _forget(part: Path) -> None:
    for path in (part, part.with_name(part.name + ".json")):
        path.unlink(missing_ok=True)
