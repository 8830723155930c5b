"""Settings as users of RecBole write them: YAML files, old keys, other spellings of a value."""

import pytest

from recbole_llm.errors import UserError
from recbole_llm.settings import layers, spellings

SEQUENTIAL = """
# environment
gpu_id: '0'
use_gpu: True
seed: 2020
state: INFO
reproducibility: True
data_path: 'dataset/'
checkpoint_dir: 'saved'
show_progress: True
save_dataset: False
save_dataloaders: False
log_wandb: False
# dataset
field_separator: "\t"
seq_separator: " "
USER_ID_FIELD: user_id
ITEM_ID_FIELD: item_id
TIME_FIELD: timestamp
NEG_PREFIX: neg_
ITEM_LIST_LENGTH_FIELD: item_length
LIST_SUFFIX: _list
MAX_ITEM_LIST_LENGTH: 50
POSITION_FIELD: position_id
load_col:
    inter: [user_id, item_id, timestamp]
unload_col: ~
user_inter_num_interval: "[5,inf)"
item_inter_num_interval: "[5,inf)"
# training
epochs: 300
train_batch_size: 2048
learner: adam
learning_rate: 0.001
train_neg_sample_args: ~
eval_step: 1
stopping_step: 10
clip_grad_norm: ~
weight_decay: 0.0
loss_decimal_place: 4
# evaluation
eval_args:
    split: {'LS': 'valid_and_test'}
    group_by: user
    order: TO
    mode: full
repeatable: True
metrics: ["Recall", "MRR", "NDCG", "Hit", "Precision"]
topk: [5, 10, 20]
valid_metric: MRR@10
valid_metric_bigger: True
eval_batch_size: 4096
metric_decimal_place: 4
"""
GENERAL = """
gpu_id: 0
embedding_size: 64
load_col: {inter: [user_id, item_id, rating, timestamp]}
val_interval: {rating: "[3,inf)"}
unused_col: {inter: [rating, timestamp]}
eval_args:
  {split: {RS: [0.8, 0.1, 0.1]}, group_by: user, order: TO, mode: {valid: uni100, test: uni100}}
train_neg_sample_args:
  {distribution: uniform, sample_num: 1, alpha: 1.0, dynamic: False, candidate_num: 0}
metrics: [ndcg, HIT, mRr]
topk: 10
valid_metric: ndcg@10
"""
SHORT = """
epochs: 20   # a few
learning_rate: 1e-3
metrics: ['Recall', 'NDCG']
topk: [10]
valid_metric: NDCG@10
"""
QUOTED = """
epochs: '20'
learning_rate: '1e-3'
use_gpu: 'False'
seed: "7"
item_inter_num_interval: [5, 100]
benchmark_filename: None
checkpoint_dir: ~/runs
topk: '5,10'
"""
LISTS = """
metrics: [Recall, NDCG, MAP, ItemCoverage, GiniIndex, AveragePopularity, TailPercentage]
valid_metric: MAP@10
numerical_features: ~
beside: None
nproc: 1
"""


def read(tmp_path, text, model="SASRec"):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return layers.resolve(model, "any", [str(path)])


@pytest.mark.parametrize(
    ("text", "model"),
    [
        (SEQUENTIAL, "SASRec"),
        (SEQUENTIAL, "CALRec"),
        (GENERAL, "BPR"),
        (SHORT, "GRU4Rec"),
        (QUOTED, "SASRec"),
    ],
)
def test_a_file_of_recboles_starts_at_the_first_try(text, model, tmp_path, capsys):
    settings = read(tmp_path, text, model)
    assert capsys.readouterr().err == ""
    assert settings["model"] == model


def test_values_in_quotes_are_what_they_say(tmp_path):
    settings = read(tmp_path, QUOTED)
    assert (settings["epochs"], settings["learning_rate"], settings["seed"]) == (20, 0.001, 7)
    assert settings["use_gpu"] is False and settings["topk"] == [5, 10]
    assert settings["item_inter_num_interval"] == "[5,100]"
    assert settings["benchmark_filename"] is None
    assert settings["checkpoint_dir"].startswith("/") and settings["checkpoint_dir"].endswith(
        "/runs"
    )


