"""Files out of zip and tar archives, whatever the archive is called and however deep they lie."""

import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

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
    """The members by name, written into `folder`; each may go by other names in the archive, or lie in an archive within it.

    Raises UserError for a file that is no archive, is damaged, or lacks one of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    try:
        _take(archive, members, folder, found)
    except DAMAGE as fault:
        if getattr(fault, "errno", None):  # of the disk, not of what was read
            raise
        reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        raise UserError(
            f"{archive}: expected a zip or tar archive ({reason}); it may be cut short: remove it and get it again"
        ) from None
    if left := [name for name in members if name not in found]:
        raise UserError(
            f"{archive}: expected it to hold {', '.join(left)}, found other files; get the right one"
        )
    return found


def _take(
    archive: Path, members: Mapping[str, tuple[str, ...]], folder: Path, found: dict[str, Path]
) -> None:
    names = {other: name for name, also in members.items() for other in (name, *also)}
    for path, opened in _files(archive):
        own = PurePosixPath(path).name
        if own.startswith("._") or path.startswith("__MACOSX/"):  # what Finder adds
            continue
        nested = own.endswith((".tar", ".tgz", ".zip")) and len(found) < len(members)
        if names.get(own, own) in found or not (own in names or nested):
            continue
        target = folder / own
        with opened() as file, open(target, "wb") as copy:
            shutil.copyfileobj(file, copy, 2**20)
        if own in names:
            found[names[own]] = target
        else:
            _take(target, members, folder, found)
            target.unlink()


def _files(archive: Path) -> Iterator[tuple]:
    """(path, what opens it) of every file of an archive, told by its content: suffixes lie."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as holder:
            for info in holder.infolist():
                if not info.is_dir():
                    yield info.filename, partial(holder.open, info)
    else:
        with tarfile.open(archive) as holder:
            for info in holder:
                if info.isfile():
                    yield info.name, partial(holder.extractfile, info)
            while holder.fileobj.read(2**20):  # to the sum that stands at the end
                pass
