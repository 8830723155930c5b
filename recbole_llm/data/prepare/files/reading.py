"""Raw files, each read once from end to end: summed, checked, and unpacked piece by piece while the piece before is converted."""

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

from ....errors import UserError

try:
    from isal.isal_zlib import IsalError, decompressobj  # the same, in half the time
except ImportError:
    from zlib import decompressobj
    from zlib import error as IsalError

BLOCK, PIECE = (
    2**18,
    2**22,
)  # bytes read at once, bytes of a piece: so few that unpacking and converting seldom wait for each other
LINE = 2**24  # bytes of the longest line
BOM = b"\xef\xbb\xbf"
JSON = (".json", ".jsonl", ".ndjson")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
PYTHON = re.compile(r"\s*\{\s*u?'")  # how a dict begins that Python has printed
FIRST, SHOWN = 1000, 60  # lines that tell what a file has; characters of a line in a message
AS_IS = (".parquet",)  # which tell themselves if they are cut


class Reader:
    """Reads raw files in threads of its own; pieces lie in `folder` until the next one is asked for."""

    def __init__(self, folder: Path, log: Callable[[str], None]):
        self.folder, self.log, self.stopped = folder, log, False
        self.threads = ThreadPoolExecutor(2)
        self.sums: dict[Path, Future] = {}

    def pieces(self, path: Path, quoted: bool = False) -> Iterator[Path]:
        """Gzipped JSON lines in plain files of whole lines; any other file as it is, while it is read through beside.

        Raises UserError, at the end at the latest, where a file is damaged or cut short. quoted : its cells may be quoted.
        """
        lines = path.name.removesuffix(".gz").endswith(JSON)
        if lines:
            check_lines(path)
        if not lines or not (path.name.endswith(".gz") or _begin(path).startswith(BOM)):
            self.sums[path] = self.threads.submit(self._through, path, quoted)
            yield path
            return
        sums, pieces = _Sums(self, path), self.folder / path.name
        pieces.mkdir(parents=True, exist_ok=True)
        written = _written(sums, pieces)
        ahead = self.threads.submit(next, written, None)
        while piece := ahead.result():
            ahead = self.threads.submit(next, written, None)
            yield piece
            piece.unlink()
        self.sums[path] = self.threads.submit(sums.found)

    def found(self, path: Path) -> tuple[int, str]:
        """(bytes, sha256) of a file. Raises UserError if it is damaged or cut short."""
        if path not in self.sums:
            self.sums[path] = self.threads.submit(self._through, path)
        return self.sums[path].result()

    def close(self) -> None:
        self.stopped = True
        self.threads.shutdown(cancel_futures=True)

    def _through(self, path: Path, quoted: bool = False) -> tuple[int, str]:
        sums, last, quotes = _Sums(self, path), b"", 0
        for block in sums:
            quotes += block.count(b'"')
            _, end, after = block.rpartition(b"\n")
            last = (
                b"" if end else last[-LINE:]
            ) + after  # of a longer line not all, which makes it none
        last = last.strip()
        if quoted and quotes % 2:
            raise UserError(
                f"{path}: expected quotes in pairs, found {quotes}: it may be cut short, or a cell has one that is not written twice"
            )
        if last and not path.name.endswith(
            (".gz", *AS_IS)
        ):  # nothing but its last line tells that a plain file is whole
            if path.suffix in JSON:
                try:
                    json.loads(last)
                except ValueError:
                    raise damaged(path, "its last line ends in the middle") from None
            else:
                self.log(
                    f"{path}: its last line has no end; if the file may be cut short, get it again"
                )
        return sums.found()


def opened(path: Path, mode: str = "rb", **given):
    """A file's content, unpacked where its name says that it is gzipped."""
    return (gzip.open if path.name.endswith(".gz") else open)(path, mode, **given)


def check_lines(path: Path) -> None:
    """Raise UserError for a .json file that begins with a list, or has Python's dicts for objects."""
    if _begin(path).removeprefix(BOM).lstrip().startswith(b"["):
        raise UserError(
            f"{path}: expected JSON lines, one object a line, found a list; write its members a line each"
        )
    for number, line in enumerate(_first_lines(path), start=1):
        try:
            json.loads(line)
        except ValueError:
            if PYTHON.match(line):
                unpack = "zcat" if path.name.endswith(".gz") else "cat"
                raise UserError(
                    f"{path}, line {number}: expected a JSON object, found a Python dict ({line.strip()[:SHOWN]} …); convert the file: "
                    f'{unpack} {path.name} | python -c "import ast, json, sys; [print(json.dumps(ast.literal_eval(line))) '
                    'for line in sys.stdin]" > converted.jsonl'
                ) from None


