"""Each setting of answering and learning does what its line in CALRec.yaml says."""

import json

import numpy as np
import pytest
import torch
from worlds import prepared, settings_for, write_cycle

from recbole_llm.data.texts.text import ItemText
from recbole_llm.evaluation.ranks import UNNAMED
from recbole_llm.language.matching.matching import BM25Match, HierarchicalMatch
from recbole_llm.models.base import generative_model
from recbole_llm.runs.commands import evaluate_run, run_settings
from recbole_llm.runs.runner import Runner
from recbole_llm.runs.spec import describe
from recbole_llm.training import optimizers

LEARNED = {
    "epochs": 20,
    "learning_rate": 0.01,
    "train_batch_size": 4,
    "scratch_vocabulary": 700,
    "eval_step": 0,
    "samples": 2,
    "alpha": 0,
    "beta": 0,
}


@pytest.fixture(scope="module")
def learned(make_once):
    """Return (folder, run) of a trained model whose texts are items."""

    def train(folder):
        write_cycle(folder, users=40)
        return folder, run_settings(settings_for("CALRec", folder, **LEARNED))

    return make_once("learned", train)


@pytest.fixture
def answering(learned):
    """Return make(**own), which loads the trained weights under other settings of generation."""
    folder, run = learned

    def make(**own):
        ready = describe(settings_for("CALRec", folder, **LEARNED | own), restored=run.folder)
        model, (_, _, test) = Runner(ready).restore(
            json.loads((run.folder / "run.json").read_text())
        )
        return model.eval(), test._dataset.cases[:12]

    return make


def asked(monkeypatch):
    """Record (number of samples, longest prompt) of every call of `sample`."""
    seen, inner = [], generative_model.sample

    def watch(bundle, prompts, keys, **kwargs):
        seen.append((kwargs["samples"], max(map(len, prompts))))
        return inner(bundle, prompts, keys, **kwargs)

    monkeypatch.setattr(generative_model, "sample", watch)
    return seen


def test_a_checkpoint_is_chosen_by_valid_samples_and_everything_else_by_samples(
    tmp_path, monkeypatch
):
    write_cycle(tmp_path)
    _, _, trainer, (_, valid, test) = prepared("CALRec", tmp_path, samples=5, valid_samples=2)
    seen = asked(monkeypatch)
    trainer._valid_epoch(valid)
    assert {count for count, _ in seen} == {2}
    seen.clear()
    trainer.rank(valid)
    trainer.rank(test)
    assert {count for count, _ in seen} == {5}


@torch.no_grad()
def test_a_prompt_leaves_room_for_what_is_written(tmp_path, monkeypatch):
    write_cycle(tmp_path)
    _, model, _, (_, _, test) = prepared("CALRec", tmp_path, max_length=140, max_new_tokens=40)
    seen = asked(monkeypatch)
    model.eval().score(test._dataset.cases[:5])
    assert 60 < seen[0][1] <= 100


@torch.no_grad()
def test_as_many_texts_are_matched_as_asked(answering):
    for kept in (1, 3):
        model, cases = answering(texts_kept=kept, samples=16, temperature=1.3)
        answers = model.generate(cases, model.prompts(cases))
        assert max(len(answer.texts) for answer in answers) > 3
        expected = [
            model.match.scores(answer.texts[:kept], answer.logprobs[:kept]) for answer in answers
        ]
        assert (model.score(cases) == np.stack(expected)).all()


@torch.no_grad()
def test_blend_weighs_what_a_search_reached(answering):
    model, cases = answering(decoding="constrained", beams=4)
    prompts = model.prompts(cases)
    answers, plain, histories = (
        model.generate(cases, prompts),
        model.score(cases),
        model.vectors(prompts, 0),
    )
    model.config["blend"] = 3.0
    blended = model.score(cases)
    for answer, before, after, history in zip(answers, plain, blended, histories, strict=True):
        items, logprobs = model.first[answer.reached], np.array(answer.logprobs)
        expected = logprobs + 3.0 * history @ model.item_vectors[answer.reached].T
        assert after[items] - after[items].min() == pytest.approx(
            expected - expected.min(), abs=1e-4
        )
        assert before[items] - before[items].min() == pytest.approx(
            logprobs - logprobs.min(), abs=1e-6
        )
        assert after[items].min() > np.delete(after, items).max()


@torch.no_grad()
def test_item_vectors_follow_the_weights(answering):
    model, _ = answering()
    old = model.item_vectors
    model.backbone.get_input_embeddings().weight.normal_()
    assert model.item_vectors is old
    model.start_ranking("test", selecting=False)
    assert not np.allclose(model.item_vectors, old)


