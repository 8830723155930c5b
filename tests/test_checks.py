"""Every invalid value is reported in one line, before anything is loaded."""

from typing import Annotated, ClassVar, Literal

import numpy as np
import pytest
from pydantic import Field

from recbole_llm.errors import UserError
from recbole_llm.settings import layers, schema
from recbole_llm.settings.rules import checked

NAN, INFINITE = float("nan"), float("inf")
WRONG = [  # model, --key=value, what is said
    ("CALRec", "nig_targets=foo", "nig_targets: expected last or all, found 'foo'"),
    ("LIR", "last_n=0", "last_n: expected a whole number from 1 up, found 0"),
    ("LIR", "last_n=-2", "last_n: expected a whole number from 1 up, found -2"),
    ("LIR", "last_n=1.5", "last_n: expected a whole number from 1 up, found 1.5"),
    ("LIR", "last_n=1e3", "last_n: expected a whole number from 1 up, found 1000.0"),
    ("LIR", "last_n=true", "last_n: expected a whole number from 1 up, found True"),
    ("LIR", "last_n=null", "last_n: expected a whole number from 1 up, found null"),
    ("LIR", "last_n=few", "last_n: expected a number, found 'few'"),
    ("LIR", "text_words.Title=-1", "text_words.Title: expected a whole number from 1 up, found -1"),
    ("LIR", "text_words.Title=abc", "text_words.Title: expected a number, found 'abc'"),
    ("LIR", "text_words.Title.a=3", "text_words.Title: expected a number, found {'a': 3}"),
    (
        "LIR",
        "text_words.Titel=3",
        (
            "text_words.Titel: expected a name of text_fields, which has Title, Category, "
            "Brand, Price; did you mean Title?"
        ),
    ),
    ("LIR", "text_words=5", "text_words: expected a group such as {name: value}, found 5"),
    ("LIR", "text_words=", "text_words: expected a group such as {name: value}, found null"),
    (
        "LIR",
        "text_fields=title",
        "text_fields: expected a group such as {name: value}, found 'title'",
    ),
    ("LIR", "text_fields=", "text_fields: expected a group such as {name: value}, found null"),
    (
        "LIR",
        "text_fields={}",
        (
            "text_fields: expected attribute names with their columns, such as {Title: title}, "
            "found none"
        ),
    ),
    ("LIR", "text_fields.Title=", "text_fields.Title: expected a text, found null"),
    (
        "LIR",
        "text_fields.Year=1999",
        "text_fields.Year: expected a text, found 1999; put it in quotes",
    ),
    (
        "LIR",
        "text_fields={1999: year}",
        "text_fields: expected names that are texts, found 1999; put it in quotes",
    ),
    (
        "LIR",
        "eval_args.part=foo",
        "eval_args.part: expected pretrain, continue or both, found 'foo'",
    ),
    (
        "LIR",
        "eval_args.part.x=1",
        "eval_args.part: expected pretrain, continue or both, found {'x': 1}",
    ),
    (
        "LIR",
        "eval_args.split=LS",
        "eval_args.split: expected a group such as {name: value}, found 'LS'",
    ),
    (
        "LIR",
        "eval_args={mod: full}",
        "unknown key 'eval_args.mod': expected one of group_by, mode, order, part, split",
    ),
    (
        "GRU4Rec",
        "candidates_exclude=foo",
        "candidates_exclude: expected user or target, found 'foo'",
    ),
    (
        "GRU4Rec",
        "dedup=foo",
        "dedup: expected event, consecutive, consecutive_item or none, found 'foo'",
    ),
    ("GRU4Rec", "catalogue=foo", "catalogue: expected met or all, found 'foo'"),
    ("LIR", "bm25_b=7", "bm25_b: expected a number from 0 to 1, found 7"),
    ("LIR", "bm25_k1=-1", "bm25_k1: expected a number from 0 up, found -1"),
    ("LIR", "bm25_k1=null", "bm25_k1: expected a number from 0 up, found null"),
    ("LIR", "bm25_k1=.nan", "bm25_k1: expected a number from 0 up, found nan"),
    ("CALRec", "temperature=-1", "temperature: expected a number from 0 up, found -1"),
    ("CALRec", "temperature=.inf", "temperature: expected a number from 0 up, found inf"),
    ("CALRec", "warmup=1", "warmup: expected a number from 0 up and below 1, found 1"),
    ("CALRec", "warmup=2", "warmup: expected a number from 0 up and below 1, found 2"),
    ("CALRec", "texts_kept=0", "texts_kept: expected a whole number from 1 up, found 0"),
    ("CALRec", "samples=0", "samples: expected a whole number from 1 up, found 0"),
    ("CALRec", "max_new_tokens=0", "max_new_tokens: expected a whole number from 1 up, found 0"),
    ("GRU4Rec", "user_sample=0", "user_sample: expected a number above 0, found 0"),
    ("GRU4Rec", "user_sample=null", "user_sample: expected a number above 0, found null"),
    ("GRU4Rec", "user_sample=-2", "user_sample: expected a number above 0, found -2"),
    (
        "GRU4Rec",
        "seed=99999999999999",
        "seed: expected a whole number from 0 to 4294967295, found 99999999999999",
    ),
    ("GRU4Rec", "seeds=[1, -1]", "seeds: expected whole numbers from 0 to 4294967295, found -1"),
    ("CALRec", "template=abc", "template: expected a group such as {name: value}, found 'abc'"),
    ("CALRec", "template.foo=x", "unknown key 'template.foo': expected one of "),
    ("CALRec", "template.next=", "template.next: expected a text, found null"),
    ("CALRec", "template={head: x}", "template: expected head, first, next"),
    ("CALRec", "backbone=", "backbone: expected a text, found null"),
    ("CALRec", "backbone=''", "backbone: expected a text, found ''"),
    (
        "CALRec",
        "clip_grad_norm=5",
        "clip_grad_norm: expected a group such as {name: value}, found 5",
    ),
    (
        "SASRec",
        "clip_grad_norm.foo=5",
        "unknown key 'clip_grad_norm.foo': expected one of max_norm, norm_type",
    ),
    (
        "SASRec",
        "clip_grad_norm.max_norm=x",
        "clip_grad_norm.max_norm: expected a number, found 'x'",
    ),
    (
        "BPR",
        "train_neg_sample_args=4",
        "train_neg_sample_args: expected a group such as {name: value}, found 4",
    ),
    (
        "CALRec",
        "train_neg_sample_args=4",
        "train_neg_sample_args: expected a group such as {name: value}, found 4",
    ),
    (
        "BPR",
        "train_neg_sample_args.sample_num=0",
        "train_neg_sample_args.sample_num: expected a whole number from 1 up, found 0",
    ),
    (
        "BPR",
        "train_neg_sample_args.num=1",
        (
            "unknown key 'train_neg_sample_args.num': expected one of alpha, candidate_num, "
            "distribution, dynamic"
        ),
    ),
    (
        "BPR",
        "val_interval=abc",
        "val_interval: expected a group such as {name: value}, found 'abc'",
    ),
    ("BPR", "load_col=abc", "load_col: expected a group such as {name: value}, found 'abc'"),
    (
        "BPR",
        "load_col.inter=5",
        "load_col.inter: expected a list of columns such as [user_id, item_id], or '*', found 5",
    ),
    ("BPR", "threshold.rating=high", "threshold.rating: expected a number, found 'high'"),
    ("BPR", "rm_dup_inter=some", "rm_dup_inter: expected first or last, found 'some'"),
    ("BPR", "checkpoint_dir=", "checkpoint_dir: expected a text, found null"),
    ("BPR", "data_path=", "data_path: expected a text, found null"),
    ("BPR", "data_name=2024", "data_name: expected a text, found 2024; put it in quotes"),
    (
        "SASRec",
        "MAX_ITEM_LIST_LENGTH=0",
        "MAX_ITEM_LIST_LENGTH: expected a whole number from 1 up, found 0",
    ),
    ("SASRec", "hidden_size=1.5", "hidden_size: expected a whole number from 1 up, found 1.5"),
    ("BPR", "embedding_size=-3", "embedding_size: expected a whole number from 1 up, found -3"),
    ("BPR", "learning_rate=0", "learning_rate: expected a number above 0, found 0"),
    ("LIR", "topk=[5, 0]", "topk: expected positive integers, found 0"),
    ("LIR", "topk=[]", "topk: expected one at least, found []"),
    ("LIR", "metrics=[]", "metrics: expected one at least, found []"),
    ("LIR", "beside=5", "beside: expected texts, found 5; put it in quotes"),
    ("LIR", "stage_settings=1", "stage_settings: expected a group such as {name: value}, found 1"),
    (
        "LIR",
        "stage_settings.a.epochs=1",
        "stage_settings.a: expected one of the stages (there is none)",
    ),
    ("LIR", "model=Pop", "unknown key 'model'"),
]


