"""Texts that are continued in slots are those of each prompt alone."""

import pytest
import torch
from architectures import FAMILIES, random_model
from suites import fast_only
from test_generation import keys, prompts
from tokenizers_of import texts

from recbole_llm.errors import UserError
from recbole_llm.language.backbones.precision import autocast
from recbole_llm.language.backbones.scratch import train_tokenizer
from recbole_llm.language.backbones.sources import Backbone
from recbole_llm.language.decoding import continuous
from recbole_llm.language.decoding.continuous import continue_each
from recbole_llm.language.decoding.sampling import sample

LENGTHS = (5, 40, 23, 9, 31, 2, 17, 60, 12)


QUICK = ("llama, grouped heads", "gpt2", "gemma2, window, soft caps")


@pytest.fixture(scope="module", params=fast_only(QUICK, FAMILIES))
def backbone(request):
    torch.manual_seed(0)
    tokenizer = train_tokenizer(texts(200), 300)
    model = random_model(request.param, tokenizer)
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return Backbone(model.eval(), tokenizer)


def continued(backbone, rows, own, **settings):
    """The continuations by number, and the order in which they were complete."""
    found = {}

    def take(number, ids, ended):
        assert number not in found
        found[number] = (ids.tolist(), ended)

    given = {"slots": 4, "temperature": 0.7, "max_new": 12} | settings
    continue_each(backbone, rows, own, take, **given)
    return found


def alone(backbone, rows, own, temperature=0.7, max_new=12, ends=()):
    """The continuations as they are sampled in one batch."""
    made = sample(
        backbone, rows, own, samples=1, temperature=temperature, max_new=max_new, ends=ends
    )
    return {number: (one.ids[0].tolist(), bool(one.ended[0])) for number, one in enumerate(made)}


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("slots", [1, 4, 50])
def test_texts_are_those_of_a_batch(backbone, temperature, slots):
    rows, own = prompts(backbone, LENGTHS), keys(len(LENGTHS))
    ends = list(range(2, 40))  # so that texts have all lengths
    expected = alone(backbone, rows, own, temperature, ends=ends)
    assert not temperature or len({len(ids) for ids, _ in expected.values()}) > 2
    found = continued(backbone, rows, own, temperature=temperature, slots=slots, ends=ends)
    assert found == expected
    one = continued(backbone, rows, own, temperature=temperature, max_new=1, ends=ends)
    assert one == alone(backbone, rows, own, temperature, 1, ends)


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    tokenizer = train_tokenizer(texts(200), 300)
    model = random_model("llama", tokenizer)
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return Backbone(model.eval(), tokenizer)


def test_a_text_is_taken_as_soon_as_it_ends(llama, monkeypatch):
    rows, own, ends = prompts(llama, LENGTHS), keys(len(LENGTHS)), list(range(2, 40))
    steps, taken, inner = [0], {}, continuous._Run._step

    def step(run):
        steps[0] += 1
        inner(run)

    monkeypatch.setattr(continuous._Run, "_step", step)
    expected = alone(llama, rows, own, max_new=30, ends=ends)
    continue_each(
        llama,
        rows,
        own,
        lambda number, ids, ended: taken.setdefault(number, (steps[0], len(ids))),
        slots=3,
        temperature=0.7,
        max_new=30,
        ends=ends,
    )
    assert len({at for at, _ in taken.values()}) > 4
    batches = sum(sorted(len(ids) for ids, _ in expected.values())[::-3])
    assert steps[0] < batches  # steps of batches of three, each with the like of its longest


def test_memory_that_runs_out_halves_the_slots(llama, monkeypatch, caplog):
    rows, own = prompts(llama, LENGTHS), keys(len(LENGTHS))
    expected, inner, seen = alone(llama, rows, own), continuous._Run._step, []

    def step(run):
        seen.append(len(run.owner))
        if len(run.owner) > 2 and len(seen) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        inner(run)

    monkeypatch.setattr(continuous._Run, "_step", step)
    assert continued(llama, rows, own, slots=8) == expected
    assert max(seen) == 8 and "2 texts at once from here on (summarizer_parallel)" in caplog.text
    monkeypatch.setattr(continuous._Run, "_step", lambda run: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(UserError, match="^summarizer_length: memory does not hold a prompt of 60"):
        continued(llama, rows, own)


def test_texts_that_were_complete_are_not_written_again(llama, monkeypatch):
    rows, own, ends = prompts(llama, LENGTHS), keys(len(LENGTHS)), list(range(2, 40))
    inner, failed = continuous._Run._step, []

    def step(run):
        inner(run)
        if not failed and (run.owner < 0).any():
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(continuous._Run, "_step", step)
    expected = alone(llama, rows, own, ends=ends)
    assert continued(llama, rows, own, ends=ends) == expected and failed


def test_short_numbers_are_held_as_such(llama, monkeypatch):
    rows, own, kinds = prompts(llama, LENGTHS), keys(len(LENGTHS)), set()
    inner = continuous._Run._step

    def step(run):
        kinds.update(keys.dtype for keys, _ in run.cache.layers)
        inner(run)

    monkeypatch.setattr(continuous._Run, "_step", step)
    with autocast(torch.device("cpu"), "bf16"):
        found = continued(llama, rows, own, temperature=0.0, max_new=2)
        expected = alone(llama, rows, own, temperature=0.0, max_new=2)
    assert kinds == {torch.bfloat16}
    agree = sum(found[number] == expected[number] for number in expected)
    assert len(found) == len(rows) and agree >= len(rows) - 2  # rounding may turn a tie


def test_no_prompts_are_no_work(llama):
    assert continued(llama, [], keys(0)) == {}
