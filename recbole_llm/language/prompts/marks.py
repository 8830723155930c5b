"""Text is data: what in it could be read as a mark of a prompt or of a chat is rewritten, all else stays."""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache

import yaml

from ...settings import files

ROLES = "user|human|assistant|system"
BREAK = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
# Marks in square brackets that chat formats and tokenizers use; the heads of our own prompts are added to them.
BRACKETED = (
    "INST", "SYS", "SYSTEM_PROMPT", "CLS", "SEP", "MASK", "PAD", "UNK", "BOS", "EOS", "gMASK", "sMASK", "TOOL_CALLS", "TOOL_RESULTS", "TOOL_CONTENT",
    "AVAILABLE_TOOLS", "ARGS", "CALL_ID", "THINK", "IMG", "IMG_BREAK", "IMG_END", "AUDIO", "BEGIN_AUDIO", "PREFIX", "MIDDLE", "SUFFIX", r"unused\d+",
)  # fmt: skip
ROUND = {"<": "(", ">": ")", "[": "(", "]": ")"}
INVISIBLE = ("Cc", "Cf", "Cn", "Co", "Mn")  # categories of characters that take no room


class NormalizedText:
    """A text as any tokenizer may normalise it, with the places of its characters in the text.

    Compatibility forms (full-width letters) are replaced, marks above letters and characters
    without a width are left out.
    """

    def __init__(self, text: str):
        self.original = list(text)
        if text.isascii() and text.isprintable():
            self.text, self.places = text, range(len(text))
            return
        letters, places = [], []
        for place, letter in enumerate(text):
            for part in unicodedata.normalize("NFKD", letter):
                if part in BREAK or part == "\t" or unicodedata.category(part) not in INVISIBLE:
                    letters.append(part)
                    places.append(place)
        self.text, self.places = "".join(letters), places

    def replace(self, begin: int, end: int, new: str) -> None:
        """Write `new` in place of the characters from `begin` to `end` of the folded text."""
        self.original[self.places[begin]] = new
        for at in range(begin + 1, end):
            if self.places[at] != self.places[begin]:
                self.original[self.places[at]] = ""

    def __str__(self) -> str:
        return "".join(self.original)


@cache
def _patterns() -> tuple[re.Pattern, ...]:
    """What marks look like in a folded text: a token or a section head in brackets, a heading, a speaker."""
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
    """The heads of sections in the prompts of all domains, each in square brackets."""
    found = []
    for path in sorted((files.properties() / "domain").glob("*.yaml")):
        for key, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            if key.endswith(("_head", "_heads")):
                found += [value] if isinstance(value, str) else value
    return tuple(dict.fromkeys(found))


@lru_cache(2**16)
def neutralize_marks(text: str) -> str:
    """A text that holds no mark, with single spaces for all white space.

    A mark is a special token of any tokenizer or chat format (`<|im_start|>`, `<s>`, `[INST]`), a
    section head of our prompts (`[Next Item]`), a heading (`### Assistant:`) and a speaker at the
    beginning of a line (`User:`), in any case and width. Its brackets are made round, a heading gets a
    single `#`, and the colon behind a speaker becomes a dash. `>`, `:` and brackets elsewhere stay.
    """
    found = _rewritten(text)
    while found != text:  # what is left of a mark may be one with what stands around it
        text, found = found, _rewritten(found)
    return found


def _rewritten(text: str) -> str:
    bracketed, heading, speaker = _patterns()
    folded = NormalizedText(text)
    for match in bracketed.finditer(folded.text):
        for at in range(*match.span()):
            if folded.text[at] in ROUND:
                folded.replace(at, at + 1, ROUND[folded.text[at]])
    for match in heading.finditer(folded.text):
        first = match.group().index("#")
        folded.replace(match.start() + first, match.end(), "#")
    for match in speaker.finditer(folded.text):
        colon = match.end() - 1
        folded.replace(colon, colon + 1, " -")
    return " ".join(str(folded).split())


def neutralize_separators(value: str, names: Sequence[str]) -> str:
    """A value that cannot be read as another attribute behind its own: `; Price:` becomes `, Price:`."""
    if ";" not in value and value.isascii():
        return value
    folded = NormalizedText(value)
    heads = "|".join(re.escape(NormalizedText(name).text) for name in names)
    pattern = rf";(?=\s*(?:{heads})\s*:)"
    for match in re.finditer(pattern, folded.text, re.IGNORECASE):
        folded.replace(match.start(), match.end(), ",")
    return str(folded)
