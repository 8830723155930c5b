"""Recommendations for a typed history: which item a text names, and when it names none."""

import pytest
from worlds import settings_for, write_cycle

from recbole_llm.cli import main
from recbole_llm.runs.commands import run_settings


@pytest.fixture(scope="module")
def trained(make_once):
    """The arguments of the command for LIR on the sample, whose titles share words."""

    def train(folder):
        run = run_settings(settings_for("LIR", folder, "Pet", test_users=20))
        args = [f"--checkpoint={run.folder.name}", f"--checkpoint_dir={folder / 'saved'}"]
        return [*args, f"--data_path={folder}"]

    return make_once("lir-of-the-sample", train)


def recommended(trained, history, capsys):
    code = main(["recommend", *trained, f"--history={history}"])
    done = capsys.readouterr()
    return code, done.out.splitlines(), [line for line in done.err.splitlines() if "error" in line]


@pytest.mark.parametrize(
    "history",
    ["something unheard of", "the best of all for your &", "P0001; a thing of no kind", "…"],
)
def test_a_text_of_which_too_little_is_known_is_refused(trained, history, capsys):
    code, _, errors = recommended(trained, history, capsys)
    assert code == 2 and len(errors) == 1
    assert f"expected an item's title or id, found {history.split(';')[-1].strip()!r}" in errors[0]
    assert ("the nearest are" in errors[0]) == (history != "…")


def test_what_a_text_is_taken_for_is_said(trained, capsys):
    code, lines, _ = recommended(trained, "P0001", capsys)
    assert code == 0 and not [line for line in lines if "is taken for" in line]
    name = next(line for line in lines if line.startswith("      P0001"))
    title = name.split("Title: ")[1].split(". Category")[0]
    code, again, _ = recommended(trained, f"{title.upper()} thing; P0001", capsys)
    assert code == 0
    (taken,) = [line for line in again if "is taken for" in line]
    assert title.upper() in taken and title in taken
    assert [line for line in again if title in line and line.startswith("      ")]


def test_items_that_match_as_well_are_counted(tmp_path, capsys):
    write_cycle(tmp_path)
    path = tmp_path / "cycle" / "cycle.item"
    path.write_text(path.read_text().replace("banana juice\tdrinks b", "apple juice\tdrinks a"))
    run = run_settings(settings_for("LIR", tmp_path))
    args = [f"--checkpoint={run.folder.name}", f"--checkpoint_dir={tmp_path / 'saved'}"]
    code = main(["recommend", *args, f"--data_path={tmp_path}", "--history=Apple"])
    assert code == 0
    assert "'Apple' is taken for i" in (out := capsys.readouterr().out)
    assert "(one of 2 that match as well)" in out
