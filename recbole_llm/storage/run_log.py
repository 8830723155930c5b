"""What a run says, on the screen and in its folder."""

import logging
import logging.handlers
import sys
from contextlib import suppress
from pathlib import Path

from ..errors import UserError
from .screen import LogFormatter


class LogFile(logging.FileHandler):
    """The log in a run's folder. A full disk costs it lines, which the screen has, and ends no run."""

    def handleError(self, record):
        if isinstance(sys.exc_info()[1], OSError):
            self.close()
        else:
            super().handleError(record)

    def close(self):
        with suppress(OSError):
            super().close()


class RunLog:
    """The root logger, which RecBole writes to, on the screen and in a run's folder.

    Lines wait until `start`, so that a mistake in the input leaves its own line alone, and no folder.
    """

    def __init__(self):
        self.logger = logging.getLogger()
        self.handlers: list[logging.Handler] = []

    def info(self, line: str) -> None:
        self.logger.info(line)

    def start(self, folder: Path | None = None) -> None:
        """Show what waits and what comes, and write it to the folder if there is one."""
        waiting = self.handlers.pop()
        self.logger.removeHandler(waiting)
        self.handlers.append(logging.StreamHandler())
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            self.handlers.append(LogFile(folder / "log", encoding="utf-8"))
        for handler in self.handlers:
            handler.setFormatter(LogFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
            self.logger.addHandler(handler)
            for record in waiting.buffer:
                handler.handle(record)

    def __enter__(self):
        self.before = self.logger.level
        self.logger.setLevel(logging.INFO)
        self.handlers = [logging.handlers.BufferingHandler(sys.maxsize)]
        self.logger.addHandler(self.handlers[0])
        return self

    def __exit__(self, kind, *error):
        if (
            kind
            and not issubclass(kind, UserError)
            and isinstance(self.handlers[0], logging.handlers.BufferingHandler)
        ):
            self.start()
        self.logger.setLevel(self.before)
        for handler in self.handlers:
            self.logger.removeHandler(handler)
            handler.close()
