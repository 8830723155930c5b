"""The log of a run, on the screen and in the run's folder."""

import logging
import logging.handlers
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from ..errors import UserError
from .screen import LogFormatter


class LogFile(logging.FileHandler):
    """The log file in a run's folder.

    A full disk loses lines of it, which are on the screen too, and does not end the run.
    """

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - name of logging's
        """Close the log where it cannot be written; the run goes on."""
        if isinstance(sys.exc_info()[1], OSError):
            self.close()
        else:
            super().handleError(record)

    def close(self) -> None:
        """Close the file, whether its last lines could be written or not."""
        with suppress(OSError):
            super().close()


class RunLog:
    """The root logger, which RecBole writes to, on the screen and in a run's folder.

    Records are buffered until `start`, so that a mistake in the input is reported alone and no
    folder is made for it.

    Attributes
    ----------
    logger : Logger
        The root logger.
    handlers : list of Handler
        Its handlers while the log is open: the buffer, or those of the screen and the file.
    """

    def __init__(self) -> None:
        self.logger = logging.getLogger()
        self.handlers: list[logging.Handler] = []

    def info(self, line: str) -> None:
        """Log a line."""
        self.logger.info(line)

    def start(self, folder: Path | None = None) -> None:
        """Write the buffered records, and all later ones at once.

        Parameters
        ----------
        folder : Path, optional
            Folder of the log file, which is created; without it, the screen alone gets the log.
        """
        buffer = self.handlers.pop()
        records = buffer.buffer if isinstance(buffer, logging.handlers.BufferingHandler) else []
        self.logger.removeHandler(buffer)
        self.handlers.append(logging.StreamHandler())
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            self.handlers.append(LogFile(folder / "log", encoding="utf-8"))
        for handler in self.handlers:
            handler.setFormatter(LogFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
            self.logger.addHandler(handler)
            for record in records:
                handler.handle(record)

    def __enter__(self) -> "RunLog":
        self.level_before = self.logger.level
        self.logger.setLevel(logging.INFO)
        self.handlers = [logging.handlers.BufferingHandler(sys.maxsize)]
        self.logger.addHandler(self.handlers[0])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        is_mistake = kind is None or issubclass(kind, UserError)
        if not is_mistake and isinstance(self.handlers[0], logging.handlers.BufferingHandler):
            self.start()
        self.logger.setLevel(self.level_before)
        for handler in self.handlers:
            self.logger.removeHandler(handler)
            handler.close()
