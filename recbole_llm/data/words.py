"""What counts as a word, wherever words are matched or counted."""

import re

WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text in lower case."""
    return WORD.findall(text.lower())
