"""Runs: which are the same, who may start from whom, and when two processes want one."""

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from worlds import prepared, settings_for, write_cycle

from recbole_llm.cli import main
from recbole_llm.errors import UserError
from recbole_llm.evaluation.metrics import case_values
from recbole_llm.evaluation.ranks import RankTable
from recbole_llm.evaluation.significance import same_measure
from recbole_llm.runs.commands import evaluate_run, resume_run, run_settings
from recbole_llm.runs.compare import table_of
from recbole_llm.runs.spec import describe
from recbole_llm.storage import run_folders


def test_a_backbone_by_run_is_that_run_however_it_is_named(tmp_path):
    write_cycle(tmp_path)
    run = run_settings(settings_for("CALRec", tmp_path, epochs=0))
    ids = {
        describe(settings_for("CALRec", tmp_path, backbone=f"run:{name}")).run_id
        for name in (run.folder.name, "CALRec-cycle", str(run.folder))
    }
    assert len(ids) == 1
    other = run_settings(settings_for("CALRec", tmp_path, epochs=0, seed=1))
    again = {
        describe(settings_for("CALRec", tmp_path, backbone=f"run:{one.folder.name}")).run_id
        for one in (run, other)
    }
    assert len(again) == 2 and ids < again


def test_targets_that_were_learned_are_refused(tmp_path):
    """By evaluation on another split, and as a start; a start may have seen earlier events."""
    write_cycle(tmp_path)
    temporal = {"eval_args.split": {"temporal": [0.4, 0.3, 0.3]}}
    first = run_settings(settings_for("CALRec", tmp_path, epochs=0))
    with pytest.raises(UserError, match=r"was trained on 32 of the 64 test targets"):
        evaluate_run(
            first.folder,
            settings_for(
                "CALRec", tmp_path, epochs=0, **{"eval_args.split": {"temporal": [0.2, 0.2, 0.6]}}
            ),
        )
    with pytest.raises(UserError, match="was trained on 16 of the 16 valid targets"):
        run_settings(
            settings_for("CALRec", tmp_path, init_from=first.folder.name, epochs=0, **temporal)
        )
    with pytest.raises(UserError, match="was trained on"):  # a backbone is a start as well
        run_settings(
            settings_for(
                "CALRec", tmp_path, backbone=f"run:{first.folder.name}", epochs=0, **temporal
            )
        )
    early = run_settings(settings_for("CALRec", tmp_path, epochs=0, **temporal))
    later = settings_for(
        "CALRec",
        tmp_path,
        epochs=0,
        init_from=early.folder.name,
        **temporal,
        **{"eval_args.part": "continue"},
    )
    assert run_settings(later).row["cases"] == early.row["cases"]
    write_cycle(tmp_path, name="other", seed=1)
    elsewhere = run_settings(
        settings_for("CALRec", tmp_path, "other", epochs=0, init_from=first.folder.name)
    )
    third = settings_for(
        "CALRec",
        tmp_path,
        epochs=0,
        init_from=elsewhere.folder.name,
        **{"eval_args.split": {"temporal": [0.2, 0.2, 0.6]}},
    )
    with pytest.raises(
        UserError, match=f"{first.folder.name} was trained on"
    ):  # through a run on other data
        run_settings(third)


def test_evaluation_with_nothing_changed_is_the_runs_own(tmp_path):
    write_cycle(tmp_path)
    settings = settings_for("LIR", tmp_path)
    run = run_settings(settings)
    assert evaluate_run(run.folder, settings) == run
    assert len((tmp_path / "saved" / run_folders.RESULTS).read_text().splitlines()) == 1


