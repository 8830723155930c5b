"""A pretrained language model is tuned in full, by LoRA, and over 8 and 4 bits; and is killed once.

    python bench/finetune.py --data=FOLDER --model=smollm2

FOLDER contains Scientific/; with --data= the Pet sample is trained on. The model is first stored in
whole float32 weights, if it is a packaged one; `random` is a narrow one of random weights. CALRec's
generation loss trains on `steps` steps of `batch` users. The loss of the targets of `users`
validation users, in nats a token, is measured before training and at each validation. Each training
is made twice: at once, and by a process that is killed when its first weights are stored, at a
quarter of the steps, and started again.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import arguments, finish, known

MODES: dict[str, dict[str, Any]] = {
    "lora": {"adapter": "lora", "learning_rate": 5e-4},
    "4bit": {"adapter": "lora", "learning_rate": 5e-4, "quantize": "4bit"},
    "full": {"learning_rate": 5e-5},
    "8bit": {"adapter": "lora", "learning_rate": 5e-4, "quantize": "8bit"},
}


OWN = ("mode", "saved", "result")  # arguments of one training


def whole_folder(name: str, folder: Path) -> str:
    """A folder with the whole weights of a packaged or random model; of another, its name."""
    from recbole_llm.language.backbones.sources import PACKAGED, load_folder

    if name == "random":
        return random_folder(folder)
    if name not in PACKAGED:
        return name
    load_folder(name).save(folder / name)
    return str(folder / name)


def random_folder(folder: Path) -> str:
    """A folder with a narrow causal LM of random weights, to check that the benchmark runs."""
    from common import number_tokenizer

    from recbole_llm.language.backbones.scratch import causal_model
    from recbole_llm.language.backbones.sources import Backbone

    tokenizer = number_tokenizer(100, 3, 400)
    Backbone(causal_model("nano", tokenizer, 256), tokenizer).save(folder / "random")
    return str(folder / "random")


def settings_of(args: Any) -> dict[str, Any]:
    """Settings of one training."""
    from recbole_llm.settings import layers

    own = {
        "checkpoint_dir": args.saved,
        "backbone": args.model,
        "max_length": args.length,
        "train_batch_size": args.batch,
        "max_steps": args.steps,
        "valid_every": args.steps // 4,
        "epochs": 1,
        "alpha": 0.0,
        "beta": 0.0,
        "text_fields": {"Title": "title"},
        "text_words": {"Title": args.words},
        "valid_users": 4,
        "valid_samples": 2,
        "max_new_tokens": 16,
        "precision": args.precision,
        "seed": args.seed,
        "show_progress": False,
        "beside": [],
    }
    if args.data:
        own["data_path"] = args.data
    dataset = "Scientific" if args.data else "Pet"
    return layers.resolve("CALRec", dataset, [], own | MODES[args.mode])


def train(args: Any) -> None:
    """Train in this process, or go on; write the measured losses to a file."""
    import torch

    from recbole_llm.data.cases.splits import draw
    from recbole_llm.language.tokens.batches import IGNORED, by_length, pad
    from recbole_llm.runs.runner import Runner
    from recbole_llm.runs.spec import describe
    from recbole_llm.training import text_trainer
    from recbole_llm.training.loop import STATE

    text_trainer.SAVE_SECONDS = args.save_seconds
    ready = describe(settings_of(args))
    model, trainer, (train_data, valid_data, _) = Runner(ready).build()
    texts = [text for (text,) in model.texts_of(draw(ready.split.valid, args.users))]
    passes = by_length([len(text) for text in texts], 2048)
    losses: dict[int, float] = {}

    @torch.no_grad()
    def measure(*_: object) -> None:
        model.eval()
        total, count = 0.0, 0
        for rows in passes:
            batch = pad([texts[row] for row in rows], pad_id=model.pad_id).to(model.device)
            with model.autocast():
                total += float(model.loss(batch))
            count += int((batch.labels != IGNORED).sum())
        losses[trainer.steps] = round(total / count, 4)
        print(f"{args.mode}: {trainer.steps} steps, loss {losses[trainer.steps]}", flush=True)

    if (trainer.folder / STATE).is_file():
        trainer.resume_checkpoint(trainer.folder)
    else:
        measure()
    begun = trainer.steps
    started = time.perf_counter()
    trainer.fit(train_data, valid_data, callback_fn=measure)
    row = {
        "mode": args.mode,
        "begun": begun,
        "losses": losses,
        "history": [[line.get("step"), line["loss"]] for line in trainer.history],
        "seconds": round(time.perf_counter() - started),
        "trained": sum(value.numel() for value in model.parameters() if value.requires_grad),
    }
    Path(args.result).write_text(json.dumps(row))


def child(args: Any, saved: Path, **own: Any) -> tuple[subprocess.Popen, Path]:
    """Start a process that trains into a folder; it, and where its result will be."""
    result = saved / "result.json"
    saved.mkdir(parents=True, exist_ok=True)
    given = vars(args) | {"saved": str(saved), "result": str(result)} | own
    names = ("data", "model", "steps", "batch", "length", "words", "users", "precision", "seed")
    options = [f"--{name}={given[name]}" for name in (*names, "save_seconds", *OWN)]
    return subprocess.Popen([sys.executable, __file__, *options]), result


def killed_and_resumed(args: Any, saved: Path, mode: str) -> dict[str, Any]:
    """Train, be killed when the first weights are stored, and train to the end."""
    first, result = child(args, saved, mode=mode, save_seconds=0)
    while first.poll() is None and not list(saved.glob("*/readback.json")):
        time.sleep(0.05)
    if first.poll() is not None:
        raise SystemExit(f"{mode}: the training ended before it was killed")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    second, result = child(args, saved, mode=mode)
    if second.wait():
        raise SystemExit(f"{mode}: the resumed training has failed")
    return json.loads(result.read_text())


def main() -> None:
    args = arguments(
        __doc__,
        data="../shared/data",
        model="smollm2",
        steps=100,
        batch=4,
        length=96,
        words=8,
        users=100,
        precision="fp32",
        seed=2020,
        modes="lora,4bit,full,8bit",
        save_seconds=120.0,
        mode="",
        saved="",
        result="",
    )
    if args.mode:
        train(args)
        return
    if args.small:
        args.steps, args.users, args.data, args.modes = 8, 8, "", "lora"
        args.model = "random"
    if args.steps < 4:
        raise SystemExit(
            f"--steps: expected at least 4, one for each validation, found {args.steps}"
        )
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        args.model = whole_folder(args.model, folder)
        for mode in [known("modes", mode, MODES) for mode in args.modes.split(",")]:
            whole, result = child(args, folder / mode, mode=mode)
            if whole.wait():
                raise SystemExit(f"{mode}: the training has failed")
            row = json.loads(result.read_text())
            again = killed_and_resumed(args, folder / f"{mode}-killed", mode)
            equal = row["history"] == again["history"]
            row |= {"resumed_at": again["begun"], "resumed_equal": equal}
            row["falls"] = _falls(row["losses"])
            rows.append(row)
            print(json.dumps(row))
    finish(bench="finetune", rows=rows)


def _falls(losses: dict[str, float]) -> bool:
    values = list(losses.values())
    return values[-1] < values[0]


if __name__ == "__main__":
    main()
