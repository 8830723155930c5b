"""Traps of RecBole make a comparison unfair: each test shows the stock behaviour beside ours.

Other files guard the other traps: test_candidates the candidates (5); test_dataset item columns
that change the catalogue (4); test_metrics metrics that accumulate (6); test_trainer early stopping
(10) and Pop; test_config strings that are run (9); test_compat pandas (2).
"""

import itertools

import numpy as np
import pytest
import torch
from worlds import loaders_of

from recbole_llm.evaluation.loop import rank_cases
from recbole_llm.settings import layers

HEADER = ("user_id:token", "item_id:token", "timestamp:float")
METRICS = {"valid_metric": "Recall@3", "metrics": ["Recall"], "topk": [3]}


@pytest.fixture
def short_users(write):
    """Users with 2, 3 and 4 events among longer ones."""
    rng = np.random.default_rng(0)
    lengths = {"two": 2, "three": 3, "four": 4} | {f"u{number}": 8 for number in range(6)}
    rows = []
    for user, length in lengths.items():
        rows += [(user, f"i{rng.integers(12)}", 100 * step) for step in range(length)]
    return write({"inter": [HEADER, *rows]})


@pytest.fixture
def stock_trainer(stock, monkeypatch, tmp_path):
    """stock_trainer(model, folder, change, **settings): RecBole's trainer and its loaders.

    Returns (trainer, train loader, test loader); change(model class) is called first.
    """

    def build(name, folder, change=lambda model: None, **settings):
        from recbole.data import data_preparation
        from recbole.utils import get_model, get_trainer

        monkeypatch.chdir(tmp_path)
        dataset = stock(name, folder, **METRICS, checkpoint_dir=str(tmp_path / "stock"), **settings)
        train, _, test = data_preparation(dataset.config, dataset)
        change(get_model(name))
        trainer = get_trainer(dataset.config["MODEL_TYPE"], name)(
            dataset.config, get_model(name)(dataset.config, train._dataset)
        )
        trainer.eval_collector.data_collect(train)
        return trainer, train, test

    return build


def ours(model, folder, **settings):
    """(model, test dataset) with random weights."""
    from recbole_llm.settings import registry

    resolved = layers.recbole_config(
        layers.resolve(model, folder.name, [], {"use_gpu": False} | settings), folder
    )
    train, _, test = loaders_of(resolved)
    return registry.model_class(model)(resolved, train._dataset), test._dataset


def users_of(dataset):
    tokens = dataset.field2id_token[dataset.uid_field]
    return {str(tokens[user]) for user in dataset.inter_feat[dataset.uid_field].tolist()}


def test_all_models_test_the_same_users(short_users, stock, parts):
    """Stock: a user with two events is tested by general models only."""
    stock_general, stock_sequential = (
        users_of(stock(model, short_users).build()[2]) for model in ("BPR", "GRU4Rec")
    )
    assert "two" in stock_general - stock_sequential
    ours = []
    for model in ("BPR", "GRU4Rec"):
        test = parts(model, short_users)[2]
        ours.append(
            [
                (str(test.interactions.users[user]), int(end))
                for user, end in zip(test.cases.user, test.cases.end, strict=True)
            ]
        )
    assert ours[0] == ours[1] and {user for user, _ in ours[0]} == stock_sequential


def test_history_is_masked_for_all_or_none(short_users, stock):
    """Stock: the history of general models is masked, that of sequential ones is not."""
    from recbole.data import data_preparation

    masked, counts = [], []
    for model in ("BPR", "GRU4Rec"):
        dataset = stock(
            model,
            short_users,
            train_neg_sample_args={"distribution": "uniform", "sample_num": 1}
            if model == "BPR"
            else None,
        )
        _, _, test = data_preparation(dataset.config, dataset)
        _, history, _, _ = next(iter(test))
        masked.append(history is not None and len(history[1]) > 0)
        model, test = ours(model, short_users)
        tables = [
            rank_cases(model, test, test.cases, mask_history=choice)[0] for choice in (False, True)
        ]
        counts.append([table.n_candidates.tolist() for table in tables])
    assert masked == [True, False]
    assert (
        counts[0] == counts[1]
        and min(counts[0][0]) == test.item_num - 1
        and max(counts[0][1]) < test.item_num - 1
    )


