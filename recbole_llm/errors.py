"""The error class for everything a user can correct, and one-line descriptions of other errors."""

import traceback
from importlib.util import find_spec


class UserError(Exception):
    """A mistake in the input, in one line: what was expected, what was found, what to do.

    The command line prints it on stderr without a traceback and exits with code 2.
    """


def require_packages(setting: str, extra: str, *modules: str) -> None:
    """Check that modules are installed, without importing them.

    Parameters
    ----------
    setting : str
        The command or setting that needs them.
    extra : str
        The extra of setup.cfg that installs them.
    *modules : str
        Names of top-level modules.

    Raises
    ------
    UserError
        If a module is not installed; the message names the extra.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{setting}: {' and '.join(missing)} {verb} not installed: "
            f'pip install "recbole_llm[{extra}]"'
        )


def described(error: BaseException) -> str:
    """Describe an error in one line.

    Parameters
    ----------
    error : exception
        Any exception.

    Returns
    -------
    str
        Its type, its message, and the innermost place in RecBole's code or in ours that raised it.
        For a UserError, the message alone.
    """
    if isinstance(error, UserError):
        return str(error)
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] in ("recbole", "recbole_llm"):
            place = f" (in {module}, line {line})"
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}{place}"
