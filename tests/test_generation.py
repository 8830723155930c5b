"""Sampling with a shared prompt cache equals plain passes, and no text depends on its batch."""

import copy
import itertools

import numpy as np
import pytest
import torch
from architectures import FAMILIES, random_model

from recbole_llm.errors import UserError
from recbole_llm.language.backbones.scratch import train_tokenizer
from recbole_llm.language.backbones.sources import Backbone, load
from recbole_llm.language.decoding.compatibility import check_backbone
from recbole_llm.language.decoding.sampling import sample, stream_key, uniform
from recbole_llm.language.decoding.shared_prompts import decoding, prefill


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    torch.manual_seed(0)
    texts = ["Title: a good dog food. Brand: Bla."] * 10 + [
        f"something else entirely {number}" for number in range(200)
    ]
    loaded = load(
        "scratch:tiny",
        texts,
        saved=tmp_path_factory.mktemp("saved"),
        max_length=128,
        vocabulary=400,
    )
    for parameter in loaded.model.parameters():
        parameter.data.mul_(
            3
        )  # random weights are nearly uniform; sharper ones make mistakes visible
    loaded.model.eval()
    return loaded


def prompts(backbone, lengths):
    rng = np.random.default_rng(1)
    return [rng.integers(2, len(backbone.tokenizer), size=length) for length in lengths]


def keys(count):
    return np.array([stream_key(7, f"user {number}") for number in range(count)])


def draw(backbone, rows, chosen, **kwargs):
    kwargs = {"samples": 6, "temperature": 0.7, "max_new": 10} | kwargs
    return sample(backbone, rows, chosen, **kwargs)


def test_equals_a_plain_forward_pass(backbone):
    rows = prompts(backbone, (5, 40, 23))
    for prompt, generated in zip(rows, draw(backbone, rows, keys(3)), strict=True):
        for ids, logprob, ended in zip(
            generated.ids, generated.logprobs, generated.ended, strict=True
        ):
            whole = np.concatenate(
                [prompt, ids, [backbone.tokenizer.eos_token_id] if ended else []]
            ).astype(np.int64)
            with torch.no_grad():
                logprobs = (
                    backbone.model(input_ids=torch.from_numpy(whole)[None])
                    .logits[0]
                    .log_softmax(-1)
                )
            expected = sum(
                logprobs[at - 1, whole[at]].item() for at in range(len(prompt), len(whole))
            )
            assert logprob == pytest.approx(expected, abs=1e-3)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Title: a good dog food. Brand: Bla."] * 10, 300)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_architectures_equal_a_plain_forward_pass(family, tokenizer):
    """Results agree within 1e-4 in float32.

    Continuations are longer than an attention window, and prompts shorter and longer than it.
    """
    model = random_model(family, tokenizer)
    backbone = Backbone(model, tokenizer)
    rows = prompts(backbone, (3, 20, 11))
    for prompt, generated in zip(rows, draw(backbone, rows, keys(3), max_new=14), strict=True):
        for ids, logprob, ended in zip(
            generated.ids, generated.logprobs, generated.ended, strict=True
        ):
            whole = np.concatenate([prompt, ids, [tokenizer.eos_token_id] if ended else []]).astype(
                np.int64
            )
            with torch.no_grad():
                logprobs = model(input_ids=torch.from_numpy(whole)[None]).logits[0].log_softmax(-1)
            expected = sum(
                logprobs[at - 1, whole[at]].item() for at in range(len(prompt), len(whole))
            )
            assert logprob == pytest.approx(expected, rel=1e-4)


REFUSED = {
    "sees later tokens": (
        "Roberta",
        {"intermediate_size": 128, "max_position_embeddings": 128},
        "logits differ from its own",
    ),
    "attention of its own": ("GPTNeoXJapanese", {}, "logits differ from its own"),
    "positions in its attention": ("Bloom", {}, "ValueError"),
    "recurrent": ("Mamba", {}, "IndexError"),
    "a window in its mask": (
        "Phimoe",
        {
            "sliding_window": 8,
            "num_local_experts": 4,
            "intermediate_size": 64,
            "num_key_value_heads": 2,
        },
        "sliding window",
    ),
    "attention sinks": (
        "GptOss",
        {
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "num_key_value_heads": 2,
        },
        "attention sinks",
    ),
}
SCALED = {
    "Granite": {"logits_scaling": 8.0, "embedding_multiplier": 12.0},
    "Cohere": {"logit_scale": 0.25},
}