def test_resume_from_another_folder_goes_on_where_the_run_is(tmp_path, monkeypatch):
    write_cycle(tmp_path)
    monkeypatch.chdir(tmp_path)
    ready, model, trainer, (train, valid, _) = prepared(
        "GRU4Rec", tmp_path, epochs=2, checkpoint_dir="saved"
    )
    record = {
        "status": "running",
        "settings": ready.settings,
        "versions": run_folders.versions(),
        "data": ready.interactions.fingerprint,
    }
    run_folders.write_json(trainer.folder / run_folders.RUN, record)
    trainer.fit(train, valid)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = resume_run(Path("../saved") / trainer.folder.name, ready.settings)
    assert (
        run.folder.resolve() == (tmp_path / "saved" / trainer.folder.name)
        and list(elsewhere.iterdir()) == []
    )
    with pytest.raises(UserError, match="but epochs would make it another one"):
        resume_run(run.folder, ready.settings | {"epochs": 3})
    inter = tmp_path / "cycle" / "cycle.inter"
    inter.write_text(inter.read_text().replace("u0\ti", "u00\ti", 1))
    with pytest.raises(UserError, match="its data or the version of recbole_llm has changed"):
        resume_run(run.folder, ready.settings)


# says when it is ready, and runs once it is told to
OTHER_PROCESS = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from worlds import settings_for
from recbole_llm.runs.commands import run_settings
settings = settings_for("LIR", Path({folder!r}))
print("ready", flush=True)
sys.stdin.readline()
run_settings(settings)
"""


@pytest.mark.slow
def test_two_processes_that_want_one_run_make_it_once(tmp_path):
    write_cycle(tmp_path)
    here = Path(__file__).parent
    code = OTHER_PROCESS.format(paths=[str(here), str(here.parent)], folder=str(tmp_path))
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    other = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, text=True, **pipes)
    assert other.stdout.readline() == "ready\n"
    other.stdin.write("go\n")
    other.stdin.flush()
    run_settings(settings_for("LIR", tmp_path))
    _, said = other.communicate(timeout=200)
    assert other.returncode == 0, said
    rows = (tmp_path / "saved" / run_folders.RESULTS).read_text().splitlines()
    assert len(rows) == 1 and json.loads(rows[0])["model"] == "LIR"


def test_negatives_that_change_with_the_model(tmp_path):
    """RecBole's dynamic negative sampling asks the model: its trainer introduces them."""
    write_cycle(tmp_path)
    own = {
        "train_neg_sample_args": {
            "distribution": "uniform",
            "sample_num": 1,
            "alpha": 1.0,
            "dynamic": True,
            "candidate_num": 3,
        }
    }
    run = run_settings(settings_for("BPR", tmp_path, **own))
    assert 0 < run.row["test"]["ndcg@10"] <= 1


def test_the_bayes_bound_is_for_what_it_bounds(tmp_path):
    own = {
        "checkpoint_dir": str(tmp_path),
        "data_path": str(tmp_path),
        "show_progress": False,
        "epochs": 0,
        "test_users": 100,
    }
    rows = {}
    for name, more in {
        "plain": {},
        "masked": {"mask_history": True},
        "filtered": {"item_inter_num_interval": "[9,inf)"},
    }.items():
        rows[name] = run_settings(settings_for("LIR", tmp_path, "Pet", **own, **more)).row["test"]
    assert "bayes_ndcg@10" in rows["plain"]
    for name in ("masked", "filtered"):
        assert not [key for key in rows[name] if key.startswith("bayes_")]


def test_a_draw_of_test_users_is_the_same_for_every_model_and_another_measure(tmp_path):
    write_cycle(tmp_path)
    whole, *some = (
        run_settings(settings_for(model, tmp_path, epochs=0, **own))
        for model, own in (
            ("LIR", {}),
            ("LIR", {"test_users": 10}),
            ("SASRec", {"test_users": 10, "seed": 3}),
        )
    )
    tables = [RankTable.load(run.folder / "test.ranks.npz") for run in (whole, *some)]
    assert [len(table) for table in tables] == [16, 10, 10] and [
        run.row["cases"] for run in (whole, *some)
    ] == [16, 10, 10]
    assert (tables[1].user == tables[2].user).all() and (
        tables[1].above == tables[0].take(np.isin(tables[0].user, tables[1].user)).above
    ).all()
    assert (
        same_measure(some[0].row, some[1].row) is None
        and same_measure(whole.row, some[0].row)[0] == "evaluation.test_users"
    )


