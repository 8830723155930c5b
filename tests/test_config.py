"""Settings have layers, checked keys, stages, and a hash that names a run."""

import copy
import dataclasses
import math
import re
import shutil
from pathlib import Path

import pytest

from recbole_llm.errors import UserError
from recbole_llm.settings import defaults, files, layers, registry
from recbole_llm.settings.reading import cached_yaml

PROPERTIES = Path(__file__).resolve().parents[1] / "properties"

# --- checks ---


@pytest.mark.parametrize(
    ("model", "key", "said"),
    [
        ("LIR", "lastn", "did you mean last_n"),
        ("LIR", "text_field", "did you mean text_fields"),
        ("GRU4Rec", "hiden_size", "did you mean hidden_size"),
        (
            "GRU4Rec",
            "batch_size",
            r"did you mean train_batch_size\?",
        ),  # not eval_batch_size, which has no effect
        ("LIR", "zzzzzz", "run with --print_config to see all keys"),
        ("LIR", "eval_args.neg", "expected one of group_by, mode, order, part, split"),
        ("LIR", "seed.a", "seed is a int, not a group of keys"),
    ],
)
def test_unknown_keys_are_told_with_the_nearest(model, key, said):
    with pytest.raises(UserError, match=said):
        layers.resolve(model, "any", [], {key: 1})


def test_kinds_of_values():
    for key, value in (
        ("learning_rate", 1),
        ("learning_rate", 1e-4),
        ("weight_decay", 0),
        ("show_progress", True),
        ("topk", 10),
        ("beside", "Pop"),
    ):
        layers.resolve("GRU4Rec", "any", [], {key: value})
    wrong = (
        ("learning_rate", "1e-4 or so"),
        ("learning_rate", True),
        ("show_progress", 1),
        ("seed", [1]),
        ("eval_memory", {}),
        ("seed", -1),
        ("topk", [5, "a"]),
        ("weight_decay", None),
        ("dropout_prob", math.nan),
        ("num_layers", "two"),
        ("reproducibility", None),  # RecBole's, which tell no rule
    )
    for key, value in wrong:
        with pytest.raises(UserError, match=f"^{key}: expected"):
            layers.resolve("GRU4Rec", "any", [], {key: value})
    assert layers.resolve("LIR", "any", [], {"topk": 10})["topk"] == [10] and layers.resolve(
        "LIR", "any", [], {"beside": "Pop"}
    )["beside"] == ["Pop"]


@pytest.mark.parametrize("text", ["1e-4", "1E4", "-2.5e+3", ".5", "3.", "1_000.5", "-.inf"])
def test_numbers_as_recbole_reads_them(text):
    value = layers.parse_value(text)
    assert isinstance(value, float) and value == float(text.replace(".inf", "inf"))


@pytest.mark.parametrize(
    "text",
    [
        "3-1",
        "1e",
        "e5",
        "__import__('os')",
        "lambda x",
        "[1, 2",
        "{a: b",
        "uni20",
        "a: b: c",
        "!!python/object:os.system",
    ],
)
def test_anything_else_stays_text(text):
    assert layers.parse_value(text) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("true", True),
        ("~", None),
        ("null", None),
        ("[1, a]", [1, "a"]),
        ("{a: 1e-3}", {"a": 0.001}),
        ("'3'", "3"),
        ("", None),
        (" ", " "),
        (",", ","),
        ("|", "|"),
    ],
)
def test_other_values_are_yaml(text, value):
    assert layers.parse_value(text) == value


# --- layers ---


@pytest.fixture
def properties(tmp_path, monkeypatch):
    """Return put(name, line), which adds a line to a file of a copy of our properties."""
    folder = tmp_path / "properties"
    shutil.copytree(PROPERTIES, folder)
    monkeypatch.setattr(files, "properties", lambda: folder)

    def put(name, line):
        path = folder / name
        path.write_text((path.read_text() if path.is_file() else "") + line + "\n")
        cached_yaml.cache_clear()
        return str(path)

    yield put
    cached_yaml.cache_clear()


def with_rate(settings, rate):
    """Return the class of settings with another learning rate."""
    return type(
        "Changed",
        (settings,),
        {"__annotations__": {"learning_rate": float}, "learning_rate": rate},
    )


