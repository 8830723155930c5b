"""Prompts are tokenised, truncated and padded as their settings say."""

import numpy as np
import pytest
import torch

from recbole_llm.language.backbones.scratch import train_tokenizer
from recbole_llm.language.prompts.templates import Example, Template
from recbole_llm.language.tokens.batches import (
    IGNORED,
    PASS_COST,
    HistoryEncoder,
    by_length,
    mean_states,
    pad,
    padded_size,
    shuffled_steps,
)

TEMPLATE = Template(
    head="This is the summary of a user's purchase history.",
    first="The first item bought is as follows.",
    next="\n\nThe next item bought is as follows.",
    target="\n\nThe next item bought is as follows.",
)
GPT4REC = Template(
    head="Previously, the customer has bought:",
    first="",
    next="",
    target="\n\nIn the future, the customer wants to buy",
)
ITEMS = (
    "Title: Red Leash. Brand: Bo.",
    "Title: Blue Bowl. Brand: Ka.",
    "Title: Green Ball. Brand: Li.",
)


def encoder(max_length=1000):
    return HistoryEncoder(train_tokenizer([*ITEMS, *vars(TEMPLATE).values()], 400), max_length)


def spelled(example):
    own = encoder()
    return own.tokenizer.decode(own.encode(example).ids).replace("<|end|>", "")


def test_the_text_is_the_papers():
    assert spelled(Example(TEMPLATE, ITEMS[:2], ITEMS[2])) == (
        "This is the summary of a user's purchase history. "
        "The first item bought is as follows. Title: Red Leash. Brand: Bo."
        "\n\nThe next item bought is as follows. Title: Blue Bowl. Brand: Ka."
        "\n\nThe next item bought is as follows. Title: Green Ball. Brand: Li."
    )


def test_a_template_without_prefixes():
    assert spelled(Example(GPT4REC, ITEMS[:2], ITEMS[2])) == (
        "Previously, the customer has bought: "
        "Title: Red Leash. Brand: Bo. Title: Blue Bowl. Brand: Ka."
        "\n\nIn the future, the customer wants to buy Title: Green Ball. Brand: Li."
    )


@pytest.mark.parametrize(
    "flags,expected", [(None, (2,)), ((True, True), (1, 2)), ((True, False), (2,))]
)
def test_learned_tokens_are_the_items_with_their_end(flags, expected):
    """The first item is never learned, since nothing precedes it."""
    own = encoder()
    tokens = own.encode(Example(TEMPLATE, ITEMS[:2], ITEMS[2], flags))
    assert own.tokenizer.decode(tokens.ids[tokens.learned]) == "".join(
        f" {ITEMS[index]}<|end|>" for index in expected
    )
    assert tokens.items == len(expected)
    assert own.tokenizer.decode(tokens.ids[tokens.target :]) == f" {ITEMS[2]}<|end|>"


def test_an_item_alone_is_all_target():
    own = encoder()
    tokens = own.encode_item(ITEMS[0])
    assert own.tokenizer.decode(tokens.ids) == f" {ITEMS[0]}<|end|>"
    assert (tokens.target, tokens.items, tokens.learned.any()) == (0, 0, False)


def test_a_begin_token_comes_first():
    own = encoder()
    plain = own.encode(Example(TEMPLATE, ITEMS[:1])).ids
    own.tokenizer.add_special_tokens({"bos_token": "<s>"})
    from tokenizers.processors import TemplateProcessing

    begin = own.tokenizer.bos_token_id
    own.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begin)]
    )
    assert HistoryEncoder(own.tokenizer, 1000).encode(
        Example(TEMPLATE, ITEMS[:1])
    ).ids.tolist() == [
        begin,
        *plain,
    ]


def test_the_oldest_items_are_cut_whole_and_the_frame_stays():
    own = encoder()
    whole = own.encode(Example(TEMPLATE, ITEMS))
    for limit in range(len(whole), 60, -7):
        short = HistoryEncoder(own.tokenizer, limit).encode(Example(TEMPLATE, ITEMS))
        kept = ITEMS[short.cut :]
        assert own.tokenizer.decode(short.ids).replace("<|end|>", "") == spelled(
            Example(TEMPLATE, kept)
        )
        assert len(short) <= limit or len(kept) == 1
    assert HistoryEncoder(own.tokenizer, 10).encode(Example(TEMPLATE, ITEMS)).cut == 2


def test_the_cut_leaves_as_many_items_as_fit():
    own = encoder()
    two = len(own.encode(Example(TEMPLATE, ITEMS[1:])))
    assert HistoryEncoder(own.tokenizer, two).encode(Example(TEMPLATE, ITEMS)).cut == 1
    assert HistoryEncoder(own.tokenizer, two - 1).encode(Example(TEMPLATE, ITEMS)).cut == 2


