"""Whether two checkouts of the package give the same tables, to the last digit.

    python tests/same_tables.py --before=FOLDER [--after=FOLDER] [--models=Pop,LIR] [--keep=FOLDER]

Each checkout trains and evaluates every model by its own command on the synthetic pet shop. Then
the second one evaluates the runs of the first: it has to give the stored rows again, or to refuse
the run in one line. Both use the Python that runs this script; figures of two machines or two
versions of torch are not comparable. Run it before and after a change that should change nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
SMALL = ["--epochs=1", "--scratch_vocabulary=1000", "--train_batch_size=64"]
STOCK = ["--epochs=2", "--train_batch_size=512"]
JUDGE = [*SMALL, "--backbone=scratch:tiny", "--max_length=512", "--test_users=100"]
SETTINGS = {
    "Pop": [],
    "LIR": [],
    "SASRec": STOCK,
    "BPR": STOCK,
    "CALRec": [*SMALL, "--backbone=scratch:tiny", "--valid_users=50", "--test_users=200"],
    "ST5Seq": ["--epochs=1", "--backbone=scratch:tiny", "--valid_users=200"],
    "UniSRec": ["--epochs=2"],
    "TASTELoRA": ["--epochs=1", "--backbone=scratch:tiny", "--valid_users=200"],
    "LLMTRSR": [*JUDGE, "--summary=hierarchical"],
    "TALLRec": JUDGE,
}
COMPARED = ("fingerprint", "split", "evaluation", "seed", "backbone", "valid", "test")


def run(checkout: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run a command of a checkout in a folder."""
    command = [sys.executable, str(checkout / "run_recbole_llm.py"), *arguments]
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def trained_row(checkout: Path, folder: Path, model: str) -> dict:
    """Train a model by a checkout's command. Returns what its row in results.jsonl says."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = ["--dataset=Pet", "--beside=[]", "--show_progress=false"]
    done = run(checkout, folder, f"--model={model}", *shown, *SETTINGS[model])
    if done.returncode:
        raise SystemExit(f"{model} by {checkout}: {done.stderr[-2000:]}")
    return last_row(folder)


def last_row(folder: Path) -> dict:
    lines = (folder / "saved" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(lines[-1])


def differences(before: dict, after: dict) -> list[str]:
    """What two rows of results.jsonl disagree in, a line each."""
    lines = []
    for key in COMPARED:
        old, new = before.get(key), after.get(key)
        if not isinstance(old, dict) or not isinstance(new, dict):
            old, new = {key: old}, {key: new}
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                lines.append(f"{key} {name}: {old.get(name)} before, {new.get(name)} after")
    return lines


def reread(checkout: Path, folder: Path, row: dict) -> str:
    """Evaluate a run of another checkout: "" for its own figures, else what is wrong."""
    arguments = ["evaluate", f"--checkpoint={row['run']}", "--show_progress=false"]
    done = run(checkout, folder, *arguments)
    errors = done.stderr.strip().splitlines()
    if done.returncode == 2 and errors and errors[-1].startswith("error: "):
        return f"refused: {errors[-1].removeprefix('error: ')}"
    if done.returncode:
        return f"failed: {errors[-1] if errors else done.returncode}"
    test = {"test": last_row(folder)["test"]}
    return "; ".join(differences({"test": row["test"]}, test))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="an older checkout")
    parser.add_argument("--after", type=Path, default=HERE, help="this one unless told otherwise")
    parser.add_argument("--models", default=",".join(SETTINGS))
    parser.add_argument("--keep", type=Path, help="where the runs are left; by default nowhere")
    arguments = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.keep or Path(temporary)).resolve()
        for model in arguments.models.split(","):
            before = trained_row(arguments.before.resolve(), folder / "before", model)
            after = trained_row(arguments.after.resolve(), folder / "after", model)
            lines = differences(before, after)
            again = reread(arguments.after.resolve(), folder / "before", before)
            ndcg = before["test"]["ndcg@10"]
            print(f"{model}: test NDCG@10 {ndcg!r}; {'; '.join(lines) or 'the same row'}")
            print(f"{model}: the old run, evaluated: {again or 'the same figures'}", flush=True)
            wrong += bool(lines) or bool(again and not again.startswith("refused: "))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
