"""Passes that fit into memory, and what happens where one did not."""

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.errors import UserError
from recbole_llm.language import passes
from recbole_llm.language.passes import PassBudget


@pytest.fixture(scope="module")
def collects_nothing():
    """No tensors are freed here, and a search through all objects takes 0.1 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes.gc, "collect", lambda: 0)
        yield


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), max_size=60),
    budget=st.integers(300, 5000),
    room=st.integers(300, 3000),
)
@pytest.mark.usefixtures("collects_nothing")
def test_every_text_is_computed_once_within_the_room_there_is(lengths, budget, room):
    done, kept = np.zeros(len(lengths), dtype=int), PassBudget(budget)

    def compute(rows):
        if len(rows) * max(lengths[row] for row in rows) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        done[rows] += 1

    kept.run(lengths, compute)
    assert (done == 1).all() and kept.tokens <= budget


def test_a_text_that_does_not_fit_alone_is_one_line():
    def compute(rows):
        raise MemoryError

    with pytest.raises(
        UserError, match="^max_length: memory does not hold a pass of one text of 9"
    ):
        PassBudget(100).run([9, 9, 9], compute)


def test_other_errors_are_raised():
    def compute(rows):
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        PassBudget("auto").run([3], compute)
    assert PassBudget("auto").tokens == passes.AUTO


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (OSError("no space left"), False),
    ],
)
def test_what_a_lack_of_memory_is(error, expected):
    assert passes.is_out_of_memory(error) is expected


def test_freed_memory_is_kept_unless_the_environment_says_otherwise(monkeypatch):
    calls = []

    class Library:
        def mallopt(self, key, value):
            calls.append((key, value))

    monkeypatch.setattr(passes.sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    monkeypatch.setattr(passes.os, "environ", {"MALLOC_ARENA_MAX": "2"})
    passes.keep_freed_memory()
    assert not calls
    monkeypatch.setattr(passes.os, "environ", {})
    passes.keep_freed_memory()
    assert sorted(calls) == [(-3, 2**25), (-1, 2**31 - 1)]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # such as musl
    passes.keep_freed_memory()
