"""RecBole's own code with our models: the same checks, and a folder for each training."""

import sys

import pytest
from worlds import write_cycle

from recbole_llm.errors import UserError
from recbole_llm.training.loop import _new_folder


@pytest.fixture
def config(tmp_path, monkeypatch):
    """RecBole's Config of a model on a small dataset."""
    import recbole_llm  # noqa: F401

    write_cycle(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run"])

    def make(model, **settings):
        from recbole.config import Config

        common = {"data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved")}
        return Config(model=model, dataset="cycle", config_dict=common | settings)

    return make


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_args": {"mode": "pop5"}}, "eval_args.mode: expected full or uniK"),
        ({"eval_args": {"mode": "labeled"}}, "eval_args.mode: expected full or uniK"),
        ({"eval_args": {"order": "RO"}}, "order is always TO"),
        ({"eval_args": {"group_by": "none"}}, "group_by always user"),
        ({"adapter": "lorra"}, "adapter: expected none or lora, found 'lorra'"),
        ({"decoding": "beams"}, "decoding: expected sample or constrained"),
        ({"nig_targets": "lest"}, "nig_targets: expected last or all"),
        ({"learner": "sgd"}, "learner: CALRec and the other text models know adam"),
        ({"valid_metric": "MRR@7"}, "valid_metric: expected one of"),
        ({"metrics": ["Recall", "ShannonEntropy"]}, "metrics: expected some of"),
        ({"epochs": -1, "adapter": "lorra"}, "(?s)adapter: .*epochs: expected a whole number"),
    ],
)
def test_what_our_commands_refuse_recboles_config_refuses(config, settings, message):
    with pytest.raises(UserError, match=message):
        config("CALRec", **settings)


def test_what_our_commands_take_recboles_config_takes(config):
    """RecBole's defaults among it: its metrics, its learner in capitals, keys that it alone knows."""
    made = config("CALRec", metrics=["Recall", "MRR", "NDCG", "Hit", "Precision"], my_own_key=3)
    assert made["my_own_key"] == 3 and made["adapter"] == "none"
    assert config("BPR", adapter="lorra")["adapter"] == "lorra"  # stock models are RecBole's


def test_trainings_of_one_second_have_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda *args: "20260101-000000")
    folders = [_new_folder(tmp_path / "saved", "CALRec") for _ in range(3)]
    assert [folder.name for folder in folders] == [
        "CALRec-20260101-000000",
        "CALRec-20260101-000000-2",
        "CALRec-20260101-000000-3",
    ]
    assert all(folder.is_dir() for folder in folders)
