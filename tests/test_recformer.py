"""RecFormer: how items become tokens, what is learned from them, and which vectors rank."""

import itertools
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from worlds import FRUIT, prepared, settings_for, write_cycle

from recbole_llm.errors import UserError
from recbole_llm.language.backbones.scratch import train_tokenizer
from recbole_llm.language.backbones.sources import EncoderBackbone, load_folder
from recbole_llm.language.tokens.batches import (
    IGNORED,
    AttributeEncoder,
    Tokens,
    attribute_corpus,
    pad,
)
from recbole_llm.runs.checks import check
from recbole_llm.runs.commands import run_settings
from recbole_llm.runs.runner import Runner
from recbole_llm.runs.spec import describe

LEASH, BOWL = (
    (("Title", "red leash"), ("Brand", "Bo")),
    (("Title", "blue bowl of steel"), ("Brand", "Ka")),
)
QUICK = {"train_batch_size": 16, "scratch_vocabulary": 400}


@pytest.fixture
def cycle(tmp_path):
    return write_cycle(tmp_path, users=16)


def encoder(max_length=1000, **own):
    """Its marks are tokens of their own, as backbone.mark_tokens makes them."""
    tokenizer = train_tokenizer(attribute_corpus([LEASH, BOWL] * 20), 300)
    tokenizer.add_tokens(["<|mark0|>", "<|mark1|>"], special_tokens=True)
    return AttributeEncoder(
        tokenizer,
        max_length,
        marks=tuple(tokenizer.convert_tokens_to_ids(["<|mark0|>", "<|mark1|>"])),
        **own,
    )


def spelled(own, tokens):
    """(text, type, item) of each run of tokens of like roles."""
    roles = tokens.roles.T.tolist()
    begins = [at for at in range(len(roles)) if at == 0 or roles[at] != roles[at - 1]]
    return [
        (own.tokenizer.decode(tokens.ids[at:end]), *roles[at])
        for at, end in zip(begins, [*begins[1:], None])
    ]


# --- tokens ---------------------------------------------------------------------------------------


def test_the_newest_item_comes_first_and_every_token_knows_its_type_and_item():
    own = encoder()
    assert spelled(own, own.sequence([LEASH, BOWL])) == [
        ("<|mark0|>", 0, 0),
        (" Title", 1, 1),
        (" blue bowl of steel", 2, 1),
        (" Brand", 1, 1),
        (" Ka", 2, 1),
        (" Title", 1, 2),
        (" red leash", 2, 2),
        (" Brand", 1, 2),
        (" Bo", 2, 2),
    ]


def test_whole_items_are_cut_the_oldest_first_and_attributes_at_their_end():
    own = encoder()
    whole = own.sequence([LEASH, BOWL, LEASH])
    assert whole.cut == 0
    short = AttributeEncoder(own.tokenizer, len(whole) - 1, marks=own.marks).sequence(
        [LEASH, BOWL, LEASH]
    )
    assert short.cut == 1 and short.ids.tolist() == own.sequence([BOWL, LEASH]).ids.tolist()
    assert encoder(max_items=2).sequence([LEASH, BOWL, LEASH]).ids.tolist() == short.ids.tolist()
    newest = AttributeEncoder(own.tokenizer, 3, marks=own.marks).sequence([LEASH, BOWL])
    assert (
        len(newest) == 3
        and newest.cut == 1
        and newest.ids.tolist() == own.sequence([BOWL]).ids[:3].tolist()
    )
    unseen = ("Title", "quince")
    name, value = (len(own.piece(f" {part}")) for part in unseen)
    cut = encoder(attribute_tokens=name + 1).sequence([(unseen,)])
    assert value > 1 and cut.roles[0].tolist() == [0] + name * [1] + [2]


def test_text_is_data():
    own = encoder()
    for text in ("<|mark0|>", "a<|mark1|> b", "<|pad|><|end|>"):
        tokens = own.sequence([(("Title", text),)])
        assert (
            not np.isin(tokens.ids[1:], own.tokenizer.all_special_ids).any()
            and not np.isin(tokens.ids[1:], own.marks).any()
        )


