"""What counts as a word, wherever words are matched, counted or cut.

A word is a run of letters, digits and underscores, in lower case and in Unicode's composed form (NFC); combining marks
belong to the letter before them. Invisible format characters, such as the soft hyphen, are no part of a word and end
none. Scripts that are written without spaces (Han, Hiragana, Katakana, Thai, Lao, Khmer, Myanmar) have no such runs:
there, every two neighbouring characters are a word, and a character that stands alone is one. Where the script
changes, a word ends. Hangul is written with spaces.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import cache

WORD = re.compile(r"\w+")
UNSPACED = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
    "\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f"  # Hiragana, Katakana
    "]"
)
# Format characters that nobody sees and that separate nothing: soft hyphen, joiners, directions, …
FORMAT = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200c-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\U000e0001\U000e0020-\U000e007f]"
)
# It separates words in scripts that are written without spaces; elsewhere a line may break there.
ZERO_WIDTH_SPACE = "\u200b"


@cache
def _kind(char: str) -> str:
    """ "unspaced" or "spaced" for what words are made of, "mark" for what belongs to the character before, else "other"."""
    if FORMAT.match(char) or unicodedata.category(char) in ("Mn", "Mc", "Me"):
        return "mark"
    if not char.isalnum() and char != "_":
        return "other"
    return "unspaced" if UNSPACED.match(char) and not char.isdecimal() else "spaced"


@cache
def _invisible(char: str) -> bool:
    """Whether a character only says how those beside it are drawn.

    These are format characters, variation selectors and enclosing marks.
    """
    return (
        FORMAT.match(char) is not None
        or "\ufe00" <= char <= "\ufe0f"
        or "\U000e0100" <= char <= "\U000e01ef"
        or unicodedata.category(char) == "Me"
    )


def _separates(text: str, place: int) -> bool:
    """Whether the zero-width space at this place stands beside a script without spaces."""
    return "unspaced" in map(_kind, text[max(0, place - 1) : place + 2])


def _runs(text: str) -> Iterator[tuple[str, list[int]]]:
    """(kind, places behind each character with its marks) of the runs of one kind, in order."""
    before, ends = "other", []
    for place, char in enumerate(text, start=1):
        kind = _kind(char)
        if char == ZERO_WIDTH_SPACE and not _separates(text, place - 1):
            kind = "mark"
        if kind == "mark" and ends:
            ends[-1] = place
            continue
        if kind == "mark":  # with no character before it
            kind = "other"
        if kind != before and ends:
            yield before, ends
            ends = []
        before = kind
        ends.append(place)
    if ends:
        yield before, ends


def words(text: str) -> list[str]:
    """The words of a text, in their order; of scripts without spaces, pairs of neighbouring characters."""
    text = text.lower()
    if text.isascii():
        return WORD.findall(text)
    text = unicodedata.normalize("NFC", text)
    kinds = {_kind(char) for char in set(text)}
    if kinds.isdisjoint(("mark", "unspaced")) and ZERO_WIDTH_SPACE not in text:
        return WORD.findall(text)
    text = "".join(char for char in text if not _invisible(char))
    if ZERO_WIDTH_SPACE in text:
        text = "".join(
            char
            for place, char in enumerate(text)
            if char != ZERO_WIDTH_SPACE or _separates(text, place)
        )
    text = unicodedata.normalize("NFC", text)  # of letters and marks that are neighbours only now
    found, begin = [], 0
    for kind, ends in _runs(text):
        if kind == "spaced":
            found.append(text[begin : ends[-1]])
        if kind == "unspaced":
            starts = [begin, *ends[:-1]]
            pairs = zip(starts, ends[1:], strict=False) if len(ends) > 1 else [(begin, ends[0])]
            found += [text[start:end] for start, end in pairs]
        begin = ends[-1]
    return found


def cut(text: str, limit: int | None = None) -> str:
    """A text with single spaces, cut behind so many words.

    What stands between spaces counts as one word, whatever punctuation is in it; characters of scripts without spaces
    count as in `words`. The result is a prefix of the text: no mark is parted from its letter, nothing is normalised.
    """
    parts = text.split()
    if limit is None or UNSPACED.search(text) is None:
        return " ".join(parts[:limit])
    kept: list[str] = []
    for part in parts:
        if limit <= 0:
            break
        ends = _word_ends(part)
        kept.append(part if len(ends) <= limit else part[: ends[limit - 1]])
        limit -= len(ends)
    return " ".join(kept)


def count(text: str) -> int:
    """How many words a text has for `cut`."""
    parts = text.split()
    return len(parts) if UNSPACED.search(text) is None else sum(map(len, map(_word_ends, parts)))


def _word_ends(part: str) -> list[int]:
    """Places behind each word of a text without spaces."""
    runs = list(_runs(part))
    if not any(kind == "unspaced" for kind, _ in runs):
        return [len(part)]
    found = []
    for kind, ends in runs:
        if kind == "spaced":
            found.append(ends[-1])
        if kind == "unspaced":
            found += ends[1:] or ends
    return found
