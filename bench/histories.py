"""Cost of a long history: one user of 10,000 interactions among short ones, against a short one.

    python bench/histories.py

Every model has the same cases in both datasets: pre-split files with one case of each user for
training, validation and test. The short history is as long as fits into a model. Seconds are those
of a run, from the settings to the stored result.
"""

import tempfile
from pathlib import Path

from common import arguments, finish, timed

ITEMS, USERS, FITS = 300, 12, 60
WORDS = [
    *("red", "blue", "green", "small", "large", "dog"),
    *("cat", "bird", "fish", "toy", "bowl", "leash"),
]
TINY = {"max_length": 128, "scratch_vocabulary": 400, "train_batch_size": 16}
WRITES = {"samples": 1, "valid_samples": 1, "max_new_tokens": 4}
# model -> settings that make it small
OWN = {
    "Pop": {},
    "SASRec": {"hidden_size": 32, "inner_size": 32},
    "GRU4Rec": {"hidden_size": 32, "embedding_size": 32},
    "BERT4Rec": {"hidden_size": 32, "inner_size": 32},
    "LIR": {},
    "CALRec": TINY | WRITES,
    "ST5Seq": {"max_length": 64, "train_batch_size": 16, "backbone": "scratch:tiny"},
    "TASTELoRA": {"train_batch_size": 16, "backbone": "scratch:tiny"},
    "RecFormer": {"train_batch_size": 16, "backbone": "scratch:tiny"},
    "UniSRec": {},
    "TALLRec": TINY | {"max_length": 512, "eval_args.mode": "uni5"},
    "LLMTRSR": TINY | {"max_length": 512, "eval_args.mode": "uni5"},
}


def write_shop(folder: Path, name: str, length: int) -> None:
    """Write dataset/<name>, whose first user has a history of `length` items before each target.

    The newest items of the history are the same for every length.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    titles = [f"{' '.join(rng.choice(WORDS, 5))} n{number}" for number in range(ITEMS)]
    # without some items, so that negatives can be sampled
    longest = rng.integers(0, ITEMS - 10, 20_000)
    others = rng.integers(0, ITEMS, (USERS, 12))
    target = folder / "dataset" / name
    target.mkdir(parents=True)
    rows = [f"i{number}\t{title}" for number, title in enumerate(titles)]
    (target / f"{name}.item").write_text("\n".join(["item_id:token\ttitle:token_seq", *rows, ""]))
    for back, part in enumerate(("test", "valid", "train")):
        lines = ["user_id:token\titem_id_list:token_seq\titem_id:token"]
        for user in range(USERS):
            whole = longest if user == 0 else others[user]
            *history, item = whole[: len(whole) - back][-length - 1 :]
            lines.append(f"u{user}\t{' '.join(f'i{one}' for one in history)}\ti{item}")
        (target / f"{name}.{part}.inter").write_text("\n".join([*lines, ""]))


def main() -> None:
    args = arguments(__doc__, length=10_000, epochs=2, models=",".join(OWN), repeats=3)
    import os

    import recbole_llm

    names = ["SASRec", "LIR"] if args.small else args.models.split(",")
    long, repeats = (500, 1) if args.small else (args.length, args.repeats)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        write_shop(folder, "short", FITS)
        write_shop(folder, "long", long)

        def run(model: str, dataset: str, repeat: int):
            own = {
                "benchmark_filename": ["train", "valid", "test"],
                "epochs": args.epochs,
                "show_progress": False,
                "use_gpu": False,
                "checkpoint_dir": f"saved/{repeat}",
                **OWN[model],
            }
            return recbole_llm.run(model, dataset, **own)

        for model in names:
            # what a process does only once is not measured
            run(model, "short", -1)
            seconds: dict[str, list[float]] = {"short": [], "long": []}
            for repeat in range(repeats):
                for dataset, values in seconds.items():
                    values.append(timed(run, model, dataset, repeat)[0])
            short_s, long_s = min(seconds["short"]), min(seconds["long"])
            row = {
                "model": model,
                "short_s": round(short_s, 2),
                "long_s": round(long_s, 2),
                "ratio": round(long_s / short_s, 2),
            }
            print(row, flush=True)
            rows.append(row)
        os.chdir("/")
    finish(bench="histories", length=long, ratio=max(row["ratio"] for row in rows), rows=rows)


if __name__ == "__main__":
    main()