def test_each_layer_overrides_the_one_before(properties, monkeypatch):
    """The order is RecBole < harness < model < dataset < settings files in order < arguments."""

    def rate():
        return layers.resolve("LIR", "shop", user_files, arguments)["learning_rate"]

    user_files, arguments = [], {}
    assert rate() == 0.001  # RecBole's
    monkeypatch.setattr(defaults, "HarnessSettings", with_rate(defaults.HarnessSettings, 2.0))
    assert rate() == 2.0
    spec = registry.find("LIR")
    changed = dataclasses.replace(spec, settings=with_rate(spec.settings, 3.0))
    find = registry.find
    monkeypatch.setattr(registry, "find", lambda name: changed if name == "LIR" else find(name))
    assert rate() == 3.0
    properties("dataset/shop.yaml", "learning_rate: 4.0")
    assert rate() == 4.0
    properties("dataset/shop.yaml", "LIR: {learning_rate: 4.5}")
    assert rate() == 4.5
    of_calrec = layers.resolve("CALRec", "shop")
    assert of_calrec["learning_rate"] == 4.0 and "LIR" not in of_calrec
    assert layers.resolve("LIR", "other")["learning_rate"] == 3.0
    assert layers.resolve("Pop", "other")["learning_rate"] == 2.0
    user_files.append(properties("a.yaml", "learning_rate: 5.0"))
    assert rate() == 5.0
    user_files.append(properties("b.yaml", "learning_rate: 6.0"))
    assert rate() == 6.0
    arguments["learning_rate"] = 7.0
    assert rate() == 7.0


def test_eval_args_are_given_in_part_but_a_split_is_one_rule(properties):
    resolved = layers.resolve("LIR", "any", [], {"eval_args.mode": "uni5"})
    assert resolved["eval_args"] == {
        "split": {"LS": "valid_and_test"},
        "part": "pretrain",
        "order": "TO",
        "group_by": "user",
        "mode": "uni5",
    }
    for overrides in (
        {"eval_args.split": {"RS": [8, 1, 1]}},
        {"eval_args.split.RS": [8, 1, 1]},
        {"eval_args": {"split": {"RS": [8, 1, 1]}}},
    ):
        args = layers.resolve("LIR", "any", [], overrides)["eval_args"]
        assert args["split"] == {"RS": [8, 1, 1]} and args["mode"] == "full"
    file = properties("part.yaml", "eval_args: {mode: uni7}\neval_args.part: both")
    args = layers.resolve("LIR", "any", [file], {"eval_args.split": {"temporal": [6, 2, 2]}})[
        "eval_args"
    ]
    assert (args["mode"], args["part"], args["split"]) == ("uni7", "both", {"temporal": [6, 2, 2]})


def test_other_groups_are_replaced_whole_or_named_with_dots():
    assert layers.resolve("LIR", "any", [], {"text_fields": {"Name": "name"}})["text_fields"] == {
        "Name": "name"
    }
    dotted = layers.resolve("LIR", "any", [], {"text_fields.Title": "name", "text_words.Title": 3})
    assert (
        dotted["text_fields"]
        == {"Title": "name", "Category": "categories", "Brand": "brand", "Price": "price"}
        and dotted["text_words"]["Title"] == 3
    )
    assert (
        layers.resolve("LIR", "any")["text_fields"]["Title"] == "title"
    )  # the defaults are not written to
    assert layers.resolve("GRU4Rec", "any", [], {"clip_grad_norm.max_norm": 5})[
        "clip_grad_norm"
    ] == {"max_norm": 5}  # a group that is empty


def test_stages_are_given_in_part():
    stages = layers.resolve("S3Rec", "Pet", [], {"stage_settings.pretrain": {"epochs": 3}})[
        "stage_settings"
    ]
    assert stages["finetune"] == {"train_stage": "finetune"} and stages["pretrain"]["epochs"] == 3


