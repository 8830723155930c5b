"""The examples in docstrings hold."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def modules_with_examples() -> list[str]:
    """Return names of the modules whose source contains a prompt of Python."""
    names = []
    for path in sorted((ROOT / "recbole_llm").rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            names.append(".".join(parts).removesuffix(".__init__"))
    return names


MODULES = modules_with_examples()


def test_modules_with_examples_are_found():
    assert {"recbole_llm.evaluation.metrics", "recbole_llm.evaluation.significance"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted and not result.failed


@pytest.mark.parametrize("expected, failed", [("2", 0), ("3", 1)])
def test_a_wrong_example_fails(expected, failed):
    """The runner that the test above relies on compares results."""
    examples = doctest.DocTestParser().get_doctest(
        f">>> 1 + 1\n{expected}\n", {}, "example", None, 0
    )
    result = doctest.DocTestRunner(verbose=False).run(examples, out=lambda text: None)
    assert (result.failed, result.attempted) == (failed, 1)
