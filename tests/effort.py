"""How much Python a call runs: a measure of work that does not depend on the machine."""

import sys


def lines_run(call) -> int:
    """Number of lines of Python that `call()` runs; a loop in C is part of its line."""
    count = 0

    def step(frame, event, argument):
        nonlocal count
        count += event == "line"
        return step

    before = sys.gettrace()
    sys.settrace(step)
    try:
        call()
    finally:
        sys.settrace(before)
    return count
