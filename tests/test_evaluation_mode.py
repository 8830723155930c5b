"""`full` and `uniK`."""

import pytest

from recbole_llm.contracts.evaluation_mode import EvaluationMode
from recbole_llm.errors import UserError


@pytest.mark.parametrize(
    "text", ["uni", "uni0", "uni-3", "uni07", "pop5", "labeled", "Full", 5, None]
)
def test_anything_else_is_refused(text):
    with pytest.raises(UserError, match="expected full or uniK"):
        EvaluationMode.parse(text)


def test_a_part_has_the_mode_that_is_given_for_it():
    mode = {"valid": "uni100", "test": "full"}
    assert EvaluationMode.of_part(mode, "valid").candidates == 100
    assert EvaluationMode.of_part(mode, "test").is_full
    assert EvaluationMode.of_part("uni7", "test").candidates == 7


@pytest.mark.parametrize("part", ["valid", "test"])
def test_a_single_mode_of_a_group_is_of_both_parts_as_in_recbole(part):
    assert EvaluationMode.of_part({"test": "uni5"}, part).candidates == 5
