"""Shop texts as people would have typed them: no markup, no entities, no control characters, one space between words."""

import html
import json
import re
import unicodedata

SCRIPT = re.compile(r"<(script|style)\b.*?(</\1\s*>|$)|<!--.*?(-->|$)", re.IGNORECASE | re.DOTALL)
TAG = re.compile(r"</?[a-zA-Z][^<>]*>|<!DOCTYPE[^<>]*>", re.IGNORECASE)
PAGE = re.compile(
    r"\bgetTime\b|\bfunction ?\([\w, ]*\) ?\{|\}\);|^\s*(var |window\.|document\.|P\.when)"
)
RULE = re.compile(r"(^|[\s,>}])[.#@][\w-]+[^{}<>]*\{[^{}]*:[^{}]*\}|\{[\s\w-]+:[^{};]*;[^{}]*\}")
JOINERS = "\u200c\u200d"  # emoji and some scripts need them; other invisible characters only make equal words unequal


def clean(value: str, ascii_only: bool = False) -> str:
    """One value. Style rules and page scripts, which scrapers took for text, are no value at all: "".

    ascii_only : other characters become spaces (ST5-Seq, section of data cleaning).
    """
    if "&" in value:
        value = html.unescape(html.unescape(value))  # `&amp;quot;` was escaped twice
    if "<" in value:
        value = TAG.sub(" ", SCRIPT.sub(" ", value))
    if _suspect(value) and (PAGE.search(value) or RULE.search(value)):
        return ""
    if ascii_only:
        value = "".join(char if char.isascii() else " " for char in value)
    if not value.isascii() or not value.isprintable():
        value = "".join(_visible(char) for char in value)
    value = " ".join(value.split())
    return (
        "“" + value[1:] if value.startswith('"') else value
    )  # which stock RecBole would read as a quoted cell


def _suspect(value: str) -> bool:
    """Whether a value has what PAGE and RULE need: told in a tenth of their time."""
    return (
        "{" in value
        or "});" in value
        or "getTime" in value
        or "var " in value
        or "window." in value
        or "document." in value
        or "P.when" in value
    )


def _visible(char: str) -> str:
    kind = unicodedata.category(char)
    if kind in ("Cc", "Cs", "Co", "Zl", "Zp"):
        return " "
    return "" if kind == "Cf" and char not in JOINERS else char


def tokens(*names: str) -> str:
    """Names as tokens of a feature column, which RecBole splits at spaces: each is one, whatever words it has."""
    return " ".join("_".join(words) for name in names if (words := clean(name).split()))


def values(cell: str | None) -> list[str]:
    """The texts of a JSON cell: of a string one, of a list its members, of null or an object none."""
    if not cell:
        return []
    try:
        found = json.loads(cell)
    except ValueError:
        found = cell
    found = found if isinstance(found, list) else [found]
    return [
        str(one)
        for one in found
        if isinstance(one, str | int | float) and not isinstance(one, bool)
    ]
