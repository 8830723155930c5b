"""Raw files of a source: what they are called, where they lie, and whether a file is the one that is meant."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from ....errors import UserError
from .archives import unpack

MAGIC = {".gz": b"\x1f\x8b", ".zip": b"PK\x03\x04"}


@dataclass(frozen=True)
class Remote:
    """One file of a source.

    path : where it lies below the source's addresses and a mirror's; its last part is the file's name. hosts : those addresses, best first; none if the
    file is given out by hand alone.
    also : other names under which people have it. size (bytes), sha256, md5 : what is published of it, if anything.
    members : of an archive, the files that are taken out of it, each with other names that it may have; they may also lie there by themselves. Where one of
    the names has a folder, the others are looked for in no folder at all: other datasets have files that are called alike.
    """

    path: str
    hosts: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    members: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(f"{host.rstrip('/')}/{self.path}" for host in self.hosts)


@dataclass(frozen=True)
class Net:
    """How files are fetched. mirror : address below which they lie as below the source's own, asked first. proxy : URL, for all addresses."""

    mirror: str | None = None
    proxy: str | None = None
    show_progress: bool = True

    def addresses(self, remote: Remote) -> tuple[str, ...]:
        own = (f"{self.mirror.rstrip('/')}/{remote.path}",) if self.mirror else ()
        return own + remote.urls


def fetch(
    remotes: Sequence[Remote], folder: Path, work: Path, page: str, net: Net
) -> dict[str, Path]:
    """The files by name, in `folder`: those that lie there already, and the others downloaded. Archives are unpacked into `work`.

    Raises UserError naming all that could not be had, their addresses, and where files that are fetched by hand are looked for.
    """
    found, faults, left = {}, [], []
    offline: set[str] = set()  # hosts that could not be reached at all: not asked for the next file
    for remote in remotes:
        members = {
            name: _lies(folder, (name, *also), any("/" in other for other in also))
            for name, also in remote.members.items()
        }
        if members and all(members.values()):
            found |= members
        elif path := there(remote, folder):
            found[remote.name] = path
        elif path := _downloaded(remote, folder, net, offline, faults):
            found[remote.name] = path
        else:
            left.append(remote)
    if left:
        files = " and ".join((*remote.urls, remote.name)[0] for remote in left)
        why = (
            f"cannot be downloaded ({'; '.join(faults)})"
            if faults
            else f"is given out at {page} by hand"
        )
        raise UserError(
            f"{files} {why}: get what is missing yourself, put it into {folder} and run again, or name the folder that has it by --raw=FOLDER"
        )
    for remote in remotes:
        if remote.members and remote.name in found:
            found |= unpack(found.pop(remote.name), remote.members, work)
    return found


def _downloaded(
    remote: Remote, folder: Path, net: Net, offline: set[str], faults: list[str]
) -> Path | None:
    for url in net.addresses(remote):
        if (host := urlsplit(url).netloc) in offline:
            continue
        from .download import (  # which takes longer to load than small files to read
            Failed,
            download,
        )

        try:
            return download(url, remote, folder, net)
        except Failed as fault:
            if fault.unreachable:
                offline.add(host)
            faults.append(f"{host if url in remote.urls else url}: {fault}")
    return None


def there(remote: Remote, folder: Path) -> Path | None:
    """The file, if it lies anywhere in a folder. Raises UserError if it is not whole, as far as can be told, or if there are several."""
    parts = PurePosixPath(remote.path).parts
    path = _lies(folder, (*("/".join(parts[at:]) for at in range(len(parts))), *remote.also))
    if path:
        check(path, remote)
    return path


def _lies(folder: Path, names: Sequence[str], told: bool = False) -> Path | None:
    """The file of the first name that there is. A name may begin with folders, which tell files apart that are called alike; told : nothing else does."""
    for name in sorted(names, key=lambda name: -name.count("/")):
        paths = [
            path
            for path in sorted((folder.glob if told and "/" not in name else folder.rglob)(name))
            if path.is_file()
        ]
        if len(paths) > 1 and len({digest(path) for path in paths}) > 1:
            shown = " and ".join(str(path.relative_to(folder)) for path in paths)
            raise UserError(
                f"{folder}: expected one {name}, found {shown}, which differ; name the folder of the right one by --raw=FOLDER"
            )
        if paths:
            return paths[0]
    return None


def check(path: Path, remote: Remote) -> None:
    """Raise UserError unless a file is what is published of it, as far as anything is."""
    size = path.stat().st_size
    if remote.size is not None and size != remote.size:
        raise UserError(
            f"{path}: expected {remote.size} bytes, found {size}; remove it and run again"
        )
    with open(path, "rb") as file:
        begin = file.read(4)
    for suffix, magic in MAGIC.items():
        if path.name.removesuffix(".part").endswith(suffix) and not begin.startswith(magic):
            raise UserError(
                f"{path}: expected a {suffix} file, found something else (a page that asks for a login?); remove it and fetch it by hand"
            )
    for kind in ("sha256", "md5"):
        if (expected := getattr(remote, kind)) and (found := digest(path, kind)) != expected:
            raise UserError(
                f"{path}: expected the {kind} {expected}, found {found}; remove it and run again"
            )


def digest(path: Path, kind: str = "sha256") -> str:
    """Hex digest of a file's bytes."""
    value = hashlib.new(kind)
    with open(path, "rb") as file:
        while block := file.read(2**22):
            value.update(block)
    return value.hexdigest()
