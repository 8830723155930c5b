"""A search for settings: which are tried, which is best, and what is left when it is stopped."""

import contextlib
import io
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
    columns = {}
    for key in SPACE:
        columns[key] = np.array([one[key] for one in found])
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


@pytest.mark.parametrize(
    ("space", "search", "message"),
    [
        ({}, "random", "space: expected settings with their values"),
        ({"learning_rate": {"log": [0, 1]}}, "random", "a list of values, or uniform, log or int"),
        ({"learning_rate": {"logs": [1, 2]}}, "random", "space.learning_rate: expected"),
        ({"learning_rate": {"uniform": [2, 1]}}, "random", "space.learning_rate: expected"),
        (
            {"learning_rate": 0.1},
            "random",
            "space.learning_rate: expected a list of values or a range",
        ),
        ({"learning_rate": {"log": [1e-4, 1e-2]}}, "grid", "a grid needs values"),
    ],
)
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


SIZES = "--space.hidden_size=[8]"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "space: expected settings"),
        (["--space.hiden_size=[1]"], "unknown key 'hiden_size'"),
        (["--space.hidden_size=[none]"], "hidden_size: expected a number"),
        ([SIZES, "--seeds=[1,2]"], "seeds: a search runs one seed"),
        ([SIZES, "--eval_args.split={LS: test_only}"], "tune chooses by validation"),
        ([SIZES, "--search=best"], "search: expected asha, random or grid"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tmp_path, capsys, more, message):
    write_cycle(tmp_path)
    assert command(tmp_path, "--model=GRU4Rec", *more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not (tmp_path / "saved").exists()


GRID = (
    "--model=GRU4Rec",
    "--search=grid",
    "--space.learning_rate=[0.0001, 0.02]",
    "--space.hidden_size=[16]",
    "--epochs=3",
    "--eval_step=1",
)


class Searched:
    """A folder in which the grid was searched, and what the search has said and left."""

    def __init__(self, folder):
        self.folder, self.said = write_cycle(folder), ""
        self.search()
        (self.search_folder,) = (folder / "saved").glob("tune-GRU4Rec-cycle-*")
        self.trials = self.search_folder / "trials.jsonl"
        self.best = max(self.records(), key=lambda record: record["score"])

    def search(self):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert command(self.folder, *GRID) == 0
        self.said = said.getvalue()

    def records(self):
        return [json.loads(line) for line in self.trials.read_text().splitlines()]

    def run(self, record):
        return json.loads((self.folder / "saved" / record["run"] / "run.json").read_text())


@pytest.fixture(scope="module")
def searched(make_once):
    pytest.importorskip("ray")
    return make_once("grid", Searched)


@pytest.mark.slow
def test_trials_are_runs(searched):
    records = searched.records()
    assert len({record["run"] for record in records}) == 2
    for record in records:
        run = searched.run(record)
        assert run["status"] == "finished" and record["epochs"] == 3
        assert run["row"]["valid"]["ndcg@10"] == record["score"]
        assert run["settings"]["learning_rate"] == record["point"]["learning_rate"]


@pytest.mark.slow
def test_the_best_by_validation_is_a_file_of_settings(searched):
    best, path = searched.best, searched.search_folder / "best.yaml"
    assert best["point"]["learning_rate"] == 0.02
    assert yaml.safe_load(path.read_text()).items() >= best["point"].items()
    assert f"run: {searched.folder / 'saved' / best['run']} " in searched.said


@pytest.mark.slow
def test_a_run_by_that_file_is_there_already(searched, capsys):
    files = f"--config_files={searched.search_folder / 'best.yaml'}"
    assert cli.main(["--model=GRU4Rec", "--dataset=cycle", "--beside=[]", files]) == 0
    assert searched.best["run"] in capsys.readouterr().out
    assert len(list((searched.folder / "saved").glob("GRU4Rec-*"))) == 2


@pytest.mark.slow
def test_a_stopped_search_goes_on_with_what_is_missing(searched):
    before = searched.records()
    searched.trials.write_text(json.dumps(before[0]) + "\n")
    searched.search()
    assert "trials: 1 of 2 have ended already" in searched.said
    assert searched.said.count("trial ") == 1
    scores = [record["score"] for record in searched.records()]
    assert scores == [record["score"] for record in before]


@pytest.mark.parametrize(
    ("scores", "said", "none_differs"),
    [
        ([0.0, 0.0, 0.0], "first of 3 trials that tie: hidden_size=8: ", True),
        ([0.1, 0.3, 0.3], "first of 2 trials that tie: hidden_size=16: ", False),
        ([0.1, 0.3, 0.2], "best: hidden_size=16: ", False),
        ([0.0], "best: hidden_size=8: ", False),
    ],
)
def test_trials_that_tie_are_not_called_best(tmp_path, monkeypatch, scores, said, none_differs):
    records = [
        {
            "point": {"hidden_size": size},
            "status": "finished",
            "score": score,
            "epochs": 1,
            "run": "r",
        }
        for size, score in zip((8, 16, 32), scores)
    ]
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
