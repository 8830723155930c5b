"""LoRA on a causal LM: the Trainer of transformers with PEFT, against ours.

    python bench/trainer.py

Both sides train the same weights on the same batches, with adapters of rank 8 on every linear
layer, AdamW, and the loss of the targets alone. The Trainer pads a batch to its longest text, as
its collator for labelled texts does. Counts of tokens are without padding. The model has random
weights, the widths of `shape` (see memory.py) and `layers` layers; texts are those of the Pet
sample. Each side runs in a process of its own; `precision` is fp32, or bf16 under autocast.
`share` is that of our operations a second, as torch counts them, in the rate of one large product
of matrices in that precision.
"""

import json
import tempfile
import time
from itertools import chain
from pathlib import Path
from typing import Any

from common import arguments, device, finish, in_child, known, timed
from memory import SIZES, config_of, is_causal

RATE = 1e-3
NARROW = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 170,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 2048,
}


def save_model(folder: Path, shape: dict[str, Any], layers: int) -> None:
    """A folder with a causal LM of random weights and a tokenizer of the Pet sample's texts."""
    import torch
    from transformers import AutoModelForCausalLM

    from recbole_llm.language.backbones.scratch import train_tokenizer
    from recbole_llm.language.backbones.sources import Backbone

    texts = Path(__file__).resolve().parents[1] / "recbole_llm/data/sample/Pet-sample.item"
    vocabulary = min(4000, shape["vocab_size"] - 48)
    tokenizer = train_tokenizer(texts.read_text().splitlines(), vocabulary)
    overrides = {
        "num_hidden_layers": layers,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(shape | overrides), dtype=torch.float32)
    Backbone(model, tokenizer).save(folder)


def prepared(args: Any) -> tuple[Any, Any, list[list[Any]]]:
    """Our model, its trainer, and the batches of both sides."""
    import numpy as np

    from recbole_llm.runs.runner import Runner
    from recbole_llm.runs.spec import describe
    from recbole_llm.settings import layers as settings

    own = {
        "checkpoint_dir": f"{args.folder}/saved",
        "backbone": f"{args.folder}/model",
        "adapter": "lora",
        "lora_dropout": 0.0,
        "alpha": 0.0,
        "beta": 0.0,
        "max_length": 256,
        "nig_targets": "last",
        "train_batch_size": args.batch,
        "learning_rate": RATE,
        "schedule": "constant",
        "warmup": 0.0,
        "precision": args.precision,
        "show_progress": False,
    }
    _, trainer, _ = Runner(describe(settings.resolve("CALRec", "Pet", [], own))).build()
    examples = trainer.model.examples(0)
    order = np.random.default_rng(0).permutation(len(examples))
    batches = []
    for begin in range(0, args.steps * args.batch, args.batch):
        batches.append([examples[row] for row in order[begin : begin + args.batch]])
    return trainer.model, trainer, batches


def ours(args: Any) -> dict[str, float]:
    """Seconds of our steps behind the first, the mean loss of the last batch, and their share."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from recbole_llm.studies.hardware import product_rate

    model, trainer, batches = prepared(args)
    model.train()
    trainer._step(batches[0])

    def steps() -> float:
        for batch in batches[1:-1]:
            trainer._step(batch)
        return trainer._step(batches[-1])

    seconds, loss = timed(steps)
    learned = sum(int(text.learned.sum()) for (text,) in batches[-1])
    with FlopCounterMode(display=False) as counter:
        steps()
    most = product_rate(torch.device(device()), args.precision)
    return {
        "seconds": seconds,
        # ours is a mean per target, and theirs one per token
        "loss": loss * len(batches[-1]) / learned,
        "share": counter.get_total_flops() / seconds / most,
    }


def labelled(batches: list[list[Any]]) -> list[dict[str, list[int]]]:
    """The texts of all batches as the Trainer reads them."""
    rows = []
    for (text,) in chain.from_iterable(batches):
        labels = [token if learned else -100 for token, learned in zip(text.ids, text.learned)]
        rows.append({"input_ids": text.ids.tolist(), "labels": labels})
    return rows


def theirs(args: Any) -> dict[str, float]:
    """Seconds of the Trainer's steps behind the first, and the mean loss of the last."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils.data import SequentialSampler
    from transformers import (
        AutoModelForCausalLM,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    model, _, batches = prepared(args)
    rows = labelled(batches)
    whole = AutoModelForCausalLM.from_pretrained(f"{args.folder}/model")
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    times: list[float] = []

    class Times(TrainerCallback):
        """Notes when steps end."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    class InOrder(Trainer):
        """Takes the batches in their order."""

        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return SequentialSampler(rows)

    trainer = InOrder(
        model=get_peft_model(whole, lora),
        args=TrainingArguments(
            output_dir=f"{args.folder}/trainer",
            per_device_train_batch_size=args.batch,
            num_train_epochs=1,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            bf16=args.precision == "bf16",
            use_cpu=device() == "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(model.bundle.tokenizer, label_pad_token_id=-100),
        callbacks=[Times()],
    )
    trainer.train()
    return {
        "seconds": times[-1] - times[0],
        "loss": [line["loss"] for line in trainer.state.log_history if "loss" in line][-1],
    }


SIDES = {"ours": ours, "theirs": theirs}


def main() -> None:
    args = arguments(
        __doc__,
        steps=12,
        batch=8,
        shape="SmolLM2-135M",
        layers=6,
        precision="fp32",
        repeats=3,
        folder="",
        side="",
    )
    if args.side:
        print(json.dumps(SIDES[args.side](args)))
        return
    if args.small:
        args.steps, args.layers, args.batch, args.repeats = 3, 2, 4, 1
    causal = [name for name, shape in SIZES.items() if is_causal(config_of(shape))]
    shape = NARROW if args.small else SIZES[known("shape", args.shape, causal)]
    with tempfile.TemporaryDirectory() as name:
        args.folder = name
        save_model(Path(name) / "model", shape, args.layers)
        _, _, batches = prepared(args)
        tokens = sum(len(text) for (text,) in chain.from_iterable(batches[1:]))
        given = {key: getattr(args, key) for key in ("steps", "batch", "precision", "folder")}
        best: dict[str, dict[str, float]] = {}
        for _ in range(args.repeats):  # in turns
            for side in SIDES:
                result = in_child(__file__, side=side, **given)
                if side not in best or result["seconds"] < best[side]["seconds"]:
                    best[side] = result
    seconds = {side: result["seconds"] for side, result in best.items()}
    row = {
        "shape": "narrow" if args.small else args.shape,
        "layers": args.layers,
        "precision": args.precision,
        "tokens": tokens,
        "theirs_tokens_s": round(tokens / seconds["theirs"]),
        "ours_tokens_s": round(tokens / seconds["ours"]),
        "loss_theirs": best["theirs"]["loss"],
        "loss_ours": best["ours"]["loss"],
        "share": round(best["ours"]["share"], 2),
        "ratio": round(seconds["theirs"] / seconds["ours"], 2),
    }
    finish(bench="trainer", ratio=row["ratio"], rows=[row])


if __name__ == "__main__":
    main()
