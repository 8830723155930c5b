"""A joint Stage I on any number of users: memory of the process, and time to the first step.

python bench/stream.py

A small dataset chooses the checkpoint, and a synthetic one with `users` users of `events` events
each is trained on beside it. The first process reads the data and the texts into their stores, the
second trains: CALRec of random weights, by one case of each user and by windows of all cases.
"""

import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from common import arguments, finish, in_child

STEPS = 20
MIB = 2**20


class Watch:
    """The most anonymous memory of this process, in MiB: what only the process itself holds."""

    def __init__(self) -> None:
        self.most = 0.0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            self.most = max(self.most, anonymous())
            time.sleep(0.02)


def anonymous() -> float:
    """Anonymous memory of this process now, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 2**10
    raise SystemExit("this benchmark reads /proc/self/status, which Linux has")


def write(folder: Path, name: str, users: int, items: int, events: int) -> None:
    """Write a dataset in which users walk through the items, with titles of six words."""
    import numpy as np

    rng = np.random.default_rng(users)
    words = np.array([f"word{number}" for number in range(2000)])
    target = folder / name
    target.mkdir(parents=True)
    with open(target / f"{name}.item", "w") as file:
        file.write("item_id:token\ttitle:token_seq\n")
        for item, title in enumerate(rng.choice(words, (items, 6)).tolist()):
            file.write(f"i{item}\t{' '.join(title)}\n")
    with open(target / f"{name}.inter", "w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for first in range(0, users, 10**5):
            count = min(10**5, users - first)
            walk = rng.integers(items, size=(count, 1)) + np.arange(events) * 7
            for user, row in enumerate((walk % items).tolist(), first):
                file.write(
                    "".join(f"u{user}\ti{item}\t{user + at}\n" for at, item in enumerate(row))
                )


def save_model(folder: Path) -> None:
    """Save a narrow causal LM of random weights, whose tokenizer knows the words."""
    from recbole_llm.language.backbones.scratch import causal_model, train_tokenizer
    from recbole_llm.language.backbones.sources import Backbone

    words = [f" Title: word{number}." for number in range(2000)]
    tokenizer = train_tokenizer(words * 3, 3000)
    Backbone(causal_model("nano", tokenizer, 256), tokenizer).save(folder)


def settings(args: Any) -> dict[str, Any]:
    """Settings of the training."""
    from recbole_llm.settings import layers

    own = {
        "data_path": args.folder,
        "checkpoint_dir": f"{args.folder}/saved",
        "datasets": ["small", "large"],
        "backbone": f"{args.folder}/model",
        "adapter": "none",
        "max_length": 256,
        "nig_targets": args.targets,
        "train_batch_size": 64,
        "max_steps": STEPS,
        "epochs": 1,
        "valid_users": 8,
        "valid_samples": 2,
        "max_new_tokens": 16,
        "text_fields": {"Title": "title"},
        "show_progress": False,
        "beside": [],
    }
    return layers.resolve("CALRec", "small", [], own)


def train(args: Any) -> None:
    """Train; print the seconds up to the first step, and the most memory until the end."""
    watch, started, first = Watch(), time.perf_counter(), []

    from recbole_llm.runs.runner import Runner
    from recbole_llm.runs.spec import describe
    from recbole_llm.training import text_trainer

    inner = text_trainer.LLMTrainer._step

    def step(trainer: Any, examples: list) -> float:
        loss = inner(trainer, examples)
        first.append(time.perf_counter() - started)
        return loss

    text_trainer.LLMTrainer._step = step  # type: ignore[method-assign]
    spec = describe(settings(args))
    model, trainer, loaders = Runner(spec).build()
    trainer.fit(*loaders[:2])
    finish(
        first_step=first[0],
        steps=len(first),
        step=(first[-1] - first[0]) / max(1, len(first) - 1),
        anonymous_mib=watch.most,
        examples=len(model.examples(0)),
    )


def size(folder: Path) -> float:
    """Bytes of all files of a folder, in MiB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / MIB


def main() -> None:
    args = arguments(
        __doc__, users="100000,1000000,10000000", events=8, targets="", folder="", side=""
    )
    if args.side:
        train(args)
        return
    rows = []
    for users in [2000] if args.small else list(map(int, args.users.split(","))):
        items = min(200_000, max(500, users // 10))
        with tempfile.TemporaryDirectory(dir=".") as name:
            folder = Path(name)
            write(folder, "small", 500, 300, 8)
            write(folder, "large", users, items, args.events)
            save_model(folder / "model")
            row: dict[str, Any] = {"users": users, "items": items, "events": users * args.events}
            for targets in ("last", "all"):
                for which in ("store", "train"):
                    options = {"side": which, "folder": str(folder), "targets": targets}
                    if which == "store" and targets == "all":
                        continue  # it is there
                    measured = in_child(__file__, **options)
                    prefix = f"{which}_{targets}"
                    row[f"{prefix}_first_s"] = round(measured["first_step"], 1)
                    row[f"{prefix}_step_s"] = round(measured["step"], 2)
                    row[f"{prefix}_anonymous_mib"] = round(measured["anonymous_mib"])
                    row[f"{prefix}_examples"] = measured["examples"]
            row["file_mib"] = round(size(folder / "large"))
            row["stores_mib"] = round(size(folder / "saved" / "cache"))
        print(row, flush=True)
        rows.append(row)
    finish(bench="stream", rows=rows)


if __name__ == "__main__":
    main()
