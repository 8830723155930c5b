"""Commands print and write what a user expects."""

import csv
import json
import re
import shutil
import statistics
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml
from shops import LEFT_ALONE, only, process, rows_of, table_line, there, write_shop

from recbole_llm.cli import main
from recbole_llm.evaluation.ranks import RankTable
from recbole_llm.runs.commands import run_settings
from recbole_llm.runs.runner import Runner


def test_a_run_prints_one_table_with_the_models_beside_it(shop):
    assert shop.lir.returncode == 0, shop.lir.stderr
    by_model = {row["model"]: row for row in shop.lir_rows}
    assert list(by_model) == ["Pop", "LIR"]  # one row each, in the order of the table
    for model, row in by_model.items():
        assert f"{row['test']['ndcg@10']:.4f}" in table_line(shop.lir.stdout, model)
    assert "tiny: 40 test cases, full" in shop.lir.stdout
    assert {path.name for path in shop.first.iterdir()} == {"dataset", "saved"}
    assert {path.name for path in (shop.first / "dataset" / "tiny").iterdir()} == {
        "tiny.inter",
        "tiny.item",
    }


def test_a_run_leaves_its_folder(shop):
    run = only(shop.first, "LIR-tiny-")
    files = {
        "run.json",
        "log",
        "test.ranks.npz",
        "test.top.npz",
        "valid.ranks.npz",
        "valid.top.npz",
        "model.safetensors",
    }
    assert files <= {path.name for path in run.iterdir()}
    assert not list(run.rglob("*.tmp"))
    record = json.loads((run / "run.json").read_text())
    assert (
        record["status"] == "finished"
        and record["settings"]["model"] == "LIR"
        and record["settings"]["bm25_k1"] == 1.5
    )
    assert record["row"] == shop.lir_rows[1]
    assert {"python", "recbole", "torch", "recbole_llm"} <= record["versions"].keys()
    table = RankTable.load(run / "test.ranks.npz")
    assert dict(zip(table.user, table.target, strict=True)) == {
        user: items[-1] for user, items in shop.bought.items()
    }
    top = np.load(run / "test.top.npz")
    assert (
        top["items"].shape == top["scores"].shape == (40, 30)
    )  # 1000, or the catalogue where it is smaller
    assert (np.sort(top["items"], axis=1) == np.arange(30)).all()
    log = (run / "log").read_text()
    assert (
        "tiny: 2" in log
        and "events read" in log
        and "no column brand: the text has no Brand" in log
        and log.count("cases:") == 1
    )


def test_a_result_row_says_what_it_is_the_result_of(shop):
    for row in shop.lir_rows:
        assert (
            row["dataset"] == "tiny"
            and row["seed"] == 2020
            and row["device"] == "cpu"
            and row["cases"] == 40
            and row["backbone"] is None
        )
        assert re.fullmatch("[0-9a-f]{16}", row["fingerprint"]) and re.fullmatch(
            "[0-9a-f]{8}", row["hash"]
        )
        assert row["run"] == f"{row['model']}-tiny-{row['hash']}"
        assert row["split"]["split"] == {"LS": "valid_and_test"} and row["split"]["mode"] == "full"
        assert row["versions"]["recbole_llm"]
        for part in ("valid", "test"):
            assert {
                "recall@1",
                "recall@10",
                "ndcg@10",
                "ndcg@10_opt",
                "ndcg@10_pes",
                "mrr@10",
                "mrr",
                "item_coverage@10",
            } <= row[part].keys()
            assert row[part]["ndcg@10_pes"] <= row[part]["ndcg@10"] <= row[part]["ndcg@10_opt"]
        for phase in ("load", "valid", "test"):
            assert row["seconds"][phase] >= 0 and row["memory_mib"][phase] > 50
        assert isinstance(row["rates"], dict)


def test_the_same_command_takes_the_finished_run(shop):
    assert shop.again.returncode == 0, shop.again.stderr
    assert [line[9:].split(":")[0] for line in shop.again.stderr.splitlines()] == [
        "already there"
    ] * 2
    assert shop.again.stdout == shop.lir.stdout
    assert shop.again_left == shop.lir_left  # no row, no file, not even a line in the log


