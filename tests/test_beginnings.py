"""Defaults depend on whether a language model starts from random or from trained weights."""

import json
import re
from pathlib import Path

import pytest
import yaml
from test_backbones import save_model
from worlds import prepared, settings_for, write_cycle

from recbole_llm.cli import main
from recbole_llm.errors import UserError
from recbole_llm.runs import commands
from recbole_llm.runs.commands import run_settings
from recbole_llm.settings import files as resources
from recbole_llm.settings import layers as config

ROOT = Path(__file__).resolve().parents[1]
RATES = {  # of random weights, of trained ones
    "CALRec": (0.003, 1e-4),
    "LLMTRSR": (0.001, 1e-4),
    "TALLRec": (0.001, 1e-4),
    "TASTELoRA": (0.001, 1e-4),
    "RecFormer": (0.001, 5e-5),
    "ST5Seq": (0.001, 2e-5),
}
PRETRAINED = [
    "minilm",
    "smollm2",
    "t5-base",
    "Qwen/Qwen2.5-0.5B",
    "/models/mine",
    "~/mine",
    "./model.gguf",
    "models/x",
]


def rate(model, dataset="any", files=(), **own):
    return config.resolve(model, dataset, list(files), own)["learning_rate"]


@pytest.mark.parametrize("model", RATES)
def test_trained_weights_learn_more_slowly(model):
    random, trained = RATES[model]
    assert rate(model) == random
    assert {rate(model, backbone=f"scratch:{size}") for size in ("tiny", "small", "base")} == {
        random
    }
    assert {rate(model, backbone=name) for name in PRETRAINED} == {trained}
    assert isinstance(rate(model, backbone="minilm"), float)


@pytest.mark.parametrize("model", RATES)
def test_what_the_user_sets_holds(model, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("learning_rate: 0.02\nbackbone: minilm\n")
    assert rate(model, files=[str(file)]) == 0.02
    assert rate(model, files=[str(file)], backbone="scratch:tiny") == 0.02
    assert rate(model, files=[str(file)], learning_rate=0.5) == 0.5
    file.write_text("backbone: minilm\n")
    assert rate(model, files=[str(file)]) == RATES[model][1]
    assert rate(model, files=[str(file)], backbone="scratch:tiny") == RATES[model][0]


@pytest.mark.parametrize("model", ["SASRec", "LIR", "UniSRec", "GRU4Rec"])
def test_models_without_a_language_model_of_their_own_have_one_default(model):
    groups = config.resolve(model, "any").keys() & set(config.BEGINNINGS)
    assert not groups
    assert rate(model, text_encoder="Qwen/Qwen3-Embedding-0.6B") == rate(model)


def store(saved, name, **settings):
    folder = saved / name
    (folder / "backbone").mkdir(parents=True)
    settings = config.default_settings("CALRec", "any") | settings
    settings["checkpoint_dir"] = "elsewhere"
    (folder / "run.json").write_text(
        json.dumps({"status": "running", "settings": settings, "data": ""})
    )
    return folder


@pytest.mark.parametrize(
    ("backbone", "number"), [("scratch:small", 0), ("smollm2", 1), ("some/model", 1)]
)
def test_a_chain_of_runs_keeps_the_default_that_it_began_with(tmp_path, backbone, number):
    saved = tmp_path / "saved"
    first = store(saved, "CALRec-any-1", backbone=backbone)
    store(saved, "CALRec-any-2", backbone="run:CALRec-any-1")
    store(saved, "CALRec-any-3", backbone="scratch:tiny", init_from="CALRec-any-2")
    where = {"checkpoint_dir": str(saved)}
    expected = RATES["CALRec"][number]
    for name in (
        "run:CALRec-any-1",
        "run:CALRec-any-2",
        "run:CALRec-any-3",
        str(first / "backbone"),
    ):
        assert rate("CALRec", backbone=name, **where) == expected, name
    for name in ("CALRec-any-1", "CALRec-any-2", "CALRec-any-3", str(first)):
        assert rate("CALRec", init_from=name, **where) == expected, name
    assert rate("CALRec", backbone="run:CALRec-any-3", learning_rate=0.5, **where) == 0.5
    assert rate("TALLRec", backbone="run:CALRec-any-2", **where) == RATES["TALLRec"][number]


def test_a_run_that_is_not_there_is_told_by_who_needs_it(tmp_path):
    where = {"checkpoint_dir": str(tmp_path)}
    assert rate("CALRec", backbone="run:nothing", **where) == 1e-4
    assert rate("CALRec", init_from="nothing", **where) == 0.003


def test_the_number_is_shown_and_stored(tmp_path, capsys):
    folder = save_model("Qwen2", tmp_path / "model")
    write_cycle(tmp_path)
    told = ["--model=CALRec", "--dataset=Pet", f"--backbone={folder}", "--print_config"]
    assert main(told) == 0
    assert yaml.safe_load(capsys.readouterr().out)["learning_rate"] == 1e-4
    own = {
        "decoding": "constrained",
        "beams": 2,
        "nig_targets": "last",
        "valid_users": 4,
        "test_users": 4,
    }
    run = run_settings(settings_for("CALRec", tmp_path, backbone=folder, **own))
    assert json.loads((run.folder / "run.json").read_text())["settings"]["learning_rate"] == 1e-4
    where = {"checkpoint_dir": str(run.folder.parent)}
    assert rate("CALRec", backbone=f"run:{run.folder.name}", **where) == 1e-4
    assert rate("CALRec", init_from=run.folder.name, **where) == 1e-4


def test_stock_recbole_gets_the_same_default():
    from recbole.config import Config

    for backbone, expected in (("minilm", 2e-5), ("scratch:tiny", 0.001)):
        made = Config(model="ST5Seq", dataset="ml-100k", config_dict={"backbone": backbone})
        assert made["learning_rate"] == expected and made["pretrained"] is None


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, 0.001),
        ({"backbone": "t5-base"}, 1e-5),
        ({"run": {"backbone": "t5-base"}}, 1e-5),
        ({"backbone": "scratch:small"}, 0.001),
        ({"backbone": "t5-base", "adapter_learning_rate": 0.5}, 0.5),
    ],
)
def test_adapters_of_the_spectrum(own, expected, tmp_path):
    found, layers = config.of_command("personalize", [], own)
    assert found["adapter_learning_rate"] == expected and not found.keys() & set(config.BEGINNINGS)
    assert config.resolve("TASTELoRA", "any", layers)["backbone"] == (
        own.get("backbone") or own.get("run", {}).get("backbone", "scratch:tiny")
    )
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(own))
    assert config.of_command("personalize", [str(file)], {})[0] == found


