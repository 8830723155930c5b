"""How far long work has come: a bar on a terminal, and a line now and then in a file.

A bar draws itself anew with a carriage return, which fills a log with its states. Where standard
error is no terminal, a line is written instead once another tenth is done and LEAST seconds have
passed, and after MOST seconds in any case, so that a log of a day's work is short and never silent
for long.
"""

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from .screen import say

LEAST, MOST = 30.0, 600.0  # seconds between two lines
COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # which RecBole puts into its descriptions


def progress(
    iterable: Iterable | None = None, *, desc: str | None = None, total: float | None = None,
    disable: bool = False, initial: float = 0, unit: str = "it", unit_scale: bool = False, **bar,
):  # fmt: skip
    """A tqdm bar where standard error is a terminal, else a `LineProgress`, which is used alike.

    Parameters
    ----------
    iterable : what to go through; None for work that calls `update`.
    desc, total, disable, initial, unit, unit_scale : as of tqdm.
    bar : more of tqdm's arguments, for a terminal.
    """
    if disable or sys.stderr.isatty():
        from tqdm import tqdm

        bar = {"ncols": 100} | bar
        return tqdm(
            iterable, desc=desc, total=total, disable=disable, initial=initial, unit=unit,
            unit_scale=unit_scale, **bar,
        )  # fmt: skip
    return LineProgress(iterable, desc, total, initial=initial, unit=unit)


def say_with_time(line: str, file=None) -> None:
    """Print a line with the time of day, on standard output or on `file`."""
    say(f"{time.strftime('%H:%M:%S')} {line}", file)


def _to_stderr(line: str) -> None:
    say_with_time(line, sys.stderr)


class LineProgress:
    """Progress in lines, with the share that is done, the rate and the time that is left.

    Parameters
    ----------
    iterable, desc, total, initial, unit : as of `progress`.
    write : takes a line; by default it goes to standard error, with the time of day.
    clock : seconds from any moment on.
    """

    def __init__(
        self, iterable: Iterable | None = None, desc: str | None = None,
        total: float | None = None, *, initial: float = 0, unit: str = "it",
        write: Callable[[str], None] = _to_stderr, clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)
        self.iterable, self.total = iterable, total
        self.unit = {"it": "", "B": "bytes"}.get(unit, unit)
        self.desc = COLOUR.sub("", desc or "").strip()
        self.note, self.write, self.clock = "", write, clock
        self.n = self.first = self.told = initial
        self.started = self.last = clock()

    def __iter__(self) -> Iterator:
        for one in self.iterable:
            yield one
            self.update()
        self.close()

    def __len__(self) -> int:
        return len(self.iterable)

    def __enter__(self) -> "LineProgress":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def update(self, n: float = 1) -> None:
        """Count `n` more as done, and write a line if it is time to."""
        self.n += n
        now = self.clock()
        waited = now - self.last
        tenth = not self.total or self.n - self.told >= self.total / 10
        if waited >= MOST or waited >= LEAST and tenth:
            self._tell(now)

    def set_description(self, desc: str | None = None, refresh: bool = True) -> None:
        self.desc = COLOUR.sub("", desc or "").strip()

    def set_postfix_str(self, note: str = "", refresh: bool = True) -> None:
        self.note = COLOUR.sub("", note).strip()

    def set_postfix(self, refresh: bool = True, **values) -> None:
        self.set_postfix_str(", ".join(f"{name}={value}" for name, value in values.items()))

    def close(self) -> None:
        """Write the last line, if there has been one before."""
        if self.told != self.first and self.told != self.n:
            self._tell(self.clock())

    def _tell(self, now: float) -> None:
        rate = (self.n - self.first) / max(now - self.started, 1e-9)
        told = f"{self.desc}: {_number(self.n)}" if self.desc else _number(self.n)
        if self.total:
            told += f" of {_number(self.total)} ({100 * self.n / self.total:.0f} %)"
        told += f", {_rate(rate, self.unit)}"
        if self.total and self.n >= self.total:
            told += f", in {_time(now - self.started)}"
        elif self.total and rate > 0:
            told += f", about {_time((self.total - self.n) / rate)} left"
        self.write(f"{told}{', ' * bool(self.note)}{self.note}")
        self.told, self.last = self.n, now


def _number(value: float) -> str:
    return f"{value / 1e6:.1f} M" if value >= 1e7 else f"{value:.0f}"


def _rate(rate: float, unit: str) -> str:
    """The rate per second, or per minute where it is low."""
    unit = f" {unit}" if unit else ""
    if rate < 1:
        return f"{60 * rate:.1f}{unit} a minute"
    return f"{_number(rate) if rate >= 100 else f'{rate:.1f}'}{unit} a second"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