def test_compare_prints_mean_and_deviation_over_seeds(shop):
    assert shop.compare.returncode == 0, shop.compare.stderr
    rows = shop.compare_rows
    models = ("Pop", "LIR", "GRU4Rec")
    assert [(row["model"], row["seed"]) for row in rows] == [*product(models, (1, 2))]
    values_of = {model: [] for model in models}
    for row in rows:
        values_of[row["model"]].append(row["test"]["ndcg@10"])
    values = values_of["GRU4Rec"]
    assert values[0] != values[1]
    mean, sd = statistics.mean(values), statistics.stdev(values)
    assert f"{mean:.4f} ± {sd:.4f}" in table_line(shop.compare.stdout, "GRU4Rec")
    (folder,) = (shop.second / "saved" / "tables").glob("tiny-Pop-LIR-GRU4Rec-????????")
    assert {path.name for path in folder.iterdir()} == {
        "table.md",
        "table.tex",
        "table.csv",
        "runs.json",
    }
    assert (
        f"{mean:.4f} ± {sd:.4f}" in (folder / "table.md").read_text()
        and f"{mean:.4f} $\\pm$ {sd:.4f}" in (folder / "table.tex").read_text()
    )
    with open(folder / "table.csv") as file:
        line = {line["model"]: line for line in csv.DictReader(file)}["GRU4Rec"]
    assert (float(line["ndcg@10"]), float(line["ndcg@10_sd"])) == (
        pytest.approx(mean, rel=1e-14),
        pytest.approx(sd, rel=1e-12),
    )
    assert json.loads((folder / "runs.json").read_text()) == [row["run"] for row in rows]
    means = {model: statistics.mean(values) for model, values in values_of.items()}
    best = max(means, key=means.get)
    for model in means.keys() - {best}:  # the intervals are about the same means
        gap, low, high = re.search(
            rf"ndcg@10: {best} - {model} = (\S+), 95 % interval \[(\S+), (\S+)\]",
            shop.compare.stdout,
        ).groups()
        assert float(gap) == pytest.approx(means[best] - means[model], abs=6e-5)
        assert float(low) < float(gap) < float(high)


def test_a_setting_of_one_model_is_that_models_alone(shop):
    records = [
        json.loads((shop.second / "saved" / row["run"] / "run.json").read_text())
        for row in shop.compare_rows
    ]
    sizes = {
        record["settings"]["model"]: record["settings"].get("hidden_size") for record in records
    }
    assert sizes == {"Pop": None, "LIR": None, "GRU4Rec": 16}


def test_evaluate_ranks_again_among_candidates(shop):
    assert shop.uni.returncode == 0, shop.uni.stderr
    row = shop.evaluate_rows[0]
    assert (
        "tiny: 40 test cases, uni5" in shop.uni.stdout
        and f"{row['test']['ndcg@10']:.4f}" in table_line(shop.uni.stdout, "GRU4Rec")
    )
    assert (
        row["run"].startswith(f"{shop.gru.name}/evaluate-")
        and row["split"]["mode"] == "uni5"
        and "valid" not in row
    )
    table = RankTable.load(shop.second / "saved" / row["run"] / "test.ranks.npz")
    assert len(table) == 40 and (table.n_candidates == 6).all()
    assert row["test"]["recall@10"] == pytest.approx(1.0)  # six candidates
    assert (
        json.loads((shop.gru / "run.json").read_text())["row"] in shop.compare_rows
    )  # the run itself is as it was


def test_evaluate_takes_a_text_model_to_another_dataset(shop):
    assert shop.other.returncode == 0, shop.other.stderr
    row = shop.evaluate_rows[1]
    trained = next(row for row in shop.compare_rows if row["model"] == "LIR")
    assert (
        row["dataset"] == "other"
        and row["fingerprint"] != trained["fingerprint"]
        and row["test"] != trained["test"]
    )
    assert "other: 40 test cases" in shop.other.stdout


def test_recommend_for_a_user(shop):
    assert shop.user.returncode == 0, shop.user.stderr
    head, *lines = shop.user.stdout.splitlines()
    bought = shop.bought["u3"]
    assert head == f"history ({len(bought)} items, newest last):"
    assert [line.split()[0] for line in lines[: len(bought)]] == bought and lines[
        len(bought)
    ] == "recommended:"
    best = [line.split() for line in lines[len(bought) + 1 :]]
    assert [rank for rank, *_ in best] == ["1", "2", "3"] and best[0][2] == bought[
        -1
    ]  # LIR: most like the newest is itself
    assert float(best[0][1]) >= float(best[1][1]) >= float(best[2][1])


