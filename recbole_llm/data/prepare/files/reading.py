"""Raw files, each read once from end to end.

A file is hashed, checked and unpacked piece by piece, while the previous piece is converted.
"""

import codecs
import gzip
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ....errors import UserError


def _fastest_zlib() -> Any:
    """Return the zlib of isal, which takes half the time, or Python's if isal is not installed."""
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib
    return isal_zlib


_zlib = _fastest_zlib()
decompressobj = _zlib.decompressobj
BLOCK = 2**18  # bytes that are read at once
PIECE = 2**22  # bytes of a piece: so few that unpacking and converting seldom wait for each other
LINE = 2**24  # bytes of the longest line
BOM = b"\xef\xbb\xbf"
JSON = (".json", ".jsonl", ".ndjson")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
PYTHON_DICT = re.compile(r"\s*\{\s*u?'")  # the beginning of a dict that Python has printed
FIRST = 1000  # lines from which the keys of a file are collected
SHOWN = 60  # characters of a line in a message
SELF_CHECKING = (".parquet",)  # files whose readers notice that they are cut short


class Reader:
    """Reads raw files in threads of its own.

    Parameters
    ----------
    folder : Path
        Folder of the pieces. A piece is removed when the next one is requested.
    log : callable
        Receives a line about a file that may be cut short.
    """

    def __init__(self, folder: Path, log: Callable[[str], None]):
        self.folder, self.log, self.stopped = folder, log, False
        self.threads = ThreadPoolExecutor(2)
        self.sums: dict[Path, Future[tuple[int, str]]] = {}

    def pieces(self, path: Path, quoted: bool = False) -> Iterator[Path]:
        """Cut gzipped JSON lines into plain files of whole lines.

        Any other file is yielded as it is, and checked in another thread meanwhile.

        Parameters
        ----------
        path : Path
            The raw file.
        quoted : bool
            Whether its cells may be in quotes.

        Yields
        ------
        Path
            The pieces in their order.

        Raises
        ------
        UserError
            If the file is damaged or cut short; at the latest from `size_and_sha256`.
        """
        is_json = path.name.removesuffix(".gz").endswith(JSON)
        if is_json:
            check_lines(path)
        if not is_json or not (path.name.endswith(".gz") or _begin(path).startswith(BOM)):
            self.sums[path] = self.threads.submit(self._check, path, quoted)
            yield path
            return
        content, folder = _Content(self, path), self.folder / path.name
        folder.mkdir(parents=True, exist_ok=True)
        pieces = _write_pieces(content, folder)
        ahead = self.threads.submit(next, pieces, None)
        while piece := ahead.result():
            ahead = self.threads.submit(next, pieces, None)
            yield piece
            piece.unlink()
        self.sums[path] = self.threads.submit(content.size_and_sha256)

    def size_and_sha256(self, path: Path) -> tuple[int, str]:
        """Size in bytes and SHA-256 of a file, as it is on the disk.

        Parameters
        ----------
        path : Path
            The raw file. It is read if `pieces` has not read it yet.

        Returns
        -------
        tuple of (int, str)
            Bytes and hex digits.

        Raises
        ------
        UserError
            If the file is damaged or cut short.
        """
        if path not in self.sums:
            self.sums[path] = self.threads.submit(self._check, path)
        return self.sums[path].result()

    def close(self) -> None:
        """Stop reading and end the threads."""
        self.stopped = True
        self.threads.shutdown(cancel_futures=True)

    def _check(self, path: Path, quoted: bool = False) -> tuple[int, str]:
        """Read a file to its end; raise UserError if it is damaged or cut short."""
        content, last_line, quotes = _Content(self, path), b"", 0
        for block in content:
            quotes += block.count(b'"')
            _, line_end, rest = block.rpartition(b"\n")
            # Of a line that is too long only the end is kept, which is not valid JSON either.
            last_line = rest if line_end else last_line[-LINE:] + rest
        last_line = last_line.strip()
        if quoted and quotes % 2:
            raise UserError(
                f"{path}: expected quotes in pairs, found {quotes}: it may be cut short, "
                "or a quote inside a cell is not written twice"
            )
        if last_line and not path.name.endswith((".gz", *SELF_CHECKING)):
            self._check_last_line(path, last_line)
        return content.size_and_sha256()

    def _check_last_line(self, path: Path, last_line: bytes) -> None:
        """Judge by its last line, which has no line end, whether a plain text file is whole."""
        if path.suffix not in JSON:
            self.log(
                f"{path}: its last line has no end; if the file may be cut short, get it again"
            )
            return
        try:
            json.loads(last_line)
        except ValueError:
            raise damaged(path, "its last line ends in the middle") from None


