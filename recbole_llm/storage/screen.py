"""Terminal output without control characters, whatever files, titles or servers contain."""

import logging
import re
import sys
from typing import TextIO

# the escape sequences of RecBole's coloured log lines
COLOUR = re.compile(r"\x1b\[[\d;]*m")
# controls except tab and line end, marks and overrides of writing directions, line separators,
# lone surrogates
STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: object) -> str:
    r"""Escape the characters of a text that a terminal would interpret.

    Parameters
    ----------
    text : object
        The text; anything else is converted by `str`.

    Returns
    -------
    str
        The text, in which control characters are escape sequences of Python.

    Examples
    --------
    >>> print(printable("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    return STEERING.sub(lambda match: ascii(match[0])[1:-1], str(text))


def say(text: object, file: TextIO | None = None, end: str = "\n") -> None:
    """Print a text of any origin, with control characters escaped.

    Parameters
    ----------
    text : object
        What to print.
    file : file, optional
        Where to print; standard output by default.
    end : str
        What follows the text.
    """
    print(printable(text), file=file or sys.stdout, end=end, flush=True)


class LogFormatter(logging.Formatter):
    """Formats log records without colours and with control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without colours and without what a terminal would obey."""
        return printable(COLOUR.sub("", super().format(record)))