@pytest.mark.parametrize("decoding", ["sample", "constrained"])
def test_half_precision_is_used_and_gives_the_same_metrics(learned, answering, decoding):
    folder, run = learned
    values, kinds = {}, {}
    for precision in ("fp32", "bf16"):
        own = LEARNED | {
            "precision": precision,
            "decoding": decoding,
            "beams": 6,
            "samples": 16,
            "topk_saved": 10,
        }
        values[precision] = evaluate_run(run.folder, settings_for("CALRec", folder, **own)).values
        model, cases = answering(precision=precision)
        head = model.backbone.get_output_embeddings()
        head.register_forward_hook(
            lambda module, inputs, output, precision=precision: kinds.update(
                {precision: output.dtype}
            )
        )
        model.scores(cases[:2])
    assert kinds == {"fp32": torch.float32, "bf16": torch.bfloat16}
    assert values["fp32"]["ndcg@10"] > 0.6, "the world is learned"
    # CPUs with instructions for bfloat16 round products otherwise than those without
    assert values["bf16"]["ndcg@10"] == pytest.approx(values["fp32"]["ndcg@10"], abs=0.02)


def test_a_rerun_of_lists_and_a_blend_do_not_hide_garbage(tmp_path):
    write_cycle(tmp_path)
    pop = run_settings(settings_for("Pop", tmp_path))
    shares = []
    for own in ({}, {"blend": 1.0}, {"rerank_from": pop.folder.name}):
        run = run_settings(settings_for("CALRec", tmp_path, epochs=0, max_new_tokens=3, **own))
        shares.append(run.row["rates"]["unmatched"])
    assert shares[0] > 0 and shares == shares[:1] * 3


def test_the_rate_rises_and_falls_as_it_should():
    rates = [0.004 * optimizers.rate(done, 0.2) for done in (0.1, 0.2, 0.6, 1.0)]
    assert rates == pytest.approx([0.002, 0.004, 0.55 * 0.004, 0.0004])


@pytest.mark.parametrize("learner", ["adam", "muon"])
def test_weights_without_a_gradient_decay(learner):
    layer = torch.nn.Linear(8, 8)
    before = {name: value.detach().clone() for name, value in layer.named_parameters()}
    optimizer = optimizers.build(layer, learner, 0.1, 0.5)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, value in layer.named_parameters():
        assert torch.allclose(value, before[name] * (1 - 0.1 * 0.5), atol=1e-6), name


@pytest.fixture
def text(tmp_path):
    write_cycle(tmp_path)
    path = tmp_path / "cycle" / "cycle.item"
    path.write_text(path.read_text().replace("lemon juice", "title brand category"))
    ready = describe(settings_for("LIR", tmp_path))
    return ItemText.from_interactions(
        ready.interactions, ready.config["text_fields"], ready.config["text_words"]
    )


def test_attribute_names_are_no_query_words(text):
    """Attribute names of a text must not match the item that is called after them."""
    match = BM25Match(text, {"epsilon": 0.0002, "bm25_k1": 1.5, "bm25_b": 0.75})
    scores = match.scores(
        ["Title: kiwi juice. Category: drinks k. Brand: brand1."], np.array([-1.0])
    )
    item = text.values.index(next(row for row in text.values if row[0].startswith("kiwi")))
    named = next(index for index, row in enumerate(text.values) if row[0].startswith("title"))
    assert scores.argmax() == item and scores[named] == pytest.approx(0, abs=0.3)
    assert scores[named] == match.scores(["kiwi juice drinks k brand1"], np.array([-1.0]))[named]


@pytest.mark.parametrize("epsilon", [0.0, 0.01])
def test_epsilon_weighs_texts_by_their_probability(text, epsilon):
    match = BM25Match(text, {"epsilon": epsilon, "bm25_k1": 1.5, "bm25_b": 0.75})
    texts = [text.sentence(3), text.sentence(5)]
    scores = match.scores(texts, np.array([-2.0, -9.0]))
    assert scores[5] / scores[3] == pytest.approx(np.exp(-7 * epsilon))


@torch.no_grad()
def test_the_match_is_the_one_that_is_asked_for(answering):
    model, cases = answering(match="hierarchical", samples=8)
    assert isinstance(model.match, HierarchicalMatch)
    assert set(np.unique(model.score(cases))) <= {UNNAMED, *range(1, 9)}
    model, cases = answering(match="bm25", samples=8)
    assert isinstance(model.match, BM25Match) and model.score(cases).max() < 1


def test_shares_of_outputs_are_over_all_of_them(text):
    good, other = text.sentence(0), "Title: kiwi juice. Category: meat. Brand: brand9."
    counts = HierarchicalMatch(text).tally(
        [good, other, "Title: meat.", good.removesuffix(".")], [3, 1, 1, 1]
    )
    assert counts == {"formatted": 4, "matched_all": 4, "matched_first": 5}