def pairs_of(batches):
    pairs = set()
    for batch in batches:
        pairs.update(zip(batch["user_id"].tolist(), batch["item_id"].tolist(), strict=True))
    return pairs


def test_history_is_masked_for_all_or_none_of_the_models_that_score_pairs(short_users, stock):
    """Stock: the negatives of NeuMF leave the history out, those of DIN do not."""
    from recbole.data import data_preparation

    from recbole_llm.data.cases.candidates import draw_candidates

    met, lists, counts = [], [], []
    for name in ("NeuMF", "DIN"):
        dataset = stock(
            name,
            short_users,
            mode="uni3",
            repeatable=name == "DIN",
            train_neg_sample_args={"distribution": "uniform", "sample_num": 1},
        )
        test = data_preparation(dataset.config, dataset)[2]
        events, targets = pairs_of([dataset.inter_feat]), pairs_of([test._dataset.inter_feat])
        met.append(len((pairs_of(batch for batch, *_ in test) - targets) & events))
        model, test = ours(name, short_users)
        chosen = draw_candidates(test.interactions, test.cases, 6, 0, "target")
        tops = [
            rank_cases(model, test, test.cases, candidates=chosen, mask_history=choice, topk=7)
            for choice in (False, True)
        ]
        lists.append([list(map(set, top.items.tolist())) for _, top in tops])
        counts.append([table.n_candidates.tolist() for table, _ in tops])
    assert lists[0] == lists[1] and counts[0] == counts[1]
    assert counts[0][0] == [7] * len(test.cases) and 1 < np.mean(counts[0][1]) < 6
    assert met[0] == 0 < met[1]


def test_repeatnet_learns_from_events_alone(short_users, stock):
    """Stock: half of RepeatNet's targets are random items, labelled as if they had been bought."""
    from recbole.data import data_preparation

    dataset = stock(
        "RepeatNet", short_users, train_neg_sample_args={"distribution": "uniform", "sample_num": 1}
    )
    batch = next(iter(data_preparation(dataset.config, dataset)[0]))
    assert float(batch["label"].mean()) == 0.5
    settings = layers.resolve("RepeatNet", "toy", [], {"use_gpu": False})
    train, _, _ = loaders_of(layers.recbole_config(settings, short_users))
    batch = next(iter(train))
    assert "label" not in batch and len(batch) == len(train._dataset.cases)


def test_an_error_inside_a_model_is_an_error(short_users, stock_trainer, monkeypatch):
    """Stock: a NotImplementedError inside full_sort_predict silently changes the method of ranking.

    Torch's own errors of that type do the same.
    """

    def broken(self, interaction):
        raise NotImplementedError("some operator is not implemented for this device")

    trainer, _, test = stock_trainer(
        "GRU4Rec",
        short_users,
        lambda model: monkeypatch.setattr(model, "full_sort_predict", broken),
    )
    assert 0 <= trainer.evaluate(test, load_best_model=False)["recall@3"] <= 1
    model, test = ours("GRU4Rec", short_users)
    with pytest.raises(NotImplementedError, match="some operator"):
        rank_cases(model, test, test.cases)


@pytest.mark.parametrize("last", range(4))
def test_a_model_that_repeats_itself_gets_what_chance_gives(
    last, write, stock_trainer, monkeypatch
):
    """Stock: equal scores are ranked by the order of columns.

    Where all users buy the same item last, a constant model finds it always or never.
    """
    from recbole_llm.evaluation import metrics

    def constant(self, interaction):
        return torch.zeros(len(interaction), self.n_items)

    rng = np.random.default_rng(0)
    rows = []
    for user in range(9):
        items = [*rng.permutation(12), 3 * last]
        rows += [(f"u{user}", f"i{item}", time) for time, item in enumerate(items)]
    folder = write({"inter": [HEADER, *rows]})
    trainer, _, test = stock_trainer(
        "GRU4Rec", folder, lambda model: monkeypatch.setattr(model, "full_sort_predict", constant)
    )
    assert trainer.evaluate(test, load_best_model=False)["recall@3"] in (0, 1)
    model, test = ours("GRU4Rec", folder)
    values = metrics.evaluate(rank_cases(model, test, test.cases)[0], ["Recall"], [3])
    assert values == pytest.approx({"recall@3": 3 / 12, "recall@3_opt": 1, "recall@3_pes": 0})