@pytest.mark.parametrize(
    ("model", "argument", "said"),
    WRONG,
    ids=[f"{model} {argument}" for model, argument, _ in WRONG],
)
def test_a_value_that_cannot_be_is_told(model, argument, said):
    key, _, value = argument.partition("=")
    with pytest.raises(UserError) as caught:
        layers.resolve(model, "any", [], {key: layers.parse_value(value)})
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


RIGHT = [  # model, --key=value, how it is used
    ("LIR", "seed=4294967295", 2**32 - 1),
    ("LIR", "bm25_b=1", 1),
    ("CALRec", "temperature=0", 0),
    ("CALRec", "warmup=0", 0),
    ("CALRec", "valid_users=0", 0),
    ("LIR", "user_sample=1", 1),
    ("LIR", "text_words={}", {}),
    ("CALRec", "clip_grad_norm=", None),
    ("LIR", "data_name=", None),
    ("LIR", "init_from=~", None),
    ("LIR", "topk=10", [10]),
    ("LIR", "beside=Pop", ["Pop"]),
    ("LIR", "beside=[]", []),
    ("LIR", "beside=", []),
    ("SASRecF", "selected_features=brand", ["brand"]),
    ("LIR", "seeds=3", [3]),
    ("LIR", "topk=1, 5,10", [1, 5, 10]),
    ("LIR", "metrics=Recall,MRR,NDCG", ["Recall", "MRR", "NDCG"]),
    ("LIR", "load_col={inter: '*', item: ~}", {"inter": "*", "item": None}),
    ("BPR", "val_interval.rating=[3,5]", {"rating": [3, 5]}),
    ("SASRec", "clip_grad_norm.max_norm=5", {"max_norm": 5}),
    ("LIR", "dedup=none", "none"),
    ("SASRec", "train_neg_sample_args=", None),
]