def test_recommend_for_a_history_of_titles_and_ids(shop, monkeypatch, capfd):
    monkeypatch.chdir(shop.first)
    assert main(["recommend", "--checkpoint=LIR", "--history=n7; i4; leash n9", "--k=2"]) == 0
    said = capfd.readouterr()
    lines = said.out.splitlines()
    head = lines.index("history (3 items, newest last):")
    assert head and all("is taken for" in line for line in lines[:head])
    lines = lines[head + 1 :]
    assert [line.split()[0] for line in lines[:3]] == ["i7", "i4", "i9"]
    assert lines[4].split()[2] == "i9" and len(lines) == 6
    assert said.err == "" and there(shop.first) == shop.again_left


def test_recommend_writes_nothing(shop):
    assert shop.recommend_left == shop.again_left and shop.user.stderr == ""


@pytest.mark.slow
def test_a_run_leaves_argv_and_environment_alone_and_loads_no_ray(tmp_path):
    write_shop(tmp_path)
    done = process(tmp_path, code=LEFT_ALONE, CUDA_VISIBLE_DEVICES="keep")
    assert done.returncode == 0, done.stderr


def test_resume_finishes_a_stopped_run(shop, tmp_path, monkeypatch, capfd):
    folder = tmp_path / "copy"
    shutil.copytree(shop.second, folder)
    run, rows = folder / "saved" / shop.gru.name, rows_of(folder)
    record = json.loads((run / "run.json").read_text())
    row = record["row"]
    shutil.rmtree(run)
    monkeypatch.chdir(folder)

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Runner, "evaluate", stop)
        run_settings(record["settings"])
    assert main(["--resume=GRU4Rec-tiny-" + row["hash"][:6]]) == 0
    assert "resumed after epoch 0" in capfd.readouterr().err
    new = json.loads((run / "run.json").read_text())
    assert (
        new["status"] == "finished"
        and new["row"]["test"] == row["test"]
        and rows_of(folder) == [*rows, new["row"]]
    )
    assert len(RankTable.load(run / "test.ranks.npz")) == 40


# --- settings


