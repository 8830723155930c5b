"""Traps of RecBole that make a comparison unfair: each test shows the stock behaviour and ours beside it.

Others are guarded where they belong: float32 times, candidates and item columns in test_dataset, test_tables and test_candidates;
early stopping and Pop in test_trainer; pandas and accumulated metrics in test_compat and test_metrics.
"""

import numpy as np
import pytest
import torch

HEADER = ("user_id:token", "item_id:token", "timestamp:float")


@pytest.fixture
def short_users(write):
    """Users with 2, 3 and 4 events among longer ones."""
    rng = np.random.default_rng(0)
    lengths = {"two": 2, "three": 3, "four": 4} | {f"u{number}": 8 for number in range(6)}
    rows = [(user, f"i{rng.integers(12)}", 100 * step) for user, length in lengths.items() for step in range(length)]
    return write({"inter": [HEADER, *rows]})


def users_of(dataset):
    tokens = dataset.field2id_token[dataset.uid_field]
    return {str(tokens[user]) for user in dataset.inter_feat[dataset.uid_field].tolist()}


def test_all_models_test_the_same_users(short_users, stock, parts):
    """Stock: a user with two events is tested by general models only."""
    stock_general, stock_sequential = (users_of(stock(model, short_users).build()[2]) for model in ("BPR", "GRU4Rec"))
    assert "two" in stock_general - stock_sequential
    ours = []
    for model in ("BPR", "GRU4Rec"):
        test = parts(model, short_users)[2]
        ours.append([(str(test.tables.users[user]), int(end)) for user, end in zip(test.cases.user, test.cases.end, strict=True)])
    assert ours[0] == ours[1] and {user for user, _ in ours[0]} == stock_sequential


def test_history_is_masked_for_all_or_none(short_users, stock):
    """Stock: the history of general models is masked, that of sequential ones is not."""
    from recbole.data import data_preparation

    masked = []
    for model in ("BPR", "GRU4Rec"):
        dataset = stock(model, short_users, train_neg_sample_args={"distribution": "uniform", "sample_num": 1} if model == "BPR" else None)
        _, _, test = data_preparation(dataset.config, dataset)
        _, history, _, _ = next(iter(test))
        masked.append(history is not None and len(history[1]) > 0)
    assert masked == [True, False]


def test_repeatnet_learns_from_events_alone(short_users, stock):
    """Stock: half of RepeatNet's targets are random items, labelled as if they had been bought."""
    from recbole.data import data_preparation

    from recbole_llm import config
    from recbole_llm.loaders import make_loaders

    dataset = stock("RepeatNet", short_users, train_neg_sample_args={"distribution": "uniform", "sample_num": 1})
    batch = next(iter(data_preparation(dataset.config, dataset)[0]))
    assert float(batch["label"].mean()) == 0.5
    settings = config.resolve("RepeatNet", "toy", [], {"use_gpu": False})
    train, _, _ = make_loaders(config.recbole_config(settings, short_users))
    batch = next(iter(train))
    assert "label" not in batch and len(batch) == len(train._dataset.cases)


def test_an_error_inside_a_model_is_an_error(short_users, stock, monkeypatch):
    """Stock: a NotImplementedError inside full_sort_predict, torch's own included, silently ranks by another method."""
    from recbole.data import data_preparation
    from recbole.trainer import Trainer
    from recbole.utils import get_model

    from recbole_llm import config
    from recbole_llm.evaluation.loop import rank_cases
    from recbole_llm.loaders import make_loaders

    def broken(self, interaction):
        raise NotImplementedError("some operator is not implemented for this device")

    settings = config.resolve("GRU4Rec", "toy", [], {"use_gpu": False})
    train, _, test = make_loaders(config.recbole_config(settings, short_users))
    dataset = stock("GRU4Rec", short_users, valid_metric="NDCG@10", metrics=["NDCG"], topk=[10], checkpoint_dir=str(short_users / "stock"))
    model = get_model("GRU4Rec")(dataset.config, train._dataset)
    monkeypatch.setattr(type(model), "full_sort_predict", broken)
    stock_train, _, stock_test = data_preparation(dataset.config, dataset)
    monkeypatch.chdir(short_users)
    trainer = Trainer(dataset.config, model)
    trainer.eval_collector.data_collect(stock_train)
    assert 0 <= trainer.evaluate(stock_test, load_best_model=False)["ndcg@10"] <= 1
    with pytest.raises(NotImplementedError, match="some operator"):
        rank_cases(model, test._dataset, test._dataset.cases)


def test_a_model_that_repeats_itself_gets_what_chance_gives(short_users, parts):
    """Stock: equal scores are ranked by torch.topk's order of columns, so a constant model may score anything."""
    from recbole_llm.evaluation import metrics
    from recbole_llm.evaluation.loop import rank_cases

    class Constant(torch.nn.Module):
        device = "cpu"

        def full_sort_predict(self, interaction):
            return torch.zeros(len(interaction), test.item_num)

    test = parts("GRU4Rec", short_users)[2]
    table, _ = rank_cases(Constant(), test, test.cases)
    values = metrics.evaluate(table, ["Recall"], [3])
    assert values["recall@3"] == pytest.approx(3 / (test.item_num - 1))
    assert (values["recall@3_opt"], values["recall@3_pes"]) == (1.0, 0.0)
