"""Every key has a reader and a default, and every default has its allowed values."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml

from recbole_llm.cli import main
from recbole_llm.settings import layers, model_settings, registry, schema, spellings
from recbole_llm.settings.commands import COMMANDS
from recbole_llm.settings.harness import HarnessSettings
from recbole_llm.settings.recbole_keys import RecBoleSettings
from recbole_llm.settings.rules import checked

ROOT = Path(__file__).resolve().parents[1]
RECBOLE = Path(importlib.util.find_spec("recbole").submodule_search_locations[0])
PROPERTIES = ROOT / "properties"
FILES = sorted(
    path for path in PROPERTIES.rglob("*.yaml") if path.parent.name not in ("domain", "experiment")
)  # which are no settings
EXPERIMENTS = sorted((PROPERTIES / "experiment").glob("*.yaml"))

# Where settings are declared and written out, of recbole_llm/settings: that is no use of them.
DECLARED = {"model_settings", "harness.py", "groups.py", "commands.py", "recbole_keys.py"}
DECLARED |= {"reference.py", "write.py", "help.py"}


def words(folder):
    """Return every text that stands in the code of a folder, docstrings and parts of f-strings too.

    Where settings are declared does not count, nor does a check of a value.
    """
    texts = set()
    for path in folder.rglob("*.py"):
        if "settings" in path.parts and DECLARED & set(path.parts):
            continue
        tree, checks = ast.parse(path.read_text(encoding="utf-8")), set()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith(("_check", "check_")):
                checks.update(ast.walk(node))
        for node in ast.walk(tree):
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if is_text and node not in checks:
                texts.add(node.value)
    return texts


@pytest.fixture(scope="module")
def ours():
    """The texts of our code, in which a setting that something reads has to be."""
    return words(ROOT / "recbole_llm")


@pytest.fixture(scope="module")
def recboles():
    return words(RECBOLE)


def content(path):
    """Return the settings of a file, including those in its groups for models and for weights."""
    flat = yaml.load(path.read_text(encoding="utf-8"), spellings.Loader)
    for group in [key for key in flat or {} if key in registry.OURS]:
        flat |= flat.pop(group)
    for group in [key for key in flat or {} if key in layers.BEGINNINGS]:
        flat |= flat.pop(group)
    return flat


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_key_of_a_yaml_is_read(path, ours, recboles):
    """Our code or RecBole's reads each key.

    RecBole's own loading and evaluation do not count, since ours replace them.
    """
    for key in content(path):
        assert key in ours | recboles, f"{path.name}: nothing reads {key}"
        assert key not in layers.REPLACED, f"{path.name}: {key} has no effect here"


def test_our_models_read_their_own_keys(ours):
    """Our code reads keys of our models, rather than some model of RecBole's by chance."""
    theirs = set().union(
        *(
            content(path) or {}
            for path in (
                RECBOLE / "properties" / "overall.yaml",
                RECBOLE / "properties" / "dataset" / "sample.yaml",
            )
        )
    )
    for model in registry.OURS:
        for key in content(PROPERTIES / "model" / f"{model}.yaml"):
            assert key in ours or key in theirs, f"{model}.yaml: nothing of ours reads {key}"


def test_what_nothing_reads_is_noticed(ours, recboles):
    assert {"text_fields", "bm25_k1", "eval_memory", "topk_saved"} <= ours
    assert {"hidden_size", "epochs"} <= recboles
    assert not {"text_feilds", "hiden_size"} & (ours | recboles)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_opens_with_its_command_and_what_it_shows(path, capsys):
    first, second, *_ = path.read_text(encoding="utf-8").splitlines()
    assert first == f"# python run_recbole_llm.py experiment {path.stem}" and second.startswith(
        "# "
    )
    assert main(["experiment", path.stem, "--print_config"]) == 0
    assert (
        yaml.safe_load(capsys.readouterr().out).keys()
        == yaml.safe_load(path.read_text(encoding="utf-8"))["rows"].keys()
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_yaml_opens_with_a_command_that_runs(path, capsys):
    line = path.read_text(encoding="utf-8").splitlines()[0]
    assert line.startswith("# python run_recbole_llm.py ")
    assert (
        main([*shlex.split(line)[3:], "--print_config"]) == 0
    )  # model, dataset name and every key are known
    settings = yaml.safe_load(capsys.readouterr().out)
    from recbole_llm.data.sample.locate import locate

    if path.parent.name != "dataset":
        name, folder = locate(settings["dataset"], "nowhere")
        assert (folder / f"{name}.inter").is_file()  # it needs no file of the user's
    if path.parent.name in ("model", "dataset"):
        assert settings[path.parent.name] == path.stem


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_yaml_files_belong_to_something(path):
    assert path.parent.name in ("properties", "model", "dataset")
    if path.parent.name == "model":
        assert registry.canonical(path.stem) == path.stem


def test_every_model_of_ours_has_a_yaml():
    assert set(registry.OURS) <= {path.stem for path in (PROPERTIES / "model").glob("*.yaml")}


CLASSES = [HarnessSettings, *model_settings.classes(), *COMMANDS.values()]


@pytest.mark.parametrize("settings", CLASSES, ids=lambda settings: settings.__name__)
def test_every_setting_has_help_and_a_default_that_can_be(settings):
    rules = schema.rules(settings)
    for setting in schema.settings_of(settings):
        assert setting.help, setting.name
        assert checked(setting.name, setting.default, rules) == setting.default
        if setting.pretrained:
            checked(setting.name, setting.pretrained.value, rules)


def test_recboles_rules_are_about_recboles_keys():
    rules, known = schema.rules(RecBoleSettings), layers.UNLISTED.copy()
    folder = RECBOLE / "properties"
    for path in (
        folder / "overall.yaml",
        folder / "dataset" / "sample.yaml",
        *folder.glob("model/*.yaml"),
    ):
        for key, value in (content(path) or {}).items():
            known.add(key)
            checked(key, value, rules)  # RecBole's own defaults can be
            assert (
                key not in rules
                or not rules[key].nullable
                or value is None
                or isinstance(value, dict)
            ), key
    assert {key for key in rules if "." not in key} <= known


def test_recboles_defaults_are_those_that_the_reference_shows():
    theirs = {}
    for name in ("overall.yaml", "dataset/sample.yaml"):
        theirs |= content(RECBOLE / "properties" / name)
    for key, value in schema.defaults(RecBoleSettings).items():
        assert theirs.get(key, value) == value or key == "load_col", key


@pytest.mark.parametrize("key", sorted(layers.UNLISTED))
def test_keys_that_recbole_reads_without_listing_them_are_taken(key, recboles, capsys):
    if key in layers.REPLACED:
        spellings.warn.cache_clear()
        default = layers.resolve("GRU4Rec", "any")
        assert layers.resolve("GRU4Rec", "any", [], {key: 1}) == default
        assert f"key '{key}' has no effect here: " in capsys.readouterr().err
    else:
        value = "BPR" if key == "loss_type" else 1
        assert layers.resolve("GRU4Rec", "any", [], {key: value})[key] == value
    assert (
        key in recboles
        or key in (RECBOLE / "data" / "dataset" / "dataset.py").read_text()
        or any(
            re.search(rf"[\"']{key}[\"']", path.read_text(encoding="utf-8"))
            for path in RECBOLE.rglob("*.py")
        )
    )