def tiny(kind, own, tokenizer):
    import transformers

    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, f"{kind}Config")(**sizes, **ids, **own)
    )
    return Backbone(model.train(), tokenizer)


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_decoded_wrong_is_refused(case, tokenizer):
    kind, own, reason = REFUSED[case]
    with pytest.raises(UserError, match=reason):
        check_backbone(tiny(kind, own, tokenizer), "its/name")


@pytest.mark.parametrize("kind", SCALED)
def test_logits_scaled_behind_the_head(kind, tokenizer):
    backbone = tiny(
        kind, SCALED[kind] | {"intermediate_size": 128, "num_key_value_heads": 2}, tokenizer
    )
    check_backbone(backbone, kind)
    ids = torch.arange(2, 12)[None]
    assert torch.allclose(
        backbone.logits(backbone.model.base_model(input_ids=ids).last_hidden_state),
        backbone.model(input_ids=ids).logits,
    )
    assert backbone.model.training, "the probe leaves the model as it was"


def test_tokens_are_the_inverse_of_the_tempered_distribution(backbone):
    """The oracle redraws every token with plain passes and the same uniform numbers."""
    (prompt,) = prompts(backbone, (12,))
    generated = draw(backbone, [prompt], keys(1))[0]
    for number, ids in enumerate(generated.ids):
        whole = list(prompt)
        for step, token in enumerate(ids):
            with torch.no_grad():
                logits = backbone.model(input_ids=torch.tensor([whole])).logits[0, -1].double()
            cumulated = (logits / 0.7).softmax(-1).cumsum(-1)
            chance = uniform(keys(1), np.array([number]), step)[0]
            assert (
                int(torch.searchsorted(cumulated, torch.tensor([chance], dtype=torch.float64)))
                == token
            )
            whole.append(int(token))


def test_texts_do_not_depend_on_the_batch(backbone):
    rows, own = prompts(backbone, (5, 40, 23, 9)), keys(4)
    together = draw(backbone, rows, own)
    order = [2, 0, 3, 1]
    shuffled = draw(backbone, [rows[index] for index in order], own[order])
    for place, index in enumerate(order):
        alone = draw(backbone, [rows[index]], own[[index]])[0]
        for other in (together[index], shuffled[place]):
            assert [ids.tolist() for ids in alone.ids] == [ids.tolist() for ids in other.ids]
            assert alone.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize(
    "chosen",
    [
        [[1, 4, 4, 4, 4, 4, 4], [0, 2, 5]],
        [[4, 3, 2, 1, 0], [1, 1, 1, 4]],
        [[3, 0], [1] * 9, [8, 0, 3]],
    ],
)
@torch.no_grad()
def test_what_goes_on_keeps_its_prompt_and_its_beginning(backbone, chosen):
    """A step extends some continuations, which are named by their positions in the previous step.

    Prompts of unequal length are dropped or branch.
    """
    wholes, token, seen = prompts(backbone, (5, 40, 23, 9, 14)), iter(range(20, 99)), []
    cache, _ = prefill(
        backbone.model, wholes, backbone.tokenizer.pad_token_id, len(chosen), budget=50
    )
    slot = np.arange(len(wholes))
    with decoding(backbone.model, cache) as read:
        for places in chosen:
            taken = np.array([next(token) for _ in places])
            slot = cache.advance(slot[places])
            wholes = [
                np.append(wholes[place], new) for place, new in zip(places, taken, strict=True)
            ]
            seen += zip(wholes, read(slot, taken)[slot], strict=True)
            cache.continuations[0][0][np.delete(np.arange(len(cache.owner)), slot)] = (
                torch.nan
            )  # what goes on reads nobody else's
    for whole, hidden in seen:
        expected = backbone.model(input_ids=torch.from_numpy(whole)[None]).logits[0, -1]
        assert torch.allclose(backbone.logits(hidden[None])[0], expected, atol=1e-4)


