"""Unpacks files from zip and tar archives, whatever their names and folders."""

import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from ....errors import UserError

DAMAGE = (
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


def unpack(archive: Path, members: Mapping[str, tuple[str, ...]], folder: Path) -> dict[str, Path]:
    """Unpack some files of an archive, and of archives within it.

    Parameters
    ----------
    archive : Path
        The archive.
    members : mapping of str to tuple of str
        Name of each file to unpack -> other names that it may have in the archive.
    folder : Path
        Where the files are written.

    Returns
    -------
    dict of str to Path
        Name -> path of each file.

    Raises
    ------
    UserError
        If the file is not an archive, is damaged, or lacks one of the members.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unpacked: dict[str, Path] = {}
    try:
        _unpack(archive, members, folder, unpacked)
    except DAMAGE as fault:
        if getattr(fault, "errno", None):  # an error of the disk, not of the archive
            raise
        reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        raise UserError(
            f"{archive}: expected a zip or tar archive ({reason}); it may be cut short: "
            "remove it and get it again"
        ) from None
    missing = [name for name in members if name not in unpacked]
    if missing:
        raise UserError(
            f"{archive}: expected it to hold {', '.join(missing)}, found other files; "
            "get the right one"
        )
    return unpacked


def _unpack(
    archive: Path, members: Mapping[str, tuple[str, ...]], folder: Path, unpacked: dict[str, Path]
) -> None:
    """Unpack the members that are not in `unpacked` yet, and enter their paths there."""
    name_of: dict[str, str] = {}
    for name, also in members.items():
        name_of |= dict.fromkeys((name, *also), name)
    for path, open_member in _files(archive):
        file_name = PurePosixPath(path).name
        if file_name.startswith("._") or path.startswith("__MACOSX/"):  # macOS metadata
            continue
        is_archive = file_name.endswith((".tar", ".tgz", ".zip"))
        may_hold_members = is_archive and len(unpacked) < len(members)
        is_member = file_name in name_of
        if name_of.get(file_name, file_name) in unpacked or not (is_member or may_hold_members):
            continue
        target = folder / file_name
        with open_member() as file, open(target, "wb") as copy:
            shutil.copyfileobj(file, copy, 2**20)
        if is_member:
            unpacked[name_of[file_name]] = target
        else:
            _unpack(target, members, folder, unpacked)
            target.unlink()


def _files(archive: Path) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    """Path of each file in an archive, and what opens it.

    The content tells the kind of archive, since suffixes may be wrong.
    """
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zip_file:
            for zip_info in zip_file.infolist():
                if not zip_info.is_dir():
                    yield zip_info.filename, partial(zip_file.open, zip_info)
        return
    with tarfile.open(archive) as tar_file:
        for tar_info in tar_file:
            if tar_info.isfile():
                yield tar_info.name, partial(_open_member, tar_file, tar_info)
        if tar_file.fileobj:
            while tar_file.fileobj.read(2**20):  # up to the checksum at the end
                pass


def _open_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(member)
    if file is None:
        raise tarfile.TarError(f"{member.name} is not a file")
    return file
