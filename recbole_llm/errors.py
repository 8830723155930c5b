"""The one error class for everything a user can put right, and words for all other errors."""

import traceback


class UserError(Exception):
    """A mistake in the input, told in one line: what was expected, what was found, what to do.

    The command line prints it on stderr without a traceback and exits with code 2.
    """


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