def test_masked_tokens_are_berts():
    own = encoder()
    item = (("Title", " ".join(["red leash blue bowl steel"] * 400)),)
    own.attribute_tokens, own.max_length = 10**6, 10**6
    tokens = own.sequence([item])
    masked = own.masked(tokens, 0.15, np.random.default_rng(0))
    count = masked.learned.sum()
    assert (
        not masked.learned[0] and masked.items == count and abs(count / len(tokens) - 0.15) < 0.03
    )
    assert (
        (masked.labels == tokens.ids).all()
        and (masked.ids == tokens.ids)[~masked.learned].all()
        and masked.roles is tokens.roles
    )
    assert abs((masked.ids == own.mask)[masked.learned].mean() - 0.8) < 0.07
    assert abs((masked.ids == tokens.ids)[masked.learned].mean() - 0.1) < 0.06
    batch = pad([masked, own.sequence([LEASH])], pad_id=0)
    assert (batch.labels[0] != IGNORED).sum() == count and (batch.labels[1] == IGNORED).all()
    assert (
        batch.roles.shape == (2, 2, batch.input_ids.shape[1])
        and not batch.roles[1, :, len(own.sequence([LEASH])) :].any()
    )


def test_texts_without_roles_have_none():
    tokens = Tokens(np.arange(3), np.ones(3, dtype=bool), 3, 0, 0)
    batch = pad([tokens], pad_id=0).to("cpu")
    assert batch.roles is None and batch.labels[0, :3].tolist() == [0, 1, 2]


# --- losses ---------------------------------------------------------------------------------------


@torch.no_grad()
def state(model, tokens):
    """Final states of one text alone, float64 [length, width], by the library's own model."""
    types, items = torch.from_numpy(tokens.roles)
    words = model.bundle.core.get_input_embeddings().weight[torch.from_numpy(tokens.ids)]
    return model.bundle.core(
        inputs_embeds=(words + model.token_type.weight[types] + model.item_position.weight[items])[
            None
        ]
    ).last_hidden_state[0]


def with_roles(model):
    """In float64, with embeddings of types and items that are not zero."""
    torch.manual_seed(0)
    for table in (model.token_type.weight, model.item_position.weight, model.word_bias):
        torch.nn.init.normal_(table)
    return model.double().eval()


def test_pretraining_is_a_sum_over_masked_tokens_and_a_contrast_of_items(cycle):
    _, model, _, _ = prepared("RecFormer", cycle, phase="pretrain", mask_share=0.3, **QUICK)
    with_roles(model)
    groups = model.examples(0)[:12]
    texts = list(itertools.chain.from_iterable(groups))
    with torch.no_grad():
        loss, vectors = model.loss_and_vectors(pad(texts, pad_id=model.pad_id), True)
    words, bias = (
        table.detach().numpy()
        for table in (model.bundle.core.get_input_embeddings().weight, model.word_bias)
    )
    expected, first = 0.0, []
    for text in texts:
        states = state(model, text)
        first.append(states[0])
        for place in np.flatnonzero(text.learned):
            logits = [float(states[place].numpy() @ word) + own for word, own in zip(words, bias)]
            expected += math.log(sum(map(math.exp, logits))) - logits[text.labels[place]]
    assert any(text.learned.any() for text in texts)
    for group in groups:
        assert not any(text.learned.any() for text in group[:2])
    assert loss.item() == pytest.approx(0.1 * expected, rel=1e-5)
    assert torch.allclose(vectors, torch.stack(first), rtol=1e-8, atol=1e-10)

    sequences, items = vectors.view(12, 4, -1)[:, 0], vectors.view(12, 4, -1)[:, 1]
    targets = [group[1].ids.tolist() for group in groups]
    total = 0.0
    for row in range(12):
        similar = [
            torch.cosine_similarity(sequences[row], item, dim=0).item() / 0.05 for item in items
        ]
        others = [similar[other] for other in range(12) if targets[other] != targets[row]]
        total += math.log(sum(map(math.exp, [similar[row], *others]))) - similar[row]
    assert len({str(target) for target in targets}) < 12
    assert model.pair_loss(vectors.view(12, 4, -1), groups).item() == pytest.approx(
        total / 12, rel=1e-5
    )