def opened(path: Path, mode: str = "rb", **options: Any) -> Any:
    """Open a file, unpacked if its name says that it is gzipped.

    Parameters
    ----------
    path : Path
        The file.
    mode : str
        Mode of `open`.
    **options
        Further parameters of `open`.

    Returns
    -------
    file object
        The content.
    """
    return (gzip.open if path.name.endswith(".gz") else open)(path, mode, **options)


def check_lines(path: Path) -> None:
    """Check the first lines of a file of JSON lines.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    UserError
        If it begins with a list, or has dicts as Python prints them in place of JSON objects.
    """
    if _begin(path).removeprefix(BOM).lstrip().startswith(b"["):
        raise UserError(
            f"{path}: expected JSON lines, one object a line, found a list; "
            "write its members a line each"
        )
    for number, line in enumerate(_first_lines(path), start=1):
        try:
            json.loads(line)
        except ValueError:
            if PYTHON_DICT.match(line):
                raise UserError(
                    f"{path}, line {number}: expected a JSON object, found a Python dict "
                    f"({line.strip()[:SHOWN]} …); convert the file: "
                    f"{_unpacker(path)} {path.name} | "
                    'python -c "import ast, json, sys; [print(json.dumps(ast.literal_eval(line))) '
                    'for line in sys.stdin]" > converted.jsonl'
                ) from None


def _unpacker(path: Path) -> str:
    """The command that prints a file's content."""
    return "zcat" if path.name.endswith(".gz") else "cat"


