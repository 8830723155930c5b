"""The tokens of many texts in a file that is mapped into memory, made once."""

import hashlib
import json
import zlib
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...storage.made_once import make_once
from ...storage.progress import progress
from .tokenizing import TextTokenizer

FORMAT = 1  # raised when the tokens of a text change
AT_ONCE = 4096  # texts that are tokenised together
WORDS, BOUNDS, NAMES, SUMMARY = "tokens.bin", "bounds.npy", "names.npy", "store.json"
Form = tuple[str, bool]  # what precedes a text, and whether both open a text


class TokenStore:
    """Token ids of texts, looked up by the text.

    Parameters
    ----------
    folder : Path
        The folder that `build` has written.

    Attributes
    ----------
    ids : ndarray of int32
        The token ids of all texts, one text behind the other.
    bounds : ndarray of int64 [texts + 1]
        Text n has ids[bounds[n] : bounds[n + 1]].
    names : ndarray of uint64 [texts, 2]
        A hash of each text, in ascending order of the first column.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        # views as plain arrays, which are sliced faster
        self.bounds = np.asarray(np.load(folder / BOUNDS, mmap_mode="r"))
        self.names = np.asarray(np.load(folder / NAMES, mmap_mode="r"))
        self.ids = np.zeros(0, dtype=np.int32)
        if self.bounds[-1]:
            self.ids = np.asarray(np.memmap(folder / WORDS, dtype=np.int32, mode="r"))
        self._first = np.ascontiguousarray(self.names[:, 0])

    def __len__(self) -> int:
        return len(self.names)

    def find(self, text: str, opens: bool) -> np.ndarray | None:
        """Look up a text.

        Parameters
        ----------
        text : str
            The text, with what precedes it.
        opens : bool
            Whether it opens a text.

        Returns
        -------
        ndarray of int64 [length] or None
            Its token ids; None where the text is not in the store.
        """
        first, second = _name(text, opens)
        place = int(np.searchsorted(self._first, first))
        while place < len(self._first) and self._first[place] == first:
            if self.names[place, 1] == second:
                return self.ids[self.bounds[place] : self.bounds[place + 1]].astype(np.int64)
            place += 1
        return None


def open_store(
    spelling: TextTokenizer,
    texts: Sequence[str],
    forms: Iterable[Form],
    folder: Path,
    show_progress: bool = False,
) -> TokenStore:
    """Tokenise texts, or find the store that an earlier run has made of them.

    Parameters
    ----------
    spelling : TextTokenizer
        The tokenizer.
    texts : sequence of str
        The texts.
    forms : iterable of (str, bool)
        What may precede each of them, and whether both open a text.
    folder : Path
        Where stores are kept, each in a folder of its own, named by the tokenizer and its texts.
    show_progress : bool
        Whether a bar is drawn while texts are tokenised.

    Returns
    -------
    TokenStore
        The store; it is made anew where its files are damaged.
    """
    forms = sorted(set(forms))
    target = folder / _key(spelling, texts, forms)
    content = f"the tokens of {len(texts)} texts"
    make_once(
        target,
        _is_whole,
        lambda made: _write(spelling, texts, forms, made, show_progress),
        content,
    )
    return TokenStore(target)


def _key(spelling: TextTokenizer, texts: Sequence[str], forms: Sequence[Form]) -> str:
    """A hash of all that decides a store."""
    digest = hashlib.sha256(f"{FORMAT}\0{spelling.fingerprint()}".encode())
    digest.update(json.dumps(forms).encode())
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def _name(text: str, opens: bool) -> tuple[np.uint64, np.uint64]:
    """A hash of a text, of 128 bits."""
    digest = hashlib.blake2b(text.encode(), digest_size=16, key=b"1" if opens else b"0").digest()
    first, second = np.frombuffer(digest, dtype=np.uint64)
    return first, second


def _write(
    spelling: TextTokenizer, texts: Sequence[str], forms: Sequence[Form], folder: Path, show: bool
) -> None:
    distinct = dict.fromkeys(texts)
    names = np.empty((len(distinct) * len(forms), 2), dtype=np.uint64)
    sizes = np.zeros(len(names), dtype=np.int64)
    done = 0
    bar = progress(desc="Tokenise", total=len(names), disable=not show)
    # by name, so that the ids of a text are found where its name is
    with bar, open(folder / "unsorted", "wb") as file:
        for before, opens in forms:
            rest = iter(distinct)
            while some := [before + text for text in islice(rest, AT_ONCE)]:
                ids, lengths = spelling.encode_all(some, opens)
                file.write(ids.astype(np.int32).tobytes())
                sizes[done : done + len(some)] = lengths
                names[done : done + len(some)] = [_name(text, opens) for text in some]
                done += len(some)
                bar.update(len(some))
    order = np.argsort(names[:, 0], kind="stable")
    np.save(folder / NAMES, names[order])
    np.save(folder / BOUNDS, np.concatenate([[0], np.cumsum(sizes[order])]))
    begin = np.cumsum(sizes) - sizes
    unsorted = np.memmap(folder / "unsorted", dtype=np.int32, mode="r") if sizes.any() else sizes
    parts: list[np.ndarray] = []
    with open(folder / WORDS, "wb") as file:
        for at in range(0, len(order), AT_ONCE):
            rows = order[at : at + AT_ONCE]
            parts = [unsorted[begin[row] : begin[row] + sizes[row]] for row in rows]
            file.write(np.concatenate(parts).astype(np.int32).tobytes())
    del unsorted, parts  # a file that is mapped is not removed everywhere
    (folder / "unsorted").unlink()
    sums = {name: _checksum(folder / name) for name in (WORDS, BOUNDS, NAMES)}
    (folder / SUMMARY).write_text(json.dumps({"texts": len(names), "checksums": sums}))


def _is_whole(folder: Path) -> bool:
    """Whether the files of a store are as they were written."""
    try:
        summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text())
        sums = summary["checksums"]
        return all(_checksum(folder / name) == sums[name] for name in (WORDS, BOUNDS, NAMES))
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(2**22):
            value = zlib.crc32(block, value)
    return value