def test_a_stage_is_a_layer_over_the_run():
    """Dotted keys and single values in a stage have the effect that they have in a run.

    The stages that print_config prints resolve to themselves.
    """
    asked = {
        "eval_args.part": "both",
        "stages": ["pretrain", "finetune", "more"],
        "stage_settings.pretrain.eval_args.mode": "uni5",
        "stage_settings.pretrain.text_words.Title": 3,
        "stage_settings.finetune": {"loss_type": "BPR", "topk": 10},
        "stage_settings.more.precision": "bf16",
    }
    resolved = layers.resolve("S3Rec", "Pet", [], asked)
    stages = resolved["stage_settings"]
    assert (
        stages["pretrain"]["eval_args"] == resolved["eval_args"] | {"mode": "uni5"}
        and resolved["eval_args"]["part"] == "both"
    )
    assert stages["pretrain"]["text_words"] == resolved["text_words"] | {"Title": 3}
    assert (
        stages["finetune"]["topk"] == [10]
        and stages["finetune"]["train_neg_sample_args"]["sample_num"] == 1
    )  # which the run, with CE, has not
    assert stages["more"] == {"precision": "fp32"} and resolved["train_neg_sample_args"] is None
    again = {
        key: value
        for key, value in layers.shown(resolved).items()
        if key not in ("model", "dataset")
    }
    assert layers.resolve("S3Rec", "Pet", [], again) == resolved


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("pretrain.epoch", 5, "stage_settings.pretrain: unknown key 'epoch': did you mean epochs?"),
        (
            "finetune.lerning_rate",
            "x",
            "stage_settings.finetune: unknown key 'lerning_rate': did you mean learning_rate?",
        ),
        (
            "finetune.learning_rate",
            "x",
            "stage_settings.finetune: learning_rate: expected a number, found 'x'",
        ),
        (
            "finetune",
            {"epochs": 1.5},
            "stage_settings.finetune: epochs: expected a whole number from 0 up, found 1.5",
        ),
        ("finetune.eval_args.mod", "full", "stage_settings.finetune: unknown key 'eval_args.mod'"),
        (
            "finetune.eval_args.mode",
            "uni0",
            "stage_settings.finetune: eval_args.mode: expected full or uniK",
        ),
        ("finetune.topk", 3, "stage_settings.finetune: valid_metric: expected one of"),
        (
            "finetune.train_neg_sample_args.sample_num",
            2,
            (
                "stage_settings.finetune: train_neg_sample_args: S3Rec with loss_type CE draws "
                "no negatives"
            ),
        ),
        ("finetune.seeds", [1], "stage_settings.finetune: seeds belongs to the whole run"),
        ("finetune", 5, "stage_settings.finetune: expected a group of settings, found 5"),
        (
            "finetun.epochs",
            5,
            (
                "stage_settings.finetun: expected one of the stages pretrain, finetune; did "
                "you mean finetune?"
            ),
        ),
    ],
)
def test_a_stage_is_checked_like_a_run(key, value, said):
    with pytest.raises(UserError) as caught:
        layers.resolve("S3Rec", "Pet", [], {f"stage_settings.{key}": value})
    assert str(caught.value).startswith(said)


def test_resolving_changes_none_of_its_arguments(tmp_path):
    overrides = {"eval_args": {"mode": "uni5"}, "topk": 10, "text_fields": {"Title": "title"}}
    before = copy.deepcopy(overrides)
    first = layers.resolve("LIR", "any", [], overrides)
    first["text_fields"]["Title"] = first["eval_args"]["mode"] = "changed"
    assert (
        overrides == before
        and layers.resolve("LIR", "any", [], overrides)["eval_args"]["mode"] == "uni5"
    )


GENERAL = ["BPR", "NeuMF", "ItemKNN", "Pop", "LightGCN"]


@pytest.mark.parametrize("model", [*GENERAL, "SASRec", "DIN", "FM", "LIR", "CALRec"])
def test_only_general_models_are_not_repeatable(model):
    """RecBole then draws their training negatives outside the user's items.

    It refuses sequential models unless they are repeatable.
    """
    assert layers.resolve(model, "any")["repeatable"] is (model not in GENERAL)


def test_negatives_follow_the_loss():
    assert layers.resolve("SASRec", "any")["train_neg_sample_args"] is None  # CE
    assert (
        layers.resolve("SASRec", "any", [], {"loss_type": "BPR"})["train_neg_sample_args"][
            "sample_num"
        ]
        == 1
    )
    assert (
        layers.resolve(
            "SASRec", "any", [], {"loss_type": "BPR", "train_neg_sample_args.sample_num": 3}
        )["train_neg_sample_args"]["sample_num"]
        == 3
    )
    assert (
        layers.resolve("FPMC", "any", [])["train_neg_sample_args"]["sample_num"] == 1
    )  # always pairs
    assert layers.resolve("BPR", "any")["train_neg_sample_args"]["sample_num"] == 1
    assert (
        layers.resolve("Pop", "any")["train_neg_sample_args"] is None
        and layers.resolve("RepeatNet", "any")["train_neg_sample_args"] is None
    )
    assert (
        layers.resolve("SASRec", "any", [], {"train_neg_sample_args": None})[
            "train_neg_sample_args"
        ]
        is None
    )
    with pytest.raises(UserError, match="SASRec with loss_type CE draws no negatives"):
        layers.resolve("SASRec", "any", [], {"train_neg_sample_args": {"sample_num": 1}})


