"""Trainings that are counted in steps: schedules, ends and validations between epochs."""

import json

import pytest
import torch
from safetensors.torch import load_file
from suites import fast_only
from worlds import prepared, settings_for, write_cycle

from recbole_llm import cli
from recbole_llm.errors import UserError
from recbole_llm.runs.commands import resume_run, run_settings
from recbole_llm.storage import readback
from recbole_llm.storage.run_folders import find_run
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


@pytest.mark.parametrize("schedule", fast_only(["linear"], ["linear", "constant"]))
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
    found = [
        trained("CALRec", tmp_path, max_steps=most, eval_step=0)[2] for most in (None, 12, 500)
    ]
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


@pytest.mark.parametrize("number", fast_only([2], [1, 2, 3]))
def test_a_training_that_is_killed_while_it_validates_validates_again(
    number, tmp_path, monkeypatch
):
    write_cycle(tmp_path)
    own = {"valid_every": 3, "max_steps": 10}
    _, expected, _ = trained("CALRec", tmp_path, checkpoint_dir=str(tmp_path / "whole"), **own)
    monkeypatch.setattr(module, "SAVE_SECONDS", 0)
    own["checkpoint_dir"] = str(tmp_path / "cut")
    _, _, first, (train, valid, _) = prepared("CALRec", tmp_path, **OWN | own)
    inner, calls = first._valid_epoch, []

    def validate(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        return inner(*args, **kwargs)

    first._valid_epoch = validate
    with pytest.raises(KeyboardInterrupt):
        first.fit(train, valid)
    _, _, second, (train, valid, _) = prepared("CALRec", tmp_path, **OWN | own)
    second.resume_checkpoint(first.folder)
    second.fit(train, valid)
    for line, again in zip(expected.history, second.history, strict=True):
        for key in ("epoch", "step", "loss", "valid_score"):
            assert line.get(key) == again.get(key), (line, again)


def test_a_training_that_was_over_is_not_taken_up_again(tmp_path):
    """It was killed behind its last step, while the test cases were ranked."""
    write_cycle(tmp_path)
    own = {"max_steps": 6, "checkpoint_dir": str(tmp_path / "cut")}
    model, first, _ = trained("CALRec", tmp_path, **own)
    _, again, second, (train, valid, _) = prepared("CALRec", tmp_path, **OWN | own)
    second.resume_checkpoint(first.folder)
    second._step = None  # which is not called
    second.fit(train, valid)
    assert second.steps == 6 and len(second.history) == len(first.history)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


# --- weights that are kept ------------------------------------------------------------------------


def test_kept_weights_are_those_of_the_step(tmp_path):
    write_cycle(tmp_path)
    model, trainer, _ = trained("CALRec", tmp_path, max_steps=3)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    other, keeping, _ = trained("CALRec", tmp_path, keep_checkpoints=[3, 7, 99], schedule="cosine")
    kept = sorted(path.name for path in keeping.folder.parent.glob(f"{keeping.folder.name}@*"))
    assert kept == [f"{keeping.folder.name}@{step}" for step in (3, 7)]
    _, built, loader, _ = prepared("CALRec", tmp_path, **OWN)
    loader.load_best(keeping.folder.with_name(kept[0]))
    ended = {name: value.clone() for name, value in other.state_dict().items()}
    trained_on = {name for name, value in ended.items() if not torch.equal(value, expected[name])}
    assert trained_on  # the kept weights are not those that training ended with
    found = built.state_dict()
    assert any(not torch.equal(found[name], ended[name]) for name in trained_on)


SMALL = {**OWN, "max_steps": 8, "keep_checkpoints": [3, 6]}


def settings_of(name, folder, **own):
    return settings_for(name, folder, **SMALL | own)


@pytest.mark.parametrize("name", fast_only(["ST5Seq"], ["CALRec", "ST5Seq"]))
def test_kept_weights_are_runs_to_begin_with_and_to_evaluate(name, tmp_path, capsys):
    write_cycle(tmp_path)
    saved = tmp_path / "saved"
    first = run_settings(settings_of(name, tmp_path))
    one, other = (saved / f"{first.row['run']}@{step}" for step in (3, 6))
    for folder in (one, other):
        record = json.loads((folder / "run.json").read_text())
        assert record["status"] == "finished" and record["row"]["run"] == folder.name
        assert not {"test", "valid"} & record["row"].keys()
        # also of weights that are no best ones, scores tell whether they are read back
        assert json.loads((folder / readback.FILE).read_text())["scores"]
    assert find_run(first.row["run"][:-2], saved).name == first.row["run"]
    started = []
    for start in (f"{first.row['run'][:-2]}@3", other.name, first.row["run"]):
        second = run_settings(settings_of(name, tmp_path, init_from=start, keep_checkpoints=None))
        started.append(second.row["hash"])
    assert len(set(started)) == 3
    command = [f"--checkpoint_dir={saved}", f"--data_path={tmp_path}"]
    assert cli.main(["evaluate", f"--checkpoint={one.name}", *command]) == 0
    measured = capsys.readouterr().out
    assert one.name in measured or "ndcg" in measured
    with pytest.raises(UserError, match="these are the weights that a training has kept of a step"):
        resume_run(one, settings_of(name, tmp_path))
    with pytest.raises(UserError, match="expected a run folder or id"):
        run_settings(settings_of(name, tmp_path, init_from=f"{first.row['run']}@5"))


def test_a_killed_run_keeps_what_an_uninterrupted_one_keeps(tmp_path, monkeypatch):
    write_cycle(tmp_path)
    whole = run_settings(settings_of("CALRec", tmp_path, checkpoint_dir=str(tmp_path / "whole")))
    monkeypatch.setattr(module, "SAVE_SECONDS", 0)
    inner, made = module.LLMTrainer._step, []

    def step(trainer, examples):
        made.append(trainer.steps)
        if len(made) == 5:
            raise KeyboardInterrupt
        return inner(trainer, examples)

    monkeypatch.setattr(module.LLMTrainer, "_step", step)
    with pytest.raises(KeyboardInterrupt):
        run_settings(settings_of("CALRec", tmp_path))
    run_settings(settings_of("CALRec", tmp_path))
    assert made == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    for number in (3, 6):
        name = f"{whole.row['run']}@{number}/backbone/model.safetensors"
        one, other = (load_file(tmp_path / saved / name) for saved in ("whole", "saved"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_was_ranked_by_weights_that_were_kept_before_is_forgotten(tmp_path, caplog):
    write_cycle(tmp_path)
    first = run_settings(settings_of("CALRec", tmp_path))
    kept = tmp_path / "saved" / f"{first.row['run']}@3"
    (kept / "test.old.texts.jsonl.gz").write_bytes(b"old")
    (kept / "evaluate-1").mkdir()
    again = run_settings(settings_of("CALRec", tmp_path, overwrite=True))
    assert again.row["run"] == first.row["run"] and (kept / "run.json").is_file()
    assert not (kept / "test.old.texts.jsonl.gz").exists() and not (kept / "evaluate-1").exists()
    for folder in (kept, again.folder):
        assert json.loads((folder / "run.json").read_text())["settings"]["overwrite"] is False
    caplog.set_level("WARNING")
    run_settings(settings_of("CALRec", tmp_path, keep_checkpoints=[3, 90, 99]))
    assert "ended after 8 steps, so that nothing is kept of 90, 99" in caplog.text


def test_a_name_with_the_mark_of_a_step_is_a_name(tmp_path):
    for name in ("Pop-my@set-1234abcd", "Pop-my@set-1234abcd@7"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
    for name in ("Pop-my@set-1234", "Pop-my@set", "Pop-my"):
        assert find_run(name, tmp_path).name == "Pop-my@set-1234abcd"
        assert find_run(f"{name}@7", tmp_path).name == "Pop-my@set-1234abcd@7"


@pytest.mark.parametrize("name", ["CALRec", "ST5Seq", "TASTELoRA"])
def test_negatives_are_those_of_the_batch_that_is_named(name, tmp_path):
    write_cycle(tmp_path)
    own = {"alpha": 0.0, "beta": 1.0} if name == "CALRec" else {}
    _, model, trainer, _ = prepared(name, tmp_path, **OWN | own)
    examples, seen, inner = list(model.examples(0)[:8]), [], model.pair_loss
    place = {id(example): number for number, example in enumerate(examples)}

    def watched(vectors, of_group):
        seen.append([place[id(one)] for one in of_group])
        return inner(vectors, of_group)

    model.pair_loss = watched
    whole = trainer._gradients(examples)
    trainer.config["contrast_batch"] = 4
    halves = trainer._gradients(examples)
    assert seen == [list(range(8)), [0, 2, 4, 6], [1, 3, 5, 7]]
    model.pair_loss, trainer.config["contrast_batch"] = inner, None
    apart = [trainer._gradients(examples[half::2]) for half in (0, 1)]
    assert halves == pytest.approx(sum(apart) / 2, rel=1e-4) and abs(halves - whole) > 1e-3
    trainer.config["contrast_batch"] = 3  # three groups: of three, three and two
    seen.clear()
    model.pair_loss = watched
    trainer._gradients(examples)
    assert [len(rows) for rows in seen] == [3, 3, 2]
    trainer.config["contrast_batch"] = 2  # of five examples, none is alone
    seen.clear()
    trainer._gradients(examples[:5])
    assert [len(rows) for rows in seen] == [3, 2]