def examples():
    """Yield commands and options with a pretrained backbone in the files that users read."""
    files = [
        *ROOT.glob("properties/*/*.yaml"),
        *ROOT.glob("properties/*.yaml"),
        ROOT / "README.md",
        *ROOT.glob("docs/*.md"),
    ]
    for path in sorted(files):
        for line in path.read_text(encoding="utf-8").splitlines():
            if "--backbone=" in line:
                options = re.findall(r"--(?:backbone|learning_rate|learner)=[^\s`'\",)]+", line)
                named = re.search(r"--model=(\w+)", line)
                model = path.stem if path.parent.name == "model" else "CALRec"
                model = named[1] if named else model
                yield path.name, model, options


def test_no_example_ruins_trained_weights():
    """AdamW at 3e-3 took SmolLM2's loss on held-out targets from 201 to 297 in six steps."""
    seen = 0
    for name, model, options in examples():
        own = dict(option.removeprefix("--").split("=") for option in options)
        backbone = own.get("backbone", "scratch:")
        if backbone.startswith(("scratch:", "run:", "<", "…")) or model not in RATES:
            continue
        seen += 1
        found = config.resolve(
            model, "any", [], {key: config.parse_value(value) for key, value in own.items()}
        )
        assert found["learning_rate"] <= 3e-4 or found["learner"] == "muon", (name, options)
    assert seen > 5


# --- datasets -------------------------------------------------------------------------------------

OBJECTIVE = ("alpha", "beta", "contrast_temperature", "learner", "learning_rate")
PAPER = (0.125, -0.025, 0.5, "adam")


def test_what_was_chosen_for_scratch_weights_is_not_taken_for_others():
    scratch = config.resolve("CALRec", "Scientific")
    assert (scratch["backbone"], scratch["learner"], scratch["beta"]) == (
        "scratch:small",
        "muon",
        0.4,
    )
    assert config.resolve("CALRec", "Scientific", [], {"backbone": "scratch:base"})["beta"] == 0.4
    for dataset in ("Scientific", "ml-100k"):
        found = config.resolve("CALRec", dataset, [], {"backbone": "smollm2"})
        assert tuple(found[key] for key in OBJECTIVE) == (*PAPER, 1e-4)
        assert (found["epochs"], found["max_length"], found["train_batch_size"]) == (10, 1024, 16)
    # what says of the data what they are holds for all
    assert config.resolve("ST5Seq", "ml-100k", [], {"backbone": "minilm"})["text_fields"] == {
        "Title": "movie_title"
    }
    assert config.resolve("TALLRec", "ml-100k", [], {"backbone": "a/b"})["domain"] == "movies"


