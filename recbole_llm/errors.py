"""The one error class for everything a user can put right, and words for all other errors."""

import traceback
from importlib.util import find_spec


class UserError(Exception):
    """A mistake in the input, told in one line: what was expected, what was found, what to do.

    The command line prints it on stderr without a traceback and exits with code 2.
    """


def require_packages(setting: str, extra: str, *modules: str) -> None:
    """Raise UserError, naming the extra that brings them, unless all modules can be imported.

    Parameters
    ----------
    setting : str
        The command or setting that needs them.
    extra : str
        An extra of setup.cfg.
    *modules : str
        Names of top-level modules. None of them is imported.

    Raises
    ------
    UserError
        If a module is not installed.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{setting}: {' and '.join(missing)} {verb} not installed: "
            f'pip install "recbole_llm[{extra}]"'
        )


def described(error: BaseException) -> str:
    """An error that nobody foresaw, in one line: its type, its words, and where it was raised.

    The place is the innermost one in RecBole's code or in ours. A UserError says enough.
    """
    if isinstance(error, UserError):
        return str(error)
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] in ("recbole", "recbole_llm"):
            place = f" (in {module}, line {line})"
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}{place}"
