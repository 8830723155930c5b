"""The commands as a user runs them: fresh processes in a folder with a small dataset, and what they leave there."""

import csv
import json
import os
import random
import re
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
    """Every path below a folder with its size."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


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
import os, sys, recbole_llm
before = dict(os.environ)
run = recbole_llm.run("LIR", "tiny", bm25_k1=0.9, show_progress=False)
assert sys.argv == ["-c"] + ["--epochs=7"] * 0 or sys.argv[0] == "-c", sys.argv
assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())
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
        self.history = process(self.first, "recommend", "--checkpoint=LIR", "--history=n7; i4; leash n9", "--k=2")
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
    assert not (shop.first / "dataset" / "tiny").joinpath("tiny.npz").exists()
    assert {path.name for path in shop.first.iterdir()} == {"dataset", "saved"}  # nothing else is left in the user's folder


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
    folder = only(shop.second / "saved", "..") if False else shop.second / "saved" / "tables" / "tiny-Pop-LIR-GRU4Rec"
    assert {path.name for path in folder.iterdir()} == {"table.md", "table.tex", "table.csv", "runs.json"}
    assert f"{mean:.4f} ± {sd:.4f}" in (folder / "table.md").read_text() and f"{mean:.4f} $\\pm$ {sd:.4f}" in (folder / "table.tex").read_text()
    with open(folder / "table.csv") as file:
        line = {line["model"]: line for line in csv.DictReader(file)}["GRU4Rec"]
    assert (float(line["ndcg@10"]), float(line["ndcg@10_sd"])) == (pytest.approx(mean, rel=1e-14), pytest.approx(sd, rel=1e-12))
    assert json.loads((folder / "runs.json").read_text()) == [row["run"] for row in rows]


def test_a_setting_of_one_model_is_that_models_alone(shop):
    sizes = {row["model"]: json.loads((shop.second / "saved" / row["run"] / "run.json").read_text())["settings"].get("hidden_size") for row in shop.compare_rows}
    assert sizes == {"Pop": None, "LIR": None, "GRU4Rec": 16}


def test_evaluate_ranks_again_among_candidates(shop):
    assert shop.uni.returncode == 0, shop.uni.stderr
    row = shop.evaluate_rows[0]
    assert "tiny: 40 test cases, uni5" in shop.uni.stdout and f"{row['test']['ndcg@10']:.4f}" in table_line(shop.uni.stdout, "GRU4Rec")
    assert row["run"].startswith(f"{shop.gru.name}/evaluate-") and row["split"]["mode"] == "uni5" and "valid" not in row
    table = RankTable.load(shop.second / "saved" / row["run"] / "test.ranks.npz")
    assert len(table) == 40 and (table.n_candidates == 6).all()
    assert row["test"]["recall@10"] == 1.0  # six candidates
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


def test_recommend_for_a_history_of_titles_and_ids(shop):
    assert shop.history.returncode == 0, shop.history.stderr
    head, *lines = shop.history.stdout.splitlines()
    assert head == "history (3 items, newest last):"
    assert [line.split()[0] for line in lines[:3]] == ["i7", "i4", "i9"]
    assert lines[4].split()[2] == "i9" and len(lines) == 6


def test_recommend_writes_nothing(shop):
    assert shop.recommend_left == shop.again_left and shop.user.stderr == shop.history.stderr == ""


def test_argv_and_environment_are_left_alone(tmp_path):
    write_shop(tmp_path)
    done = process(tmp_path, code=LEFT_ALONE, CUDA_VISIBLE_DEVICES="keep")
    assert done.returncode == 0, done.stderr
