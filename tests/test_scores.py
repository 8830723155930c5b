"""What a model may give as scores, and what is said where they are something else."""

import os
import subprocess
import sys

import numpy as np
import pytest

from recbole_llm.errors import UserError
from recbole_llm.models import TextModel
from recbole_llm.runs.commands import run_model
from recbole_llm.testing import LawBroken, check_model, write_small_world


class Few(TextModel):
    """Scores of all items but the last."""

    def score(self, cases):
        return np.ones((len(cases), len(self.text) - 1))


class Flat(TextModel):
    """One score for each item, for no case."""

    def score(self, cases):
        return np.ones(len(self.text))


class Nothing(TextModel):
    """No numbers."""

    def score(self, cases):
        return np.full((len(cases), len(self.text)), np.nan)


@pytest.mark.parametrize(("model", "found"), [(Few, r"\(\d+, 11\)"), (Flat, r"\(12,\)")])
def test_scores_of_another_shape_are_refused(tmp_path, model, found):
    """They would be the scores of other items, or of all cases together."""
    message = rf"{model.__name__}.score: expected scores \[cases, items\].*12\), found {found}"
    with pytest.raises(UserError, match=message):
        check_model(model, tmp_path)
    write_small_world(tmp_path)
    settings = {"data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved")}
    with pytest.raises(UserError, match=message):
        run_model(model, "cycle", overrides=settings)


def test_scores_that_are_no_numbers_break_the_laws(tmp_path):
    with pytest.raises(LawBroken, match="Nothing gives scores that are no numbers"):
        check_model(Nothing, tmp_path)


def test_a_model_without_training_is_not_told_of_its_learning_rate(tmp_path):
    write_small_world(tmp_path)
    settings = {"data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved")}
    with pytest.raises(UserError, match="Nothing gives no numbers.*its own computation"):
        run_model(Nothing, "cycle", overrides=settings)


def test_a_reader_that_closes_the_output_is_no_error(tmp_path):
    """As `recbole-llm help settings | head`."""
    code = "import sys; from recbole_llm.cli import main; sys.exit(main(['help', 'settings']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
