"""Training: as RecBole's where RecBole is right, strict where it is not; nothing lost by a stop."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from suites import fast_only
from worlds import prepared, settings_for, write_cycle

from recbole_llm import cli

STOCK = """
import json, sys
import recbole_llm
from recbole.quick_start import quick_start
from recbole.trainer import Trainer

settings = json.loads(sys.argv.pop())
losses, inner = [], Trainer._train_epoch

def watched(self, *args, **kwargs):
    losses.append(inner(self, *args, **kwargs))
    return losses[-1]

Trainer._train_epoch = watched
found = {}
for model in settings.pop("models"):
    losses.clear()
    result = quick_start.run_recbole(model, settings["dataset"], config_dict=settings)
    test = {key: float(value) for key, value in result["test_result"].items()}
    found[model] = {"losses": list(losses), "test": test}
print(json.dumps(found))
"""
MODELS = ["SASRec", "GRU4Rec"]


def run_stock(folder, models, data, dataset, epochs, batch) -> dict:
    """Losses and test metrics of stock RecBole's models, by their names."""
    eval_args = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user"}
    settings = {
        "models": models,
        "dataset": dataset,
        "data_path": str(data),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "train_neg_sample_args": None,
        "epochs": epochs,
        "train_batch_size": batch,
        "MAX_ITEM_LIST_LENGTH": 10,
        "eval_args": eval_args | {"mode": "full"},
        "metrics": ["Recall", "NDCG", "MRR"],
        "topk": [1, 5, 10],
        "metric_decimal_place": 12,
        "valid_metric": "NDCG@10",
        "stopping_step": 100,
        "show_progress": False,
        "checkpoint_dir": "stock",
        "state": "ERROR",
    }
    command = [sys.executable, "-c", STOCK, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def stock_cycle(tmp_path_factory):
    """(folder, what stock RecBole finds there)."""
    folder = write_cycle(tmp_path_factory.mktemp("stock"))
    return folder, run_stock(folder, MODELS, folder, "cycle", 3, 64)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_losses_and_metrics_are_stock_recboles(stock_cycle, model):
    """Same seed, same data, same number of epochs: losses to the last bit, metrics to 1e-9."""
    folder, found = stock_cycle
    stock = found[model]
    _, _, trainer, (train, valid, test) = prepared(
        model, folder, epochs=3, dedup="none", stopping_step=100
    )
    trainer.fit(train, valid)
    assert list(trainer.train_loss_dict.values()) == pytest.approx(stock["losses"], abs=1e-12)
    ours = trainer.evaluate(test)
    for key, value in stock["test"].items():
        assert ours[key] == pytest.approx(value, abs=1e-9), key


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_scientific_is_stock_recboles(tmp_path, shared, model):
    """The same on real data, with RecBole's own batch size."""
    data, epochs = shared / "data", 2
    stock = run_stock(tmp_path, [model], data, "Scientific", epochs, 2048)[model]
    own = {
        "epochs": epochs,
        "dedup": "none",
        "train_batch_size": 2048,
        "checkpoint_dir": str(tmp_path / "saved"),
        "data_path": str(data),
    }
    _, _, trainer, (train, valid, test) = prepared(model, tmp_path, "Scientific", **own)
    trainer.fit(train, valid)
    losses, ours = list(trainer.train_loss_dict.values()), trainer.evaluate(test)
    print({"stock": stock, "losses": losses, "test": {key: ours[key] for key in stock["test"]}})
    assert losses == pytest.approx(stock["losses"], rel=1e-6)
    for key, value in stock["test"].items():
        assert ours[key] == pytest.approx(value, abs=1e-6), key


@pytest.mark.parametrize("model", ["SASRec", "BPR", "CALRec"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, model):
    write_cycle(tmp_path)
    _, whole, trainer, (train, valid, test) = prepared(
        model, tmp_path, epochs=4, checkpoint_dir=str(tmp_path / "whole")
    )
    trainer.fit(train, valid)
    expected = trainer.evaluate(test)

    _, _, first, (train, valid, _) = prepared(
        model, tmp_path, epochs=4, checkpoint_dir=str(tmp_path / "cut")
    )
    inner = first._train_epoch

    def killed_in_the_third(data, epoch, **kwargs):
        if epoch == 2:
            raise KeyboardInterrupt
        return inner(data, epoch, **kwargs)

    first._train_epoch = killed_in_the_third
    with pytest.raises(KeyboardInterrupt):
        first.fit(train, valid)
    torch.manual_seed(99)  # a new process knows nothing of the old one's generators
    np.random.seed(99)
    _, other, second, (train, valid, test) = prepared(
        model, tmp_path, epochs=4, checkpoint_dir=str(tmp_path / "cut")
    )
    second.resume_checkpoint(first.folder)
    second.fit(train, valid)
    assert [line["loss"] for line in second.history] == [line["loss"] for line in trainer.history]
    assert second.evaluate(test) == expected
    for name, value in whole.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("learner", fast_only(["muon"], ["adam", "muon"]))
def test_a_run_killed_inside_an_epoch_goes_on_from_its_step(tmp_path, monkeypatch, learner):
    from recbole_llm.training import text_trainer as module

    write_cycle(tmp_path)
    own = {"epochs": 2, "train_batch_size": 4, "learner": learner}
    _, whole, trainer, (train, valid, _) = prepared(
        "CALRec", tmp_path, checkpoint_dir=str(tmp_path / "whole"), **own
    )
    trainer.fit(train, valid)

    monkeypatch.setattr(module, "SAVE_SECONDS", 0)
    _, model, first, (train, valid, _) = prepared(
        "CALRec", tmp_path, checkpoint_dir=str(tmp_path / "cut"), **own
    )
    inner, calls = first._step, []

    def killed_in_step_14(groups):
        calls.append(1)
        if len(calls) == 14:
            raise KeyboardInterrupt
        return inner(groups)

    first._step = killed_in_step_14
    with pytest.raises(KeyboardInterrupt):
        first.fit(train, valid)
    _, other, second, (train, valid, _) = prepared(
        "CALRec", tmp_path, checkpoint_dir=str(tmp_path / "cut"), **own
    )
    second.resume_checkpoint(first.folder)
    assert second.position[0] > 0
    second.fit(train, valid)
    assert [line["loss"] for line in second.history] == [line["loss"] for line in trainer.history]
    assert all(
        torch.equal(value, other.state_dict()[name]) for name, value in whole.state_dict().items()
    )


def test_state_and_weights_load_without_pickle(tmp_path):
    write_cycle(tmp_path)
    _, _, trainer, (train, valid, _) = prepared("SASRec", tmp_path)
    trainer.fit(train, valid)
    torch.load(trainer.folder / "state.pt", weights_only=True)


def test_a_plateau_stops(tmp_path, monkeypatch):
    """RecBole takes an equal score for an improvement (value >= best): no stop on a plateau."""
    from recbole.utils import early_stopping

    assert early_stopping(0.5, 0.5, 0, 2)[1:] == (0, False, True)
    write_cycle(tmp_path)
    _, _, trainer, (train, valid, _) = prepared("GRU4Rec", tmp_path, epochs=50, stopping_step=2)
    monkeypatch.setattr(trainer, "_valid_epoch", lambda *args, **kwargs: (0.5, {"ndcg@10": 0.5}))
    trainer.fit(train, valid)
    assert len(trainer.history) == 4 and trainer.best_epoch == 0


def test_a_gain_in_the_fifth_decimal_counts(tmp_path, monkeypatch):
    write_cycle(tmp_path)
    _, _, trainer, (train, valid, _) = prepared("GRU4Rec", tmp_path, epochs=5, stopping_step=1)
    scores = iter([0.5, 0.500001, 0.500002, 0.500003, 0.500004])
    monkeypatch.setattr(
        trainer, "_valid_epoch", lambda *args, **kwargs: (next(scores), {"ndcg@10": 0.0})
    )
    trainer.fit(train, valid)
    assert trainer.best_epoch == 4


def test_pop_counts_events(tmp_path):
    """Stock Pop adds one for each batch with an item: one batch makes every item equal."""
    write_cycle(tmp_path, users=30, length=5)
    _, model, trainer, (train, valid, test) = prepared("Pop", tmp_path)
    trainer.fit(train, valid)
    dataset = train._dataset
    counts = np.bincount(
        dataset.interactions.item[dataset.split.train_events] + 1, minlength=dataset.item_num
    )
    assert model.item_cnt[:, 0].tolist() == counts.tolist()
    assert counts.max() > 1


@pytest.mark.parametrize(
    ("model", "floor"),
    [("SASRec", 0.9), pytest.param("CALRec", 0.7, marks=pytest.mark.slow)],
)
def test_a_certain_world_is_learnt(tmp_path, model, floor):
    """The next item is certain: whoever learns finds it; Pop cannot."""
    write_cycle(tmp_path, users=48, length=10)
    own = {
        "SASRec": {
            "epochs": 20,
            "eval_step": 20,
            "hidden_size": 32,
            "inner_size": 32,
            "learning_rate": 0.01,
            "n_layers": 1,
        },
        "CALRec": {
            "backbone": "scratch:tiny",
            "epochs": 12,
            "train_batch_size": 4,
            "eval_step": 12,
            "scratch_vocabulary": 700,
        },
    }[model]
    _, _, trainer, (train, valid, test) = prepared(model, tmp_path, **own)
    trainer.fit(train, valid)
    reached = trainer.evaluate(test)["recall@1"]
    _, _, pop, (train, valid, test) = prepared("Pop", tmp_path)
    pop.fit(train, valid)
    assert reached > floor > 3 * pop.evaluate(test)["recall@1"]


def test_weights_of_another_model_are_refused(tmp_path):
    from recbole_llm.errors import UserError

    write_cycle(tmp_path)
    _, _, trainer, (train, valid, _) = prepared("SASRec", tmp_path)
    trainer.fit(train, valid)
    _, _, other, (_, _, test) = prepared("GRU4Rec", tmp_path)
    with pytest.raises(UserError, match="another model, dataset or setting"):
        other.evaluate(test, model_file=trainer.folder)
    with pytest.raises(UserError, match="holds no checkpoint"):
        other.evaluate(test, model_file=tmp_path / "nothing")


def test_stages_hand_their_weights_on(tmp_path):
    """S3Rec: pre-training, then fine-tuning from it; both are runs."""
    from recbole_llm.runs.commands import run_settings

    write_cycle(tmp_path)
    own = {
        "item_attribute": "categories",
        "stage_settings": {"pretrain": {"epochs": 1}, "finetune": {"epochs": 0}},
    }
    settings = settings_for("S3Rec", tmp_path, **own)
    run = run_settings(settings)
    from safetensors.torch import load_file

    runs = sorted(path.parent for path in (tmp_path / "saved").glob("S3Rec*/run.json"))
    assert len(runs) == 2 and run.row["stage"] == "finetune"
    weights = [load_file(folder / "model.safetensors") for folder in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_scratch_tokenizer_travels_with_its_weights(tmp_path):
    """On other data a scratch tokenizer would number other tokens than the weights know."""
    from recbole_llm.training.weights import load_weights

    write_cycle(tmp_path)
    write_cycle(tmp_path, name="other")
    items = tmp_path / "other" / "other.item"
    items.write_text(items.read_text().replace("juice", "syrup of the finest kind"))
    _, model, trainer, (train, _, _) = prepared("CALRec", tmp_path)
    trainer.fit(train)
    _, moved, _, _ = prepared("CALRec", tmp_path, "other")
    assert moved.bundle.tokenizer.get_vocab() != model.bundle.tokenizer.get_vocab()
    load_weights(moved, trainer.folder)
    assert moved.encoder.tokenizer.get_vocab() == model.bundle.tokenizer.get_vocab()
    ids = torch.from_numpy(moved.encoder.piece(" Title: apple juice."))[None]
    with torch.no_grad():
        assert torch.equal(
            moved.backbone(input_ids=ids).logits, model.backbone.eval()(input_ids=ids).logits
        )


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["none", "8bit", "4bit"])
def test_a_killed_run_with_adapters_goes_on_from_the_adapters_alone(
    tmp_path, monkeypatch, quantize
):
    from test_backbones import save_model

    from recbole_llm.training import text_trainer as module

    if quantize != "none":
        pytest.importorskip("bitsandbytes")
    write_cycle(tmp_path, users=12)
    own = {"backbone": save_model("Llama", tmp_path / "llama"), "adapter": "lora"}
    own |= {"epochs": 2, "train_batch_size": 4, "max_length": 512, "quantize": quantize}
    own |= {"eval_args.mode": "uni3", "targets": "one"}
    _, whole, trainer, (train, valid, test) = prepared(
        "TALLRec", tmp_path, checkpoint_dir=str(tmp_path / "whole"), **own
    )
    trainer.fit(train, valid)

    monkeypatch.setattr(module, "SAVE_SECONDS", 0)
    _, model, first, (train, valid, _) = prepared(
        "TALLRec", tmp_path, checkpoint_dir=str(tmp_path / "cut"), **own
    )
    inner, calls = first._step, []

    def killed_in_step_5(groups):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return inner(groups)

    first._step = killed_in_step_5
    with pytest.raises(KeyboardInterrupt):
        first.fit(train, valid)
    path = first.folder / "state.pt"
    assert path.stat().st_size < 2e5
    assert all("lora_" in name for name in torch.load(path, weights_only=True)["model"])
    _, other, second, (train, valid, test) = prepared(
        "TALLRec", tmp_path, checkpoint_dir=str(tmp_path / "cut"), **own
    )
    second.resume_checkpoint(first.folder)
    assert second.position[0] == 1 and second.start_epoch == 1
    second.fit(train, valid)
    assert [line["loss"] for line in second.history] == [line["loss"] for line in trainer.history]
    for name, value in whole.state_dict().items():
        if "lora_" in name:
            assert torch.equal(value, other.state_dict()[name]), name
    assert second.evaluate(test) == trainer.evaluate(test)


def test_nothing_to_go_on_from_is_left_by_a_finished_run(tmp_path):
    from recbole_llm.runs.commands import run_settings

    write_cycle(tmp_path)
    settings = settings_for("SASRec", tmp_path)
    run = run_settings(settings)
    assert not (run.folder / "state.pt").exists()
    assert (run.folder / "model.safetensors").is_file()
    assert run_settings(settings).row == run.row  # it is there already


def test_a_state_of_another_model_is_one_line(tmp_path):
    from recbole_llm.errors import UserError

    write_cycle(tmp_path)
    _, _, trainer, (train, valid, _) = prepared("SASRec", tmp_path)
    trainer.fit(train, valid)
    _, _, other, _ = prepared("GRU4Rec", tmp_path)
    with pytest.raises(UserError, match="lacks .* tensors of this model.* the run starts over"):
        other.resume_checkpoint(trainer.folder)


def stopped(folder):
    """A run of the command that has stored its state after its second epoch of four, and its id."""
    from recbole_llm.training.loop import Harness

    write_cycle(folder, users=6, length=4)
    inner, calls = Harness._save_state, []

    def save(self, *args):
        inner(self, *args)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Harness, "_save_state", save)
        assert command(folder) == 130
    (run,) = (folder / "saved").glob("SASRec-*")
    return run


def command(folder, *more):
    args = ["--model=SASRec", "--dataset=cycle", "--beside=[]", "--epochs=4", "--hidden_size=16"]
    places = [f"--data_path={folder}", f"--checkpoint_dir={folder / 'saved'}"]
    return cli.main([*args, "--n_layers=1", "--show_progress=false", *places, *more])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(bytes(content))


def changed(change):
    """Store what `change` makes of a state, whole and readable."""

    def store(path):
        state = torch.load(path, weights_only=True)
        torch.save(change(state), path)

    return store


def more_groups(state):
    state["optimizer"]["param_groups"] *= 2
    return state


def other_moments(state):
    values = state["optimizer"]["state"][0]
    return state["optimizer"]["state"].update({0: values | {"exp_avg": torch.zeros(3)}}) or state


STATES = {
    "a flipped bit": flip_a_bit,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "no archive": lambda path: path.write_bytes(b"no archive" * 100),
    "a list": changed(lambda state: [1, 2]),
    "a tensor": changed(lambda state: torch.zeros(3)),
    "other shapes": changed(
        lambda state: state | {"model": {key: torch.zeros(2) for key in state["model"]}}
    ),
    "no weights": changed(lambda state: state | {"model": {}}),
    "weights that are none": changed(lambda state: state | {"model": [1]}),
    "an epoch in words": changed(lambda state: state | {"epoch": "two"}),
    "more groups": changed(more_groups),
    "other moments": changed(other_moments),
    "other generators": changed(lambda state: state | {"torch": torch.zeros(3)}),
    "another numpy": changed(lambda state: state | {"numpy": "[1]"}),
    "another loader": changed(lambda state: state | {"loader": None}),
}


def without(key):
    def change(state):
        return {name: value for name, value in state.items() if name != key}

    return change


LACKING = ("history", "epoch", "optimizer", "loader", "python", "seconds", "other", "scaler")
STATES |= {f"no {key}": changed(without(key)) for key in LACKING}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted")
    return folder, stopped(folder)


@pytest.mark.parametrize("way", STATES)
def test_a_foreign_state_is_one_line(interrupted, capsys, way):
    _, run = interrupted
    path = run / "state.pt"
    whole = path.read_bytes()
    try:
        STATES[way](path)
        capsys.readouterr()
        assert command(run.parents[1]) == 2
        err = capsys.readouterr().err
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert str(path) in line and "remove it, and the run starts over" in line
        assert "Traceback" not in err
    finally:
        path.write_bytes(whole)


def test_what_the_message_says_helps(tmp_path, capsys):
    run = stopped(tmp_path)
    flip_a_bit(run / "state.pt")
    assert command(tmp_path) == 2
    (run / "state.pt").unlink()
    assert command(tmp_path) == 0


@pytest.mark.parametrize("name", ["state.pt", "model.safetensors", "readback.json", "run.json"])
def test_a_folder_in_the_place_of_a_file_is_one_line(interrupted, tmp_path, capsys, name):
    folder = shutil.copytree(interrupted[0], tmp_path / "copy")
    path = folder / "saved" / interrupted[1].name / name
    path.unlink(missing_ok=True)
    path.mkdir()
    assert command(folder) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    expected = "Is a directory; remove" if name == "run.json" else "expected a file, found a folder"
    assert f"{path}: {expected}" in line


@pytest.mark.parametrize("name", ["tensorboard", "backbone"])
def test_a_file_in_the_place_of_a_folder_is_one_line(interrupted, tmp_path, capsys, name):
    folder = shutil.copytree(interrupted[0], tmp_path / "copy")
    path = folder / "saved" / interrupted[1].name / name
    shutil.rmtree(path, ignore_errors=True)
    path.write_text("")
    assert command(folder) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert f"{path}: expected a folder, found a file" in line


def test_a_name_that_is_taken_is_told_of():
    """By whatever writes there, in one line that names it."""
    from recbole_llm.storage.files import fault_line, naming

    for kind in (FileExistsError, IsADirectoryError, NotADirectoryError):
        code = {"FileExistsError": 17, "IsADirectoryError": 21}.get(kind.__name__, 20)
        with pytest.raises(OSError) as error, naming(Path("runs/log")):
            raise kind(code, "taken", "elsewhere")
        assert error.value.filename == "runs/log"
        assert fault_line(error.value).startswith("runs/log: ")
        assert "remove or rename" in fault_line(error.value)
