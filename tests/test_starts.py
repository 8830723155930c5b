"""What a run starts from: other runs, folders of weights, and what a killed process has left."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_backbones import save_model
from worlds import prepared, settings_for, write_cycle

from recbole_llm.errors import UserError
from recbole_llm.evaluation import resumable as kept_module
from recbole_llm.language.backbones.sources import load_folder
from recbole_llm.models.calrec import CALRec
from recbole_llm.runs.commands import evaluate_run, run_settings
from recbole_llm.runs.spec import describe
from recbole_llm.settings import run_record
from recbole_llm.storage import run_folders
from recbole_llm.studies.recommend import recommend


@pytest.fixture(scope="module")
def trained(make_once):
    """(folder, run) of a full run of CALRec."""

    def train(folder):
        write_cycle(folder)
        return folder, run_settings(settings_for("CALRec", folder))

    return make_once("full-run", train)


@pytest.fixture
def llama(tmp_path):
    write_cycle(tmp_path)
    return save_model("Llama", tmp_path / "llama")


def damage(folder, change):
    path = f"{folder}/model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def junk(folder):
    with open(f"{folder}/model.safetensors", "wb") as file:
        file.write(b"no weights at all")


def narrower(folder):
    path = f"{folder}/config.json"
    config = json.loads(Path(path).read_text())
    with open(path, "w") as file:
        json.dump(config | {"hidden_size": 16}, file)


def fewer_embeddings(folder):
    path = f"{folder}/config.json"
    config = json.loads(Path(path).read_text())
    with open(path, "w") as file:
        json.dump(config | {"vocab_size": 200}, file)
    damage(
        folder,
        lambda tensors: {
            name: value[:200] if "embed" in name or "lm_head" in name else value
            for name, value in tensors.items()
        },
    )


BROKEN = {
    "junk": (junk, "cannot be loaded"),
    "another width": (narrower, "cannot be loaded"),
    "a layer is missing": (
        lambda folder: damage(
            folder, lambda t: {n: v for n, v in t.items() if "layers.1." not in n}
        ),
        "9 of its weights are missing",
    ),
    "tokens without embeddings": (fewer_embeddings, r"tokenizer has \d+ tokens, more than the 200"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_damaged_folders_are_one_line(llama, case):
    change, message = BROKEN[case]
    change(llama)
    with pytest.raises(UserError, match=message):
        load_folder(llama)


def test_texts_longer_than_the_positions_are_refused(llama, tmp_path):
    message = (
        "max_length: expected at most the 512 positions of the backbone, found 1024; set --max"
    )
    with pytest.raises(UserError, match=message):
        prepared("CALRec", tmp_path, backbone=llama, max_length=1024)


def test_adapters_find_their_base_wherever_it_is(trained, tmp_path):
    """Named by the beginning of its id, and in another folder of runs."""
    folder, full = trained
    beside = run_settings(
        settings_for("CALRec", folder, backbone=f"run:{full.folder.name[:-2]}", adapter="lora")
    )
    assert (
        load_folder(str(beside.folder / "backbone"))
        .model.peft_config["default"]
        .base_model_name_or_path
        == f"run:{full.folder.name}"
    )
    elsewhere = run_settings(
        settings_for(
            "CALRec",
            folder,
            init_from=str(full.folder),
            adapter="lora",
            checkpoint_dir=str(tmp_path / "saved"),
        )
    )
    ranks = elsewhere.ranks()
    again = evaluate_run(
        elsewhere.folder,
        json.loads((elsewhere.folder / "run.json").read_text())["settings"] | {"topk_saved": 7},
    )
    assert (again.ranks().above == ranks.above).all()


def test_a_runs_backbone_folder_is_the_run(trained):
    folder, full = trained
    path = str(full.folder / "backbone")
    named, by_path = (
        describe(settings_for("CALRec", folder, backbone=name))
        for name in (f"run:{full.folder.name}", path)
    )
    assert named.run_id == by_path.run_id
    other = {"eval_args.split": {"RS": [0.1, 0.1, 0.8]}}
    with pytest.raises(UserError, match="was trained on .* test targets"):
        run_settings(settings_for("CALRec", folder, backbone=path, **other))


def test_a_link_to_a_runs_backbone_is_the_run(trained, tmp_path):
    folder, full = trained
    (tmp_path / "link").symlink_to(full.folder / "backbone", target_is_directory=True)
    run_ids = {
        describe(settings_for("CALRec", folder, backbone=name)).run_id
        for name in (str(tmp_path / "link"), f"run:{full.folder.name}")
    }
    assert len(run_ids) == 1


def test_what_a_folder_holds_names_the_run(llama, tmp_path):
    before = describe(settings_for("CALRec", tmp_path, backbone=llama)).run_id
    shutil.copytree(llama, tmp_path / "copy")
    assert (
        describe(settings_for("CALRec", tmp_path, backbone=str(tmp_path / "copy"))).hash
        == before.rpartition("-")[2]
    )
    damage(llama, lambda tensors: {name: 5 * value for name, value in tensors.items()})
    assert describe(settings_for("CALRec", tmp_path, backbone=llama)).run_id != before


def test_a_finished_run_needs_nothing_but_itself(llama, tmp_path):
    run = run_settings(settings_for("CALRec", tmp_path, backbone=llama))
    later = run_settings(settings_for("CALRec", tmp_path, init_from=run.folder.name))
    shutil.rmtree(llama)
    for one in (run, later):
        settings = json.loads((one.folder / "run.json").read_text())["settings"]
        again = evaluate_run(one.folder, settings | {"topk_saved": 7})
        assert (again.ranks().above == one.ranks().above).all()


def test_a_start_takes_the_backbone_of_what_it_starts_from(trained):
    folder, full = trained
    run = run_settings(
        settings_for("CALRec", folder, init_from=full.folder.name, backbone="scratch:base")
    )
    assert run.row["backbone"] == "scratch:nano"
    assert load_folder(str(run.folder / "backbone")).model.config.hidden_size == 32
    lir = run_settings(settings_for("LIR", folder))
    with pytest.raises(
        UserError, match="init_from: LIR-cycle-.* is a run of LIR, which has no backbone"
    ):
        run_settings(settings_for("CALRec", folder, init_from=lir.folder.name))


def test_another_datasets_settings_of_training_do_not_come_with_it(trained):
    """Scientific has a learning rate, epochs, … of its own, which a trained run cannot take."""
    from recbole_llm.cli import _stored

    folder, full = trained
    stored = json.loads((full.folder / "run.json").read_text())["settings"]
    _, settings = _stored(
        full.folder.name, [], {"checkpoint_dir": str(folder / "saved")}, "Scientific"
    )
    assert settings["dataset"] == "Scientific" and {
        key for key in settings if settings[key] != stored[key]
    } == {"dataset"}
    _, settings = _stored(
        full.folder.name, [], {"checkpoint_dir": str(folder / "saved")}, "ml-100k"
    )
    assert (
        settings["text_fields"]["Title"] == "movie_title" and settings["epochs"] == stored["epochs"]
    )


def test_stock_recbole_starts_from_a_run_too(trained):
    """RecBole's way to build a model: Config, dataset, constructor."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model

    folder, full = trained

    def build(**own):
        settings = {
            "data_path": str(folder),
            "checkpoint_dir": str(folder / "saved"),
            "scratch_vocabulary": 300,
            "max_length": 256,
        }
        config = Config("CALRec", "cycle", config_dict=settings | own)
        train, *_ = data_preparation(config, create_dataset(config))
        return get_model("CALRec")(config, train._dataset)

    model = build(init_from=full.folder.name, adapter="lora")
    stored = load_folder(str(full.folder / "backbone")).model.get_input_embeddings().weight
    assert torch.equal(model.backbone.get_input_embeddings().weight, stored)
    assert all("lora_" in name for name, value in model.named_parameters() if value.requires_grad)
    with pytest.raises(UserError, match="stages: of runs of recbole_llm"):
        build(stages=["joint"])


