"""Forward passes that fit into memory, and what happens where one did not."""

import ctypes
import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import torch

from ..contracts.models import PASS_COST
from ..errors import UserError
from .tokens.batches import by_length

# glibc's numbers of two settings of malloc, and what they are set to
M_TRIM_THRESHOLD, KEPT = -1, 2**31 - 1
M_MMAP_THRESHOLD, LARGEST_KEPT = -3, 2**25  # which glibc allows at most
AUTO = 2**17  # tokens of a pass for which nothing but memory is a limit


def keep_freed_memory() -> None:
    """Let this process keep freed memory for its next tensors, where glibc allocates it.

    glibc gives tensors of tens of MB back to the system when they are freed, and takes them again,
    page by page, for the next layer. Settings in the environment are left as they are.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    with suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        library.mallopt(M_TRIM_THRESHOLD, KEPT)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an exception is raised where a device has no memory left.

    Parameters
    ----------
    error : BaseException
        The exception.

    Returns
    -------
    bool
        Whether it is.
    """
    # torch's allocator of main memory raises a RuntimeError
    no_host_memory = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return no_host_memory or isinstance(error, torch.OutOfMemoryError | MemoryError)


def fits(compute: Callable[[], object]) -> bool:
    """Compute something, unless memory runs out.

    Parameters
    ----------
    compute : callable
        The computation.

    Returns
    -------
    bool
        Whether it was completed. What it had allocated is free again otherwise.
    """
    try:
        compute()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    else:
        return True
    # behind the handler, which held the frames of the computation and their tensors
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False


class PassBudget:
    """The most tokens of a pass, or of another cost; fewer after memory ran out.

    Parameters
    ----------
    tokens : int or "auto"
        The setting `pass_tokens`.

    Attributes
    ----------
    tokens : int
        Most tokens of a pass; a single text may have more.
    """

    def __init__(self, tokens: int | str):
        self.tokens = AUTO if isinstance(tokens, str) else tokens

    def shrink(self, largest: int, longest: int) -> None:
        """Take passes of half as many tokens, after one did not fit.

        Parameters
        ----------
        largest : int
            Tokens of the largest pass that was computed.
        longest : int
            Tokens of the longest text.

        Raises
        ------
        UserError
            If a pass of one text did not fit.
        """
        if largest <= longest:
            raise UserError(
                f"max_length: memory does not hold a pass of one text of {longest} tokens; set "
                "--max_length to less, or take a smaller model or a larger device"
            )
        self.tokens = max(longest, largest // 2)
        logging.getLogger().warning(
            f"memory ran out: passes of at most {self.tokens} tokens from here on (pass_tokens)"
        )

    def run(
        self,
        lengths: Sequence[int] | np.ndarray,
        compute: Callable[[np.ndarray], object],
        most: int | None = None,
        cost: int = PASS_COST,
    ) -> None:
        """Compute in passes of texts of similar length, and once more in smaller ones if need be.

        Parameters
        ----------
        lengths : sequence of int [n]
            Tokens of each text.
        compute : callable
            Takes the indices of the texts of a pass, int64; nothing is left of a pass for which
            memory did not suffice.
        most : int, optional
            Most texts of a pass.
        cost : int
            See `by_length`.

        Raises
        ------
        UserError
            If a pass of one text does not fit.
        """
        sizes, remaining = np.asarray(lengths), np.arange(len(lengths))
        while len(remaining):
            done = 0
            groups = by_length(sizes[remaining], self.tokens, most, cost)
            for group in groups:
                rows = remaining[group]
                if not fits(lambda rows=rows: compute(rows)):  # type: ignore[misc]
                    longest = int(sizes[rows].max())
                    self.shrink(len(rows) * longest, longest)
                    break
                done += 1
            remaining = remaining[np.concatenate([*groups[done:], np.zeros(0, dtype=np.int64)])]
