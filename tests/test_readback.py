"""What a run stores is what it has trained.

This holds for any chain of adapters and full training, and whatever happens to the files.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from worlds import prepared, settings_for, write_cycle

from recbole_llm.errors import UserError
from recbole_llm.evaluation import probe
from recbole_llm.runs.commands import evaluate_run, run_settings
from recbole_llm.storage import readback

LORA = {"adapter": "lora", "lora_rank": 2}
# a model of each kind of backbone
KINDS = {
    "causal LM": ("CALRec", {"max_length": 128, "samples": 2}),
    "judge": ("TALLRec", {"max_length": 256, "eval_args.mode": "uni5"}),
    "encoder-decoder": ("TASTELoRA", {"max_length": 128, "negatives": 2}),
    "sentence encoder": ("ST5Seq", {"max_length": 128}),
    "encoder of tokens": ("RecFormer", {"max_length": 128}),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_cycle(tmp_path_factory.mktemp("readback"), users=12, length=5)


def train(folder, model, **own):
    return run_settings(settings_for(model, folder, epochs=1, train_batch_size=4, **own))


def check_stored(run):
    """It evaluates to its own row, and the plain library class finds every weight and no other."""
    settings = json.loads((run.folder / "run.json").read_text())["settings"]
    again = evaluate_run(run.folder, settings | {"topk_saved": 11})
    assert again.folder != run.folder and again.row["test"] == run.row["test"]
    assert np.array_equal(again.ranks().above, run.ranks().above)
    from transformers import AutoModel, AutoModelForCausalLM

    folder = run.folder / "backbone"
    written = json.loads((folder / "config.json").read_text())["architectures"][0]
    library = AutoModelForCausalLM if written.endswith("CausalLM") else AutoModel
    _, report = library.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_full_training_on_adapters_is_stored(world, kind):
    model, own = KINDS[kind]
    full = train(world, model, **own)
    lora = train(world, model, init_from=full.folder.name, **LORA, **own)
    second = train(world, model, backbone=f"run:{lora.folder.name}", **LORA, **own)
    for run in (lora, second):
        start = {"backbone": f"run:{run.folder.name}"}
        on_top = train(world, model, **start, **own)
        check_stored(on_top)
    check_stored(train(world, model, init_from=lora.folder.name, **own))
    check_stored(train(world, model, backbone=f"run:{on_top.folder.name}", **own))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ST5Seq", "RecFormer"])
def test_full_training_on_adapters_of_a_pretrained_encoder_is_stored(tmp_path, model):
    write_cycle(tmp_path, users=6, length=4)
    own = {"max_length": 64}
    lora = train(tmp_path, model, backbone="minilm", **LORA, **own)
    folder = shutil.copytree(lora.folder / "backbone", tmp_path / "adapter")  # a user's own
    check_stored(train(tmp_path, model, backbone=f"run:{lora.folder.name}", **own))
    check_stored(train(tmp_path, model, backbone=str(folder), **own))


def damage(path, name=None):
    """Change one number of a stored tensor."""
    tensors = load_file(path)
    name = name or sorted(tensors)[0]
    tensors[name].view(-1)[0] += 1
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "model,file",
    [
        ("SASRec", "model.safetensors"),
        ("Pop", "model.safetensors"),
        ("UniSRec", "model.safetensors"),
        ("RecFormer", "model.safetensors"),
        ("ST5Seq", "backbone/model.safetensors"),
        ("CALRec", "backbone/model.safetensors"),
    ],
)
def test_damage_between_saving_and_reading_ends_the_run(world, monkeypatch, model, file):
    """By the disk, or by a library that writes something else than it holds."""
    from recbole_llm.training.loop import Harness

    inner = Harness._save_best

    def save_badly(self):
        inner(self)
        damage(self.folder / file)

    monkeypatch.setattr(Harness, "_save_best", save_badly)
    own = {"checkpoint_dir": str(world / f"damaged-{model}"), "max_length": 128}
    known = settings_for(model, world)
    own = {key: value for key, value in own.items() if key in known}
    with pytest.raises(UserError, match="read back is not what was trained: 1 of .* tensors"):
        run_settings(settings_for(model, world, **own))
    assert not list((world / f"damaged-{model}").glob("results.jsonl"))


def test_a_model_that_forgets_a_tensor_ends_the_run(world, monkeypatch):
    """Even where the process still holds it, since the last epoch was the best."""
    from recbole_llm.models.recformer import RecFormer

    monkeypatch.setattr(RecFormer, "externally_saved", ("backbone.", "table_epoch", "word_bias"))
    own = {"checkpoint_dir": str(world / "forgets"), "max_length": 128}
    with pytest.raises(UserError, match="1 of .* tensors differ, the first is word_bias"):
        run_settings(settings_for("RecFormer", world, **own))


def test_scores_that_depend_on_something_unstored_end_the_run(world, monkeypatch):
    from recbole.model.sequential_recommender import SASRec

    inner = SASRec.full_sort_predict

    def scores(self, interaction):
        scale = getattr(self, "seen", 1.0)
        return inner(self, interaction) * scale

    def load_state_dict(self, *args, **kwargs):
        self.seen = 2.0
        return torch.nn.Module.load_state_dict(self, *args, **kwargs)

    monkeypatch.setattr(SASRec, "full_sort_predict", scores)
    monkeypatch.setattr(SASRec, "load_state_dict", load_state_dict, raising=False)
    with pytest.raises(UserError, match="score otherwise than those that were saved"):
        run_settings(settings_for("SASRec", world, checkpoint_dir=str(world / "unstored")))


def test_random_scores_are_not_compared(world, monkeypatch, caplog):
    from recbole.model.sequential_recommender import GRU4Rec

    rng, inner = np.random.default_rng(0), GRU4Rec.full_sort_predict

    def scores(self, interaction):
        found = inner(self, interaction)
        return found + torch.from_numpy(rng.normal(size=tuple(found.shape)))

    monkeypatch.setattr(GRU4Rec, "full_sort_predict", scores)
    run = run_settings(settings_for("GRU4Rec", world, checkpoint_dir=str(world / "random")))
    stored = json.loads((run.folder / readback.FILE).read_text())
    assert stored["scores"] is None and stored["tensors"]
    assert "scores a case differently each time" in (run.folder / "log").read_text()


@pytest.mark.parametrize("model", ["SASRec", "CALRec", "TALLRec", "EASE", "DIN"])
def test_nothing_random_is_drawn_by_the_comparison(world, model):
    """A resumed run would not be the same otherwise."""
    known = settings_for(model, world)
    own = {"max_length": 256} if "max_length" in known else {}
    _, net, trainer, (_, valid, _) = prepared(model, world, **own)
    dataset = trainer.ranked(valid)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = (probe.probe(net, dataset, dataset.cases[:3]) for _ in range(2))
    assert torch.equal(state[0], torch.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])
    assert np.array_equal(first, second) and len(first) == 3 and first.shape[1] <= 64


def test_bf16_scores_agree_with_themselves(world):
    run = train(world, "ST5Seq", precision="bf16", max_length=64)
    assert json.loads((run.folder / readback.FILE).read_text())["scores"]


def test_agreement_is_relative_and_sees_other_weights():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(8, 64))
    assert readback.agree(scores, scores * (1 + 1e-6), "fp32")
    assert readback.agree(1e6 * scores, 1e6 * scores + 1e-2, "fp32")
    assert not readback.agree(scores, scores[:, ::-1], "bf16")
    assert not readback.agree(scores, scores * 1.01, "fp32")
    assert readback.agree(np.zeros((2, 2)), np.zeros((2, 2)), "fp32")


def test_a_damaged_record_is_one_line(world):
    run = train(world, "SASRec", checkpoint_dir=str(world / "record"))
    (run.folder / readback.FILE).write_text("{no json")
    settings = json.loads((run.folder / "run.json").read_text())["settings"]
    with pytest.raises(UserError, match="readback.json is damaged"):
        evaluate_run(run.folder, settings | {"topk_saved": 7})


def test_stored_weights_that_change_later_are_refused(world):
    run = train(world, "SASRec", checkpoint_dir=str(world / "later"))
    damage(run.folder / "model.safetensors", "item_embedding.weight")
    settings = json.loads((run.folder / "run.json").read_text())["settings"]
    with pytest.raises(UserError, match="the first is item_embedding.weight"):
        evaluate_run(run.folder, settings | {"topk_saved": 7})


@pytest.mark.parametrize("model", ["SASRec", "CALRec"])
def test_weights_of_an_earlier_process_are_compared(world, monkeypatch, model):
    """A resumed run whose best epoch was before it was stopped."""
    own = {"checkpoint_dir": str(world / f"earlier-{model}"), "epochs": 1}
    own |= {"max_length": 128} if model == "CALRec" else {}
    _, _, first, (train, valid, _) = prepared(model, world, **own)
    first.fit(train, valid)
    _, _, second, (train, valid, _) = prepared(model, world, **own)
    second.resume_checkpoint(first.folder)
    second.fit(train, valid)  # no epoch is left
    asked = []
    inner = probe.probe
    monkeypatch.setattr(probe, "probe", lambda *args: asked.append(args) or inner(*args))
    second.load_best()
    assert len(asked) == 1 and not second.history[1:]
    file = "model.safetensors" if model == "SASRec" else "backbone/model.safetensors"
    damage(first.folder / file)
    with pytest.raises(UserError, match="read back is not what was trained"):
        second.load_best()


@pytest.mark.parametrize("model", ["LightGCN", "NGCF", "SGL", "SpectralCF"])
@pytest.mark.parametrize("own", [{"eval_step": 0}, {"epochs": 0}])
def test_models_that_keep_what_they_score_by_need_no_validation(world, model, own):
    """RecBole's graph models store the vectors that they score by beside the weights."""
    run = run_settings(settings_for(model, world, **({"epochs": 1} | own)))
    settings = json.loads((run.folder / "run.json").read_text())["settings"]
    again = evaluate_run(run.folder, settings | {"topk_saved": 11})
    assert again.folder != run.folder and again.row["test"] == run.row["test"]