def test_recommend_takes_settings_of_answering_alone_and_the_runs_precision(trained, monkeypatch):
    folder, full = trained
    settings = json.loads((full.folder / "run.json").read_text())["settings"]
    with pytest.raises(UserError, match="learning_rate: .* is trained already"):
        recommend(full.folder, settings | {"learning_rate": 5.0}, user="u0")
    seen, inner = [], torch.autocast

    def watch(*args, **kwargs):
        seen.append((kwargs.get("dtype"), kwargs.get("enabled")))
        return inner(*args, **kwargs)

    monkeypatch.setattr(torch, "autocast", watch)
    lines = recommend(full.folder, settings | {"precision": "bf16"}, user="u0")
    assert (torch.bfloat16, True) in seen and len(lines) > 10


def test_a_damaged_or_foreign_start_of_a_ranking_is_left(tmp_path, monkeypatch, caplog):
    _, model, _, _ = prepared("CALRec", write_cycle(tmp_path))
    kept = kept_module.Kept(tmp_path, "test", model)
    kept.path.write_bytes(b"PK no archive")
    assert kept_module.Kept(tmp_path, "test", model).pieces == [] and "is damaged" in caplog.text
    monkeypatch.setattr(run_folders, "code", lambda: "another")
    assert kept_module.Kept(tmp_path, "test", model).path != kept.path
    kept_module.forget(tmp_path)
    assert not kept.path.exists()


