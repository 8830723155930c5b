"""TASTE-LoRA: segments of a history, their fusion, the loss, and the numbers of items."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from worlds import FRUIT, prepared, scores_of, settings_for, write_cycle

from recbole_llm.errors import UserError
from recbole_llm.language.backbones import scratch
from recbole_llm.language.backbones.encoder_decoder import FusionBackbone, SegmentEncoder
from recbole_llm.language.backbones.sources import load, load_folder
from recbole_llm.language.prompts.templates import TASTE_PROMPT
from recbole_llm.language.tokens.batches import pad
from recbole_llm.models.tastelora import Choice
from recbole_llm.runs.commands import run_settings
from recbole_llm.training.losses import over_candidates

ITEMS = [f"id: {number} title: {word} juice" for number, word in enumerate(FRUIT)]


@pytest.fixture(scope="module")
def tokenizer():
    return scratch.train_tokenizer([*ITEMS, *TASTE_PROMPT] * 12, 320)


@pytest.fixture
def cycle(tmp_path):
    return write_cycle(tmp_path, users=24)


def encoder(tokenizer, max_length=200, **own):
    return SegmentEncoder(tokenizer, max_length, **own)


def segments_of(own, tokens):
    """The text of each segment."""
    return [
        own.tokenizer.decode(tokens.ids[tokens.roles[0] == number])
        for number in range(1, tokens.roles[0].max() + 1)
    ]


# --- segments -------------------------------------------------------------------------------------


def test_the_newest_items_come_first_between_two_sentences(tokenizer):
    own = encoder(tokenizer)
    tokens = own.history(ITEMS[:3])
    assert segments_of(own, tokens) == [
        f"{TASTE_PROMPT[0]}{ITEMS[2]}, {ITEMS[1]}, {ITEMS[0]}{TASTE_PROMPT[1]}"
    ]
    assert tokens.roles[1].tolist() == list(range(len(tokens))) and tokens.cut == 0


def test_a_history_is_cut_between_items_into_as_many_segments_as_it_needs(tokenizer):
    comma, sizes = (
        len(encoder(tokenizer).piece(", ")),
        {text: len(encoder(tokenizer).item(text)) for text in ITEMS},
    )
    own = encoder(tokenizer, item_length=max(sizes.values()))
    length = own.min_length + comma + own.item_length
    for most in (1, 2, 9):
        cut = SegmentEncoder(tokenizer, length, item_length=own.item_length, segments=most)
        tokens = cut.history(ITEMS)
        texts = segments_of(cut, tokens)
        assert (len(texts) == most or most == 9 and 2 < len(texts) < 9) and max(
            np.bincount(tokens.roles[0])
        ) <= length
        bare = [text.removeprefix(TASTE_PROMPT[0]).removesuffix(TASTE_PROMPT[1]) for text in texts]
        assert texts == [f"{TASTE_PROMPT[0]}{bare[0]}{TASTE_PROMPT[1]}", *bare[1:]]
        found = ", ".join(bare).split(", ")
        assert found == ITEMS[::-1][: len(found)] and tokens.cut == len(ITEMS) - len(found)
        used = np.bincount(tokens.roles[0])[1:]
        for number, text in enumerate(bare[1:]):  # there was no room for one item more
            assert used[number] + comma + sizes[text.split(", ")[0]] > length
    assert tokens.cut == 0
    assert segments_of(own, own.history(ITEMS[:1])) == [
        f"{TASTE_PROMPT[0]}{ITEMS[0]}{TASTE_PROMPT[1]}"
    ]  # none is invented


def test_an_item_is_cut_at_its_end(tokenizer):
    own = encoder(tokenizer, item_length=5)
    assert own.item(ITEMS[3]).ids.tolist() == own.piece(ITEMS[3])[:5].tolist()
    assert len(own.history([ITEMS[3]])) == 5 + sum(
        len(own.piece(sentence)) for sentence in TASTE_PROMPT
    )


def test_text_is_data(tokenizer):
    own = encoder(tokenizer)
    for text in ("<|pad|>", "a<|end|> b", "</s>"):
        assert not set(own.item(text).ids) & {tokenizer.pad_token_id, tokenizer.eos_token_id}


# --- fusion ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tokenizer):
    torch.manual_seed(0)
    made = FusionBackbone.from_scratch("tiny", tokenizer, 0)
    made.model.eval()
    return made


def test_a_vector_is_the_decoders_state_over_all_segments(bundle, tokenizer):
    """Oracle: the encoder reads each segment alone and without padding.

    The decoder takes one step over all states, one segment behind the other.
    """
    own = encoder(tokenizer, 48, segments=9)
    rows = [own.history(ITEMS), own.item(ITEMS[0]), own.history(ITEMS[:4]), own.history(ITEMS[3:5])]
    assert len({int(row.roles[0].max()) for row in rows}) > 2
    with torch.no_grad():
        found = bundle.vectors(pad(rows, pad_id=tokenizer.pad_token_id))
        for row, vector in zip(rows, found, strict=True):
            parts = [
                torch.from_numpy(row.ids[row.roles[0] == number])[None]
                for number in range(1, row.roles[0].max() + 1)
            ]
            states = torch.cat(
                [bundle.model.encoder(input_ids=part).last_hidden_state for part in parts], dim=1
            )
            start = torch.tensor([[bundle.model.config.decoder_start_token_id]])
            expected = bundle.model.decoder(
                input_ids=start, encoder_hidden_states=states
            ).last_hidden_state[0, 0]
            assert torch.allclose(vector, expected, atol=2e-5)


def test_the_order_of_segments_does_not_matter_but_where_they_are_cut_does(bundle, tokenizer):
    own = encoder(tokenizer, 48, segments=9)
    row = own.history(ITEMS)
    last = row.roles[0].max()
    other = type(row)(
        row.ids,
        row.learned,
        row.target,
        row.items,
        row.cut,
        roles=np.stack([last + 1 - row.roles[0], row.roles[1]]),
    )
    long = SegmentEncoder(tokenizer, 500).history(ITEMS)
    with torch.no_grad():
        one, same, whole = (
            bundle.vectors(pad([tokens], pad_id=tokenizer.pad_token_id))[0]
            for tokens in (row, other, long)
        )
    assert torch.allclose(one, same, atol=2e-5) and not torch.allclose(one, whole, atol=1e-2)


def test_transformers_reads_what_is_saved_and_a_decoder_alone_is_refused(
    bundle, tokenizer, tmp_path
):
    from transformers import T5Model

    bundle.save(tmp_path / "own")
    theirs = T5Model.from_pretrained(tmp_path / "own")
    ours = load_folder(str(tmp_path / "own"), FusionBackbone).model
    assert all(
        torch.equal(one, two)
        for one, two in zip(theirs.state_dict().values(), ours.state_dict().values(), strict=True)
    )
    scratch.causal_model("tiny", tokenizer, 32).save_pretrained(tmp_path / "causal")
    tokenizer.save_pretrained(tmp_path / "causal")
    with pytest.raises(UserError, match="no decoder beside an encoder"):
        load(str(tmp_path / "causal"), (), saved=tmp_path, max_length=32, kind=FusionBackbone)


# --- the loss -------------------------------------------------------------------------------------


def test_the_loss_is_a_softmax_over_all_items_of_a_step_but_those_met():
    rng = np.random.default_rng(0)
    users, items = rng.normal(size=(3, 4)), rng.normal(size=(6, 4))
    target, wrong = np.array([0, 2, 4]), rng.random((3, 6)) < 0.3
    wrong[:, 2] = True  # of the second it is the target
    expected = []
    for row in range(3):
        products = {
            column: users[row] @ items[column]
            for column in range(6)
            if column == target[row] or not wrong[row, column]
        }
        expected.append(
            np.log(sum(np.exp(value) for value in products.values())) - products[target[row]]
        )
    found = over_candidates(*(torch.from_numpy(one) for one in (users, items, target, wrong)))
    assert found.numpy() == pytest.approx(np.array(expected), rel=1e-12)


def test_an_item_of_a_step_that_reads_like_the_target_is_no_negative(cycle):
    _, model, _, _ = prepared("TASTELoRA", cycle, negatives=1)
    groups = [Choice([None] * 3, np.array([0, 1])), Choice([None] * 3, np.array([1, 6]))]
    vectors = torch.randn(2, 3, 8)
    user, items = vectors[:, 0], vectors[:, 1:].flatten(0, 1)  # of texts 0 1 1 6
    first, second = (
        torch.log_softmax(user[0] @ items.T, dim=0)[0],
        torch.log_softmax(user[1] @ items[[0, 2, 3]].T, dim=0)[1],
    )
    assert float(model.pair_loss(vectors, groups)) == pytest.approx(
        float(-(first + second) / 2), rel=1e-5
    )


def test_negatives_are_never_of_the_users_own(cycle):
    _, model, _, (train, *_) = prepared("TASTELoRA", cycle, negatives=30)
    cases, events = train._dataset.cases, model.interactions.item
    groups = model.examples(0)
    met = {
        user: model.same[
            events[cases.begin[cases.user == user].min() : cases.end[cases.user == user].max() + 1]
        ]
        for user in cases.user
    }
    order = np.concatenate(model.corpus.by_user)
    assert [group.texts[0] for group in groups] == model.same[events[cases.end[order]]].tolist()
    for group, user in zip(groups, cases.user[order], strict=True):
        assert not np.isin(group.texts[1:], met[user]).any()
    again, other = model.examples(0), model.examples(1)
    assert all((one.texts == two.texts).all() for one, two in zip(groups, again, strict=True))
    assert any((one.texts != two.texts).any() for one, two in zip(groups, other, strict=True))


# --- the model ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns_the_cycle(cycle):
    """The next item is certain; Pop has 0.38 here.

    Training histories are shorter than those of the test, and all are cut to like length.
    """
    own = {
        "epochs": 20,
        "train_batch_size": 32,
        "negatives": 3,
        "scratch_vocabulary": 400,
        "max_length": 48,
        "item_length": 10,
    }
    run = run_settings(settings_for("TASTELoRA", cycle, **own))
    assert run.row["test"]["ndcg@10"] > 0.75
    assert run.row["rates"]["cut_users"] == 1


def test_numbers_do_not_change_with_filters_and_one_setting_leaves_them_out(cycle):
    _, whole, _, _ = prepared("TASTELoRA", cycle, epochs=0)
    _, fewer, _, _ = prepared("TASTELoRA", cycle, epochs=0, user_sample=2)
    numbers = {
        token: text[0]
        for token, text in zip(whole.interactions.items, whole.text.values, strict=True)
    }
    assert numbers == {f"i{row}": str(row + 1) for row in range(len(FRUIT))}
    assert len(fewer.interactions.items) < len(whole.interactions.items)
    assert all(
        numbers[token] == text[0]
        for token, text in zip(fewer.interactions.items, fewer.text.values, strict=True)
    )
    assert whole.sentences[0].startswith(f"id: {numbers[whole.interactions.items[0]]} title: ")
    _, bare, _, _ = prepared("TASTELoRA", cycle, epochs=0, item_number=False)
    assert bare.sentences[0].startswith("title: ") and bare.text.names == ("Title",)


@pytest.mark.slow
def test_adapters_go_on_from_a_run(tmp_path):
    cycle = write_cycle(tmp_path, users=24, length=16)
    common = {"negatives": 2, "eval_args.split": {"temporal": [0.6, 0.2, 0.2]}}
    first = run_settings(settings_for("TASTELoRA", cycle, epochs=2, **common))
    own = {
        "adapter": "lora",
        "init_from": first.folder.name,
        "eval_args.part": "continue",
        "lora_rank": 4,
    } | common
    second = run_settings(settings_for("TASTELoRA", cycle, epochs=2, **own))
    files = {path.name for path in (second.folder / "backbone").iterdir()}
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    names = load_file(second.folder / "backbone" / "adapter_model.safetensors").keys()
    linear = {name.split(".lora_")[0] for name in names if ".lora_A" in name}
    assert len(linear) == 6 + 10 and all(
        ".block." in name for name in linear
    )  # of every layer, and nothing else
    with pytest.raises(UserError, match="needs trained weights"):
        run_settings(settings_for("TASTELoRA", cycle, adapter="lora"))


def test_a_prompt_needs_room_for_an_item(cycle):
    with pytest.raises(UserError, match="max_length: expected at least"):
        prepared("TASTELoRA", cycle, max_length=40)


def test_vectors_do_not_depend_on_who_shares_a_pass(cycle):
    _, model, trainer, (train, _, test) = prepared(
        "TASTELoRA", cycle, segments=3, max_length=60, item_length=12, pass_tokens=200
    )
    trainer.fit(train)
    dataset = test._dataset
    together = scores_of(model, dataset, dataset.cases)
    alone = torch.cat(
        [scores_of(model, dataset, dataset.cases[[row]]) for row in range(len(dataset.cases))]
    )
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-4)
