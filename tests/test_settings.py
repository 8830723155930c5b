"""Settings as classes: what follows from a field, and the files that are written from them."""

import re
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from recbole_llm.cli import COMMANDS as COMMANDS_OF_CLI
from recbole_llm.cli import _arguments, main
from recbole_llm.errors import UserError
from recbole_llm.settings import layers, model_settings, registry, schema, spellings, write
from recbole_llm.settings.commands import COMMANDS
from recbole_llm.settings.harness import HarnessSettings
from recbole_llm.settings.rendering import flow, yaml_of

ROOT = Path(__file__).resolve().parents[1]
WRITTEN = write.written_files()
CLASSES = [HarnessSettings, *model_settings.classes(), *COMMANDS.values()]

# --- classes --


class Base(schema.ModelSettings):
    section: ClassVar[str] = "Base"
    size: int = Field(1, ge=1, description="How large.")
    rate: Annotated[float, schema.Pretrained(0.1, "Why.")] = Field(0.5, gt=0, description="Rate.")


class Derived(Base):
    own: bool = Field(False, description="A switch.")
    size: int = 7
    rate: float = Field(0.25, le=1, description="Another.")


def test_a_redeclared_setting_keeps_what_it_does_not_give():
    described = {one.name: one for one in schema.settings_of(Derived)}
    size, rate = described["size"], described["rate"]
    assert (size.default, size.help, str(size.rule)) == (7, "How large.", "int, >= 1")
    assert (rate.help, str(rate.rule)) == ("Another.", "float, <= 1")
    assert rate.pretrained == schema.Pretrained(0.1, "Why.")
    assert schema.layer(Derived)["pretrained"] == {"rate": 0.1}
    with pytest.raises(ValidationError):
        Derived(size=0)


def test_settings_of_a_class_come_first_and_groups_keep_their_title():
    assert [(one.section, one.name) for one in schema.settings_of(Derived)] == [
        ("", "own"),
        ("Base", "size"),
        ("Base", "rate"),
    ]


def test_default_values_are_new_each_time():
    schema.defaults(HarnessSettings)["eval_args"]["mode"] = "uni5"
    assert schema.defaults(HarnessSettings)["eval_args"]["mode"] == "full"


def test_every_model_of_ours_has_settings():
    for model in registry.OURS:
        assert registry.find(model).settings is model_settings.find(model) is not None
    assert registry.find("GRU4Rec").settings is None


# --- files --


@pytest.mark.parametrize("name", WRITTEN)
def test_written_files_are_those_of_the_classes(name):
    path = ROOT / name
    assert path.read_text(encoding="utf-8") == WRITTEN[name], (
        f"{name} differs from its class: run `python -m recbole_llm.settings.write`"
    )
    if path.suffix == ".yaml":
        assert max(map(len, WRITTEN[name].splitlines())) <= 100


def test_no_other_file_of_a_model_or_a_command_is_there():
    names = {path.relative_to(ROOT).as_posix() for path in (ROOT / "properties").glob("*.yaml")}
    names |= {f"properties/model/{path.name}" for path in ROOT.glob("properties/model/*.yaml")}
    assert names == {name for name in WRITTEN if name.endswith(".yaml")}


@pytest.mark.parametrize("settings_class", CLASSES, ids=lambda one: one.__name__)
def test_a_written_file_holds_the_values_of_its_class(settings_class):
    text = yaml_of(settings_class, "a file")
    assert yaml.load(text, spellings.Loader) == schema.layer(settings_class)
    assert yaml.safe_load(text) == schema.layer(settings_class), "a plain reader reads the same"


def test_the_command_writes_what_has_changed(tmp_path, capsys):
    write.main(tmp_path)
    assert "overall.yaml" in capsys.readouterr().out
    assert (tmp_path / "docs" / "settings.md").read_text() == WRITTEN["docs/settings.md"]
    write.main(tmp_path)
    assert capsys.readouterr().out == ""


# --- values --

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXT,
)
NESTED = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@given(NESTED)
@settings(deadline=None, max_examples=80)
def test_a_value_that_is_written_is_read_as_itself(value):
    written = flow(value)
    assert "\n" not in written
    assert yaml.load(f"key: {written}", spellings.Loader) == {"key": value}
    assert yaml.load(f"[{written}]", spellings.Loader) == [value]


def outcome(function, *args):
    """What a function returns, or the message with which it refuses."""
    try:
        return function(*args)
    except UserError as error:
        return str(error)