def test_padding_is_on_the_right_and_not_learned():
    own = encoder()
    rows = [own.encode(Example(TEMPLATE, ITEMS[:n], ITEMS[2])) for n in (1, 2)]
    batch = pad(rows, pad_id=0)
    assert batch.lengths.tolist() == [len(row) for row in rows] and batch.target.tolist() == [
        row.target for row in rows
    ]
    for index, row in enumerate(rows):
        ids, labels = batch.input_ids[index].numpy(), batch.labels[index].numpy()
        assert (ids[: len(row)] == row.ids).all() and (ids[len(row) :] == 0).all()
        assert (labels[: len(row)][row.learned] == row.ids[row.learned]).all()
        assert (np.delete(labels, np.flatnonzero(row.learned)) == IGNORED).all()


def test_means_are_over_the_history_and_over_the_target():
    own = encoder()
    rows = [
        own.encode(Example(TEMPLATE, ITEMS[:2], ITEMS[2])),
        own.encode_item(ITEMS[0]),
        own.encode(Example(TEMPLATE, ITEMS[:1])),
    ]
    batch = pad(rows, pad_id=0)
    hidden = torch.randn(3, batch.input_ids.shape[1], 5)
    found = batch.means(hidden)
    for index, row in enumerate(rows):
        for place, span in enumerate((slice(0, row.target), slice(row.target, len(row)))):
            expected = hidden[index, span].mean(0) if span.stop > span.start else torch.zeros(5)
            assert torch.allclose(found[index, place], expected, atol=1e-6)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_means_of_long_texts_fit_half_precision(kind):
    """900 times 80 exceeds float16's maximum of 65,504."""
    with torch.autocast("cpu", dtype=kind):
        mean = mean_states(
            torch.full((1, 900, 4), 80.0, dtype=kind), torch.ones(1, 1, 900, dtype=torch.bool)
        )
    assert mean.dtype == torch.float32 and torch.allclose(mean, torch.full((1, 1, 4), 80.0))


def test_groups_of_like_length_keep_the_budget():
    lengths = np.random.default_rng(0).integers(1, 400, size=200)
    groups = by_length(lengths, 1000)
    assert sorted(np.concatenate(groups)) == list(range(200))
    for group in groups:
        assert lengths[group].max() * len(group) <= 1000 or len(group) == 1
    assert max(map(len, by_length(lengths, 1000, most=3))) == 3
    assert by_length([], 1000) == []


@pytest.mark.parametrize(
    ("budget", "most", "unit"), [(10**6, None, 8), (9000, None, 8), (1500, None, 1), (10**6, 3, 1)]
)
def test_groups_are_the_cheapest_there_are(budget, most, unit):
    """The oracle tries every partition of a sorted list.

    Eight rows of 900 tokens exceed 1,500.
    """
    lengths = np.sort(np.random.default_rng(1).integers(1, 900, size=9 * unit - unit // 2))[::-1]

    def cost(group):
        return padded_size(group[0]) * len(group) + PASS_COST

    costs = []
    for cuts in range(2**8):
        ends = [unit * (place + 1) for place in range(8) if cuts >> place & 1] + [len(lengths)]
        groups = [lengths[begin:end] for begin, end in zip([0, *ends], ends)]
        if all(
            len(group) <= unit
            or (padded_size(group[0]) * len(group) <= budget and len(group) <= (most or 99))
            for group in groups
        ):
            costs.append(sum(map(cost, groups)))
    ours = [lengths[group] for group in by_length(lengths, budget, most)]
    assert sum(map(cost, ours)) == min(costs)


def test_room_is_an_eighth_at_most():
    sizes = np.arange(1, 3000)
    assert (
        (padded_size(sizes) >= sizes).all()
        and (padded_size(sizes) * 8 <= sizes * 9).all()
        and len(set(padded_size(sizes))) < 90
    )
    assert (
        (padded_size(padded_size(sizes)) == padded_size(sizes)).all()
        and padded_size(129) == 144
        and int(padded_size(1)) == 1
    )


def test_steps_hold_every_row_once_and_like_lengths_together():
    lengths = np.random.default_rng(0).integers(1, 400, size=1000)
    steps = shuffled_steps(lengths, 10, np.random.default_rng(1))
    assert (
        sorted(np.concatenate(steps)) == list(range(1000))
        and [len(step) for step in steps].count(10) == 100
    )
    assert np.mean([np.ptp(lengths[step]) for step in steps]) < 0.2 * np.ptp(lengths)
    mean_states = np.array([lengths[step].mean() for step in steps])
    assert (
        abs(np.corrcoef(mean_states, np.arange(100))[0, 1]) < 0.3
    )  # the order of the steps does not follow the length
    again, other = (shuffled_steps(lengths, 10, np.random.default_rng(seed)) for seed in (1, 2))
    assert all((a == b).all() for a, b in zip(steps, again, strict=True)) and not all(
        (a == b).all() for a, b in zip(steps, other, strict=True)
    )
    assert [sorted(step) for step in shuffled_steps([5] * 3, 10, np.random.default_rng(0))] == [
        [0, 1, 2]
    ]
    assert shuffled_steps([], 10, np.random.default_rng(0)) == []
