"""The one error class for everything a user can put right."""


class UserError(Exception):
    """A mistake in the input, told in one line: what was expected, what was found, what to do.

    The command line prints it on stderr without a traceback and exits with code 2.
    """
