"""The commands as a user runs them: fresh processes in a folder with a small dataset, and what they leave there."""

import csv
import json
import os
import random
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml

from recbole_llm.cli import main
from recbole_llm.evaluation.ranks import RankTable

ROOT = Path(__file__).resolve().parents[1]
WORDS = "red blue green small large dog cat bird fish toy bowl leash bed food treat brush".split()


def write_shop(folder, name="tiny", seed=0):
    """dataset/<name> with 40 users, 30 items, titles and times; returns each user's items in order."""
    rng = random.Random(seed)
    items = [f"i{number}\t{' '.join(rng.sample(WORDS, 4))} n{number}\t{rng.choice(WORDS)}" for number in range(30)]
    events, bought = [], {}
    for user in range(40):
        bought[f"u{user}"] = [f"i{rng.randrange(30)}" for _ in range(rng.randint(5, 9))]
        events += [f"u{user}\t{item}\t{rng.randint(1, 5)}\t{1_600_000_000 + 100 * len(events) + time}" for time, item in enumerate(bought[f"u{user}"])]
    target = folder / "dataset" / name
    target.mkdir(parents=True)
    (target / f"{name}.item").write_text("\n".join(["item_id:token\ttitle:token_seq\tcategories:token_seq", *items, ""]))
    (target / f"{name}.inter").write_text("\n".join(["user_id:token\titem_id:token\trating:float\ttimestamp:float", *events, ""]))
    return bought


def edit(folder, suffix, change):
    path = folder / "dataset" / "tiny" / f"tiny.{suffix}"
    path.write_text(change(path.read_text()))


