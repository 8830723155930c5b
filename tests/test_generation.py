"""Sampling over a shared prompt cache: equal to plain passes, and nobody's texts depend on the batch."""

import numpy as np
import pytest
import torch

from recbole_llm.backbone import Backbone, load_causal
from recbole_llm.errors import UserError
from recbole_llm.generation.cache import check
from recbole_llm.generation.sampling import sample, stream_key, uniform
from recbole_llm.scratch import train_tokenizer


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    torch.manual_seed(0)
    texts = ["Title: a good dog food. Brand: Bla."] * 10 + [f"something else entirely {number}" for number in range(200)]
    loaded = load_causal("scratch:tiny", texts, saved=tmp_path_factory.mktemp("saved"), max_length=128, vocabulary=400)
    for parameter in loaded.model.parameters():
        parameter.data.mul_(3)  # random weights are nearly uniform; sharper ones make mistakes visible
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
        for ids, logprob, ended in zip(generated.ids, generated.logprobs, generated.ended, strict=True):
            whole = np.concatenate([prompt, ids, [backbone.tokenizer.eos_token_id] if ended else []]).astype(np.int64)
            with torch.no_grad():
                logprobs = backbone.model(input_ids=torch.from_numpy(whole)[None]).logits[0].log_softmax(-1)
            expected = sum(logprobs[at - 1, whole[at]].item() for at in range(len(prompt), len(whole)))
            assert logprob == pytest.approx(expected, abs=1e-3)


FAMILIES = {
    "llama": ("Llama", {}),
    "llama, grouped heads": ("Llama", {"num_key_value_heads": 2}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 16}),
    "gpt2": ("GPT2", {}),
    "mistral, window": ("Mistral", {"sliding_window": 9, "num_key_value_heads": 2}),
    "gemma": ("Gemma", {"head_dim": 16, "num_key_value_heads": 1}),
    "gemma2, window, soft caps": ("Gemma2", {"sliding_window": 9, "head_dim": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3, window": ("Gemma3Text", {"sliding_window": 9, "head_dim": 16}),
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Title: a good dog food. Brand: Bla."] * 10, 300)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_architectures_equal_a_plain_forward_pass(family, tokenizer):
    """To 1e-4 in float32, with continuations longer than a window and prompts shorter and longer than it."""
    import transformers

    name, own = FAMILIES[family]
    common = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    if name == "GPT2":
        config = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=64, **common)
        kind = transformers.GPT2LMHeadModel
    else:
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64}
        kind = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")
        config = getattr(transformers, f"{name}Config")(**(sizes | common | own))
    torch.manual_seed(0)
    model = kind(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(2)
    model.set_attn_implementation("eager")
    backbone = Backbone(model, tokenizer)
    rows = prompts(backbone, (3, 20, 11))
    for prompt, generated in zip(rows, draw(backbone, rows, keys(3), max_new=14), strict=True):
        for ids, logprob, ended in zip(generated.ids, generated.logprobs, generated.ended, strict=True):
            whole = np.concatenate([prompt, ids, [tokenizer.eos_token_id] if ended else []]).astype(np.int64)
            with torch.no_grad():
                logprobs = model(input_ids=torch.from_numpy(whole)[None]).logits[0].log_softmax(-1)
            expected = sum(logprobs[at - 1, whole[at]].item() for at in range(len(prompt), len(whole)))
            assert logprob == pytest.approx(expected, rel=1e-4)


def test_layers_that_forget_are_refused():
    from transformers import Qwen3NextConfig

    with pytest.raises(UserError, match="found linear_attention"):
        check(Qwen3NextConfig())


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
            assert int(torch.searchsorted(cumulated, torch.tensor([chance], dtype=torch.float64))) == token
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


def test_more_samples_keep_the_first_ones(backbone):
    rows = prompts(backbone, (8,))
    few, many = draw(backbone, rows, keys(1), samples=3)[0], draw(backbone, rows, keys(1), samples=9)[0]
    assert [ids.tolist() for ids in few.ids] == [ids.tolist() for ids in many.ids[:3]]


def test_frequencies_follow_the_model(backbone):
    (prompt,) = prompts(backbone, (6,))
    with torch.no_grad():
        expected = (backbone.model(input_ids=torch.from_numpy(prompt)[None]).logits[0, -1] / 0.9).softmax(-1).numpy()
    drawn = draw(backbone, [prompt] * 8, np.array([stream_key(number) for number in range(8)]), samples=500, temperature=0.9, max_new=1)
    first = np.concatenate([[ids[0] if len(ids) else backbone.tokenizer.eos_token_id for ids in one.ids] for one in drawn])
    counts = np.bincount(first, minlength=len(expected))
    likely = expected > 0.002
    chi = ((counts - expected * len(first)) ** 2 / (expected * len(first)))[likely].sum()
    assert chi < likely.sum() + 5 * np.sqrt(2 * likely.sum())


def test_uniform_numbers_are_uniform_and_distinct():
    values = np.concatenate([uniform(keys(1).repeat(200), np.arange(200), step) for step in range(50)])
    assert len(np.unique(values)) == len(values)
    assert np.histogram(values, bins=10, range=(0, 1))[0].std() < 4 * np.sqrt(len(values) / 10)
    assert 0 < values.min() and values.max() < 1


def test_greedy_and_the_end_token(backbone):
    rows = prompts(backbone, (10,))
    generated = draw(backbone, rows, keys(1), samples=2, temperature=0, max_new=5)[0]
    assert generated.ids[0].tolist() == generated.ids[1].tolist()
    assert backbone.tokenizer.eos_token_id not in np.concatenate(generated.ids)


def test_item_text_cannot_forge_special_tokens():
    tokenizer = train_tokenizer(["a b c <|end|>"], 300)
    ids = tokenizer("x <|end|> <|pad|> y", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.eos_token_id not in ids and tokenizer.pad_token_id not in ids
    assert tokenizer.decode(ids) == "x <|end|> <|pad|> y"
