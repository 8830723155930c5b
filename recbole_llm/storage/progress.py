"""Progress of long work: a bar on a terminal, and lines in a log file.

A bar redraws itself with a carriage return, so that a log would contain every state of it. If
standard error is no terminal, a line is written instead: as soon as a further tenth is done and
LEAST seconds have passed, and after MOST seconds in any case. The log of a day's work therefore
stays short and is never silent for long.
"""

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Protocol, TextIO

from .screen import say

# seconds between two lines
LEAST, MOST = 30.0, 600.0
# escape sequences that RecBole puts into its descriptions
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Progress(Protocol):
    """What tqdm's bars and `LineProgress` have in common, as tqdm documents it."""

    def __iter__(self) -> Iterator[Any]: ...

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: object) -> Any: ...

    def update(self, n: float = 1) -> Any:
        """Add to what is done."""

    def set_description(self, desc: str | None = None, refresh: bool = True) -> Any:
        """Change the words before the bar."""

    def set_postfix_str(self, note: str = "", refresh: bool = True) -> Any:
        """Change the words behind the bar."""

    def close(self) -> Any:
        """Leave the bar as it is."""


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    desc: str | None = None,
    total: float | None = None,
    disable: bool = False,
    initial: float = 0,
    unit: str = "it",
    unit_scale: bool = False,
    **bar: Any,
) -> Progress:
    """Show the progress of a loop, or of work that calls `update`.

    Parameters
    ----------
    iterable : iterable, optional
        What to iterate over; without it, the caller uses `update`.
    desc : str, optional
        Description.
    total : float, optional
        Number of steps; by default the length of `iterable`, if it has one.
    disable : bool
        Whether to show nothing.
    initial : float
        Number of steps that are done already.
    unit : str
        Name of a step.
    unit_scale : bool
        Whether a bar abbreviates numbers ("1.2M").
    **bar : object
        Further arguments of tqdm, for a bar.

    Returns
    -------
    tqdm or LineProgress
        A bar if standard error is a terminal, else lines.
    """
    if not disable and not sys.stderr.isatty():
        return LineProgress(iterable, desc, total, initial=initial, unit=unit)
    from tqdm import tqdm

    settings = {"ncols": 100, "unit": unit, "unit_scale": unit_scale} | bar
    drawn: Progress = tqdm(
        iterable, desc=desc, total=total, disable=disable, initial=initial, **settings
    )
    return drawn


def say_with_time(line: str, file: TextIO | None = None) -> None:
    """Print a line with the time of day.

    Parameters
    ----------
    line : str
        The line.
    file : file, optional
        Where to print; standard output by default.
    """
    say(f"{time.strftime('%H:%M:%S')} {line}", file)


def _to_stderr(line: str) -> None:
    say_with_time(line, sys.stderr)


class LineProgress:
    """Progress in lines, with the share done, the rate and the remaining time.

    Parameters
    ----------
    iterable : iterable, optional
        What to iterate over; without it, the caller uses `update`.
    desc : str, optional
        Description.
    total : float, optional
        Number of steps; by default the length of `iterable`, if it has one.
    initial : float
        Number of steps that are done already.
    unit : str
        Name of a step, as tqdm spells it: "it" for none, "B" for bytes.
    write : callable
        Takes a line; by default it is printed on standard error, with the time of day.
    clock : callable
        Returns seconds since some fixed moment.

    Attributes
    ----------
    n : float
        Number of steps that are done.
    """

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        desc: str | None = None,
        total: float | None = None,
        *,
        initial: float = 0,
        unit: str = "it",
        write: Callable[[str], None] = _to_stderr,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        self.iterable: Iterable[Any] = () if iterable is None else iterable
        self.total = total
        self.unit = {"it": "", "B": "bytes"}.get(unit, unit)
        self.set_description(desc)
        self.note, self.write, self.clock = "", write, clock
        self.n = self.initial = self.last_written = initial
        self.started = self.last_time = clock()

    def __iter__(self) -> Iterator[Any]:
        for element in self.iterable:
            yield element
            self.update()
        self.close()

    def __enter__(self) -> "LineProgress":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, n: float = 1) -> None:
        """Count `n` more steps as done, and write a line if one is due.

        Parameters
        ----------
        n : float
            Number of steps.
        """
        self.n += n
        now = self.clock()
        waited = now - self.last_time
        is_tenth = not self.total or self.n - self.last_written >= self.total / 10
        if waited >= MOST or waited >= LEAST and is_tenth:
            self._write_line(now)

    def set_description(self, desc: str | None = None, refresh: bool = True) -> None:
        """Replace the description."""
        self.desc = COLOUR.sub("", desc or "").strip()

    def set_postfix_str(self, note: str = "", refresh: bool = True) -> None:
        """Replace the note at the end of each line."""
        self.note = COLOUR.sub("", note).strip()

    def set_postfix(self, refresh: bool = True, **values: object) -> None:
        """Replace the note by names and values."""
        self.set_postfix_str(", ".join(f"{name}={value}" for name, value in values.items()))

    def close(self) -> None:
        """Write the last line, if there was one before."""
        if self.last_written not in (self.initial, self.n):
            self._write_line(self.clock())

    def _write_line(self, now: float) -> None:
        rate = (self.n - self.initial) / max(now - self.started, 1e-9)
        line = f"{self.desc}: {_number(self.n)}" if self.desc else _number(self.n)
        if self.total:
            line += f" of {_number(self.total)} ({100 * self.n / self.total:.0f} %)"
        line += f", {_rate(rate, self.unit)}"
        if self.total and self.n >= self.total:
            line += f", in {_duration(now - self.started)}"
        elif self.total and rate > 0:
            line += f", about {_duration((self.total - self.n) / rate)} left"
        if self.note:
            line += f", {self.note}"
        self.write(line)
        self.last_written, self.last_time = self.n, now


def _number(value: float) -> str:
    return f"{value / 1e6:.1f} M" if value >= 1e7 else f"{value:.0f}"


def _rate(rate: float, unit: str) -> str:
    """The rate per second, or per minute if it is below one a second."""
    unit = f" {unit}" if unit else ""
    if rate < 1:
        return f"{60 * rate:.1f}{unit} a minute"
    number = _number(rate) if rate >= 100 else f"{rate:.1f}"
    return f"{number}{unit} a second"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
