"""Item texts as people would have typed them.

No markup, entities or control characters, and one space between words.
"""

import html
import json
import re
import unicodedata
from typing import Any

SCRIPT = re.compile(r"<(script|style)\b.*?(</\1\s*>|$)|<!--.*?(-->|$)", re.IGNORECASE | re.DOTALL)
TAG = re.compile(r"</?[a-zA-Z][^<>]*>|<!DOCTYPE[^<>]*>", re.IGNORECASE)
PAGE_SCRIPT = re.compile(
    r"\bgetTime\b|\bfunction ?\([\w, ]*\) ?\{|\}\);|^\s*(var |window\.|document\.|P\.when)"
)
STYLE_RULE = re.compile(
    r"(^|[\s,>}])[.#@][\w-]+[^{}<>]*\{[^{}]*:[^{}]*\}|\{[\s\w-]+:[^{};]*;[^{}]*\}"
)
# Emoji and some scripts need these; other invisible characters only make equal words unequal.
JOINERS = "\u200c\u200d"


def clean(value: str, ascii_only: bool = False) -> str:
    """Clean one text.

    Parameters
    ----------
    value : str
        The text, with markup.
    ascii_only : bool
        Whether other characters are replaced by spaces (ST5-Seq, section on data cleaning).

    Returns
    -------
    str
        The text, or "" if it is a style rule or a page script that a scraper took for text.
    """
    if "&" in value:
        value = html.unescape(html.unescape(value))  # `&amp;quot;` was escaped twice
    if "<" in value:
        value = TAG.sub(" ", SCRIPT.sub(" ", value))
    if _may_be_code(value) and (PAGE_SCRIPT.search(value) or STYLE_RULE.search(value)):
        return ""
    if ascii_only:
        value = "".join(char if char.isascii() else " " for char in value)
    if not value.isascii() or not value.isprintable():
        value = "".join(_visible(char) for char in value)
    value = " ".join(value.split())
    if value.startswith('"'):  # stock RecBole would read a quoted cell
        value = "“" + value[1:]
    return value


def _may_be_code(value: str) -> bool:
    """Whether a text has what PAGE_SCRIPT or STYLE_RULE need, in a tenth of their time.

    Written out, because this is called for every cell and a loop takes three times as long.
    """
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
    """A space for a control character, nothing for an invisible one, else the character."""
    category = unicodedata.category(char)
    if category in ("Cc", "Cs", "Co", "Zl", "Zp"):
        return " "
    return "" if category == "Cf" and char not in JOINERS else char


def tokens(*names: str) -> str:
    """Write names as the tokens of a feature column, which RecBole splits at spaces.

    Parameters
    ----------
    *names
        The names, of one or more words.

    Returns
    -------
    str
        The names, cleaned, with their words joined by underscores; empty ones are left out.
    """
    cleaned = ("_".join(clean(name).split()) for name in names)
    return " ".join(name for name in cleaned if name)


def values(cell: str | None) -> list[str]:
    """Read the texts of a JSON cell.

    Parameters
    ----------
    cell : str or None
        The cell. What is not JSON is taken as a text.

    Returns
    -------
    list of str
        The text of a string or number, the texts among a list's members, none of null or an
        object.
    """
    if not cell:
        return []
    try:
        content = json.loads(cell)
    except ValueError:
        content = cell
    members = content if isinstance(content, list) else [content]
    return [str(member) for member in members if _is_text(member)]


def _is_text(member: Any) -> bool:
    return isinstance(member, str | int | float) and not isinstance(member, bool)
