"""Ranking again what another run has retrieved."""

import numpy as np
import pytest
from worlds import prepared, settings_for, write_cycle

from recbole_llm.errors import UserError
from recbole_llm.runs.commands import evaluate_run, run_settings


def tops(run):
    return np.load(run.folder / "test.top.npz")["items"]


def test_only_what_was_retrieved_is_ranked_again(tmp_path):
    write_cycle(tmp_path)
    first = run_settings(settings_for("GRU4Rec", tmp_path, topk_saved=3))
    plain = run_settings(settings_for("CALRec", tmp_path, beams=12, decoding="constrained"))
    again = run_settings(
        settings_for(
            "CALRec", tmp_path, beams=12, decoding="constrained", rerank_from=first.folder.name
        )
    )
    retrieved, best, ranked = tops(first), tops(plain), tops(again)
    for case in range(len(retrieved)):
        assert set(ranked[case, :3]) == set(retrieved[case])
        order = [item for item in best[case] if item in set(retrieved[case])]
        assert ranked[case, :3].tolist() == order  # in CALRec's own order
    table = again.ranks()
    names = prepared("Pop", tmp_path)[0].interactions.items
    inside = np.array([table.target[case] in names[retrieved[case]] for case in range(len(table))])
    assert inside.any() and not inside.all()
    assert (
        ((table.above < 3) == inside).all()
        and (table.above[~inside] == 11).all()
        and (table.tied[~inside] == 0).all()
        and ((first.ranks().above < 3) == inside).all()
    )


def test_a_case_that_the_other_run_could_not_answer_is_not_answered(tmp_path):
    write_cycle(tmp_path)
    first = run_settings(settings_for("CALRec", tmp_path, epochs=0, max_new_tokens=3))
    empty = (tops(first) < 0).all(axis=1)
    again = run_settings(
        settings_for("CALRec", tmp_path, decoding="constrained", rerank_from=first.folder.name)
    )
    assert (
        empty.any()
        and (again.ranks().fallback == empty).all()
        and ((tops(again) < 0).all(axis=1) == empty).all()
    )


def test_it_is_an_answering_setting_and_its_cases_are_the_same(tmp_path):
    write_cycle(tmp_path)
    first = run_settings(settings_for("Pop", tmp_path))
    plain = run_settings(settings_for("CALRec", tmp_path))
    run = evaluate_run(
        plain.folder, settings_for("CALRec", tmp_path, rerank_from=first.folder.name)
    )
    assert run.folder.parent == plain.folder
    other = run_settings(settings_for("Pop", tmp_path, **{"eval_args.split": {"RS": [2, 1, 1]}}))
    with pytest.raises(
        UserError, match="rerank_from: split.split.* is .* in Pop-cycle-.* and .* here"
    ):
        evaluate_run(plain.folder, settings_for("CALRec", tmp_path, rerank_from=other.folder.name))


def test_a_list_stands_as_it_is_where_no_text_says_anything(tmp_path):
    write_cycle(tmp_path)
    first = run_settings(settings_for("GRU4Rec", tmp_path, topk_saved=3))
    own = {"epochs": 0, "max_new_tokens": 3}
    silent = run_settings(settings_for("CALRec", tmp_path, **own)).ranks().fallback
    again = run_settings(settings_for("CALRec", tmp_path, **own, rerank_from=first.folder.name))
    assert silent.any() and again.row["rates"]["unmatched"] == silent.mean()
    assert np.array_equal(tops(again)[silent, :3], tops(first)[silent])
    assert (tops(again)[:, 3:] == -1).all()