def test_the_command_line_a_file_and_python_spell_alike(tmp_path, monkeypatch):
    from recbole_llm import cli

    monkeypatch.chdir(tmp_path)
    given = {
        "gpu_id": "1",
        "user_inter_num_interval": [5, 10],
        "data_path": "~/x",
        "beside": "None",
    }
    python = layers.resolve("BPR", "any", [], given)
    _, typed = cli._arguments(
        ["--gpu_id='1'", "--user_inter_num_interval=[5,10]", "--data_path=~/x", "--beside=None"]
    )
    assert layers.resolve("BPR", "any", [], typed) == python
    text = "gpu_id: '1'\nuser_inter_num_interval: [5, 10]\ndata_path: ~/x\nbeside: None\n"
    assert read(tmp_path, text, "BPR") == python
    assert python["gpu_id"] == 1 and python["user_inter_num_interval"] == "[5,10]"


def test_a_key_without_effect_is_said_once_and_not_taken(tmp_path, capsys):
    spellings.warn.cache_clear()
    text = "save_dataset: True\neval_batch_size: 256\nmetric_decimal_place: 4\n"
    plain = read(tmp_path, "epochs: 3\n")
    for _ in range(2):  # as for each model of a table
        assert read(tmp_path, text + "epochs: 3\n") == plain
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" has no effect")[0] for line in lines] == [
        f"warning: {tmp_path / 'mine.yaml'}: key 'save_dataset'",
        f"warning: {tmp_path / 'mine.yaml'}: key 'eval_batch_size'",
    ]


def test_lists_that_are_always_computed_may_be_asked_for(tmp_path):
    settings = read(tmp_path, LISTS)
    assert settings["beside"] == settings["numerical_features"] == []
    with pytest.raises(
        UserError, match="valid_metric: expected one of map@1, .*, found 'GiniIndex@10'"
    ):
        read(tmp_path, LISTS.replace("MAP@10", "GiniIndex@10"))


def test_all_mistakes_of_all_files_are_told_at_once(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("epohs: 3\nlearning_rate: fast\ntopk: [0]\n")
    second.write_text("eval_setting: TO_LS,full\n")
    with pytest.raises(UserError) as fault:
        layers.resolve(
            "SASRec", "any", [str(first), str(second)], {"eval_args.mod": "full", "seed": -1}
        )
    count, *lines = str(fault.value).splitlines()
    assert count == "6 settings cannot be taken:"
    expected = [
        f"{first}: unknown key 'epohs': did you mean epochs",
        f"{first}: learning_rate: expected a number, found 'fast'",
        f"{first}: topk: expected positive integers, found 0",
        f"{second}: key 'eval_setting' is of RecBole before 1.0: say --eval_args.split",
        "unknown key 'eval_args.mod': expected one of",
        "seed: expected a whole number from 0 to 4294967295, found -1",
    ]
    for line in expected:
        assert sum(one.strip().startswith(line) for one in lines) == 1, (line, lines)


@pytest.mark.parametrize("key", spellings.OLD)
def test_an_old_key_is_told_with_what_says_the_same(key):
    with pytest.raises(
        UserError, match=f"key '{key}' is of RecBole before 1.0: (say --|leave it out)"
    ):
        layers.resolve("BPR", "any", [], {key: 1})


def test_an_old_meaning_is_said(capsys):
    spellings.warn.cache_clear()
    assert layers.resolve("BPR", "any", [], {"group_by_user": True})["group_by_user"] is True
    assert "means over users" in capsys.readouterr().err
    layers.resolve("BPR", "any", [], {"group_by_user": False})
    assert capsys.readouterr().err == ""


def test_precision_and_map_are_recboles():
    """Of one relevant item: one of k is right, and the average precision is the reciprocal rank."""
    import numpy as np

    from recbole_llm.evaluation.metrics import rank_values

    above, tied = np.array([0, 4, 9, 12]), np.zeros(4, int)
    assert rank_values("precision", 10, "", above, tied).tolist() == [0.1, 0.1, 0.1, 0.0]
    assert rank_values("map", 10, "", above, tied).tolist() == [1.0, 0.2, 0.1, 0.0]
    ties = rank_values("precision", 2, "", np.array([0]), np.array([3]))
    assert ties.tolist() == [pytest.approx(0.5 * 2 / 4)]