def check_encoding(path: Path) -> None:
    """Raise UserError, with the first such line, for a text file that is not UTF-8.

    A file that cannot be unpacked passes: its conversion reports it.
    """
    decoder, lines, end = codecs.getincrementaldecoder("utf-8")(), 1, b""
    try:
        with opened(path) as file:
            while block := file.read(PIECE):
                try:
                    decoder.decode(block)
                except UnicodeDecodeError as fault:
                    _report_encoding(path, lines, end + block, fault)
                lines += block.count(b"\n")
                end = block[-BLOCK:].rpartition(b"\n")[2]
    except (OSError, EOFError, zlib.error):
        return


def _report_encoding(path: Path, lines: int, content: bytes, fault: UnicodeDecodeError) -> None:
    """Raise UserError for bytes that are not UTF-8.

    Parameters
    ----------
    lines : number of the line at which `content` begins.
    content : what was read last, up to the end of the block that cannot be decoded.
    """
    at = len(content) - (len(fault.object) - fault.start)
    line = lines + content.count(b"\n", 0, at)
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    guess = "utf-16" if utf16 else "latin1"
    shown = content[:at].rpartition(b"\n")[2] + content[at:].partition(b"\n")[0]
    text = shown.decode(guess, "replace").strip()[:SHOWN]
    name = path.name
    unpack = "zcat" if name.endswith(".gz") else "cat"
    known = (
        "found UTF-16"
        if utf16
        else f"found bytes of another encoding, perhaps Latin-1, in which the line is {text!r}"
    )
    raise UserError(
        f"{path}, line {line}: expected UTF-8, {known}; convert the file: "
        f"{unpack} {name} | iconv -f {guess} -t utf-8 > converted{''.join(Path(name.removesuffix('.gz')).suffixes)}"
        + ("" if utf16 else ", with the encoding that it has in place of latin1")
    ) from None


def keys_of(path: Path) -> list[str]:
    """The keys in the first lines of a file of JSON lines, in their order."""
    keys: dict[str, None] = {}
    for line in _first_lines(path):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            keys.update(dict.fromkeys(found))
    return list(keys)


def _first_lines(path: Path) -> list[str]:
    """The first lines of a text file; fewer, or none, of one that cannot be unpacked."""
    lines: list[str] = []
    with (
        suppress(OSError, EOFError, zlib.error),
        opened(path, "rt", encoding="utf-8-sig", errors="replace") as file,
    ):
        lines.extend(itertools.islice(file, FIRST))
    return lines


def _begin(path: Path) -> bytes:
    """The first bytes of a file, unpacked, or none of one that cannot be."""
    try:
        with opened(path) as file:
            return file.read(16)
    except (OSError, EOFError, zlib.error):
        return b""


class _Sums:
    """The content of a file, block by block and unpacked where it is gzipped; its sums once that is over."""

    def __init__(self, reader: Reader, path: Path):
        self.reader, self.path, self.size, self.sha256 = reader, path, 0, hashlib.sha256()

    def found(self) -> tuple[int, str]:
        return self.size, self.sha256.hexdigest()

    def __iter__(self) -> Iterator[bytes]:
        with open(self.path, "rb") as file:
            raw = self._raw(file)
            yield from self._unpacked(raw) if self.path.name.endswith(".gz") else raw

    def _raw(self, file) -> Iterator[bytes]:
        while (block := file.read(BLOCK)) and not self.reader.stopped:
            self.size += len(block)
            self.sha256.update(block)
            yield block

    def _unpacked(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """zlib compares the sum and length that stand behind the data: DuckDB passes both over."""
        member = None  # a file may be several, one behind the other, and be padded by zeros
        for block in blocks:
            more = True
            while more:
                if not member:
                    block = block.lstrip(b"\0")
                    if not block:
                        break
                    member = decompressobj(31)
                try:
                    found = member.decompress(block, PIECE)
                except (IsalError, zlib.error) as fault:
                    raise damaged(self.path, str(fault)) from None
                if found:
                    yield found
                block, more = (
                    member.unconsumed_tail,
                    bool(member.unconsumed_tail) or len(found) == PIECE,
                )
                if member.eof:
                    block, more, member = member.unused_data, True, None
        if member:
            raise damaged(self.path, "it ends in the middle")


def _written(content: _Sums, folder: Path) -> Iterator[Path]:
    """Plain files of whole lines, at least one."""
    blocks, number = iter(content), 0
    rest = next(blocks, b"").removeprefix(BOM) or next(blocks, b"")
    while number == 0 or rest:
        path, size, last = folder / f"{number}.json", 0, b"\n"
        with open(path, "wb") as file:
            while rest and (size < PIECE or not last.endswith(b"\n")):
                end = len(rest) if size < PIECE else rest.find(b"\n") + 1 or len(rest)
                last, rest = rest[:end], rest[end:] or next(blocks, b"")
                size += file.write(last)
        number += 1
        yield path


def damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path}: cannot be read to its end ({reason}); it may be cut short: remove it, get it again and run again"
    )