def test_both_losses_of_a_stock_model_reach_recbole(tmp_path):
    for loss, kind in (("CE", "POINTWISE"), ("BPR", "PAIRWISE")):
        built = layers.recbole_config(
            layers.resolve("GRU4Rec", "any", [], {"loss_type": loss}), tmp_path
        )
        assert built["MODEL_INPUT_TYPE"].name == kind


def test_a_feature_of_a_dataset_goes_to_the_models_that_read_it():
    assert (
        layers.resolve("SASRecF", "Pet")["selected_features"] == ["categories"]
        and layers.resolve("S3Rec", "Pet")["item_attribute"] == "categories"
    )
    assert (
        layers.resolve("SASRec", "Pet")["selected_features"] is None
        and layers.resolve("LIR", "Pet")["item_attribute"] is None
    )


def test_what_models_beside_a_run_share():
    asked = {
        "eval_args.mode": "uni5",
        "seed": 5,
        "topk": [3],
        "valid_metric": "NDCG@3_pes",
        "learning_rate": 9.0,
        "mask_history": True,
        "text_fields.Title": "name",
        "epochs": 2,
    }
    shared = layers.shared_settings(layers.resolve("CALRec", "ml-100k", [], asked))
    beside = layers.resolve("GRU4Rec", "ml-100k", [], shared)
    assert (
        beside["eval_args"]["mode"],
        beside["seed"],
        beside["topk"],
        beside["mask_history"],
    ) == ("uni5", 5, [3], True)
    assert beside["valid_metric"] == "NDCG@3"  # the pessimistic choice is CALRec's own
    own = layers.resolve("GRU4Rec", "ml-100k")
    for key in (
        "learning_rate",
        "epochs",
        "train_batch_size",
        "stopping_step",
        "repeatable",
        "train_neg_sample_args",
        "stages",
    ):
        assert beside[key] == own[key], key
    for model in ("Pop", "LIR", "SASRecF", "S3Rec"):
        layers.resolve(model, "ml-100k", [], shared)


def test_plan_has_one_dict_per_model_and_seed():
    planned = layers.plan(
        ["LIR", "GRU4Rec"], "any", [], {"topk": [5, 10]}, {"GRU4Rec": {"hidden_size": 8}}, [4, 5]
    )
    assert list(planned) == ["LIR", "GRU4Rec"]
    for group in planned.values():
        assert [(one["seed"], one["topk"]) for one in group] == [(4, [5, 10]), (5, [5, 10])]
    assert (
        all(one["hidden_size"] == 8 for one in planned["GRU4Rec"])
        and "hidden_size" not in planned["LIR"][0]
    )
    assert len(layers.plan(["LIR"], "any")["LIR"]) == 1
    assert [one["seed"] for one in layers.plan(["LIR"], "any", [], {"seeds": [1, 2]})["LIR"]] == [
        1,
        2,
    ]


def test_a_run_moves_to_another_dataset_with_that_ones_defaults():
    stored = layers.resolve("LIR", "ml-100k", [], {"bm25_k1": 0.9, "text_words": {"Title": 5}})
    moved = layers.moved(stored, "Pet")
    assert (
        moved["dataset"] == "Pet" and moved["text_fields"]["Title"] == "title"
    )  # ml-100k's was movie_title
    assert moved["bm25_k1"] == 0.9 and moved["text_words"] == {"Title": 5}  # the user's own stay
    assert layers.moved(stored, "ml-100k") == stored
    featured = layers.resolve("S3Rec", "any", [], {"item_attribute": "brand"})
    assert layers.moved(featured, "other") == featured | {"dataset": "other"}
    stage = stored | {"stage": "finetune", "init_from": "saved/x"}
    assert layers.moved(stage, "Pet") == moved | {"stage": "finetune", "init_from": "saved/x"}


# --- hash ---

# Not `worker`: negatives are drawn in the workers. text_encoder is of item_features, which is id.
SAME_RUN = {
    "data_path",
    "show_progress",
    "checkpoint_dir",
    "beside",
    "seeds",
    "gpu_id",
    "use_gpu",
    "state",
    "eval_memory",
    "log_wandb",
    "wandb_project",
    "overwrite",
    "text_encoder",
}