def test_fine_tuning_is_a_softmax_over_all_items(cycle):
    items = cycle / "cycle" / "cycle.item"
    items.write_text(
        items.read_text().replace(
            "i3\tdamson juice\tdrinks d\tbrand0", "i3\tapple juice\tdrinks a\tbrand0"
        )
    )  # as item 0
    _, model, _, _ = prepared("RecFormer", cycle, **QUICK)
    with_roles(model)
    groups = model.examples(0)[:6]
    assert len(model.table) == len(FRUIT) - 1 and torch.allclose(
        model.table.norm(dim=1), torch.ones(1)
    )
    with torch.no_grad():
        loss, _ = model.loss_and_vectors(
            pad([text for (text,) in groups], pad_id=model.pad_id), True
        )
    expected = 0.0
    for (text,) in groups:
        user = state(model, text)[0]
        logits = [
            torch.cosine_similarity(user, model.table[model.same[item]].double(), dim=0).item()
            / 0.05
            for item in range(len(FRUIT))
        ]
        expected += math.log(sum(map(math.exp, logits))) - logits[text.labels[0]]
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    cases = model.corpora[0].cases
    rows = itertools.chain.from_iterable(model.corpora[0].by_user[user] for user in range(16))
    assert [text.labels[0] for (text,) in model.examples(0)] == [
        model.interactions.item[cases.end[row]] for row in rows
    ]


# --- scores ---------------------------------------------------------------------------------------


def longformer(folder):
    """A random Longformer and its tokenizer, which has tokens around a text and a mask token."""
    from tokenizers.processors import TemplateProcessing
    from transformers import LongformerConfig, LongformerModel

    tokenizer = train_tokenizer([f" {word} juice" for word in FRUIT], 300)
    tokenizer.add_special_tokens({"bos_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"})
    single = TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.sep_token_id)],
    )
    tokenizer.backend_tokenizer.post_processor = single
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "attention_window": [128] * 2,
    }
    config = LongformerConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=513,
        pad_token_id=0,
        sep_token_id=tokenizer.sep_token_id,
        **sizes,
    )
    LongformerModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("backbone", ["scratch:nano", "longformer"])
def test_scores_are_cosines_whoever_shares_the_batch(tmp_path, cycle, backbone):
    own = (
        {"backbone": longformer(tmp_path / "long"), "attention_window": 16}
        if backbone == "longformer"
        else {}
    )
    _, model, _, (_, _, test) = prepared("RecFormer", cycle, **own, **QUICK)
    with_roles(model).float()
    cases = test._dataset.cases[:6]
    cases = type(cases)(cases.user, cases.begin, cases.begin + np.arange(1, 7))  # of every length
    model.start_ranking("test", False)
    together = model.score(cases)
    alone = np.concatenate([model.score(cases[[row]]) for row in range(6)])
    assert np.allclose(together, alone, rtol=1e-4, atol=1e-6) and np.abs(together).max() <= 1 + 1e-6
    if backbone == "longformer":
        assert (
            model.bundle.core.config.attention_window == [16, 16]
            and model.encoder.mask == model.bundle.tokenizer.mask_token_id
        )
        tokens = model.sequence(0, cases.histories(model.interactions)[5])
        assert tokens.ids[0] == model.bundle.tokenizer.bos_token_id and len(tokens) > 64
        words = model.bundle.core.get_input_embeddings()(torch.from_numpy(tokens.ids))
        with torch.no_grad():
            here, first = (
                model.hidden(pad([tokens], pad_id=0))[0, 0],
                torch.zeros(len(tokens), dtype=torch.long),
            )
            first[0] = 1
            roles = model.token_type(torch.from_numpy(tokens.roles[0])) + model.item_position(
                torch.from_numpy(tokens.roles[1])
            )
            whole = model.bundle.core(
                inputs_embeds=(words + roles)[None], global_attention_mask=first[None]
            ).last_hidden_state[0, 0]
        assert torch.allclose(here, whole, rtol=1e-4, atol=1e-5)