@pytest.mark.parametrize("model", ["CALRec", "SASRec"])
def test_divergence_is_one_line(tmp_path, model):
    write_cycle(tmp_path)
    with pytest.raises(
        UserError, match=f"{model} (diverged: its loss is|gives no numbers to rank by)"
    ):
        run_settings(
            settings_for(
                model,
                tmp_path,
                learning_rate=1e9,
                epochs=20,
                train_batch_size=4,
                clip_grad_norm=None,
            )
        )


@pytest.mark.parametrize("decoding", ["sample", "constrained"])
def test_weights_that_are_no_numbers_are_one_line(tmp_path, decoding):
    _, model, trainer, (*_, test) = prepared("CALRec", write_cycle(tmp_path), decoding=decoding)
    for parameter in model.backbone.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(UserError, match="CALRec gives no numbers to rank by"):
        trainer.rank(test)


def test_an_evaluation_tells_its_own_seed(trained):
    folder, full = trained
    run = evaluate_run(full.folder, settings_for("CALRec", folder, seed=7))
    assert (run.row["seed"], full.row["seed"]) == (7, 2020)


def test_an_evaluation_is_done_by_one_of_two_processes(trained, monkeypatch):
    folder, full = trained
    settings = settings_for("CALRec", folder, samples=2)
    inner = run_folders.locked

    def late(target, waiting):
        monkeypatch.setattr(run_folders, "locked", inner)
        evaluate_run(full.folder, settings)  # the other process, while this one waits
        return inner(target, waiting)

    monkeypatch.setattr(run_folders, "locked", late)
    run = evaluate_run(full.folder, settings)
    lines = (folder / "saved" / "results.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["run"] == run.row["run"] for line in lines) == 1


def test_anomaly_detection_is_left_to_the_user():
    """One of RecBole's models turned it on for everybody."""
    from recbole.utils import get_model

    assert get_model("SINE").__name__ == "SINE" and not torch.is_anomaly_enabled()


class Ranking:
    """Counts the cases that CALRec ranks after its training, and dies at one of them.

    Those of validation come first, then those of the test.
    """

    def __init__(self, monkeypatch, dies_at):
        self.inner, self.cases, self.dies_at = CALRec.score, 0, dies_at
        monkeypatch.setattr(CALRec, "score", lambda model, cases: self.score(model, cases))

    def score(self, model, cases):
        assert len(cases) == 1
        if not model.selecting:
            self.cases += 1
            if self.cases == self.dies_at:
                raise KeyboardInterrupt
        return self.inner(model, cases)


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["adam", "muon"])
def test_a_killed_test_goes_on_where_it_stood(tmp_path, monkeypatch, learner):
    """What was ranked is not ranked again, and the figures are those of a run nobody stopped."""
    users, ranked = 8, 4
    write_cycle(tmp_path, users=users)
    own = {"learner": learner, "max_new_tokens": 4, "eval_memory": 1e-6}  # one case at a time
    whole = run_settings(
        settings_for("CALRec", tmp_path, checkpoint_dir=str(tmp_path / "whole"), **own)
    )
    monkeypatch.setattr(kept_module, "KEEP_SECONDS", 0)
    settings = settings_for("CALRec", tmp_path, **own)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Ranking(patch, dies_at=users + ranked + 1)
        run_settings(settings)
    ranking = Ranking(monkeypatch, dies_at=None)
    run = run_settings(settings)
    assert ranking.cases == users - ranked  # neither validation nor what was ranked is done again
    for part in ("valid", "test"):
        assert run.row[part] == whole.row[part]
    assert run.row["rates"] == whole.row["rates"]
    assert (run.ranks().above == whole.ranks().above).all()
    assert not list(run.folder.glob("*.kept.gz")) and "parts" not in run_record.read_run(run.folder)
