"""The raw files of a source: their names, where they are, and whether a file is the right one."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from ....errors import UserError
from .archives import unpack

MAGIC = {".gz": b"\x1f\x8b", ".zip": b"PK\x03\x04"}  # suffix -> first bytes of such a file


@dataclass(frozen=True)
class Remote:
    """One file of a source.

    Attributes
    ----------
    path : str
        Path of the file below the addresses of the source and of a mirror. Its last part is the
        name of the file.
    hosts : tuple of str
        Those addresses, best first. Empty if the file can only be downloaded by hand.
    also : tuple of str
        Other names that the file may have on a user's disk.
    members : mapping of str to tuple of str
        For an archive: the files to unpack, each with other names that it may have. They may also
        be on the disk without the archive. If one of a file's names contains a folder, its other
        names are only looked for outside of folders, because other datasets have files of the same
        name.
    size : int or None
        Published size in bytes.
    sha256, md5 : str or None
        Published checksums.
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
        """Name of the file without folders."""
        return PurePosixPath(self.path).name

    @property
    def urls(self) -> tuple[str, ...]:
        """URLs of the file at its source, best first."""
        return tuple(f"{host.rstrip('/')}/{self.path}" for host in self.hosts)


@dataclass(frozen=True)
class Net:
    """How to download files.

    Attributes
    ----------
    mirror : str or None
        An address that is tried before the source's own and has the same paths below it.
    proxy : str or None
        URL of a proxy for all addresses.
    show_progress : bool
        Whether to show progress bars.
    """

    mirror: str | None = None
    proxy: str | None = None
    show_progress: bool = True

    def addresses(self, remote: Remote) -> tuple[str, ...]:
        """List the URLs of a file in the order in which they are tried.

        Parameters
        ----------
        remote : Remote
            The file.

        Returns
        -------
        tuple of str
            The URL at the mirror, if there is one, and those of the source.
        """
        if not self.mirror:
            return remote.urls
        return (f"{self.mirror.rstrip('/')}/{remote.path}", *remote.urls)


def fetch(
    remotes: Sequence[Remote], folder: Path, work: Path, page: str, net: Net
) -> dict[str, Path]:
    """Find the raw files of a dataset, download those that are missing, and unpack archives.

    Parameters
    ----------
    remotes : sequence of Remote
        The files.
    folder : Path
        Where files are looked for and downloaded to.
    work : Path
        Where archives are unpacked.
    page : str
        Address of the source's page, for the error message.
    net : Net
        How to download.

    Returns
    -------
    dict of str to Path
        Name -> path of every file; of an archive, its members instead.

    Raises
    ------
    UserError
        If a file is damaged, or cannot be downloaded. The message names all missing files, their
        addresses, and the folder to put them into.
    """
    files: dict[str, Path] = {}
    missing: list[Remote] = []
    failures: list[str] = []
    unreachable: set[str] = set()  # hosts without a connection, which are not tried again
    for remote in remotes:
        members = _find_members(remote, folder)
        if members:
            files |= members
            continue
        path = find_file(remote, folder)
        if path is None:
            path = _download(remote, folder, net, unreachable, failures)
        if path:
            files[remote.name] = path
        else:
            missing.append(remote)
    if missing:
        raise _missing_files(missing, failures, folder, page)
    for remote in remotes:
        if remote.members and remote.name in files:
            files |= unpack(files.pop(remote.name), remote.members, work)
    return files


def _missing_files(
    missing: Sequence[Remote], failures: Sequence[str], folder: Path, page: str
) -> UserError:
    """The error for files that are neither on the disk nor could be downloaded."""
    names = " and ".join((*remote.urls, remote.name)[0] for remote in missing)
    if failures:
        reason = f"cannot be downloaded ({'; '.join(failures)})"
    else:
        reason = f"can only be downloaded by hand, at {page}"
    return UserError(
        f"{names} {reason}: download what is missing yourself, put it into {folder} and run again, "
        "or name the folder that has it by --raw=FOLDER"
    )


def _download(
    remote: Remote, folder: Path, net: Net, unreachable: set[str], failures: list[str]
) -> Path | None:
    """Try the addresses of a file in turn; None if all fail, with the reasons in `failures`."""
    for url in net.addresses(remote):
        host = urlsplit(url).netloc
        if host in unreachable:
            continue
        # Imported here, since it takes longer to import than small files take to read.
        from .download import DownloadError, download

        try:
            return download(url, remote, folder, net)
        except DownloadError as failure:
            if failure.unreachable:
                unreachable.add(host)
            failures.append(f"{host if url in remote.urls else url}: {failure}")
    return None


def find_file(remote: Remote, folder: Path) -> Path | None:
    """Find a file anywhere in a folder.

    Parameters
    ----------
    remote : Remote
        The file.
    folder : Path
        Where to look, with all its subfolders.

    Returns
    -------
    Path or None
        The file, or None if it is not there.

    Raises
    ------
    UserError
        If it is not the published file, as far as can be checked, or there are several different
        ones.
    """
    parts = PurePosixPath(remote.path).parts
    names = ["/".join(parts[first:]) for first in range(len(parts))]
    path = _find(folder, [*names, *remote.also])
    if path:
        check_file(path, remote)
    return path


def _find_members(remote: Remote, folder: Path) -> dict[str, Path]:
    """The members of an archive that are in a folder without it; empty if any is missing."""
    members = {}
    for name, also in remote.members.items():
        has_folder = any("/" in other for other in also)
        path = _find(folder, [name, *also], bare_in_subfolders=not has_folder)
        if path:
            members[name] = path
    return members if len(members) == len(remote.members) else {}


def _find(folder: Path, names: Sequence[str], bare_in_subfolders: bool = True) -> Path | None:
    """The file with the first of these names that exists; names with most folders come first.

    Parameters
    ----------
    folder : Path
        Where to look.
    names : sequence of str
        Names of the file, which may begin with folders.
    bare_in_subfolders : bool
        Whether a name without a folder is also looked for in subfolders.
    """
    for name in sorted(names, key=lambda name: -name.count("/")):
        search = folder.rglob if bare_in_subfolders or "/" in name else folder.glob
        paths = [path for path in sorted(search(name)) if path.is_file()]
        if len(paths) > 1 and len({digest(path) for path in paths}) > 1:
            shown = " and ".join(str(path.relative_to(folder)) for path in paths)
            raise UserError(
                f"{folder}: expected one {name}, found {shown}, which differ; "
                "name the folder of the right one by --raw=FOLDER"
            )
        if paths:
            return paths[0]
    return None


def check_file(path: Path, remote: Remote) -> None:
    """Compare a file with what is published about it.

    Parameters
    ----------
    path : Path
        The file.
    remote : Remote
        Its published size and checksums, if any.

    Raises
    ------
    UserError
        If size, kind or checksum differ.
    """
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
                f"{path}: expected a {suffix} file, found something else (a page that asks for a "
                "login?); remove it and fetch it by hand"
            )
    for kind, expected in (("sha256", remote.sha256), ("md5", remote.md5)):
        if not expected:
            continue
        actual = digest(path, kind)
        if actual != expected:
            raise UserError(
                f"{path}: expected the {kind} {expected}, found {actual}; remove it and run again"
            )


def digest(path: Path, kind: str = "sha256") -> str:
    """Hash the bytes of a file.

    Parameters
    ----------
    path : Path
        The file.
    kind : str
        Name of the hash function in `hashlib`.

    Returns
    -------
    str
        Hex digest.
    """
    value = hashlib.new(kind)
    with open(path, "rb") as file:
        while block := file.read(2**22):
            value.update(block)
    return value.hexdigest()