def printed(capsys, *args):
    assert main([*args, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_print_config_prints_every_setting_and_runs_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = printed(capsys, "--model=lir", "--dataset=tiny")
    assert (
        settings["model"],
        settings["dataset"],
        settings["last_n"],
        settings["mask_history"],
    ) == ("LIR", "tiny", 1, False)
    assert settings["topk"] == [1, 5, 10, 20] and settings["eval_args"]["mode"] == "full"
    assert list(tmp_path.iterdir()) == []
    both = printed(
        capsys, "compare", "--models=Pop,LIR", "--dataset=tiny", "--LIR.last_n=3", "--seeds=5,6"
    )
    assert (
        both.keys() == {"Pop", "LIR"}
        and both["LIR"]["last_n"] == 3
        and both["LIR"]["seed"] == 5
        and "last_n" not in both["Pop"]
    )


def test_print_config_says_what_each_setting_is(tmp_path, monkeypatch, capsys):
    """Above its value: the type and the help; of the model's own class where both describe it."""
    monkeypatch.chdir(tmp_path)
    assert main(["--model=CALRec", "--dataset=tiny", "--print_config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("decoding: sample") - 1].startswith("# ")
    assert any(line.startswith("# (sample | constrained) ") for line in lines)
    assert lines[lines.index("alpha: 0.125") - 1].startswith("# (float")
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("model", ["CALRec", "GRU4Rec", "BPR", "S3Rec"])
def test_what_print_config_prints_is_a_settings_file(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = printed(
        capsys,
        f"--model={model}",
        "--dataset=ml-100k",
        "--topk=[3, 10]",
        "--eval_args.split={RS: [6, 2, 2]}",
    )
    Path("mine.yaml").write_text(yaml.safe_dump(settings))
    assert (
        printed(capsys, f"--model={model}", "--dataset=ml-100k", "--config_files=mine.yaml")
        == settings
    )


def test_who_overrides_whom(tmp_path, monkeypatch, capsys):
    """The command line overrides settings files, and they override properties; later files win.

    Of the properties, those of the dataset come first, then the model's, then the overall ones.
    """
    monkeypatch.chdir(tmp_path)
    asked = ["--model=CALRec", "--dataset=ml-100k"]
    own = printed(capsys, *asked)
    assert (
        own["text_fields"]["Title"] == "movie_title" and "Brand" not in own["text_fields"]
    )  # dataset over overall
    assert (
        own["valid_metric"] == "NDCG@10_pes" and own["max_length"] == 512
    )  # model over overall and over RecBole's; the dataset's for this model
    assert own["topk"] == [1, 5, 10, 20]  # overall over RecBole's [10]
    Path("a.yaml").write_text(
        "valid_metric: MRR@5\neval_step: 4\nseed: 7\ntext_fields: {Title: movie_title}\n"
    )
    Path("b.yaml").write_text("seed: 8\nlearning_rate: 1e-4\n")
    files = printed(capsys, *asked, "--config_files=a.yaml b.yaml")
    assert (files["valid_metric"], files["eval_step"], files["seed"], files["learning_rate"]) == (
        "MRR@5",
        4,
        8,
        0.0001,
    )
    assert files["text_fields"] == {"Title": "movie_title"}
    line = printed(
        capsys,
        *asked,
        "--config_files=a.yaml b.yaml",
        "--seed=9",
        "--eval_step=3",
        "--text_fields.Year=release_year",
    )
    assert (line["valid_metric"], line["eval_step"], line["seed"]) == ("MRR@5", 3, 9)
    assert line["text_fields"] == {"Title": "movie_title", "Year": "release_year"}


def test_values_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = "__import__('pathlib').Path('called').touch()"
    settings = printed(
        capsys,
        "--model=GRU4Rec",
        "--dataset=tiny",
        "--learning_rate=1e-4",
        "--weight_decay=2.5E+3",
        "--epochs=3",
        "--show_progress=false",
        "--eval_args.mode={valid: uni5, test: full}",
        "--eval_args.split.RS=[8, 1, 1]",
        "--metrics=[Hit, NDCG]",
        "--benchmark_filename=null",
        "--wandb_project=3-1",
        f"--data_name={code}",
        "--checkpoint_dir=[not yaml: {",
    )
    assert (
        settings["learning_rate"] == 0.0001
        and isinstance(settings["learning_rate"], float)
        and settings["weight_decay"] == 2500.0
    )
    assert (
        settings["epochs"] == 3
        and settings["show_progress"] is False
        and settings["benchmark_filename"] is None
    )
    assert settings["eval_args"]["mode"] == {"valid": "uni5", "test": "full"} and settings[
        "eval_args"
    ]["split"] == {"RS": [8, 1, 1]}
    assert settings["eval_args"]["part"] == "pretrain" and settings["metrics"] == ["Hit", "NDCG"]
    assert (settings["wandb_project"], settings["data_name"], settings["checkpoint_dir"]) == (
        "3-1",
        code,
        "[not yaml: {",
    )
    assert list(tmp_path.iterdir()) == []


def test_one_key_that_is_shared_by_a_run_and_the_models_beside_it(tmp_path, monkeypatch, capfd):
    """--topk reaches Pop beside LIR, and with it the metric for model selection."""
    write_shop(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            [
                "--model=LIR",
                "--dataset=tiny",
                "--beside=pop",
                "--topk=[2, 40]",
                "--valid_metric=NDCG@2_pes",
                "--show_progress=false",
            ]
        )
        == 0
    )
    rows = rows_of(tmp_path)
    assert [row["model"] for row in rows] == ["Pop", "LIR"]
    for row in rows:
        assert {"ndcg@2", "ndcg@40", "item_coverage@2"} <= row[
            "test"
        ].keys() and "item_coverage@40" not in row["test"]  # there are 30 items
    assert (
        json.loads((only(tmp_path, "Pop-") / "run.json").read_text())["settings"]["valid_metric"]
        == "NDCG@2"
    )


def test_seeds_may_come_from_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_shop(tmp_path)
    Path("seeds.yaml").write_text("seeds: [3, 4]\nshow_progress: false\n")
    assert main(["--model=LIR", "--dataset=tiny", "--beside=[]", "--config_files=seeds.yaml"]) == 0
    assert "±" in table_line(capsys.readouterr().out, "LIR") and [
        row["seed"] for row in rows_of(tmp_path)
    ] == [3, 4]
