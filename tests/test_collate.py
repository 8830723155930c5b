"""Prompts, their tokens, and how they are cut and padded."""

import numpy as np
import pytest

from recbole_llm.backbone import train_tokenizer
from recbole_llm.collate import IGNORED, Encoder, by_length, pad
from recbole_llm.prompts import Example, Template

TEMPLATE = Template(
    head="This is the summary of a user's purchase history.",
    first="The first item bought is as follows.",
    next="\n\nThe next item bought is as follows.",
)
ITEMS = ("Title: Red Leash. Brand: Bo.", "Title: Blue Bowl. Brand: Ka.", "Title: Green Ball. Brand: Li.")


def encoder(max_length=1000):
    return Encoder(train_tokenizer([*ITEMS, *vars(TEMPLATE).values()], 400), max_length)


def test_the_text_is_the_papers():
    assert Example(TEMPLATE, ITEMS[:2], ITEMS[2]).text() == (
        "This is the summary of a user's purchase history. The first item bought is as follows. Title: Red Leash. Brand: Bo."
        "\n\nThe next item bought is as follows. Title: Blue Bowl. Brand: Ka."
        "\n\nThe next item bought is as follows. Title: Green Ball. Brand: Li."
    )


def test_tokens_spell_the_text():
    own = encoder()
    example = Example(TEMPLATE, ITEMS[:2], ITEMS[2])
    spelled = own.tokenizer.decode(own.encode(example).ids).replace("<|end|>", "")
    assert spelled == example.text()


@pytest.mark.parametrize("learn,expected", [("last", ITEMS[2:]), ("all", ITEMS[1:])])
def test_learned_tokens_are_the_items_with_their_end(learn, expected):
    own = encoder()
    tokens = own.encode(Example(TEMPLATE, ITEMS[:2], ITEMS[2]), learn=learn)
    assert own.tokenizer.decode(tokens.ids[tokens.learned]) == "".join(f" {text}<|end|>" for text in expected)


def test_the_oldest_items_are_cut_whole_and_the_frame_stays():
    own = encoder()
    whole = own.encode(Example(TEMPLATE, ITEMS))
    for limit in range(len(whole), 60, -7):
        short = Encoder(own.tokenizer, limit).encode(Example(TEMPLATE, ITEMS))
        kept = ITEMS[short.cut :]
        assert own.tokenizer.decode(short.ids).replace("<|end|>", "") == Example(TEMPLATE, kept).text()
        assert len(short) <= limit or len(kept) == 1
    assert Encoder(own.tokenizer, 10).encode(Example(TEMPLATE, ITEMS)).cut == 2


def test_the_cut_leaves_as_many_items_as_fit():
    own = encoder()
    two = len(own.encode(Example(TEMPLATE, ITEMS[1:])))
    assert Encoder(own.tokenizer, two).encode(Example(TEMPLATE, ITEMS)).cut == 1
    assert Encoder(own.tokenizer, two - 1).encode(Example(TEMPLATE, ITEMS)).cut == 2


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_explicit(side):
    own = encoder()
    rows = [own.encode(Example(TEMPLATE, ITEMS[:n], ITEMS[2])) for n in (1, 2)]
    batch = pad(rows, pad_id=0, side=side)
    for index, row in enumerate(rows):
        real = batch.attention_mask[index].bool().numpy()
        assert real.sum() == len(row)
        assert (batch.input_ids[index].numpy()[real] == row.ids).all()
        assert (batch.position_ids[index].numpy()[real] == np.arange(len(row))).all()
        labels = batch.labels[index].numpy()
        assert (labels[~real] == IGNORED).all() and (labels[real][row.learned] == row.ids[row.learned]).all()
        assert (labels[real][~row.learned] == IGNORED).all()
    with pytest.raises(ValueError, match="left or right"):
        pad(rows, pad_id=0, side="middle")


def test_groups_of_like_length_keep_the_budget():
    lengths = np.random.default_rng(0).integers(1, 400, size=200)
    groups = by_length(lengths, 1000)
    assert sorted(np.concatenate(groups)) == list(range(200))
    for group in groups:
        assert lengths[group].max() * len(group) <= 1000 or len(group) == 1
        assert lengths[group].min() >= 0.75 * lengths[group].max()
    assert max(map(len, by_length(lengths, 1000, most=3))) == 3
