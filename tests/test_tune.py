"""A search for settings: which are tried, which is the best, and what is left when it is stopped."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from worlds import write_cycle

from recbole_llm import cli
from recbole_llm.errors import UserError
from recbole_llm.studies import tune as tuning
from recbole_llm.studies.tune import points

SPACE = {
    "learning_rate": {"log": [1e-4, 1e-2]},
    "hidden_size": [16, 32],
    "n_layers": {"int": [1, 3]},
    "dropout_prob": {"uniform": [0.1, 0.3]},
}


def test_points_are_different_within_their_ranges_and_the_same_for_a_seed():
    found = points(SPACE, "random", 60, 0)
    assert (
        found == points(SPACE, "random", 60, 0) != points(SPACE, "random", 60, 1)
        and len({json.dumps(one) for one in found}) == 60
    )
    columns = {key: np.array([one[key] for one in found]) for key in SPACE}
    assert set(columns["hidden_size"]) == {16, 32} and set(columns["n_layers"]) == {1, 2, 3}
    assert (
        (columns["learning_rate"] >= 1e-4).all()
        and (columns["learning_rate"] <= 1e-2).all()
        and 15 < (columns["learning_rate"] < 1e-3).sum() < 45
    )
    assert (columns["dropout_prob"] >= 0.1).all() and (columns["dropout_prob"] <= 0.3).all()
    assert found[:20] == points(SPACE, "random", 20, 0)  # more trials go on with the same ones


def test_a_grid_is_every_combination_and_few_values_are_drawn_once_each():
    space = {"hidden_size": [16, 32], "n_layers": [1, 2, 3]}
    assert len(points(space, "grid", 1, 0)) == 6 and points(space, "grid", 1, 0)[1] == {
        "hidden_size": 16,
        "n_layers": 2,
    }
    assert len(points(space, "random", 50, 0)) == 6


@pytest.mark.parametrize(("space", "search", "message"), [
    ({}, "random", "space: expected settings with their values"),
    ({"learning_rate": {"log": [0, 1]}}, "random", "space.learning_rate: expected a list of values, or uniform, log or int"),
    ({"learning_rate": {"logs": [1, 2]}}, "random", "space.learning_rate: expected"),
    ({"learning_rate": {"uniform": [2, 1]}}, "random", "space.learning_rate: expected"),
    ({"learning_rate": 0.1}, "random", "space.learning_rate: expected a list of values or a range"),
    ({"learning_rate": {"log": [1e-4, 1e-2]}}, "grid", "a grid needs values"),
])  # fmt: skip
def test_a_space_that_is_none_is_told(space, search, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        points(space, search, 3, 0)


def command(folder, *more):
    return cli.main(
        [
            "tune",
            "--dataset=cycle",
            f"--data_path={folder}",
            f"--checkpoint_dir={folder / 'saved'}",
            "--show_progress=false",
            *more,
        ]
    )


@pytest.mark.parametrize(("more", "message"), [
    (["--model=GRU4Rec"], "space: expected settings"),
    (["--model=GRU4Rec", "--space.hiden_size=[1]"], "unknown key 'hiden_size'"),
    (["--model=GRU4Rec", "--space.hidden_size=[none]"], "hidden_size: expected a number"),
    (["--model=GRU4Rec", "--space.hidden_size=[8]", "--seeds=[1,2]"], "seeds: a search runs one seed"),
    (["--model=GRU4Rec", "--space.hidden_size=[8]", "--eval_args.split={LS: test_only}"], "tune chooses by validation"),
    (["--model=GRU4Rec", "--space.hidden_size=[8]", "--search=best"], "search: expected asha, random or grid"),
])  # fmt: skip
def test_mistakes_are_told_before_anything_is_written(tmp_path, capsys, more, message):
    write_cycle(tmp_path)
    assert command(tmp_path, *more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not (tmp_path / "saved").exists()


def test_trials_are_runs_and_the_best_by_validation_is_a_file_of_settings(tmp_path, capsys):
    pytest.importorskip("ray")
    write_cycle(tmp_path)
    how = [
        "--model=GRU4Rec",
        "--search=grid",
        "--space.learning_rate=[0.0001, 0.02]",
        "--space.hidden_size=[16]",
        "--epochs=3",
        "--eval_step=1",
    ]
    assert command(tmp_path, *how) == 0
    said = capsys.readouterr().out
    (folder,) = (tmp_path / "saved").glob("tune-GRU4Rec-cycle-*")
    records = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    runs = {
        record["run"]: json.loads((tmp_path / "saved" / record["run"] / "run.json").read_text())
        for record in records
    }
    assert len(runs) == 2 and {run["status"] for run in runs.values()} == {"finished"}
    for record in records:
        assert (
            record["score"] == runs[record["run"]]["row"]["valid"]["ndcg@10"]
            and record["epochs"] == 3
        )
        assert runs[record["run"]]["settings"]["learning_rate"] == record["point"]["learning_rate"]
    best = max(records, key=lambda record: record["score"])
    assert (
        yaml.safe_load((folder / "best.yaml").read_text()).items() >= best["point"].items()
        and best["point"]["learning_rate"] == 0.02
    )
    assert f"run: {tmp_path / 'saved' / best['run']} " in said
    assert (
        cli.main(
            [
                "--model=GRU4Rec",
                "--dataset=cycle",
                "--beside=[]",
                f"--config_files={folder / 'best.yaml'}",
            ]
        )
        == 0
    )
    assert (
        best["run"] in capsys.readouterr().out
        and len(list((tmp_path / "saved").glob("GRU4Rec-*"))) == 2
    )  # it is there already
    # a search that was stopped goes on with what is missing, and its runs are there
    (folder / "trials.jsonl").write_text(json.dumps(records[0]) + "\n")
    assert command(tmp_path, *how) == 0
    said = capsys.readouterr().out
    assert "trials: 1 of 2 have ended already" in said and said.count("trial ") == 1
    assert [
        json.loads(line)["score"] for line in (folder / "trials.jsonl").read_text().splitlines()
    ] == [record["score"] for record in records]


@pytest.mark.parametrize(("scores", "said", "none_differs"), [
    ([0.0, 0.0, 0.0], "first of 3 trials that tie: hidden_size=8: ", True),
    ([0.1, 0.3, 0.3], "first of 2 trials that tie: hidden_size=16: ", False),
    ([0.1, 0.3, 0.2], "best: hidden_size=16: ", False),
    ([0.0], "best: hidden_size=8: ", False),
])  # fmt: skip
def test_trials_that_tie_are_not_called_best(tmp_path, monkeypatch, scores, said, none_differs):
    records = [
        {"point": {"hidden_size": size}, "status": "finished", "score": score, "epochs": 1, "run": "r"}
        for size, score in zip((8, 16, 32), scores)
    ]  # fmt: skip
    stopped = records[0] | {"point": {"hidden_size": 64}, "status": "stopped", "score": 0.9}
    search = SimpleNamespace(
        folder=tmp_path / "tune", metric="ndcg@10", run=lambda: [*records, stopped]
    )
    search.folder.mkdir()
    monkeypatch.setattr(tuning, "Search", lambda *args: search)
    row = {"row": {"test": {"ndcg@10": 0.25}}}
    monkeypatch.setattr(tuning.run_record, "finished_run", lambda folder: row)
    monkeypatch.setattr(tuning, "Run", lambda folder, row: SimpleNamespace(ranks=dict))
    lines = tuning.tune("GRU4Rec", "cycle", [{}], {"search": "random"})
    assert sum(line.startswith(said) for line in lines) == 1
    assert any("no difference between them" in line for line in lines) == none_differs
    why = (search.folder / "best.yaml").read_text().splitlines()[1]
    assert why.startswith(f"# the {said.partition(':')[0]} of {len(scores) + 1} by validation")


@pytest.mark.slow
def test_asha_stops_what_does_not_learn(tmp_path, capsys):
    pytest.importorskip("ray")
    write_cycle(tmp_path)
    rates = "--space.learning_rate=[0.02, 0.015, 0.00001, 0.00002, 0.00003, 0.00004]"
    assert (
        command(
            tmp_path,
            "--model=GRU4Rec",
            "--search=asha",
            "--trials=6",
            rates,
            "--epochs=9",
            "--grace=3",
            "--eval_step=1",
        )
        == 0
    )
    (folder,) = (tmp_path / "saved").glob("tune-GRU4Rec-cycle-*")
    records = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    stopped = [record for record in records if record["status"] == "stopped"]
    assert stopped and all(
        record["point"]["learning_rate"] < 0.001 and record["epochs"] < 9 and record["run"] is None
        for record in stopped
    )
    assert yaml.safe_load((folder / "best.yaml").read_text())["learning_rate"] > 0.01
