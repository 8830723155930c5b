"""Shared losses equal loops, and their gradients do not depend on how a batch is divided."""

import numpy as np
import pytest
import torch
from worlds import prepared, write_cycle

from recbole_llm.training.losses import (
    backward,
    in_batch_contrast,
    over_catalogue,
    symmetric_contrast,
)


def test_contrast_is_the_papers_sum_over_the_first_argument():
    rng = np.random.default_rng(0)
    queries, keys = rng.normal(size=(2, 5, 4))

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    expected = 0.0
    for i in range(5):
        weights = [np.exp(cosine(queries[j], keys[i]) / 0.5) for j in range(5)]
        expected -= np.log(weights[i] / sum(weights)) / 5
    assert in_batch_contrast(
        torch.from_numpy(queries), torch.from_numpy(keys), 0.5
    ).item() == pytest.approx(expected, rel=1e-5)


def test_equal_pairs_are_in_no_sum():
    """Compute the loss by loops in float64.

    A duplicate of a pair's own item is no negative and is not counted; the pair's own always is.
    """
    queries, keys = torch.randn(
        2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    equal = torch.eye(5, dtype=torch.bool)
    equal[0, 3] = equal[3, 0] = equal[1, 2] = equal[2, 1] = True
    unit = [part / part.norm(dim=1, keepdim=True) for part in (queries, keys)]
    expected = 0.0
    for i in range(5):
        weights = [
            float((unit[0][j] @ unit[1][i] / 0.5).exp()) * (j == i or not equal[i, j])
            for j in range(5)
        ]
        expected -= np.log(weights[i] / sum(weights)) / 5
    assert in_batch_contrast(queries, keys, 0.5, equal).item() == pytest.approx(expected, rel=1e-5)


def test_a_softmax_over_the_catalogue_is_the_sum_over_its_items_also_under_autocast():
    """Items of one vector count separately."""
    rng = np.random.default_rng(0)
    states, items = rng.normal(size=(3, 8)), rng.normal(size=(4, 8))
    same, labels = np.array([0, 1, 1, 2, 3, 0]), np.array([5, 2, 3])
    expected = 0.0
    for state, label in zip(states, labels):
        weights = [
            np.exp(state @ items[row] / np.linalg.norm(state) / np.linalg.norm(items[row]) / 0.07)
            for row in same
        ]
        expected -= np.log(weights[label] / sum(weights))
    given = [torch.from_numpy(one) for one in (states, items, same, labels)]
    for short in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=short):
            assert over_catalogue(*given, 0.07).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_symmetric_loss_is_sentence_transformers():
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    anchors, positives = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    theirs = MultipleNegativesRankingLoss(
        None,
        scale=20.0,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    expected = theirs.compute_loss_from_embeddings([anchors, positives], None).item()
    assert symmetric_contrast(anchors, positives, 0.05).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_cached_gradients_are_those_of_one_pass(dropout):
    """They agree in float64; with dropout, with one graph over the same masks."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(8, 4)
    ).double()
    data = torch.randn(12, 6, dtype=torch.float64)
    batches = list(data.split([5, 4, 3]))

    def forward(batch, own):
        vectors = net(batch)
        return (vectors**2).sum() if own else vectors.sum() * float("nan"), vectors

    def join(vectors):
        return in_batch_contrast(vectors[0::2], vectors[1::2], 0.5)

    torch.manual_seed(1)
    value = backward(forward, batches, join)
    cached = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    torch.manual_seed(1)
    passes = [forward(batch, True) for batch in batches]
    whole = sum(loss for loss, _ in passes) + join(torch.cat([vectors for _, vectors in passes]))
    whole.backward()
    assert value == pytest.approx(whole.item())
    together = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    torch.manual_seed(1)
    assert backward(forward, batches, join, keep_graphs=True) == pytest.approx(whole.item())
    for gradient, expected, parameter in zip(cached, together, net.parameters(), strict=True):
        assert torch.allclose(gradient, expected, atol=1e-6)  # the contrast is taken in float32
        assert torch.allclose(parameter.grad, expected, atol=1e-6)


def gradients(folder, **own):
    ready, model, trainer, (train, _, _) = prepared("CALRec", folder, **own)
    model.double()
    examples = model.examples(0)[:8]
    trainer.clip_grad_norm = None
    trainer.optimizer.step = lambda *args: None
    loss = trainer._step(examples)
    return loss, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("terms", [{}, {"alpha": 0.0, "beta": 0.0}, {"nig_targets": "last"}])
def test_a_step_does_not_depend_on_its_passes(tmp_path, terms):
    write_cycle(tmp_path)
    own = {"max_length": 1024} | terms
    whole, one = gradients(tmp_path, pass_tokens=10**6, **own)
    cut, many = gradients(tmp_path, pass_tokens=1, **own)
    assert cut == pytest.approx(whole, rel=1e-6)
    for name, gradient in one.items():
        assert torch.allclose(gradient, many[name], rtol=1e-4, atol=1e-8), name


def test_calrecs_loss_is_the_papers(tmp_path):
    """The oracle is (1 - a - b) L_NIG + a L_TT + b L_UT from plain passes over single users."""
    write_cycle(tmp_path)
    _, model, trainer, (train, _, _) = prepared(
        "CALRec", tmp_path, nig_targets="last", alpha=0.3, beta=-0.1
    )
    model.double().eval()
    examples = model.examples(0)[:6]
    trainer.clip_grad_norm = None
    nig, towers = 0.0, []
    for sequence, alone in examples:
        output = model.backbone(torch.from_numpy(sequence.ids)[None], output_hidden_states=True)
        logprobs = output.logits[0].log_softmax(-1)
        nig -= sum(
            logprobs[at - 1, sequence.ids[at]].item()
            for at in range(sequence.target, len(sequence))
        )
        hidden = output.hidden_states[-1][0]
        lone = (
            model.backbone(torch.from_numpy(alone.ids)[None], output_hidden_states=True)
            .hidden_states[-1][0]
            .mean(0)
        )
        towers.append((hidden[: sequence.target].mean(0), hidden[sequence.target :].mean(0), lone))
    user, user_target, target = (torch.stack(column) for column in zip(*towers, strict=True))
    expected = (
        0.8 * nig / 6
        + 0.3 * in_batch_contrast(user_target, target, 0.5)
        - 0.1 * in_batch_contrast(user, target, 0.5)
    )
    assert trainer._step(examples) == pytest.approx(expected.item(), rel=1e-5)