def check_encoding(path: Path) -> None:
    """Check that a text file is UTF-8.

    A file that cannot be unpacked passes: its conversion reports it.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    UserError
        With the first line that is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    line_number, begin_of_line = 1, b""
    try:
        with opened(path) as file:
            while block := file.read(PIECE):
                try:
                    decoder.decode(block)
                except UnicodeDecodeError as fault:
                    _report_encoding(path, line_number, begin_of_line + block, fault)
                line_number += block.count(b"\n")
                begin_of_line = block[-BLOCK:].rpartition(b"\n")[2]
    except (OSError, EOFError, zlib.error):
        return


def _report_encoding(path: Path, number: int, content: bytes, fault: UnicodeDecodeError) -> None:
    """Raise UserError for bytes that are not UTF-8.

    Parameters
    ----------
    path : Path
        The file.
    number : int
        Number of the line at which `content` begins.
    content : bytes
        The end of what was read, up to and including the block that cannot be decoded.
    fault : UnicodeDecodeError
        The fault in the last block.
    """
    position = len(content) - (len(fault.object) - fault.start)
    line = number + content.count(b"\n", 0, position)
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    guess = "utf-16" if is_utf16 else "latin1"
    shown = content[:position].rpartition(b"\n")[2] + content[position:].partition(b"\n")[0]
    text = shown.decode(guess, "replace").strip()[:SHOWN]
    suffixes = "".join(Path(path.name.removesuffix(".gz")).suffixes)
    command = f"{_unpacker(path)} {path.name} | iconv -f {guess} -t utf-8 > converted{suffixes}"
    if is_utf16:
        actual, note = "found UTF-16", ""
    else:
        actual = f"found bytes of another encoding, perhaps Latin-1, in which the line is {text!r}"
        note = ", with the encoding that it has in place of latin1"
    raise UserError(
        f"{path}, line {line}: expected UTF-8, {actual}; convert the file: {command}{note}"
    ) from None


def keys_of(path: Path) -> list[str]:
    """Collect the keys in the first lines of a file of JSON lines.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    list of str
        The keys in the order of their first appearance.
    """
    keys: dict[str, None] = {}
    for line in _first_lines(path):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            keys.update(dict.fromkeys(value))
    return list(keys)


def _first_lines(path: Path) -> list[str]:
    """The first lines of a text file; fewer, or none, if it cannot be unpacked."""
    lines: list[str] = []
    with (
        suppress(OSError, EOFError, zlib.error),
        opened(path, "rt", encoding="utf-8-sig", errors="replace") as file,
    ):
        lines.extend(itertools.islice(file, FIRST))
    return lines


def _begin(path: Path) -> bytes:
    """The first bytes of a file, unpacked; none if it cannot be unpacked."""
    try:
        with opened(path) as file:
            return file.read(16)
    except (OSError, EOFError, zlib.error):
        return b""


class _Content:
    """The unpacked content of a file, block by block; the file is hashed meanwhile."""

    def __init__(self, reader: Reader, path: Path):
        self.reader, self.path, self.size, self.sha256 = reader, path, 0, hashlib.sha256()

    def size_and_sha256(self) -> tuple[int, str]:
        """Size in bytes and SHA-256 of what was read of the file."""
        return self.size, self.sha256.hexdigest()

    def __iter__(self) -> Iterator[bytes]:
        with open(self.path, "rb") as file:
            blocks = self._read(file)
            yield from self._unpack(blocks) if self.path.name.endswith(".gz") else blocks

    def _read(self, file: IO[bytes]) -> Iterator[bytes]:
        """The blocks of the file as it is on the disk."""
        while (block := file.read(BLOCK)) and not self.reader.stopped:
            self.size += len(block)
            self.sha256.update(block)
            yield block

    def _unpack(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """Unpack gzipped blocks, and compare the checksums behind the data, which DuckDB ignores.

        A gzipped file may consist of several members, with zeros behind them.
        """
        member = None
        for block in blocks:
            more = True
            while more:
                if not member:
                    block = block.lstrip(b"\0")
                    if not block:
                        break
                    member = decompressobj(31)
                try:
                    unpacked = member.decompress(block, PIECE)
                except (_zlib.error, zlib.error) as fault:
                    raise damaged(self.path, str(fault)) from None
                if unpacked:
                    yield unpacked
                if member.eof:
                    block, more, member = member.unused_data, True, None
                else:
                    block = member.unconsumed_tail
                    more = bool(block) or len(unpacked) == PIECE
        if member:
            raise damaged(self.path, "it ends in the middle")


def _write_pieces(content: _Content, folder: Path) -> Iterator[Path]:
    """Write content into plain files of whole lines, at least one file."""
    blocks, number = iter(content), 0
    rest = next(blocks, b"").removeprefix(BOM) or next(blocks, b"")
    while number == 0 or rest:
        path, size, last = folder / f"{number}.json", 0, b"\n"
        with open(path, "wb") as file:
            while rest and (size < PIECE or not last.endswith(b"\n")):
                end = len(rest)
                if size >= PIECE:  # only the line that has begun
                    end = rest.find(b"\n") + 1 or len(rest)
                last, rest = rest[:end], rest[end:] or next(blocks, b"")
                size += file.write(last)
        number += 1
        yield path


def damaged(path: Path, reason: str) -> UserError:
    """Make the error for a file that cannot be read to its end.

    Parameters
    ----------
    path : Path
        The file.
    reason : str
        What is wrong with it.

    Returns
    -------
    UserError
        The error, to be raised.
    """
    return UserError(
        f"{path}: cannot be read to its end ({reason}); it may be cut short: "
        "remove it, get it again and run again"
    )