def test_more_samples_keep_the_first_ones(backbone):
    rows = prompts(backbone, (8,))
    few, many = (
        draw(backbone, rows, keys(1), samples=3)[0],
        draw(backbone, rows, keys(1), samples=9)[0],
    )
    assert [ids.tolist() for ids in few.ids] == [ids.tolist() for ids in many.ids[:3]]


def test_frequencies_follow_the_model(backbone):
    (prompt,) = prompts(backbone, (6,))
    with torch.no_grad():
        expected = (
            (backbone.model(input_ids=torch.from_numpy(prompt)[None]).logits[0, -1] / 0.9)
            .softmax(-1)
            .numpy()
        )
    drawn = draw(
        backbone,
        [prompt] * 8,
        np.array([stream_key(number) for number in range(8)]),
        samples=500,
        temperature=0.9,
        max_new=1,
    )
    texts = itertools.chain.from_iterable(one.ids for one in drawn)
    end = backbone.tokenizer.eos_token_id
    first = np.array([ids[0] if len(ids) else end for ids in texts])
    counts = np.bincount(first, minlength=len(expected))
    likely = expected > 0.002
    chi = ((counts - expected * len(first)) ** 2 / (expected * len(first)))[likely].sum()
    assert chi < likely.sum() + 5 * np.sqrt(2 * likely.sum())


def test_uniform_numbers_are_uniform_and_distinct():
    values = np.concatenate(
        [uniform(keys(1).repeat(200), np.arange(200), step) for step in range(50)]
    )
    assert len(np.unique(values)) == len(values)
    assert np.histogram(values, bins=10, range=(0, 1))[0].std() < 4 * np.sqrt(len(values) / 10)
    assert values.min() > 0 and values.max() < 1


def test_greedy_and_the_end_token(backbone):
    rows = prompts(backbone, (10, 3, 6))
    for prompt, generated in zip(
        rows, draw(backbone, rows, keys(3), samples=2, temperature=0, max_new=5), strict=True
    ):
        whole = torch.from_numpy(prompt)
        with torch.no_grad():
            for _ in range(5):
                whole = torch.cat(
                    [whole, backbone.model(input_ids=whole[None]).logits[0, -1:].argmax(-1)]
                )
        best = whole[len(prompt) :].tolist()
        end = backbone.tokenizer.eos_token_id
        assert [ids.tolist() for ids in generated.ids] == [
            best[: best.index(end)] if end in best else best
        ] * 2
        assert generated.ended.tolist() == [end in best] * 2


def test_an_end_token_ends_a_text_and_counts(backbone):
    """The likeliest first token serves as the end token."""
    (prompt,) = prompts(backbone, (10,))
    with torch.no_grad():
        logprobs = (
            backbone.model(input_ids=torch.from_numpy(prompt)[None]).logits[0, -1].log_softmax(-1)
        )
    tokenizer = copy.deepcopy(backbone.tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(int(logprobs.argmax()))
    generated = draw(
        Backbone(backbone.model, tokenizer), [prompt], keys(1), samples=2, temperature=0, max_new=5
    )[0]
    assert generated.ended.all() and not any(map(len, generated.ids))
    assert generated.logprobs == pytest.approx([logprobs.max().item()] * 2, abs=1e-4)


def test_item_text_cannot_forge_special_tokens():
    tokenizer = train_tokenizer(["a b c <|end|>"], 300)
    ids = tokenizer("x <|end|> <|pad|> y", add_special_tokens=False, split_special_tokens=True)[
        "input_ids"
    ]
    assert tokenizer.eos_token_id not in ids and tokenizer.pad_token_id not in ids
    assert tokenizer.decode(ids) == "x <|end|> <|pad|> y"