@pytest.mark.parametrize(
    ("model", "argument", "used"),
    RIGHT,
    ids=[f"{model} {argument}" for model, argument, _ in RIGHT],
)
def test_a_value_that_can_be_is_used(model, argument, used):
    key, _, value = argument.partition("=")
    features = {"selected_features": ["brand"]} if model == "SASRecF" else {}
    assert (
        layers.resolve(model, "any", [], features | {key: layers.parse_value(value)})[
            key.partition(".")[0]
        ]
        == used
    )


def test_a_text_of_the_template_may_be_empty():
    assert layers.resolve("CALRec", "any", [], {"template.first": ""})["template"]["first"] == ""


def test_words_for_attributes_of_another_dataset():
    """A default may name a Brand, which ml-100k lacks, but no user may set it."""
    assert (
        layers.resolve(
            "LIR", "ml-100k", [], {"text_words": layers.resolve("LIR", "ml-100k")["text_words"]}
        )["text_words"]["Brand"]
        == 15
    )
    with pytest.raises(
        UserError,
        match="text_words.Brand: expected a name of text_fields, which has Title, Year, Genre",
    ):
        layers.resolve("LIR", "ml-100k", [], {"text_words.Brand": 3})
    assert (
        layers.resolve("LIR", "any", [], {"text_fields.Maker": "maker", "text_words.Maker": 3})[
            "text_words"
        ]["Maker"]
        == 3
    )


@pytest.mark.parametrize("name", ["/tmp/x", "../Pet", "a\\b", "..", ".", "", "a\nb"])
def test_a_dataset_is_a_name_and_no_path(name):
    """A path would name a settings file outside properties/ and data outside data_path."""
    with pytest.raises(
        UserError,
        match=r"^dataset .*: expected the name of a folder below data_path[^\n]*set --data_path",
    ):
        layers.resolve("LIR", name)


def test_a_stored_run_is_checked_too():
    stored = layers.resolve("LIR", "any", [], {"init_from": "x"})
    with pytest.raises(UserError, match="last_n: expected a whole number"):
        layers.changed(stored, {"last_n": 0})
    assert layers.changed(stored, {"init_from": None, "last_n": 2}) == layers.resolve(
        "LIR", "any", [], {"last_n": 2}
    )


# The rules themselves


def field_rule(kind, default=None, **limits):
    """Return the rules of a class with one setting, `key`, of a type."""
    made = {"__annotations__": {"key": kind}, "key": Field(default, **limits)}
    return schema.rules(type("Made", (schema.ModelSettings,), made))