CASES = {
    "epochs": st.integers(-2, 400),
    "learning_rate": st.floats(-0.1, 1),
    "show_progress": st.booleans(),
    "valid_metric": st.sampled_from(["NDCG@10", "MRR", "ndcg@10", "nothing"]),
    "topk": st.lists(st.integers(0, 30), max_size=3) | st.integers(0, 30),
    "beside": st.none() | st.lists(st.sampled_from(["Pop", "LIR"]), max_size=3),
    "eval_args.mode": st.sampled_from(["full", "uni5", "uni0", {"valid": "uni5", "test": "full"}]),
    "text_words": st.dictionaries(st.sampled_from(["Title", "Brand"]), st.integers(0, 3)),
    "text_words.Title": st.integers(-1, 3),
    "clip_grad_norm": st.none() | st.just({"max_norm": 2.0}) | st.just({"max": 2.0}),
    "data_name": st.none() | st.sampled_from(["a", "b c", "7", "x: y"]),
    "adapter": st.sampled_from(["lora", "none", "lorra"]),
    "template.head": st.sampled_from(["", "Bought:", "a, b", "[x]"]),
}


@pytest.mark.parametrize("key", CASES)
def test_a_setting_is_the_same_on_the_command_line_in_yaml_and_in_python(key, tmp_path):
    path = tmp_path / "settings.yaml"

    @given(CASES[key])
    @settings(deadline=None, max_examples=15)
    def check(value):
        path.write_text(f"{key}: {flow(value)}\n", encoding="utf-8")
        _, arguments = _arguments([f"--{key}={flow(value)}"])
        in_python = outcome(layers.resolve, "CALRec", "Pet", [], {key: value})
        on_command_line = outcome(layers.resolve, "CALRec", "Pet", [], arguments)
        in_file = outcome(layers.resolve, "CALRec", "Pet", [str(path)])
        assert on_command_line == in_python
        if isinstance(in_file, str):
            in_file = in_file.removeprefix(f"{path}: ")
        assert in_file == in_python

    check()


# --- help --


def helped(capsys, *args):
    assert main(list(args)) == 0
    return capsys.readouterr().out


def test_help_lists_commands_and_models(capsys):
    out = helped(capsys, "help")
    assert out == helped(capsys, "--help")
    for name in (*COMMANDS_OF_CLI, *registry.OURS, "SASRec"):
        if name != "run":
            assert re.search(rf"\b{name}\b", out), name


@pytest.mark.parametrize("model", [*registry.OURS, "S3Rec"])
def test_help_of_a_model_shows_each_setting_with_type_default_and_meaning(model, capsys):
    out = helped(capsys, "help", model.lower())
    plain = " ".join(out.split())
    for setting in schema.settings_of(registry.find(model).settings):
        value = "" if setting.spelled_out else f"={flow(setting.default)}"
        assert " ".join(f"--{setting.name}{value} ({setting.rule})".split()) in plain
        assert setting.help in plain
    for section in {one.section for one in schema.settings_of(registry.find(model).settings)}:
        assert f"\n{section or 'Settings'}\n" in out
    assert max(map(len, out.splitlines())) <= 100


def test_help_of_a_stock_model_shows_what_recbole_says(capsys):
    out = helped(capsys, "help", "gru4rec")
    assert "--model=GRU4Rec" in out and "--hidden_size=128   (int, >= 1)" in out


def test_help_of_a_command_shows_its_arguments_and_settings(capsys):
    assert "--columns" in helped(capsys, "help", "compare") == helped(capsys, "compare", "--help")
    both = helped(capsys, "run", "--help", "--model=CALRec")
    assert "--resume" in both and "--nig_targets=all" in both
    for command, settings_class in COMMANDS.items():
        out = helped(capsys, "help", command)
        assert all(f"--{name}=" in out for name in settings_class.model_fields), command
    assert "--mirror" in helped(capsys, "prepare", "--help")
    out = helped(capsys, "help", "settings")
    assert "--eval_args.mode=full" in out and "--threshold=~" in out


def test_help_for_nothing_is_a_line(capsys):
    assert main(["help", "CALRek"]) == 2
    assert "unknown model 'CALRek': did you mean CALRec" in capsys.readouterr().err


def test_groups_of_models_are_settings_in_compare(capsys):
    args = ["compare", "--models=ST5Seq", "--dataset=any", "--variants.only=[next]"]
    assert main([*args, "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["ST5Seq"]["variants"]["only"] == ["next"]
