"""Trainings that are counted in steps: schedules, ends and validations between epochs."""

import pytest
import torch
from suites import fast_only
from worlds import prepared, write_cycle

from recbole_llm.training import optimizers
from recbole_llm.training import text_trainer as module

OWN = {"train_batch_size": 8, "epochs": 3, "stopping_step": 10**6}  # four steps an epoch


def trained(name, folder, **own):
    """A trained model's (model, trainer, learning rate of each step)."""
    _, model, trainer, (train, valid, _) = prepared(name, folder, **OWN | own)
    rates = recorded(trainer)
    trainer.fit(train, valid)
    return model, trainer, rates


def recorded(trainer):
    """A list that gets the learning rate of each step."""
    rates, inner = [], trainer._step

    def step(examples):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return inner(examples)

    trainer._step = step
    return rates


def test_schedules():
    for schedule, end in (("cosine", 0.1), ("linear", 0.0), ("constant", 1.0)):
        assert optimizers.rate(0.05, 0.1, schedule) == pytest.approx(0.5)
        assert optimizers.rate(0.1, 0.1, schedule) == pytest.approx(1)
        assert optimizers.rate(1.0, 0.1, schedule) == pytest.approx(end)
    assert optimizers.rate(0.55, 0.1, "linear") == pytest.approx(0.5)
    assert optimizers.rate(0.3, 0.0) == optimizers.rate(0.3, 0.0, "cosine")


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_a_training_ends_after_its_steps_and_the_schedule_with_it(schedule, tmp_path):
    write_cycle(tmp_path)
    own = {"warmup": 0.0, "learning_rate": 0.01, "max_steps": 6, "schedule": schedule}
    _, trainer, rates = trained("CALRec", tmp_path, **own)
    falling = [0.01 * (6 - step) / 6 for step in range(1, 7)]
    assert rates == pytest.approx(falling if schedule == "linear" else [0.01] * 6)
    assert [line["epoch"] for line in trainer.history] == [0, 1]
    assert all("valid_score" in line for line in trainer.history)


def test_a_limit_beyond_the_epochs_changes_nothing(tmp_path):
    write_cycle(tmp_path)
    found = [trained("CALRec", tmp_path, max_steps=most)[2] for most in (None, 12, 500)]
    assert found[0] == found[1] == found[2] and len(found[0]) == 12


def test_validations_are_as_many_steps_apart(tmp_path):
    write_cycle(tmp_path)
    _, trainer, _ = trained("CALRec", tmp_path, valid_every=3)
    validated = [line.get("step", 4 * line["epoch"] + 4) for line in trainer.history]
    scored = [step for step, line in zip(validated, trainer.history) if "valid_score" in line]
    assert scored == [3, 6, 9, 12]
    _, trainer, _ = trained("CALRec", tmp_path, valid_every=3, stopping_step=0)
    scored = [line for line in trainer.history if "valid_score" in line]
    best = max(range(len(scored)), key=lambda number: scored[number]["valid_score"])
    assert len(scored) == best + 2  # one that is no improvement ends it


@pytest.mark.parametrize("name", fast_only(["ST5Seq"], ["CALRec", "ST5Seq"]))
@pytest.mark.parametrize("killed", fast_only([6], [2, 4, 6, 8]))
def test_a_stopped_training_validates_where_it_would_have(name, killed, tmp_path, monkeypatch):
    """Also with dropout, whose random numbers no validation takes."""
    write_cycle(tmp_path)
    own = {"valid_every": 3, "max_steps": 10}
    whole, expected, _ = trained(name, tmp_path, checkpoint_dir=str(tmp_path / "whole"), **own)
    monkeypatch.setattr(module, "SAVE_SECONDS", 0)
    own["checkpoint_dir"] = str(tmp_path / "cut")
    _, _, first, (train, valid, _) = prepared(name, tmp_path, **OWN | own)
    inner, calls = first._step, []

    def step(examples):
        calls.append(1)
        if len(calls) == killed:
            raise KeyboardInterrupt
        return inner(examples)

    first._step = step
    with pytest.raises(KeyboardInterrupt):
        first.fit(train, valid)
    _, model, second, (train, valid, _) = prepared(name, tmp_path, **OWN | own)
    second.resume_checkpoint(first.folder)
    assert second.steps == killed - 1
    second.fit(train, valid)
    for line, again in zip(expected.history, second.history, strict=True):
        for key in ("epoch", "step", "loss", "valid_score"):
            assert line.get(key) == again.get(key), (line, again)
    assert expected.best_valid_score == second.best_valid_score
    for key, value in whole.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