@pytest.mark.parametrize(
    ("kind", "limits", "spelled", "right", "wrong"),
    [
        (int, {}, "int", [0, -5, 10**400], [None, 1.0, "1.5", "one", True, [1]]),
        (int, {"ge": 1}, "int, >= 1", [1, 7], [0, -1, 1.5]),
        (int, {"ge": -2, "le": 3}, "int, -2 to 3", [-2, 0, 3], [-3, 4]),
        (float, {}, "float", [0, -1.5, 1e-4], [None, "x", "nan", False, NAN, INFINITE, 10**400]),
        (float, {"gt": 0, "le": 1}, "float, > 0, <= 1", [1e-9, 1], [0, 1.1]),
        (bool, {}, "bool", [True, False], [0, 1, None, "maybe"]),
        (str, {}, "str", ["a", "1"], ["", "  ", None, 1, ["a"]]),
        (str | None, {}, "str or null", ["a", None], ["", 1]),
        (int | None, {"ge": 1}, "int, >= 1, or null", [1, None], [0, "x"]),
        (schema.Text, {}, "text", ["", "a"], [None, 1]),
        (Literal["a", "b"], {}, "a | b", ["a", "b"], ["c", "", None, "a | b"]),
        (dict, {}, "dict", [{}, {"a": 1}], [None, [], "a", {1: 2}]),
        (dict | None, {}, "dict or null", [{}, None], [1]),
        (
            dict[str, Annotated[int, Field(ge=1)]],
            {},
            "dict of int, >= 1",
            [{}, {"a": 1}],
            [{"a": 0}, {"a": None}, {"a": 1, "b": "x"}],
        ),
        (list[float], {"gt": 0}, "list of float, > 0", [[1, 0.5], []], [[0], {}]),
        (str | dict, {}, "str or dict", ["a", {"a": 1}], [1, None, ["a"]]),
    ],
)
def test_a_type_takes_what_it_says(kind, limits, spelled, right, wrong):
    known = field_rule(kind, right[0], **limits)
    assert str(known["key"]) == spelled
    for value in right:
        assert checked("key", value, known) == value
    for value in wrong:
        with pytest.raises(UserError, match="^key"):
            checked("key", value, known)


class Inner(schema.Group):
    c: str | None = None
    d: int = 1


class Complete(schema.Group):
    is_complete: ClassVar[bool] = True
    b: schema.Text = "x"
    a: schema.Text = "y"


def test_a_group_has_the_settings_of_its_class():
    known = field_rule(Inner, Inner())
    assert set(known) == {"key", "key.c", "key.d"}
    assert not known["key"].nullable and known["key.c"].nullable
    checked("key", {"c": None}, known)
    with pytest.raises(UserError, match="unknown key 'key.e': expected one of c, d"):
        checked("key", {"e": None}, known)
    with pytest.raises(UserError, match="key.d: expected a whole number"):
        checked("key", {"d": None}, known)
    assert checked("key", None, field_rule(Inner | None)) is None


def test_a_complete_group_has_all_of_its_names():
    known = field_rule(Complete, Complete())
    assert checked("key", {"a": "", "b": "z"}, known) == {"a": "", "b": "z"}
    wrong = [
        ({"a": ""}, "key: expected b, a, found no b; "),
        ({"a": "", "b": "", "c": ""}, "unknown key 'key.c': expected one of a, b"),
        ({"a": 1, "b": ""}, "key.a: "),
    ]
    for value, message in wrong:
        with pytest.raises(UserError, match=message):
            checked("key", value, known)


def test_a_default_that_sets_some_of_a_group_holds_these_alone():
    class Made(schema.ModelSettings):
        part: Inner = Inner(d=3)
        full: Inner = Inner()
        complete: Complete = Complete(a="z")

    assert schema.defaults(Made) == {
        "part": {"d": 3},
        "full": {"c": None, "d": 1},
        "complete": {"b": "x", "a": "z"},
    }


@pytest.mark.parametrize("kind", [bytes, int | str, list[int] | dict, object, set])
def test_a_type_that_no_setting_can_have_is_a_mistake_of_ours(kind):
    with pytest.raises(UserError, match="Made.key: expected int, float, bool, str, Literal"):
        field_rule(kind)


def test_tuples_are_lists():
    assert layers.resolve("LIR", "any", [], {"topk": (5, 10), "valid_metric": "NDCG@5"})[
        "topk"
    ] == [5, 10]
    with pytest.raises(UserError, match="topk: expected"):
        layers.resolve("LIR", "any", [], {"topk": np.array([5, 10])})


@pytest.mark.parametrize(
    "text", ["5,10,20", "5, 10 ,20", "low+5,5,low+high", "4.text,7", "quartiles, x"]
)
def test_values_between_commas_are_those_of_a_list(text):
    """Values may have any type where the rule names none: `--activity_borders=5,10,20`."""
    known = field_rule(list, [])
    listed = checked("key", layers.parse_value(f"[{text}]"), known)
    assert checked("key", layers.parse_value(text), known) == listed


def test_what_is_no_yaml_between_commas_is_told():
    with pytest.raises(UserError, match=r"topk: expected .* found '\[5'"):
        layers.resolve("LIR", "Pet", overrides={"topk": "1,[5"})
