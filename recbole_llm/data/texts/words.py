"""What counts as a word wherever words are matched, counted or cut.

A word is a run of letters, digits and underscores, in lower case and in Unicode's composed form
(NFC). Combining marks belong to the letter before them. Invisible format characters, such as the
soft hyphen, are not part of a word and do not end one.

Scripts written without spaces (Han, Hiragana, Katakana, Thai, Lao, Khmer, Myanmar) have no such
runs: in them, every two neighbouring characters are a word, and so is a character without a
neighbour. A word ends where the script changes. Hangul is written with spaces.
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
# Invisible format characters that separate nothing: soft hyphen, joiners, directions, …
FORMAT = re.compile(
    "["
    "\u00ad\u034f\u061c\u180e\u200c-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff"
    "\U000e0001\U000e0020-\U000e007f"
    "]"
)
# Separates words in scripts written without spaces; elsewhere it only permits a line break.
ZERO_WIDTH_SPACE = "\u200b"


@cache
def _kind(char: str) -> str:
    """The role of a character in words.

    "spaced" and "unspaced" are characters of words in scripts with and without spaces. A "mark"
    belongs to the character before it. Anything else is "other".
    """
    if FORMAT.match(char) or unicodedata.category(char) in ("Mn", "Mc", "Me"):
        return "mark"
    if not char.isalnum() and char != "_":
        return "other"
    return "unspaced" if UNSPACED.match(char) and not char.isdecimal() else "spaced"


@cache
def _invisible(char: str) -> bool:
    """Whether a character only changes how its neighbours are displayed.

    These are format characters, variation selectors and enclosing marks.
    """
    return (
        FORMAT.match(char) is not None
        or "\ufe00" <= char <= "\ufe0f"
        or "\U000e0100" <= char <= "\U000e01ef"
        or unicodedata.category(char) == "Me"
    )


def _separates(text: str, place: int) -> bool:
    """Whether the zero-width space at this place has a neighbour in a script without spaces."""
    return "unspaced" in map(_kind, text[max(0, place - 1) : place + 2])


def _runs(text: str) -> Iterator[tuple[str, list[int]]]:
    """Cut a text into runs of one kind of character.

    Yields the kind of each run, and the end of each of its characters (with its marks) in the text.
    """
    before = "other"
    ends: list[int] = []
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
    """List the words of a text.

    Parameters
    ----------
    text : str
        Any text.

    Returns
    -------
    list of str
        The words in their order; for scripts without spaces, pairs of neighbouring characters.
    """
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
    # Letters and marks that have become neighbours are composed, too.
    text = unicodedata.normalize("NFC", text)
    result: list[str] = []
    begin = 0
    for kind, ends in _runs(text):
        if kind == "spaced":
            result.append(text[begin : ends[-1]])
        elif kind == "unspaced" and len(ends) == 1:
            result.append(text[begin : ends[0]])
        elif kind == "unspaced":
            starts = [begin, *ends[:-1]]
            result += [text[start:end] for start, end in zip(starts, ends[1:], strict=False)]
        begin = ends[-1]
    return result


def cut(text: str, limit: int | None = None) -> str:
    """Cut a text behind a number of words, and reduce white space to single spaces.

    What is between spaces counts as one word, whatever its punctuation; characters of scripts
    without spaces count as in `words`. Nothing is normalised and no mark is separated from its
    letter: but for its white space, the result is a prefix of the text.

    Parameters
    ----------
    text : str
        Any text.
    limit : int or None
        Largest number of words; None means all.

    Returns
    -------
    str
        The beginning of the text.
    """
    parts = text.split()
    if limit is None or UNSPACED.search(text) is None:
        return " ".join(parts[:limit])
    result: list[str] = []
    for part in parts:
        if limit <= 0:
            break
        ends = _word_ends(part)
        result.append(part if len(ends) <= limit else part[: ends[limit - 1]])
        limit -= len(ends)
    return " ".join(result)


def count(text: str) -> int:
    """Count the words of a text as `cut` does.

    Parameters
    ----------
    text : str
        Any text.

    Returns
    -------
    int
        Number of words.
    """
    parts = text.split()
    if UNSPACED.search(text) is None:
        return len(parts)
    return sum(len(_word_ends(part)) for part in parts)


def _word_ends(part: str) -> list[int]:
    """The ends of the words in a text without spaces."""
    runs = list(_runs(part))
    if not any(kind == "unspaced" for kind, _ in runs):
        return [len(part)]
    result: list[int] = []
    for kind, ends in runs:
        if kind == "spaced":
            result.append(ends[-1])
        elif kind == "unspaced":
            result += ends[1:] or ends
    return result