def test_targets_that_nothing_was_learned_of_are_counted_apart(tmp_path):
    """The cycle's last events become new items for four users; LIR finds them by their words."""
    write_cycle(tmp_path)
    path = tmp_path / "cycle" / "cycle.inter"
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    for user in range(4):
        lines[8 * (user + 1)][1] = f"new{user}"
    path.write_text("\n".join("\t".join(line) for line in lines) + "\n")
    with open(path.with_suffix(".item"), "a") as file:
        file.writelines(f"new{user}\tsomething else\tcars c\tbrand9\n" for user in range(4))
    run = run_settings(settings_for("LIR", tmp_path))
    table, test = RankTable.load(run.folder / "test.ranks.npz"), run.row["test"]
    cold = np.char.startswith(table.target, "new")
    assert cold.sum() == 4 and test["cold_targets"] == 0.25
    for order in ("", "_opt", "_pes"):
        assert test[f"cold_recall@10{order}"] == pytest.approx(
            case_values(table, f"recall@10{order}")[cold].mean()
        )
    assert (
        "cold_recall@10"
        not in run_settings(settings_for("LIR", write_cycle(tmp_path / "other"))).row["test"]
    )


def test_validation_cases_can_be_evaluated_on_their_own(tmp_path):
    """With nothing changed they give what the run's own validation gave.

    They never stand in a table of test cases.
    """
    write_cycle(tmp_path)
    settings = settings_for("CALRec", tmp_path, epochs=1)
    run = run_settings(settings)
    again = evaluate_run(run.folder, settings, "valid")
    assert (
        again.values == run.row["valid"]
        and "test" not in again.row
        and again.part == "valid"
        and again.row["cases"] == 16
    )
    assert (
        "16 valid cases" in table_of({"a": [again]}).title
        and "16 test cases" in table_of({"a": [run]}).title
    )
    other = evaluate_run(run.folder, settings | {"decoding": "constrained"}, "valid")
    assert len(table_of({"a": [again], "b": [other]}).rows) == 2 and other.folder != again.folder
    with pytest.raises(UserError, match="one table needs one part"):
        table_of({"a": [again], "b": [run]})
    with pytest.raises(UserError, match="rerank_from: part is valid"):
        run_settings(settings_for("CALRec", tmp_path, epochs=0, rerank_from=str(again.folder)))
    last = run_settings(settings_for("LIR", tmp_path, **{"eval_args.split": {"LS": "test_only"}}))
    with pytest.raises(UserError, match="has no valid case"):
        evaluate_run(
            last.folder,
            settings_for("LIR", tmp_path, **{"eval_args.split": {"LS": "test_only"}}),
            "valid",
        )
    assert main(["evaluate", f"--checkpoint={run.folder}", "--on=train"]) == 2
    assert (
        main(["evaluate", f"--checkpoint={run.folder}", "--on=valid", f"--data_path={tmp_path}"])
        == 0
    )


def test_who_waits_for_a_run_that_fails_begins_it(tmp_path):
    """The folder of a run that fails is removed, with the lock that another process waits for."""
    folder, inside, waited = tmp_path / "saved" / "run", threading.Event(), threading.Event()

    def fail():
        with run_folders.locked(folder):
            inside.set()
            assert waited.wait(60)
            time.sleep(0.5)  # until the other one has begun to wait
            shutil.rmtree(folder)

    thread = threading.Thread(target=fail)
    thread.start()
    assert inside.wait(60)
    with run_folders.locked(folder, lambda line: waited.set()):
        assert waited.is_set() and folder.is_dir()
    thread.join()