def test_the_generators_of_other_gpus_are_left_alone(monkeypatch):
    """Torch would start on every GPU of the machine to ask for them, and warn."""
    asked = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(
        torch.cuda, "get_rng_state", lambda device: asked.append(device) or torch.zeros(1)
    )
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    for name, expected in (("cpu", []), ("cuda:3", [torch.device("cuda:3")])):
        asked.clear()
        with probe.own_generators(torch.device(name)):
            pass
        assert asked == expected


def settings_of(run):
    return json.loads((run.folder / "run.json").read_text())["settings"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A folder with a whole run, adapters on it, and adapters on those, and the three runs."""
    folder = write_cycle(tmp_path_factory.mktemp("chain"), users=6, length=4)
    own = {"max_length": 64}
    whole = train(folder, "ST5Seq", **own)
    first = train(folder, "ST5Seq", init_from=whole.folder.name, **LORA, **own)
    second = train(folder, "ST5Seq", backbone=f"run:{first.folder.name}", **LORA, **own)
    return folder / "saved", whole, first, second


@pytest.fixture
def copied(chain, tmp_path):
    """The names of the three runs, whole first, in a copy of their folder that may be damaged."""
    shutil.copytree(chain[0], tmp_path / "saved")
    shutil.copytree(chain[0].parent / "cycle", tmp_path / "cycle")
    return tmp_path, [run.folder.name for run in chain[1:]]


def evaluate(folder, name):
    settings = json.loads((folder / "saved" / name / "run.json").read_text())["settings"]
    own = {"topk_saved": 11, "data_path": str(folder), "checkpoint_dir": str(folder / "saved")}
    return evaluate_run(folder / "saved" / name, settings | own)


def test_a_copied_chain_of_adapters_is_as_it_was(chain, copied):
    """By the weights themselves, wherever the folder lies and whenever the files were written."""
    folder, names = copied
    for run, name in zip(chain[1:], names, strict=True):
        assert evaluate(folder, name).row["test"] == run.row["test"]


@pytest.mark.parametrize("change", ["damaged", "another run"])
def test_adapters_refuse_another_base(copied, change):
    folder, (whole, first, second) = copied
    target = folder / "saved" / whole
    if change == "damaged":
        damage(target / "backbone" / "model.safetensors")
    else:  # whole and by itself without fault
        own = {"max_length": 64, "learning_rate": 0.01}
        other = train(folder, "ST5Seq", **own)
        for name in ("backbone", "model.safetensors", "readback.json"):
            remove = shutil.rmtree if (target / name).is_dir() else (lambda path: path.unlink())
            remove(target / name)
            (other.folder / name).rename(target / name)
    for name in (first, second):
        with pytest.raises(UserError, match=f"{first}: .*{whole}.*, the base of its adapters") as e:
            evaluate(folder, name)
        assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="the base of its adapters"):
        train(folder, "ST5Seq", backbone=f"run:{second}", max_length=64)
    for name in (whole, first):  # as written before files were compared
        record = folder / "saved" / name / "readback.json"
        old = json.loads(record.read_text())
        record.write_text(json.dumps({k: v for k, v in old.items() if k not in ("base", "files")}))
    assert evaluate(folder, first).row["test"]


def test_adapters_refuse_another_base_below_their_base(copied):
    """Adapters of the run in the middle are a part of what the last one was trained on."""
    folder, (_, first, second) = copied
    damage(folder / "saved" / first / "backbone" / "adapter_model.safetensors")
    with pytest.raises(UserError, match=f"{second}: .*{first}.*, the base of its adapters"):
        evaluate(folder, second)


def test_adapters_refuse_a_base_folder_that_was_changed(tmp_path, chain):
    write_cycle(tmp_path, users=6, length=4)
    base = shutil.copytree(chain[1].folder / "backbone", tmp_path / "base")
    run = train(tmp_path, "ST5Seq", backbone=str(base), max_length=64, **LORA)
    assert evaluate(tmp_path, run.folder.name).row["test"] == run.row["test"]
    damage(base / "model.safetensors")
    with pytest.raises(UserError, match=f"{base}, the base of its adapters"):
        evaluate_run(run.folder, settings_of(run) | {"topk_saved": 12})


@pytest.mark.parametrize("key", ["init_from", "backbone"])
def test_nothing_starts_from_damaged_weights(copied, key):
    folder, (whole, first, _) = copied
    for name, file in ((first, "adapter_model.safetensors"), (whole, "model.safetensors")):
        damage(folder / "saved" / name / "backbone" / file)
        start = {key: name if key == "init_from" else f"run:{name}"}
        before = sorted((folder / "saved").iterdir())
        with pytest.raises(UserError, match=f"{name}: backbone/{file} is not what was trained"):
            train(folder, "ST5Seq", max_length=64, learning_rate=0.01, **start)
        assert sorted((folder / "saved").iterdir()) == before


def test_no_model_of_numbers_starts_from_damaged_weights(tmp_path):
    write_cycle(tmp_path, users=6, length=4)
    run = train(tmp_path, "SASRec")
    damage(run.folder / "model.safetensors", "item_embedding.weight")
    with pytest.raises(UserError, match="model.safetensors is not what was trained"):
        train(tmp_path, "SASRec", init_from=run.folder.name, learning_rate=0.01)
    (run.folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="model.safetensors is not what was trained"):
        train(tmp_path, "SASRec", init_from=run.folder.name, learning_rate=0.01)


def test_no_text_encoder_is_read_from_damaged_weights(tmp_path):
    write_cycle(tmp_path, users=6, length=4)
    run = train(tmp_path, "ST5Seq", max_length=64)
    start = {"text_encoder": f"run:{run.folder.name}", "item_features": "text"}
    reader = train(tmp_path, "SASRec", **start)
    damage(run.folder / "backbone" / "model.safetensors")
    with pytest.raises(UserError, match="backbone/model.safetensors is not what was trained"):
        train(tmp_path, "SASRec", learning_rate=0.01, **start)
    with pytest.raises(UserError, match="backbone/model.safetensors is not what was trained"):
        evaluate_run(reader.folder, settings_of(reader) | {"topk_saved": 11})


def test_an_interrupted_training_goes_on_over_its_own_base_only(copied):
    folder, (whole, _, _) = copied
    base = shutil.copytree(folder / "saved" / whole / "backbone", folder / "base")
    own = {"backbone": str(base), "max_length": 64, **LORA}
    _, _, first, (data, valid, _) = prepared("ST5Seq", folder, **own)
    first.fit(data, valid)
    _, _, second, _ = prepared("ST5Seq", folder, **own)
    second.resume_checkpoint(first.folder)
    damage(base / "model.safetensors")
    _, _, third, _ = prepared("ST5Seq", folder, **own)
    with pytest.raises(UserError, match="adapters were trained on are others now"):
        third.resume_checkpoint(first.folder)


def test_weights_are_compared_by_their_content(tmp_path):
    (tmp_path / "1_Dense").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "modules.json").write_text('[{"path": ""}, {"path": "1_Dense"}]')
    for name in ("model.safetensors", "1_Dense/model.safetensors", "other/model.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    found = readback.weight_digests(tmp_path)
    assert sorted(found) == ["1_Dense/model.safetensors", "model.safetensors"]
    (tmp_path / "model.safetensors").write_bytes(b"Model.safetensors")
    again = readback.weight_digests(tmp_path)
    assert [name for name in found if found[name] != again[name]] == ["model.safetensors"]
