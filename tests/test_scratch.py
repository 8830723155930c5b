"""Tokenizers of scratch backbones."""

import itertools

import numpy as np
import pytest

from recbole_llm.language.backbones.scratch import (
    END,
    PAD,
    PHRASE_USES,
    SIZES,
    causal_model,
    train_tokenizer,
)
from recbole_llm.language.prompts.templates import Template, item_prefix
from recbole_llm.language.tokens.batches import tokenizer_corpus

TEMPLATE = Template(
    "This is the summary of a user's purchase history.",
    "The first item is:",
    "\n\nThe next item is:",
    "\n\nWhat comes next:",
)
BRANDS = ["Good & Sons of Ghent", "Étoile du Nord", "北京 tea house"]
ITEMS = [
    f"Title: {word} {number}. Brand: {BRANDS[number % 3]}."
    for number, word in itertools.product(range(20), ("juice", "cat food"))
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(tokenizer_corpus(TEMPLATE, ITEMS), 600)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def test_any_text_comes_back(tokenizer):
    for text in [
        *tokenizer_corpus(TEMPLATE, ITEMS),
        "  two  spaces\n\n\ttabs",
        "never seen: ünïcode 🦆 \x00",
        f"{PAD}{END}",
        "",
    ]:
        assert tokenizer.decode(ids(tokenizer, text)) == text


def test_text_never_becomes_a_special_token(tokenizer):
    special = {tokenizer.pad_token_id, tokenizer.eos_token_id}
    assert len(special) == 2 and not special & set(ids(tokenizer, f"{END} and {PAD}{END}"))


def test_what_many_items_share_is_one_token_and_what_few_share_is_not(tokenizer):
    for sentence in (
        TEMPLATE.head,
        item_prefix(TEMPLATE, 0),
        item_prefix(TEMPLATE, 1),
        TEMPLATE.target,
    ):
        assert len(ids(tokenizer, sentence)) == 1
    for brand in BRANDS:
        assert 1 <= len(ids(tokenizer, f". Brand: {brand}.")) <= 2
    rare = train_tokenizer(
        [
            f" Title: {word} {number}."
            for number, word in itertools.product(range(PHRASE_USES - 1), ("juice", "cat food"))
        ],
        600,
    )
    assert all(
        " " not in rare.decode([token]).strip()
        for token in range(2, len(rare))
        if "cat" in rare.decode([token])
    )


@pytest.mark.parametrize("vocabulary", [300, 400, 5000])
def test_the_vocabulary_keeps_its_size_and_is_the_same_every_time(vocabulary):
    one, other = (train_tokenizer(tokenizer_corpus(TEMPLATE, ITEMS), vocabulary) for _ in range(2))
    assert 258 < len(one) <= vocabulary
    assert one.get_vocab() == other.get_vocab() and sorted(one.get_vocab().values()) == list(
        range(len(one))
    )
    assert ids(one, ITEMS[0]) == ids(other, ITEMS[0])


def test_it_is_saved_and_loaded(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert (
        all(ids(again, text) == ids(tokenizer, text) for text in [*ITEMS, f"x{END}"])
        and again.eos_token_id == tokenizer.eos_token_id
    )


def test_models_have_the_size_they_are_named_for(tokenizer):
    for size, (width, layers) in list(SIZES.items())[:2]:
        model = causal_model(size, tokenizer, 64)
        assert (
            model.get_input_embeddings().weight.shape == (len(tokenizer), width)
            and model.config.num_hidden_layers == layers
        )
        assert model.lm_head.weight is model.get_input_embeddings().weight
        assert np.isfinite(model(input_ids=np_ids(tokenizer)).logits.detach().numpy()).all()


def np_ids(tokenizer):
    import torch

    return torch.tensor([ids(tokenizer, ITEMS[0])])
