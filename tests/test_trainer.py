"""Training: the same as RecBole's where RecBole is right, strict where it is not, and nothing lost by a stop."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from worlds import prepared, settings_for, write_cycle

STOCK = """
import json, sys, logging
import recbole_llm
from recbole.quick_start import quick_start
from recbole.trainer import Trainer
model, data, dataset, epochs, batch = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
sys.argv = sys.argv[:1]
losses = []
inner = Trainer._train_epoch
def spy(self, *args, **kwargs):
    losses.append(inner(self, *args, **kwargs)); return losses[-1]
Trainer._train_epoch = spy
result = quick_start.run_recbole(model=model, dataset=dataset, config_dict={
    "data_path": data, "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "train_neg_sample_args": None, "epochs": epochs,
    "train_batch_size": batch, "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    "metrics": ["Recall", "NDCG", "MRR"], "topk": [1, 5, 10], "metric_decimal_place": 12, "valid_metric": "NDCG@10", "stopping_step": 100,
    "show_progress": False, "checkpoint_dir": "stock", "state": "ERROR",
})
print(json.dumps({"losses": losses, "test": {key: float(value) for key, value in result["test_result"].items()}, "valid": result["best_valid_score"]}))
"""


def run_stock(folder, model, data, dataset, epochs, batch) -> dict:
    command = [sys.executable, "-c", STOCK, model, str(data), dataset, str(epochs), str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec"])
def test_losses_and_metrics_are_stock_recboles(tmp_path, model):
    """Same seed, same data, same number of epochs: losses to the last bit, metrics to 1e-9."""
    write_cycle(tmp_path)
    stock = run_stock(tmp_path, model, tmp_path, "cycle", 3, 64)
    _, _, trainer, (train, valid, test) = prepared(
        model, tmp_path, epochs=3, dedup="none", stopping_step=100
    )
    trainer.fit(train, valid)
    assert list(trainer.train_loss_dict.values()) == pytest.approx(stock["losses"], abs=1e-12)
    ours = trainer.evaluate(test)
    for key, value in stock["test"].items():
        assert ours[key] == pytest.approx(value, abs=1e-9), key


@pytest.mark.slow
@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec"])
def test_scientific_is_stock_recboles(tmp_path, shared, model):
    """The same on real data, with RecBole's own batch size."""
    data, epochs = shared / "data", 2
    stock = run_stock(tmp_path, model, data, "Scientific", epochs, 2048)
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


@pytest.mark.parametrize("learner", ["adam", "muon"])
def test_a_run_killed_inside_an_epoch_goes_on_from_its_step(tmp_path, monkeypatch, learner):
    from recbole_llm import trainer as module

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
    """RecBole takes an equal score for an improvement and never stops on a plateau (early_stopping: value >= best)."""
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
    """Stock Pop adds one per batch an item occurs in: a batch of everything makes every item equal."""
    write_cycle(tmp_path, users=30, length=5)
    _, model, trainer, (train, valid, test) = prepared("Pop", tmp_path)
    trainer.fit(train, valid)
    dataset = train._dataset
    counts = np.bincount(
        dataset.tables.item[dataset.split.train_events] + 1, minlength=dataset.item_num
    )
    assert model.item_cnt[:, 0].tolist() == counts.tolist()
    assert counts.max() > 1


@pytest.mark.parametrize("model,floor", [("SASRec", 0.9), ("CALRec", 0.7)])
def test_a_certain_world_is_learnt(tmp_path, model, floor):
    """The next item is certain: whoever learns finds it; Pop cannot."""
    write_cycle(tmp_path, users=48, length=10)
    own = {
        "SASRec": {
            "epochs": 60,
            "train_batch_size": 64,
            "eval_step": 20,
            "MAX_ITEM_LIST_LENGTH": 10,
        },
        "CALRec": {"epochs": 12, "train_batch_size": 4, "eval_step": 12, "scratch_vocabulary": 700},
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
    from recbole_llm.runs import run_settings

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
    """On other data a scratch tokenizer would number other tokens, and the weights would read nonsense."""
    from recbole_llm.trainer import load_weights

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


@pytest.mark.parametrize("quantize", ["none", "8bit"])
def test_a_killed_run_with_adapters_goes_on_from_the_adapters_alone(
    tmp_path, monkeypatch, quantize
):
    from test_backbones import save_model

    from recbole_llm import trainer as module

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


def test_a_state_over_4bit_weights_can_be_read(tmp_path):
    """Where there is no GPU nothing is trained through them, but the state is the same."""
    from test_backbones import save_model

    pytest.importorskip("bitsandbytes")
    write_cycle(tmp_path, users=12)
    own = {"backbone": save_model("Llama", tmp_path / "llama"), "adapter": "lora"}
    own |= {"max_length": 512, "quantize": "4bit", "eval_args.mode": "uni3"}
    _, model, trainer, (train, _, _) = prepared("TALLRec", tmp_path, **own)
    weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
    with torch.no_grad():
        for value in weights.values():
            value.fill_(0.5)
    trainer._save_state(0, train)
    _, other, second, _ = prepared("TALLRec", tmp_path, **own)
    second.resume_checkpoint(trainer.folder)
    found = dict(other.named_parameters())
    assert weights and all(torch.equal(found[name], value) for name, value in weights.items())


def test_nothing_to_go_on_from_is_left_by_a_finished_run(tmp_path):
    from recbole_llm.runs import run_settings

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
