"""Which parameters of a test are of the fast suite."""

from collections.abc import Container, Iterable

import pytest


def fast_only(fast: Container, values: Iterable) -> list:
    """Return the values as parameters of a test; those that are not in `fast` are marked slow.

    A tuple holds the values of several parameters.
    """
    return [
        value if value in fast else pytest.param(*_parts(value), marks=pytest.mark.slow)
        for value in values
    ]


def _parts(value: object) -> tuple:
    return value if isinstance(value, tuple) else (value,)
