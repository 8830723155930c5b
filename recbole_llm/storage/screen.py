"""What reaches the terminal: nothing that a file, a title or a server says can steer it."""

import logging
import re
import sys

COLOUR = re.compile(r"\x1b\[[\d;]*m")  # in which RecBole logs
# Controls but for tab and line end, the marks and overrides of writing directions, line separators, lone surrogates.
STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: object) -> str:
    r"""The text with every character that steers a terminal written as its escape, such as \x1b."""
    return STEERING.sub(lambda found: ascii(found[0])[1:-1], str(text))


def say(text: object, file=None, end: str = "\n") -> None:
    """Print text of whatever origin, on standard output or on `file`."""
    print(printable(text), file=file or sys.stdout, end=end, flush=True)


class LogFormatter(logging.Formatter):
    """Lines of a log as they are shown and stored: without colours, and printable."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(COLOUR.sub("", super().format(record)))
