"""Commands in a folder with a small shop, what they print, and what they leave there."""

import io
import json
import os
import random
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COLOURS = ["red", "blue", "green", "small", "large"]
WORDS = [*COLOURS, "dog", "cat", "bird", "fish", "toy", "bowl", "leash", "bed", "food"]
WORDS += ["treat", "brush"]


def write_shop(folder, name="tiny", seed=0, users=40):
    """dataset/<name> with 30 items, titles and times.

    Returns each user's items in order.
    """
    rng = random.Random(seed)
    items = [
        f"i{number}\t{' '.join(rng.sample(WORDS, 4))} n{number}\t{rng.choice(WORDS)}"
        for number in range(30)
    ]
    events, bought = [], {}
    for user in range(users):
        bought[f"u{user}"] = [f"i{rng.randrange(30)}" for _ in range(rng.randint(5, 9))]
        events += [
            f"u{user}\t{item}\t{rng.randint(1, 5)}\t{1_600_000_000 + 100 * len(events) + time}"
            for time, item in enumerate(bought[f"u{user}"])
        ]
    target = folder / "dataset" / name
    target.mkdir(parents=True)
    (target / f"{name}.item").write_text(
        "\n".join(["item_id:token\ttitle:token_seq\tcategories:token_seq", *items, ""])
    )
    (target / f"{name}.inter").write_text(
        "\n".join(["user_id:token\titem_id:token\trating:float\ttimestamp:float", *events, ""])
    )
    return bought


def edit(folder, suffix, change):
    path = folder / "dataset" / "tiny" / f"tiny.{suffix}"
    path.write_text(change(path.read_text()))


def process(folder, *args, code=None, **env):
    """A finished process: the command with these arguments, or this code."""
    call = ["-c", code] if code else ["-m", "recbole_llm", *args]
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **env,
    }
    return subprocess.run(
        [sys.executable, *call], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )


def command(folder, *args, **env):
    """The command with these arguments, run in this process; what it prints is as of a process."""
    from recbole_llm.cli import main

    out, err = io.StringIO(), io.StringIO()
    env = {"CUDA_VISIBLE_DEVICES": "", **env}
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", [sys.argv[0], *args])
        for name, value in env.items():
            patch.setenv(name, value)
        code = main()
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


def there(folder):
    """Every path below a folder, files with their size."""
    return {
        str(path.relative_to(folder)): path.stat().st_size if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def rows_of(folder):
    return [
        json.loads(line) for line in (folder / "saved" / "results.jsonl").read_text().splitlines()
    ]


def only(folder, beginning):
    (found,) = (folder / "saved").glob(beginning + "*")
    return found


def table_line(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return line.split(maxsplit=1)[1]


LIR = ["--model=LIR", "--dataset=tiny", "--beside=[Pop]", "--show_progress=false"]
COMPARE = [
    "compare",
    "--models=Pop,LIR,GRU4Rec",
    "--dataset=tiny",
    "--epochs=1",
    "--seeds=1,2",
    "--GRU4Rec.hidden_size=16",
    "--show_progress=false",
]
LEFT_ALONE = """
import os, sys
import recbole_llm

argv, before = ["notebook", "--epochs=7", "--model=SASRec", "-f", "kernel.json"], dict(os.environ)
sys.argv = list(argv)
code = "__import__('os')._exit(3)"
run = recbole_llm.run("LIR", "tiny", show_progress=False, bm25_k1=0.9, wandb_project=code)
assert sys.argv == argv, sys.argv
changed = {name for name, _ in os.environ.items() ^ before.items()}
changed = {name for name in changed if not name.startswith(("KMP_", "TORCH"))}  # which torch sets
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
        self.lir = process(self.first, *LIR)  # as a user runs it; the others in this process
        self.lir_left, self.lir_rows = there(self.first), rows_of(self.first)
        self.again = command(self.first, *LIR)
        self.again_left = there(self.first)
        run = str(only(self.first, "LIR-tiny-"))
        self.user = command(self.first, "recommend", f"--checkpoint={run}", "--user=u3", "--k=3")
        self.recommend_left = there(self.first)

    def run_second(self):
        self.compare = command(self.second, *COMPARE)
        self.compare_rows = rows_of(self.second)
        gru, lir = (
            sorted((self.second / "saved").glob(name))[0] for name in ("GRU4Rec-*", "LIR-*")
        )
        evaluate = ["evaluate", "--show_progress=false"]
        self.uni = command(
            self.second, *evaluate, f"--checkpoint={gru.name}", "--eval_args.mode=uni5"
        )
        self.other = command(self.second, *evaluate, f"--checkpoint={lir}", "--dataset=other")
        self.evaluate_rows = rows_of(self.second)[len(self.compare_rows) :]
        self.gru = gru


def run_commands(folder) -> Shop:
    shop = Shop(folder)
    shop.run_first()
    shop.run_second()
    return shop