def test_a_file_beside_prepared_data_has_such_groups_too(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "shop.inter").write_text("user_id:token\titem_id:token\n")
    group = {
        "max_length": 99,
        "scratch": {"epochs": 3},
        "pretrained": {"epochs": 2, "learning_rate": 0.0007},
    }
    (folder / "shop.yaml").write_text(yaml.safe_dump({"CALRec": group}))
    for backbone, expected in (("scratch:tiny", (99, 3, 0.003)), ("a/b", (99, 2, 0.0007))):
        found = config.resolve(
            "CALRec", "shop", [], {"data_path": str(tmp_path), "backbone": backbone}
        )
        assert tuple(found[key] for key in ("max_length", "epochs", "learning_rate")) == expected
        assert not found.keys() & set(config.BEGINNINGS)


def test_beta_is_none_for_games_alone():
    for backbone in ("scratch:tiny", "a/b"):
        found = config.resolve("CALRec", "Games", [], {"backbone": backbone})
        assert (found["alpha"], found["beta"], found["contrast_temperature"]) == (0.125, 0, 0.5)
    assert config.resolve("CALRec", "Games", [], {"beta": 0.2})["beta"] == 0.2
    assert config.resolve("CALRec", "Pet")["beta"] == -0.025


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"backbone": "smollm2"},
        {"beta": 0.3, "learner": "muon"},
        {"stage_settings.joint.beta": 0.1},
        {"stage_settings.target.alpha": 0.2},
    ],
)
@pytest.mark.parametrize(
    ("dataset", "select_on"),
    [("Office", "Scientific"), ("Scientific", "Office"), ("Pet", "ml-100k"), ("Pet", "Games")],
)
def test_stages_of_one_run_share_its_objective(dataset, select_on, own):
    """Stages share the objective whatever they select on, except for a stage's own settings."""
    told = {
        "stages": ["joint", "target"],
        "datasets": [dataset, select_on],
        "stage_settings.joint.select_on": select_on,
    }
    settings = config.resolve("CALRec", dataset, [], told | own)
    joint, target = commands.stages_of(settings)
    assert (joint["dataset"], target["dataset"]) == (select_on, dataset)
    expected = {
        key: settings[key] for key in (*OBJECTIVE, "backbone", "epochs", "train_batch_size")
    }
    for name, stage in (("joint", joint), ("target", target)):
        mine = {key.rpartition(".")[2]: value for key, value in own.items() if f".{name}." in key}
        assert {key: stage[key] for key in expected} == expected | mine
    texts = config.resolve("CALRec", select_on)["text_fields"]
    assert joint["text_fields"] == texts  # the data are its own


@pytest.mark.parametrize(
    ("blend", "beta", "told"),
    [(1, -0.025, True), (1, 0.2, False), (1, 0, False), (0, -0.025, False), (-1, -0.025, False)],
)
def test_a_blend_with_what_training_pushes_down_is_told(tmp_path, caplog, blend, beta, told):
    """The line appears when the model is built, before training and evaluation."""
    write_cycle(tmp_path, users=6)
    prepared("CALRec", tmp_path, blend=blend, beta=beta)
    lines = [line for line in caplog.messages if line.startswith("blend adds cos")]
    assert len(lines) == told and all("--beta" in line and "\n" not in line for line in lines)


def test_every_example_of_a_yaml_is_a_command(capsys):
    """A model's YAML names options of the paper or of a hub backbone."""
    seen = 0
    for model in RATES:
        path = resources.properties() / "model" / f"{model}.yaml"
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("#") and "--backbone=" in line:
                options = re.findall(r"--\S+", line.replace("<instruct model>", "a/b"))
                told = [f"--model={model}", "--dataset=any", *options, "--print_config"]
                assert main(told) == 0, line
                seen += 1
    capsys.readouterr()
    assert seen > 4


def test_a_run_that_begins_with_itself_is_one_line(tmp_path):
    saved = tmp_path / "saved"
    store(saved, "CALRec-any-1", backbone="run:CALRec-any-2")
    store(saved, "CALRec-any-2", backbone="run:CALRec-any-1")
    with pytest.raises(UserError, match="begins with itself"):
        rate("CALRec", backbone="run:CALRec-any-1", checkpoint_dir=str(saved))
