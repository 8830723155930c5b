"""Neutralise marks in texts: what could be read as a mark of a prompt or of a chat is rewritten.

Text is data; everything else in it stays as it is.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache

import yaml

from ...settings import files

ROLES = "user|human|assistant|system"
BREAK = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
# Marks in square brackets that chat formats and tokenizers use; the heads of our own prompts are
# added to them.
BRACKETED = (
    *("INST", "SYS", "SYSTEM_PROMPT", "CLS", "SEP", "MASK", "PAD", "UNK", "BOS", "EOS"),
    *("gMASK", "sMASK", "TOOL_CALLS", "TOOL_RESULTS", "TOOL_CONTENT", "AVAILABLE_TOOLS", "ARGS"),
    *("CALL_ID", "THINK", "IMG", "IMG_BREAK", "IMG_END", "AUDIO", "BEGIN_AUDIO"),
    *("PREFIX", "MIDDLE", "SUFFIX", r"unused\d+"),
)
ROUND = {"<": "(", ">": ")", "[": "(", "]": ")"}
INVISIBLE = ("Cc", "Cf", "Cn", "Co", "Mn")  # categories of characters without a width


class NormalizedText:
    """A text as any tokenizer may normalise it, and where each of its characters comes from.

    Compatibility forms (full-width letters) are replaced; marks above letters and characters
    without a width are left out.

    Parameters
    ----------
    text : str
        The original text.

    Attributes
    ----------
    text : str
        The normalised text.
    places : sequence of int
        For each of its characters, the index of the original character.
    original : list of str
        The characters of the original text, with those that `replace` has replaced.
    """

    def __init__(self, text: str):
        self.original = list(text)
        self.places: Sequence[int]
        if text.isascii() and text.isprintable():
            self.text, self.places = text, range(len(text))
            return
        characters, places = [], []
        for place, original in enumerate(text):
            for character in unicodedata.normalize("NFKD", original):
                white_space = character in BREAK or character == "\t"
                if white_space or unicodedata.category(character) not in INVISIBLE:
                    characters.append(character)
                    places.append(place)
        self.text, self.places = "".join(characters), places

    def replace(self, begin: int, end: int, new: str) -> None:
        """Replace characters in the original text.

        Parameters
        ----------
        begin, end : int
            The range of characters in the normalised text.
        new : str
            What is written in their place.
        """
        self.original[self.places[begin]] = new
        for at in range(begin + 1, end):
            if self.places[at] != self.places[begin]:
                self.original[self.places[at]] = ""

    def __str__(self) -> str:
        return "".join(self.original)


@cache
def _patterns() -> tuple[re.Pattern, ...]:
    """Patterns of marks in a normalised text.

    The first finds tokens and section heads in brackets, the second headings, the third speakers.
    """
    heads = {r"\s+".join(map(re.escape, head[1:-1].split())) for head in section_heads()}
    inside = "|".join([*BRACKETED, *sorted(heads)])
    token = r"<[^\s<>]*[^\W\d_][^\s<>]*>|<\s*\|[^<>]*>|<[^<>]*\|\s*>|>>\s*\w+\s*<<"
    bracketed = re.compile(rf"{token}|\[\s*/?\s*(?:{inside})\s*\]", re.IGNORECASE)
    run = r"#(?:\s*#)+"
    title = rf"(?:\w[\w ]{{0,30}}:|(?:{ROLES}|instruction|response|input)\b)"
    heading = re.compile(rf"(?:(?<=[{BREAK}])|^)\s*{run}|{run}(?=\s*{title})", re.IGNORECASE)
    speaker = re.compile(rf"(?:^|[{BREAK}#])[^\w#]*(?:{ROLES})[^\w:]{{0,4}}:", re.IGNORECASE)
    return bracketed, heading, speaker


@cache
def section_heads() -> tuple[str, ...]:
    """Read the heads of sections in the prompts of all domains.

    Returns
    -------
    tuple of str
        The distinct heads, each in square brackets.
    """
    heads: list[str] = []
    for path in sorted((files.properties() / "domain").glob("*.yaml")):
        for key, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            if key.endswith(("_head", "_heads")):
                heads += [value] if isinstance(value, str) else value
    return tuple(dict.fromkeys(heads))


@lru_cache(2**16)
def neutralize_marks(text: str) -> str:
    """Rewrite every mark in a text, and replace all white space by single spaces.

    A mark is a special token of any tokenizer or chat format (`<|im_start|>`, `<s>`, `[INST]`), a
    section head of our prompts (`[Next Item]`), a heading (`### Assistant:`) and a speaker at the
    beginning of a line (`User:`), in any case and width. Its brackets are made round, a heading
    gets a single `#`, and the colon behind a speaker becomes a dash. `>`, `:` and brackets
    elsewhere stay.

    Parameters
    ----------
    text : str
        What a user or an item says.

    Returns
    -------
    str
        The text without marks.
    """
    rewritten = _rewrite(text)
    while rewritten != text:  # the rest of a mark may form a new one with the text around it
        text, rewritten = rewritten, _rewrite(rewritten)
    return rewritten


def _rewrite(text: str) -> str:
    bracketed, heading, speaker = _patterns()
    normalized = NormalizedText(text)
    for match in bracketed.finditer(normalized.text):
        for at in range(*match.span()):
            if normalized.text[at] in ROUND:
                normalized.replace(at, at + 1, ROUND[normalized.text[at]])
    for match in heading.finditer(normalized.text):
        first = match.group().index("#")
        normalized.replace(match.start() + first, match.end(), "#")
    for match in speaker.finditer(normalized.text):
        colon = match.end() - 1
        normalized.replace(colon, colon + 1, " -")
    return " ".join(str(normalized).split())


def neutralize_separators(value: str, names: Sequence[str]) -> str:
    """Rewrite what could be read as a further attribute behind a value.

    `; Price:` becomes `, Price:`.

    Parameters
    ----------
    value : str
        The value of an attribute.
    names : sequence of str
        The names of the attributes.

    Returns
    -------
    str
        The value.
    """
    if ";" not in value and value.isascii():
        return value
    normalized = NormalizedText(value)
    heads = "|".join(re.escape(NormalizedText(name).text) for name in names)
    pattern = rf";(?=\s*(?:{heads})\s*:)"
    for match in re.finditer(pattern, normalized.text, re.IGNORECASE):
        normalized.replace(match.start(), match.end(), ",")
    return str(normalized)
