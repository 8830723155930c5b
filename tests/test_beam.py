"""Constrained search yields catalogue items alone, with exact log-probabilities."""

import itertools

import numpy as np
import pytest
import torch

from recbole_llm.language.backbones.sources import load
from recbole_llm.language.decoding.constrained_search import Catalogue, search

TITLES = [
    f"Title: {colour} {thing}. Brand: {brand}."
    for colour, thing, brand in itertools.product(
        ("red", "blue", "redder"), ("leash", "bowl", "leash long"), "AB"
    )
]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    torch.manual_seed(0)
    loaded = load(
        "scratch:tiny",
        TITLES,
        saved=tmp_path_factory.mktemp("saved"),
        max_length=128,
        vocabulary=300,
    )
    for parameter in loaded.model.parameters():
        parameter.data.mul_(3)
    loaded.model.eval()
    return loaded


@pytest.fixture(scope="module")
def sequences(backbone):
    end = backbone.tokenizer.eos_token_id
    return [np.array(backbone.tokenizer(text)["input_ids"] + [end]) for text in TITLES]


def exact(backbone, prompt, sequences):
    """Return log P of every sequence after a prompt, by plain passes."""
    values = []
    for sequence in sequences:
        whole = torch.from_numpy(np.concatenate([prompt, sequence]))[None]
        with torch.no_grad():
            logprobs = backbone.model(input_ids=whole).logits[0].log_softmax(-1)
        values.append(
            sum(logprobs[len(prompt) + at - 1, token].item() for at, token in enumerate(sequence))
        )
    return np.array(values)


def test_the_tree_holds_every_sequence_and_nothing_else(sequences):
    rng = np.random.default_rng(0)
    shuffled = [sequences[index] for index in rng.permutation(len(sequences))]
    tree = Catalogue(shuffled)
    found = []

    def walk(depth, low, high, path):
        for _, token, begin, close in zip(
            *tree.children(depth, np.array([low]), np.array([high])), strict=True
        ):
            if token == shuffled[0][-1]:
                assert close == begin + 1
                found.append((tree.order[begin], [*path, token]))
            else:
                walk(depth + 1, begin, close, [*path, token])

    walk(0, 0, len(shuffled), [])
    assert sorted(index for index, _ in found) == list(range(len(shuffled)))
    assert all(path == shuffled[index].tolist() for index, path in found)


def test_texts_that_a_tokenizer_takes_for_one_are_reached_together(backbone, sequences):
    prompt = np.arange(2, 9)
    (reached,) = search(
        backbone,
        [prompt],
        Catalogue([sequences[4], sequences[0], sequences[4], sequences[7]]),
        beams=4,
    )
    values = exact(backbone, prompt, [sequences[at] for at in (4, 0, 4, 7)])
    assert sorted(reached.sequences) == [0, 1, 2, 3] and reached.logprobs == pytest.approx(
        values[reached.sequences], abs=1e-3
    )
    assert (
        dict(zip(reached.sequences, reached.logprobs, strict=True))[0]
        == dict(zip(reached.sequences, reached.logprobs, strict=True))[2]
    )


@pytest.mark.parametrize("lengths", [(7,), (5, 30, 12)])
def test_with_a_beam_for_every_item_the_ranking_is_exact(backbone, sequences, lengths):
    rng = np.random.default_rng(1)
    prompts = [rng.integers(2, len(backbone.tokenizer), size=length) for length in lengths]
    for prompt, reached in zip(
        prompts, search(backbone, prompts, Catalogue(sequences), beams=len(sequences)), strict=True
    ):
        expected = exact(backbone, prompt, sequences)
        assert sorted(reached.sequences) == list(range(len(sequences)))
        assert reached.logprobs == pytest.approx(expected[reached.sequences], rel=1e-4)
        assert (np.diff(reached.logprobs) <= 0).all()


def test_fewer_beams_give_exact_values_of_fewer_items(backbone, sequences):
    rng = np.random.default_rng(2)
    prompts = [rng.integers(2, len(backbone.tokenizer), size=length) for length in (4, 20, 9, 15)]
    catalogue = Catalogue(sequences)
    together = search(backbone, prompts, catalogue, beams=5)
    for prompt, reached in zip(prompts, together, strict=True):
        expected = exact(backbone, prompt, sequences)
        assert len(reached.sequences) == 5 and len(set(reached.sequences)) == 5
        assert reached.logprobs == pytest.approx(expected[reached.sequences], rel=1e-4)
        alone = search(backbone, [prompt], catalogue, beams=5)[0]
        assert alone.sequences.tolist() == reached.sequences.tolist()