def process(folder, *args, code=None, **env):
    """A finished process: the command with these arguments, or this code."""
    call = ["-c", code] if code else ["-m", "recbole_llm", *args]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **env}
    return subprocess.run([sys.executable, *call], cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def there(folder):
    """Every path below a folder, files with their size."""
    return {str(path.relative_to(folder)): path.stat().st_size if path.is_file() else "folder" for path in folder.rglob("*")}


def rows_of(folder):
    return [json.loads(line) for line in (folder / "saved" / "results.jsonl").read_text().splitlines()]


def only(folder, beginning):
    (found,) = (folder / "saved").glob(beginning + "*")
    return found


def table_line(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return line.split(maxsplit=1)[1]


# --- commands that work ------------------------------------------------------------------------------------------------

LIR = ["--model=LIR", "--dataset=tiny", "--beside=[Pop]", "--show_progress=false"]
COMPARE = ["compare", "--models=Pop,LIR,GRU4Rec", "--dataset=tiny", "--epochs=1", "--seeds=1,2", "--GRU4Rec.hidden_size=16", "--show_progress=false"]
LEFT_ALONE = """
import os, sys
import recbole_llm

argv, before = ["notebook", "--epochs=7", "--model=SASRec", "-f", "kernel.json"], dict(os.environ)
sys.argv = list(argv)
run = recbole_llm.run("LIR", "tiny", show_progress=False, bm25_k1=0.9, wandb_project="__import__('os')._exit(3)")
assert sys.argv == argv, sys.argv
changed = {name for name, _ in os.environ.items() ^ before.items() if not name.startswith(("KMP_", "TORCH"))}  # torch sets those
assert not changed, changed
assert not {"ray", "recbole.quick_start", "transformers"} & sys.modules.keys()
assert run.row["model"] == "LIR" and run.row["best_epoch"] == -1, run.row
"""


class Shop:
    """Two folders and what the commands said and left in them."""

    def __init__(self, folder):
        self.first, self.second = folder / "first", folder / "second"
        self.bought = write_shop(self.first)
        write_shop(self.second)
        write_shop(self.second, "other", seed=1)

    def run_first(self):
        self.lir = process(self.first, *LIR)
        self.lir_left, self.lir_rows = there(self.first), rows_of(self.first)
        self.again = process(self.first, *LIR)
        self.again_left = there(self.first)
        run = str(only(self.first, "LIR-tiny-"))
        self.user = process(self.first, "recommend", f"--checkpoint={run}", "--user=u3", "--k=3")
        self.recommend_left = there(self.first)

    def run_second(self):
        self.compare = process(self.second, *COMPARE)
        self.compare_rows = rows_of(self.second)
        gru, lir = (sorted((self.second / "saved").glob(name))[0] for name in ("GRU4Rec-*", "LIR-*"))
        self.uni = process(self.second, "evaluate", f"--checkpoint={gru.name}", "--eval_args.mode=uni5", "--show_progress=false")
        self.other = process(self.second, "evaluate", f"--checkpoint={lir}", "--dataset=other", "--show_progress=false")
        self.evaluate_rows = rows_of(self.second)[len(self.compare_rows) :]
        self.gru = gru


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    shop = Shop(tmp_path_factory.mktemp("shop"))
    with ThreadPoolExecutor(2) as pool:
        for part in [pool.submit(shop.run_first), pool.submit(shop.run_second)]:
            part.result()
    return shop


def test_a_run_prints_one_table_with_the_models_beside_it(shop):
    assert shop.lir.returncode == 0, shop.lir.stderr
    by_model = {row["model"]: row for row in shop.lir_rows}
    assert list(by_model) == ["Pop", "LIR"]  # one row each, in the order of the table
    for model, row in by_model.items():
        assert f"{row['test']['ndcg@10']:.4f}" in table_line(shop.lir.stdout, model)
    assert "tiny: 40 test cases, full" in shop.lir.stdout
    assert {path.name for path in shop.first.iterdir()} == {"dataset", "saved"}
    assert {path.name for path in (shop.first / "dataset" / "tiny").iterdir()} == {"tiny.inter", "tiny.item"}


def test_a_run_leaves_its_folder(shop):
    run = only(shop.first, "LIR-tiny-")
    files = {"run.json", "log", "test.ranks.npz", "test.top.npz", "valid.ranks.npz", "valid.top.npz", "model.safetensors"}
    assert files <= {path.name for path in run.iterdir()}
    assert not list(run.rglob("*.tmp"))
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished" and record["settings"]["model"] == "LIR" and record["settings"]["bm25_k1"] == 1.5
    assert record["row"] == shop.lir_rows[1]
    assert {"python", "recbole", "torch", "recbole_llm"} <= record["versions"].keys()
    table = RankTable.load(run / "test.ranks.npz")
    assert dict(zip(table.user, table.target, strict=True)) == {user: items[-1] for user, items in shop.bought.items()}
    top = np.load(run / "test.top.npz")
    assert top["items"].shape == top["scores"].shape == (40, 30)  # 1000, or the catalogue where it is smaller
    assert (np.sort(top["items"], axis=1) == np.arange(30)).all()
    log = (run / "log").read_text()
    assert "tiny: 2" in log and "events read" in log and "no column brand: the text has no Brand" in log and log.count("cases:") == 1


def test_a_result_row_says_what_it_is_the_result_of(shop):
    for row in shop.lir_rows:
        assert row["dataset"] == "tiny" and row["seed"] == 2020 and row["device"] == "cpu" and row["cases"] == 40 and row["backbone"] is None
        assert re.fullmatch("[0-9a-f]{16}", row["fingerprint"]) and re.fullmatch("[0-9a-f]{8}", row["hash"])
        assert row["run"] == f"{row['model']}-tiny-{row['hash']}"
        assert row["split"]["split"] == {"LS": "valid_and_test"} and row["split"]["mode"] == "full"
        assert row["versions"]["recbole_llm"]
        for part in ("valid", "test"):
            assert {"recall@1", "recall@10", "ndcg@10", "ndcg@10_opt", "ndcg@10_pes", "mrr@10", "mrr", "item_coverage@10"} <= row[part].keys()
            assert row[part]["ndcg@10_pes"] <= row[part]["ndcg@10"] <= row[part]["ndcg@10_opt"]
        for phase in ("load", "valid", "test"):
            assert row["seconds"][phase] >= 0 and row["memory_mib"][phase] > 50
        assert isinstance(row["rates"], dict)


def test_the_same_command_takes_the_finished_run(shop):
    assert shop.again.returncode == 0, shop.again.stderr
    assert [line[9:].split(":")[0] for line in shop.again.stderr.splitlines()] == ["already there"] * 2
    assert shop.again.stdout == shop.lir.stdout
    assert shop.again_left == shop.lir_left  # no row, no file, not even a line in the log


def test_compare_prints_mean_and_deviation_over_seeds(shop):
    assert shop.compare.returncode == 0, shop.compare.stderr
    rows = shop.compare_rows
    assert [(row["model"], row["seed"]) for row in rows] == [(model, seed) for model in ("Pop", "LIR", "GRU4Rec") for seed in (1, 2)]
    values = [row["test"]["ndcg@10"] for row in rows if row["model"] == "GRU4Rec"]
    assert values[0] != values[1]
    mean, sd = statistics.mean(values), statistics.stdev(values)
    assert f"{mean:.4f} ± {sd:.4f}" in table_line(shop.compare.stdout, "GRU4Rec")
    folder = shop.second / "saved" / "tables" / "tiny-Pop-LIR-GRU4Rec"
    assert {path.name for path in folder.iterdir()} == {"table.md", "table.tex", "table.csv", "runs.json"}
    assert f"{mean:.4f} ± {sd:.4f}" in (folder / "table.md").read_text() and f"{mean:.4f} $\\pm$ {sd:.4f}" in (folder / "table.tex").read_text()
    with open(folder / "table.csv") as file:
        line = {line["model"]: line for line in csv.DictReader(file)}["GRU4Rec"]
    assert (float(line["ndcg@10"]), float(line["ndcg@10_sd"])) == (pytest.approx(mean, rel=1e-14), pytest.approx(sd, rel=1e-12))
    assert json.loads((folder / "runs.json").read_text()) == [row["run"] for row in rows]
    means = {model: statistics.mean(row["test"]["ndcg@10"] for row in rows if row["model"] == model) for model in ("Pop", "LIR", "GRU4Rec")}
    best = max(means, key=means.get)
    for model in means.keys() - {best}:  # the intervals are about the same means
        gap, low, high = re.search(rf"ndcg@10: {best} - {model} = (\S+), 95 % interval over users \[(\S+), (\S+)\]", shop.compare.stdout).groups()
        assert float(gap) == pytest.approx(means[best] - means[model], abs=6e-5) and float(low) < float(gap) < float(high)


def test_a_setting_of_one_model_is_that_models_alone(shop):
    records = [json.loads((shop.second / "saved" / row["run"] / "run.json").read_text()) for row in shop.compare_rows]
    sizes = {record["settings"]["model"]: record["settings"].get("hidden_size") for record in records}
    assert sizes == {"Pop": None, "LIR": None, "GRU4Rec": 16}


def test_evaluate_ranks_again_among_candidates(shop):
    assert shop.uni.returncode == 0, shop.uni.stderr
    row = shop.evaluate_rows[0]
    assert "tiny: 40 test cases, uni5" in shop.uni.stdout and f"{row['test']['ndcg@10']:.4f}" in table_line(shop.uni.stdout, "GRU4Rec")
    assert row["run"].startswith(f"{shop.gru.name}/evaluate-") and row["split"]["mode"] == "uni5" and "valid" not in row
    table = RankTable.load(shop.second / "saved" / row["run"] / "test.ranks.npz")
    assert len(table) == 40 and (table.n_candidates == 6).all()
    assert row["test"]["recall@10"] == pytest.approx(1.0)  # six candidates
    assert json.loads((shop.gru / "run.json").read_text())["row"] in shop.compare_rows  # the run itself is as it was


def test_evaluate_takes_a_text_model_to_another_dataset(shop):
    assert shop.other.returncode == 0, shop.other.stderr
    row = shop.evaluate_rows[1]
    trained = next(row for row in shop.compare_rows if row["model"] == "LIR")
    assert row["dataset"] == "other" and row["fingerprint"] != trained["fingerprint"] and row["test"] != trained["test"]
    assert "other: 40 test cases" in shop.other.stdout


def test_recommend_for_a_user(shop):
    assert shop.user.returncode == 0, shop.user.stderr
    head, *lines = shop.user.stdout.splitlines()
    bought = shop.bought["u3"]
    assert head == f"history ({len(bought)} items, newest last):"
    assert [line.split()[0] for line in lines[: len(bought)]] == bought and lines[len(bought)] == "recommended:"
    best = [line.split() for line in lines[len(bought) + 1 :]]
    assert [rank for rank, *_ in best] == ["1", "2", "3"] and best[0][2] == bought[-1]  # LIR: most like the newest is itself
    assert float(best[0][1]) >= float(best[1][1]) >= float(best[2][1])


def test_recommend_for_a_history_of_titles_and_ids(shop, monkeypatch, capfd):
    monkeypatch.chdir(shop.first)
    assert main(["recommend", "--checkpoint=LIR", "--history=n7; i4; leash n9", "--k=2"]) == 0
    said = capfd.readouterr()
    head, *lines = said.out.splitlines()
    assert head == "history (3 items, newest last):"
    assert [line.split()[0] for line in lines[:3]] == ["i7", "i4", "i9"]
    assert lines[4].split()[2] == "i9" and len(lines) == 6
    assert said.err == "" and there(shop.first) == shop.again_left


def test_recommend_writes_nothing(shop):
    assert shop.recommend_left == shop.again_left and shop.user.stderr == ""


def test_a_run_leaves_argv_and_environment_alone_and_loads_no_ray(tmp_path):
    write_shop(tmp_path)
    done = process(tmp_path, code=LEFT_ALONE, CUDA_VISIBLE_DEVICES="keep")
    assert done.returncode == 0, done.stderr


def test_resume_finishes_a_stopped_run(shop, tmp_path, monkeypatch, capfd):
    folder = tmp_path / "copy"
    shutil.copytree(shop.second, folder)
    run, rows = folder / "saved" / shop.gru.name, rows_of(folder)
    record = json.loads((run / "run.json").read_text())
    row = record.pop("row")
    (run / "run.json").write_text(json.dumps(record | {"status": "running"}))
    for name in ("test.ranks.npz", "valid.ranks.npz"):
        (run / name).unlink()
    monkeypatch.chdir(folder)
    assert main(["--resume=GRU4Rec-tiny-" + row["hash"][:6]]) == 0
    assert "resumed after epoch 0" in capfd.readouterr().err
    new = json.loads((run / "run.json").read_text())
    assert new["status"] == "finished" and new["row"]["test"] == row["test"] and rows_of(folder) == [*rows, new["row"]]
    assert len(RankTable.load(run / "test.ranks.npz")) == 40


# --- settings ----------------------------------------------------------------------------------------------------------


def printed(capsys, *args):
    assert main([*args, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_print_config_prints_every_setting_and_runs_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = printed(capsys, "--model=lir", "--dataset=tiny")
    assert (settings["model"], settings["dataset"], settings["last_n"], settings["mask_history"]) == ("LIR", "tiny", 1, False)
    assert settings["topk"] == [1, 5, 10, 20] and settings["eval_args"]["mode"] == "full"
    assert list(tmp_path.iterdir()) == []
    both = printed(capsys, "compare", "--models=Pop,LIR", "--dataset=tiny", "--LIR.last_n=3", "--seeds=5,6")
    assert both.keys() == {"Pop", "LIR"} and both["LIR"]["last_n"] == 3 and both["LIR"]["seed"] == 5 and "last_n" not in both["Pop"]


@pytest.mark.parametrize("model", ["CALRec", "GRU4Rec", "BPR", "S3Rec"])
def test_what_print_config_prints_is_a_settings_file(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = printed(capsys, f"--model={model}", "--dataset=ml-100k", "--topk=[3, 10]", "--eval_args.split={RS: [6, 2, 2]}")
    Path("mine.yaml").write_text(yaml.safe_dump(settings))
    assert printed(capsys, f"--model={model}", "--dataset=ml-100k", "--config_files=mine.yaml") == settings


def test_who_overrides_whom(tmp_path, monkeypatch, capsys):
    """Command line over settings files (the last one first) over the dataset's, the model's and the overall properties."""
    monkeypatch.chdir(tmp_path)
    asked = ["--model=CALRec", "--dataset=ml-100k"]
    own = printed(capsys, *asked)
    assert own["text_fields"]["Title"] == "movie_title" and "Brand" not in own["text_fields"]  # dataset over overall
    assert own["valid_metric"] == "NDCG@10_pes" and own["eval_step"] == 5  # model over overall and over RecBole's
    assert own["topk"] == [1, 5, 10, 20]  # overall over RecBole's [10]
    Path("a.yaml").write_text("valid_metric: MRR@5\neval_step: 2\nseed: 7\ntext_fields: {Title: movie_title}\n")
    Path("b.yaml").write_text("seed: 8\nlearning_rate: 1e-4\n")
    files = printed(capsys, *asked, "--config_files=a.yaml b.yaml")
    assert (files["valid_metric"], files["eval_step"], files["seed"], files["learning_rate"]) == ("MRR@5", 2, 8, 0.0001)
    assert files["text_fields"] == {"Title": "movie_title"}
    line = printed(capsys, *asked, "--config_files=a.yaml b.yaml", "--seed=9", "--eval_step=3", "--text_fields.Year=release_year")
    assert (line["valid_metric"], line["eval_step"], line["seed"]) == ("MRR@5", 3, 9)
    assert line["text_fields"] == {"Title": "movie_title", "Year": "release_year"}


def test_values_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = "__import__('pathlib').Path('called').touch()"
    settings = printed(
        capsys, "--model=GRU4Rec", "--dataset=tiny", "--learning_rate=1e-4", "--weight_decay=-2.5E+3", "--epochs=3", "--show_progress=false",
        "--eval_args.mode={valid: uni5, test: full}", "--eval_args.split.RS=[8, 1, 1]", "--metrics=[Hit, NDCG]", "--benchmark_filename=null",
        "--wandb_project=3-1", f"--data_name={code}", "--checkpoint_dir=[not yaml: {",
    )  # fmt: skip
    assert settings["learning_rate"] == 0.0001 and isinstance(settings["learning_rate"], float) and settings["weight_decay"] == -2500.0
    assert settings["epochs"] == 3 and settings["show_progress"] is False and settings["benchmark_filename"] is None
    assert settings["eval_args"]["mode"] == {"valid": "uni5", "test": "full"} and settings["eval_args"]["split"] == {"RS": [8, 1, 1]}
    assert settings["eval_args"]["part"] == "pretrain" and settings["metrics"] == ["Hit", "NDCG"]
    assert (settings["wandb_project"], settings["data_name"], settings["checkpoint_dir"]) == ("3-1", code, "[not yaml: {")
    assert list(tmp_path.iterdir()) == []


# --- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """refused(*arguments, folder): what a command says that must fail: at most three lines, code 2, and nothing written."""

    def run(*args, folder=tmp_path):
        monkeypatch.chdir(folder)
        before = there(folder)
        code = main(list(args))
        said = capfd.readouterr()
        assert code == 2 and said.out == "", (code, said)
        assert said.err.startswith("error: ") and said.err.endswith("\n") and said.err.count("\n") <= 3 and "Traceback" not in said.err
        assert there(folder) == before
        return said.err

    return run


ARGUMENTS = {  # told before any data is read
    "--model=SASRek --dataset=tiny": r"unknown model 'SASRek': did you mean SASRec",
    "--model=LIR --dataset=tiny --learning_rat=1": r"unknown key 'learning_rat': did you mean learning_rate",
    "--model=LIR --dataset=tiny --eval_args.mod=full": r"unknown key 'eval_args.mod': expected one of .*mode",
    "--model=LIR --dataset=tiny --hidden_size=3": r"unknown key 'hidden_size'",  # other models have it
    "--model=LIR --dataset=tiny --eval_batch_size=64": r"'eval_batch_size' has no effect here: use eval_memory",
    "--model=LIR --dataset=tiny --topk.a=1": r"topk is a list, not a group",
    "--model=LIR --dataset=tiny --epochs 3": r"argument '--epochs': expected --key=value",
    "--model=LIR --dataset=tiny epochs=3": r"argument 'epochs=3': expected --key=value",
    "--model": r"--model: expected one argument",
    "--model=LIR": r"--dataset=… is missing",
    "--dataset=tiny": r"--model=… is missing",
    "train --model=LIR": r"unknown command 'train': expected one of run, compare",
    "--model=LIR --dataset=tiny --epochs=abc": r"epochs: expected a number, found 'abc'",
    "--model=LIR --dataset=tiny --epochs=1.5": r"epochs: expected a whole number",
    "--model=LIR --dataset=tiny --epochs=-1": r"epochs: expected a whole number from 0 up, found -1",
    "--model=LIR --dataset=tiny --train_batch_size=0": r"train_batch_size: expected a whole number from 1 up",
    "--model=LIR --dataset=tiny --learning_rate=fast": r"learning_rate: expected a number, found 'fast'",
    "--model=LIR --dataset=tiny --show_progress=maybe": r"show_progress: expected true or false",
    "--model=LIR --dataset=tiny --seed=~": r"seed: expected a whole number",
    "--model=LIR --dataset=tiny --topk=0": r"topk: expected positive integers, found 0",
    "--model=LIR --dataset=tiny --topk=5": r"valid_metric: expected one of .*ndcg@5.*, found 'NDCG@10'",
    "--model=LIR --dataset=tiny --metrics=AUC": r"metrics: expected some of Recall, Hit, NDCG, MRR, found 'AUC'",
    "--model=LIR --dataset=tiny --eval_args=full": r"eval_args: expected a group",
    "--model=LIR --dataset=tiny --eval_args.mode=uni0": r"expected full or uniK such as uni20, found 'uni0'",
    "--model=LIR --dataset=tiny --eval_args.mode='{tets: uni5}'": r"one for valid and one for test",
    "--model=LIR --dataset=tiny --eval_args.order=RO": r"order is always TO",
    "--model=LIR --dataset=tiny --precision=int8": r"precision: expected fp32, bf16 or fp16, found 'int8'",
    "--model=LIR --dataset=tiny --stages=[pretrain]": r"stages: expected some of none",
    "--model=S3Rec --dataset=Pet --stages='[pretrain, tune]'": r"stages: expected some of pretrain, finetune.* found 'tune'",
    "--model=SASRec --dataset=tiny --train_neg_sample_args.sample_num=2": r"SASRec with loss_type CE draws no negatives",
    "--model=LIR --dataset=tiny --beside=[Popp]": r"unknown model 'Popp': did you mean Pop",
    "--model=LIR --dataset=tiny --config_files=none.yaml": r"settings file none.yaml not found",
    "--model=LIR --dataset=tiny --config_files=bytes.yaml": r"bytes.yaml: not YAML",
    "--model=LIR --dataset=tiny --config_files=list.yaml": r"list.yaml: expected `key: value` lines, found a list",
    "--model=LIR --dataset=tiny --config_files=key.yaml": r"unknown key 'epoch': did you mean epochs",
    "--model=LIR --dataset=tiny --config_files=model.yaml": r"model.yaml: its model is Pop, but LIR is asked for",
    "compare --models=Pop --dataset=tiny --LIR.last_n=2": r"--LIR.last_n: LIR is not among --models",
    "compare --models=Pop,LIR --dataset=tiny --last_n=2": r"unknown key 'last_n'",  # Pop has none
    "compare --models=Pop --dataset=tiny --seeds=1,a": r"seed: expected a number, found 'a'",
    "--model=LIR --dataset=none": r"dataset 'none': expected dataset/none/none.inter, found there: tiny; put the file there",
    "--model=LIR --dataset=tiny --data_path=nowhere": r"dataset 'tiny': expected nowhere/tiny/tiny.inter, nothing is there",
    "--model=SASRec --dataset=tiny --init_from=nobody": r"run 'nobody': expected a run folder or id below saved, found none",
    "--resume=nobody": r"run 'nobody': expected a run folder or id below saved, found none",
    "--resume=x --model=LIR": r"--resume goes on with a run as it is: leave out --model",
    "evaluate --dataset=tiny": r"--checkpoint=… is missing",
    "evaluate --checkpoint=nobody": r"run 'nobody': expected a run folder or id below saved, found none",
    "evaluate --checkpoint=/nobody": r"run '/nobody': expected a run folder or id below saved, found none",
    "evaluate --checkpoint=dataset": r"run 'dataset': expected a run folder or id below saved, found none",
}  # fmt: skip


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder with the dataset and some settings files, and no run."""
    folder = tmp_path_factory.mktemp("bare")
    write_shop(folder)
    for name, content in {"bytes": b"epochs: \xff", "list": b"- epochs", "key": b"epoch: 1", "model": b"model: Pop"}.items():
        (folder / f"{name}.yaml").write_bytes(content)
    return folder


@pytest.mark.parametrize("line", ARGUMENTS)
def test_arguments_that_cannot_be(line, bare, refused):
    assert re.search(ARGUMENTS[line], refused(*shlex.split(line), folder=bare))


POP_LIR, GRU = ("--model=LIR", "--beside=[Pop]"), ("--model=GRU4Rec", "--beside=[]")
DATA = {  # name: (arguments, file to change, change, what is said)
    "an id column under another name": (
        POP_LIR, "inter", lambda text: text.replace("item_id:", "product:", 1),
        r"tiny.inter: expected a column item_id, found user_id, product, rating, timestamp; rename it",
    ),
    "a line that was cut": (
        POP_LIR, "inter", lambda text: re.sub(r"(?s)((?:[^\n]*\n){4}[^\t]*\t[^\t]*)[^\n]*", r"\1", text, count=1),
        r"tiny.inter, line 5: expected 4 cells, found 2",
    ),
    "a word in a column of numbers": (
        POP_LIR, "inter", lambda text: re.sub(r"\t\d+\n(?=u39)", "\tyesterday\n", text, count=1),
        r"tiny.inter, line \d+: expected a number.* column timestamp, found 'yesterday'",
    ),
    "no text at all": (POP_LIR, "item", lambda text: re.sub(r"\n(i\d+)\t.*", r"\n\1\t\t", text), r"dataset tiny: every cell of title, categories is empty"),
    "no column of text": (
        POP_LIR, "item", lambda text: text.replace("title:", "name:").replace("categories:", "kind:"), r"dataset tiny has no text: .*set text_fields",
    ),
    "a split that leaves no test case": ((*POP_LIR, "--eval_args.split={timestamp: [1e18, 2e18]}"), None, None, r"leaves no test case"),
    "a split that there is not": ((*GRU, "--eval_args.split={LO: 1}"), None, None, r"eval_args.split: expected one of LS, RS, temporal, timestamp"),
    "more negatives than there are items": ((*GRU, "--eval_args.mode=uni25"), None, None, r"uni25: user u\d+ leaves only \d+ items .*smaller uniK"),
    "a model that the harness does not run": (("--model=CFKG", "--beside=[Pop]"), None, None, r"CFKG: models of type knowledge are not run by this harness"),
    "fine-tuning from nothing": (
        ("--model=S3Rec", "--beside=[]", "--item_attribute=categories", "--stages=[finetune]"), None, None, r"expected --init_from=RUN",
    ),
    "a backbone that is nowhere": (("--model=CALRec", "--beside=[]", "--backbone=no/where"), None, None, r"backbone 'no/where' is not a model folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be(case, tmp_path, refused):
    """Told before the first model is trained, the one beside it included."""
    args, suffix, change, said = DATA[case]
    write_shop(tmp_path)
    if suffix:
        before = (tmp_path / "dataset" / "tiny" / f"tiny.{suffix}").read_text()
        edit(tmp_path, suffix, change)
        assert (tmp_path / "dataset" / "tiny" / f"tiny.{suffix}").read_text() != before
    assert re.search(said, refused(*args, "--dataset=tiny"))


CHECKPOINTS = {
    "evaluate --checkpoint=GRU --dataset=other": r"GRU4Rec-tiny-\w+ was trained on tiny .* knows items by number and cannot change data",
    "evaluate --checkpoint=GRU --hidden_size=32": r"is a checkpoint of another model, dataset or setting: \d+ tensors differ",
    "evaluate --checkpoint=GRU --model=SASRec": r"model: a run keeps its own, which is GRU4Rec",
    "evaluate --checkpoint=GRU --eval_args.mode=uni25": r"uni25: user u\d+ leaves only",
    "evaluate --checkpoint=GRU4Rec": r"run 'GRU4Rec': expected .*, found GRU4Rec-tiny-\w+, GRU4Rec-tiny-",
    "evaluate --checkpoint=damaged": r"damaged/run.json: expected the record of a run, found another or a damaged file",
    "evaluate --checkpoint=foreign": r"foreign/run.json: expected the record of a run",
    "evaluate --checkpoint=unfinished": r"unfinished is not a finished run; go on with it by --resume=unfinished",
    "recommend --checkpoint=unfinished --user=u1": r"unfinished is not a finished run",
    "recommend --checkpoint=GRU --user=nobody": r"unknown user 'nobody': the data has 40 users such as u0",
    "recommend --checkpoint=GRU --history=zebra": r"nothing in the catalogue reads like 'zebra'",
    "recommend --checkpoint=GRU --history=;": r"--history is empty",
    "recommend --checkpoint=GRU": r"expected either --user=ID or --history",
    "recommend --checkpoint=GRU --user=u1 --k=few": r"--k: expected a positive whole number, found 'few'",
    "recommend --checkpoint=GRU --user=u1 --k=0": r"--k: expected a positive whole number",
    "recommend --checkpoint=GRU --user=u1 --dataset=other": r"dataset: a run keeps its own, which is tiny",
    "recommend --checkpoint=Pop --history=i1": r"Pop knows users by number: give --user",
}


@pytest.fixture(scope="module")
def trained(shop, tmp_path_factory):
    """A copy of the second folder with runs that are none."""
    folder = tmp_path_factory.mktemp("trained") / "copy"
    shutil.copytree(shop.second, folder)
    saved = folder / "saved"
    record = json.loads((shop.gru / "run.json").read_text())
    texts = {"damaged": '{"status": "fin', "foreign": '{"epochs": 3}', "unfinished": json.dumps(record | {"status": "running"})}
    for name, text in texts.items():
        (saved / name).mkdir()
        (saved / name / "run.json").write_text(text)
    return folder


@pytest.mark.parametrize("line", CHECKPOINTS)
def test_checkpoints_that_cannot_be(line, shop, trained, refused):
    names = {"GRU": shop.gru.name, "Pop": sorted(path.name for path in (trained / "saved").glob("Pop-*"))[0]}
    args = [f"--checkpoint={names.get(arg[13:], arg[13:])}" if arg.startswith("--checkpoint=") else arg for arg in line.split()]
    assert re.search(CHECKPOINTS[line], refused(*args, folder=trained))


def test_a_run_starts_from_another_ones_weights(shop, trained, refused, monkeypatch, capfd):
    ask = ["--model=GRU4Rec", "--dataset=tiny", "--beside=[]", "--hidden_size=16", "--epochs=0", "--show_progress=false"]
    lir = sorted(path.name for path in (trained / "saved").glob("LIR-*"))[0]
    assert f"{lir} is a checkpoint of another model" in refused(*ask, f"--init_from={lir}", folder=trained)
    monkeypatch.chdir(trained)
    results = []
    for more in ([], [f"--init_from={shop.gru.name}"]):
        assert main([*ask, *more]) == 0
        results.append(rows_of(trained)[-1]["test"])
    assert results[1] == json.loads((shop.gru / "run.json").read_text())["row"]["test"] != results[0]


@pytest.mark.parametrize("args", [("--model=nobody", "--dataset=tiny"), ("--model=LIR", "--dataset=tiny", "--user_sample=7")])
def test_a_mistake_in_a_process_of_its_own(args, bare):
    """Exit code and streams as a shell sees them, with the libraries' own warnings, before and after torch is loaded."""
    before = there(bare)
    done = process(bare, *args)
    assert done.returncode == 2 and done.stdout == "" and there(bare) == before
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr), done.stderr


def test_one_key_that_is_shared_by_a_run_and_the_models_beside_it(tmp_path, monkeypatch, capfd):
    """--topk reaches Pop beside LIR, and with it the metric to choose by: before, Pop died after its epoch."""
    write_shop(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["--model=LIR", "--dataset=tiny", "--beside=pop", "--topk=[2, 40]", "--valid_metric=NDCG@2_pes", "--show_progress=false"]) == 0
    rows = rows_of(tmp_path)
    assert [row["model"] for row in rows] == ["Pop", "LIR"]
    for row in rows:
        assert {"ndcg@2", "ndcg@40", "item_coverage@2"} <= row["test"].keys() and "item_coverage@40" not in row["test"]  # there are 30 items
    assert json.loads((only(tmp_path, "Pop-") / "run.json").read_text())["settings"]["valid_metric"] == "NDCG@2"


def test_seeds_may_come_from_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_shop(tmp_path)
    Path("seeds.yaml").write_text("seeds: [3, 4]\nshow_progress: false\n")
    assert main(["--model=LIR", "--dataset=tiny", "--beside=[]", "--config_files=seeds.yaml"]) == 0
    assert "±" in table_line(capsys.readouterr().out, "LIR") and [row["seed"] for row in rows_of(tmp_path)] == [3, 4]