@pytest.mark.parametrize("name", ["GRU4Rec", "BPR"])
def test_the_target_is_not_in_the_batch(name, write, stock_trainer, monkeypatch):
    """Stock: the batch that a model scores holds the target's id, so a model may read the answer.

    Here a model that tries to read it fails.
    """
    from recbole_llm.settings import registry

    def oracle(self, interaction):
        scores = torch.zeros(len(interaction), 13)
        return scores.scatter_(1, interaction["item_id"][:, None], 1.0)

    rows = [
        (f"u{user}", f"i{(user * 5 + time) % 12}", time)
        for user, time in itertools.product(range(9), range(7))
    ]
    folder = write(
        {
            "inter": [HEADER, *rows],
            "item": [
                ("item_id:token", "title:token_seq"),
                *((f"i{item}", f"word{item}") for item in range(12)),
            ],
        }
    )
    if name == "GRU4Rec":
        trainer, _, test = stock_trainer(
            name, folder, lambda model: monkeypatch.setattr(model, "full_sort_predict", oracle)
        )
        assert trainer.evaluate(test, load_best_model=False)["recall@3"] == 1
    monkeypatch.setattr(registry.model_class(name), "full_sort_predict", oracle)
    model, test = ours(name, folder)
    with pytest.raises(KeyError, match="item_id"):
        rank_cases(model, test, test.cases)


@pytest.mark.parametrize("given", [{"mode": "uni3"}, {"order": "TO"}, {"group_by": "user"}])
def test_eval_args_in_part_keep_the_rest(given, short_users, stock):
    """Stock: whoever names the mode alone gets a random split in random order, without a word."""
    from recbole.config import Config

    def of_stock(**more):
        return Config(
            model="SASRec",
            dataset="toy",
            config_dict={"data_path": str(short_users), "train_neg_sample_args": None, **more},
        )["eval_args"]

    stock("SASRec", short_users)
    assert (of_stock()["split"], of_stock()["order"]) == ({"LS": "valid_and_test"}, "TO")
    assert of_stock(eval_args=given)["split"] == {"RS": [0.8, 0.1, 0.1]}
    assert of_stock(eval_args=given)["order"] == given.get("order", "RO")
    whole = layers.resolve("SASRec", "toy")["eval_args"]
    for overrides in (
        {"eval_args": given},
        {f"eval_args.{key}": value for key, value in given.items()},
    ):
        settings = layers.resolve("SASRec", "toy", [], {"use_gpu": False} | overrides)
        assert settings["eval_args"] == whole | given
        made = layers.recbole_config(settings, short_users)["eval_args"]
        assert (made["split"], made["order"]) == ({"LS": "valid_and_test"}, "TO")


def test_events_within_a_minute_keep_their_order(write, stock):
    """Stock: float32 makes these four times one, and the order of the file counts instead."""
    times = {"a": 1_600_000_000, "b": 1_600_000_010, "c": 1_600_000_020, "d": 1_600_000_030}
    folder = write(
        {
            "inter": [
                HEADER,
                *(("u", item, times[item]) for item in "cadb"),
                *(("v", item, times[item]) for item in "dbca"),
            ]
        }
    )
    test = stock("SASRec", folder).build()[2]
    assert {
        test.field2id_token["item_id"][item] for item in test.inter_feat["item_id"].tolist()
    } != {"d"}
    test = ours("SASRec", folder)[1]
    assert test.interactions.items[test.interactions.item[test.cases.end]].tolist() == ["d", "d"]