def test_equal_texts_tie(cycle):
    items = cycle / "cycle" / "cycle.item"
    items.write_text(
        items.read_text().replace(
            "i3\tdamson juice\tdrinks d\tbrand0", "i3\tapple juice\tdrinks a\tbrand0"
        )
    )
    _, model, _, (_, _, test) = prepared("RecFormer", cycle, **QUICK)
    index = {name: number for number, name in enumerate(model.interactions.items)}
    scores = model.eval().score(test._dataset.cases)
    assert (scores[:, index["i0"]] == scores[:, index["i3"]]).all() and len(
        np.unique(scores[0])
    ) == len(FRUIT) - 1


# --- the item table -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["epoch", "fixed"])
def test_the_table_is_encoded_when_it_is_to_be(cycle, how):
    _, model, trainer, (train, *_) = prepared("RecFormer", cycle, item_table=how, epochs=2, **QUICK)
    fresh, seen, inner = [], [], model.examples

    def watch(epoch):
        fresh.append(model.encode(range(len(model.first))))
        examples = inner(epoch)
        seen.append(model.table.numpy().copy())
        return examples

    model.examples = watch
    trainer.fit(train)
    assert np.array_equal(seen[0], fresh[0]) and np.abs(fresh[0] - fresh[1]).max() > 1e-3
    assert np.array_equal(seen[1], fresh[1] if how == "epoch" else fresh[0])
    assert np.array_equal(
        model.encode_items(model.first), seen[1]
    )  # it ranks by what it was trained against
    assert model.training


def test_a_run_killed_inside_an_epoch_keeps_the_epochs_table(cycle, monkeypatch):
    from recbole_llm.training import text_trainer as module

    own = {"epochs": 2, **QUICK}
    _, whole, trainer, (train, valid, _) = prepared(
        "RecFormer", cycle, checkpoint_dir=str(cycle / "whole"), **own
    )
    trainer.fit(train, valid)
    steps = len(trainer.model.examples(1)) // 16 + 1
    monkeypatch.setattr(module, "SAVE_SECONDS", 0)
    _, _, first, (train, valid, _) = prepared(
        "RecFormer", cycle, checkpoint_dir=str(cycle / "cut"), **own
    )
    inner, calls = first._step, []

    def killed(groups):
        calls.append(1)
        if len(calls) == steps + 3:
            raise KeyboardInterrupt
        return inner(groups)

    first._step = killed
    with pytest.raises(KeyboardInterrupt):
        first.fit(train, valid)
    _, other, second, (train, valid, _) = prepared(
        "RecFormer", cycle, checkpoint_dir=str(cycle / "cut"), **own
    )
    second.resume_checkpoint(first.folder)
    assert second.position[0] > 0
    second.fit(train, valid)
    assert [line["loss"] for line in second.history] == [line["loss"] for line in trainer.history]
    assert torch.equal(whole.table, other.table)
    assert all(
        torch.equal(value, other.state_dict()[name]) for name, value in whole.state_dict().items()
    )


def test_stored_weights_score_as_before_and_encode_the_items_of_other_data(cycle):
    settings = settings_for("RecFormer", cycle, **QUICK)
    run = run_settings(settings)
    interactions = load_file(run.folder / "model.safetensors")
    done = {"row": run.row, "data": run.row["fingerprint"]}
    again, (_, _, test) = Runner(describe(settings, restored=run.folder)).restore(done)
    again.start_ranking("test", False, run.folder)
    again.eval().score(test._dataset.cases)
    assert torch.equal(again.table, interactions["other_parameter.table"]) and len(
        again.table
    ) == len(FRUIT)

    write_cycle(cycle, users=16, name="other")
    items = cycle / "other" / "other.item"
    items.write_text(items.read_text().replace("kiwi juice", "kiwi syrup"))
    moved, (_, _, test) = Runner(
        describe(settings | {"dataset": "other"}, restored=run.folder)
    ).restore(done)
    moved.start_ranking("test", False, run.folder)
    moved.eval().score(test._dataset.cases)
    index = {name: number for number, name in enumerate(moved.interactions.items)}
    row = int(moved.same[index["i10"]])
    kept = [number for number in range(len(FRUIT)) if number != row]
    stored = {bytes(name.tolist()): vector for name, vector in zip(again.table_names, again.table)}
    assert all(torch.equal(moved.table[number], stored[moved.names[number]]) for number in kept)
    assert (
        np.array_equal(moved.table[row].numpy(), moved.encode([row])[0])
        and moved.names[row] not in stored
    )