@pytest.mark.parametrize("model", ["CALRec", "GRU4Rec"])
def test_the_hash_changes_with_every_setting_that_matters_and_with_no_other(model):
    settings = layers.resolve(model, "any")
    own = layers.settings_hash(settings, data="x")
    assert re.fullmatch("[0-9a-f]{8}", own)
    assert (
        layers.settings_hash(dict(reversed(settings.items())), data="x") == own
    )  # the order of the keys is nothing
    for key in settings:
        value = "SASRec" if key == "model" else "another value"
        other = layers.settings_hash(settings | {key: value}, data="x")
        assert (other == own) is (
            key in SAME_RUN | {"checkpoint", "mixture_exponent"}
            or (key == "MAX_ITEM_LIST_LENGTH" and model in registry.OURS)
        ), key
    assert set(settings) >= SAME_RUN
    assert (
        layers.settings_hash(settings, data="y") != own
        and layers.settings_hash(settings, data="x", version="2") != own
    )


@pytest.mark.parametrize(
    ("model", "key", "value"),
    [("GRU4Rec", "precision", "bf16"), ("LIR", "MAX_ITEM_LIST_LENGTH", 20)],
)
def test_a_setting_that_the_model_does_not_read_makes_no_other_run(model, key, value):
    other = {"GRU4Rec": "CALRec", "LIR": "GRU4Rec"}[model]  # which does

    def identity(name, overrides):
        return layers.settings_hash(layers.resolve(name, "any", [], overrides))

    assert identity(model, {}) == identity(model, {key: value})
    assert identity(other, {}) != identity(other, {key: value})


def test_the_window_of_the_models_beside_a_text_model():
    shared = layers.shared_settings(
        layers.resolve("LIR", "any", [], {"MAX_ITEM_LIST_LENGTH": 20, "precision": "bf16"})
    )
    assert layers.resolve("GRU4Rec", "any", [], shared)["MAX_ITEM_LIST_LENGTH"] == 20


def test_text_models_have_one_optimizer():
    with pytest.raises(UserError, match="learner: LIR .* and muon, found 'sgd'"):
        layers.resolve("LIR", "any", [], {"learner": "sgd"})
    assert layers.resolve("LIR", "any", [], {"learner": "adam"}) == layers.resolve("LIR", "any")
    assert layers.resolve("GRU4Rec", "any", [], {"learner": "sgd"})["learner"] == "sgd"
    with pytest.raises(UserError, match="learner: muon is for text models; GRU4Rec"):
        layers.resolve("GRU4Rec", "any", [], {"learner": "muon"})


def test_the_hash_sees_into_groups():
    hashes = {
        layers.settings_hash(layers.resolve("LIR", "any", [], overrides))
        for overrides in (
            {},
            {"eval_args.mode": "uni5"},
            {"text_words.Title": 3},
            {"eval_args.split": {"LS": "test_only"}},
            {"learning_rate": 1},
            {"topk": [10]},
        )
    }
    assert len(hashes) == 6


# --- RecBole's Config ---


def test_recboles_config_holds_the_settings_and_evaluates_nothing(tmp_path, monkeypatch):
    """RecBole's own Config calls eval on strings: `3-1` becomes 2, and any code is run."""
    import os
    import sys

    from recbole.config import configurator

    monkeypatch.setattr(sys, "argv", ["run", "--epochs=77", "--model=SASRec"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "keep")
    code = f"__import__('pathlib').Path({str(tmp_path / 'called')!r}).touch()"
    resolved = layers.resolve(
        "GRU4Rec",
        "any",
        [],
        {"wandb_project": "3-1", "data_name": code, "hidden_size": 16, "epochs": 3},
    )
    before, groups = copy.deepcopy(resolved), copy.deepcopy(configurator.general_arguments)
    built = layers.recbole_config(resolved, tmp_path)
    assert (built["wandb_project"], built["data_name"], built["hidden_size"], built["epochs"]) == (
        "3-1",
        code,
        16,
        3,
    )
    assert (
        str(built["data_path"]) == str(tmp_path)
        and built["model"] == "GRU4Rec"
        and built["text_fields"] == resolved["text_fields"]
    )
    assert not (tmp_path / "called").exists()
    assert (
        sys.argv == ["run", "--epochs=77", "--model=SASRec"]
        and os.environ["CUDA_VISIBLE_DEVICES"] == "keep"
    )
    assert resolved == before and configurator.general_arguments == groups


def test_stock_config_evaluates_strings(tmp_path, monkeypatch):
    """The test above guards against this trap."""
    import sys

    from recbole.config import Config

    import recbole_llm  # noqa: F401

    monkeypatch.setattr(sys, "argv", ["run"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert (
        Config(model="BPR", dataset="any", config_dict={"wandb_project": "3-1"})["wandb_project"]
        == 2
    )