def test_stages_hand_on_what_is_learned(cycle):
    """Pre-training and both stages of fine-tuning; the second keeps the first one's table."""
    write_cycle(cycle, users=8, name="more")
    stages = {
        "stages": ["pretrain", "first", "second"],
        "datasets": ["cycle", "more"],
        "stage_settings.second.epochs": 0,
    }
    run = run_settings(settings_for("RecFormer", cycle, **stages, **QUICK))
    folders = [
        next((cycle / "saved").glob(f"RecFormer-cycle-{name}-*")) for name in stages["stages"]
    ]
    pretrained, first, second = (load_file(folder / "model.safetensors") for folder in folders)
    assert run.folder == folders[-1] and run.row["stage"] == "second"
    assert (
        len(pretrained["other_parameter.table"]) == 0
        and pretrained["word_bias"].any()
        and pretrained["token_type.weight"].any()
    )
    assert torch.equal(pretrained["word_bias"], first["word_bias"])  # fine-tuning does not learn it
    assert first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )
    assert len(first["other_parameter.table"]) == len(FRUIT)
    cores = [
        load_folder(str(folder / "backbone"), EncoderBackbone).core.state_dict()
        for folder in folders[1:]
    ]
    assert all(torch.equal(value, cores[1][name]) for name, value in cores[0].items())


def test_pretraining_on_several_datasets_reads_all_of_them(cycle):
    write_cycle(cycle, users=8, name="more")
    items = cycle / "more" / "more.item"
    items.write_text(items.read_text().replace("juice", "syrup"))
    ready = describe(
        settings_for(
            "RecFormer", cycle, phase="pretrain", targets="one", datasets=["cycle", "more"], **QUICK
        )
    )
    model, _ = Runner(ready).make_model()
    texts = [model.bundle.tokenizer.decode(group[1].ids) for group in model.examples(0)]
    assert (
        len(texts) == 24
        and any("syrup" in text for text in texts)
        and any("juice" in text for text in texts)
    )


@pytest.mark.parametrize(
    "own,message",
    [
        ({"attention_window": 7}, "an even number"),
        ({"datasets": ["cycle"]}, "phase finetune trains on the items of one"),
    ],
)
def test_settings_that_cannot_be(cycle, own, message):
    with pytest.raises(UserError, match=message):
        check(describe(settings_for("RecFormer", cycle, **own)))


# --- learning -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_certain_world_is_learnt(tmp_path):
    """A model with random weights learns which item is next, which Pop cannot tell."""
    write_cycle(tmp_path, users=48, length=10)
    _, _, trainer, (train, valid, test) = prepared(
        "RecFormer",
        tmp_path,
        backbone="scratch:tiny",
        item_table="fixed",
        epochs=5,
        eval_step=5,
        **QUICK,
    )
    trainer.fit(train, valid)
    reached = trainer.evaluate(test)["recall@1"]
    _, _, pop, (train, valid, test) = prepared("Pop", tmp_path)
    pop.fit(train, valid)
    assert reached > 0.7 > 3 * pop.evaluate(test)["recall@1"]


@pytest.mark.slow
def test_a_longformer_is_trained_and_loaded_again(tmp_path, cycle):
    folder = longformer(tmp_path / "long")
    own = {"stages": ["pretrain", "first"], "attention_window": 32, "backbone": folder}
    run = run_settings(settings_for("RecFormer", cycle, **own, **QUICK))
    assert load_folder(
        str(run.folder / "backbone"), EncoderBackbone
    ).core.config.attention_window == [32, 32]
    assert 0 < run.row["test"]["ndcg@10"] <= 1


def test_a_backbone_that_reads_from_left_to_right_is_refused(tmp_path):
    """Its first token, whose state is the text's vector, would be the same for every text."""
    from transformers import LlamaConfig, LlamaModel

    tokenizer = train_tokenizer([f"{word} juice" for word in FRUIT], 300)
    size = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    LlamaModel(LlamaConfig(vocab_size=len(tokenizer), **size)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="reads from left to right"):
        EncoderBackbone.read(str(tmp_path))
