"""Results on a GPU: agreement with the CPU, speed, memory, and the quality of larger models.

    python bench/gpu.py --saved=FOLDER
    python bench/gpu.py --part=quality --data=FOLDER --saved=FOLDER --minutes=20

Parts of the first command. `check` always runs; after `minutes`, no further benchmark begins, and
one that runs is ended:

- check: decoding, and training steps of CALRec and TALLRec in fp32, against the CPU.
- train: LoRA against transformers' Trainer with PEFT (trainer.py), and CALRec's steps (train.py).
- memory: the peak of training steps against the trace that forecasts it (memory.py).
- decode: sampling, texts of unequal lengths, and judging (generate.py, summaries.py, score.py).
- quantised: LoRA over 4 bits, whole and killed (finetune.py).
- adapters: an adapter for each of many users (adapters.py).

Parts that are named alone:

- personal: the personalization spectrum of Games-6k with scratch:base.
- quality: CALRec on Scientific, then judges on Office, in the order of RUNS until time is up.

Each part is stored in FOLDER as PART.json when it has ended. Called again with the same --saved,
`personal` and `quality` continue where they stopped. The folder of --data contains Scientific/,
Office/ and Games-6k/. The last line has all results.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import arguments, device, finish, known

COMMON = {"precision": "bf16", "valid_users": 2000, "show_progress": False}
WRITER = {
    "model": "CALRec",
    "dataset": "Scientific",
    "train_batch_size": 128,
    "eval_step": 5,
    "alpha": 0.0,
    "beta": 0.0,
}
OFFICE = {
    "dataset": "Office",
    "text_fields": {"Title": "title", "Description": "description"},
    "text_words": {"Title": 25, "Description": 25},
}
JUDGE = {
    "dataset": "Office",
    "text_fields": {"Title": "title"},
    "backbone": "run:base, Office",
    "negatives": 4,
    "learner": "muon",
    "learning_rate": 0.001,
    "train_batch_size": 32,
    "pass_tokens": 65536,
    "epochs": 4,
}
BASE = WRITER | {"backbone": "scratch:base", "learning_rate": 0.001}
STAGES = {
    "joint": {
        "datasets": ["Scientific", "Office", "Games-6k"],
        "epochs": 20,
        "learning_rate": 0.001,
    },
    "target": {"datasets": None, "select_on": None, "epochs": 20, "learning_rate": 0.0005},
}
RUNS = {
    "small": WRITER | {"backbone": "scratch:small", "epochs": 40, "learning_rate": 0.003},
    "base": BASE | {"epochs": 40},
    "base, Office": BASE | OFFICE | {"epochs": 20},
    "TALLRec": JUDGE | {"model": "TALLRec", "recent_items": 10},
    "LLMTRSR, hierarchical": JUDGE | {"model": "LLMTRSR", "summary": "hierarchical"},
    "LLMTRSR, recurrent": JUDGE | {"model": "LLMTRSR", "summary": "recurrent"},
    "base, contrastive": BASE | {"epochs": 40, "alpha": 0.125, "beta": -0.025},
    "base, two stages": WRITER
    | {"backbone": "scratch:base", "stages": ["joint", "target"], "stage_settings": STAGES},
}
SMALL = ("small", "base, Office", "TALLRec", "LLMTRSR, hierarchical")
ANSWERS = {
    "sample": {},
    "constrained": {"decoding": "constrained"},
    "constrained, blend 1": {"decoding": "constrained", "blend": 1.0},
}


PERSONAL = {"show_progress": False, "precision": "bf16", "jobs": "serial"}
PERSONAL_SMALL = {
    "user_sample": 4,
    "epochs": 1,
    "adapter_epochs": 1,
    "models": "2,3,5",
    "own_users": 2,
    "scratch_vocabulary": 600,
    "precision": "fp32",
}
PERSONAL_FULL = {
    "backbone": "scratch:base",
    "learner": "muon",
    "train_batch_size": 64,
    "epochs": 6,
    "max_length": 256,
    "segments": 2,
    "pass_tokens": 65536,
    "low_activity": 4,
    "adapter_batch_size": 32,
    "adapter_learning_rate": 0.0003,
}


def check(small: bool) -> list[dict]:
    """Differences between this device and the CPU, in fp32 without TensorFloat-32."""
    import torch

    from recbole_llm.runs.runner import Runner
    from recbole_llm.runs.spec import describe
    from recbole_llm.settings import layers as settings

    torch.backends.cuda.matmul.allow_tf32 = False
    rows, count = [], 4 if small else 32
    with tempfile.TemporaryDirectory() as folder:
        own = {"checkpoint_dir": folder, "show_progress": False, "train_batch_size": count}
        for name in ("TALLRec", "CALRec"):
            _, trainer, _ = Runner(describe(settings.resolve(name, "Pet", [], own))).build()
            examples = trainer.model.examples(0)[:count]
            rows.append({"check": f"training step of {name}"} | check_step(trainer, examples))
        # decoding is that of the last model, CALRec
        rows += check_decoding(trainer.model, [example[0].ids for example in examples[:8]])
    return rows


def check_step(trainer, examples) -> dict[str, float]:
    """Relative differences of loss and gradients between this device and the CPU."""
    import copy

    import torch

    model = trainer.model
    before = copy.deepcopy(model.state_dict())
    losses, gradients = [], []
    for where in (device(), "cpu"):
        model.load_state_dict(before)
        model.to(where)
        model.device = trainer.device = torch.device(where)
        trainer.optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        losses.append(trainer._step(examples))
        gradients.append([parameter.grad.cpu().clone() for parameter in model.parameters()])
    largest = max(
        (here - on_cpu).abs().max().item() / on_cpu.abs().max().item()
        for here, on_cpu in zip(*gradients, strict=True)
        if on_cpu.abs().max() > 0
    )
    return {"loss": abs(losses[0] / losses[1] - 1), "gradient": largest}


def check_decoding(model, prompts) -> list[dict]:
    """Differences of sampled texts and of beams between this device and the CPU."""
    import numpy as np

    from recbole_llm.language.backbones.sources import Backbone
    from recbole_llm.language.decoding.constrained_search import Catalogue, search
    from recbole_llm.language.decoding.sampling import sample, stream_key

    catalogue = Catalogue([model.encoder.item(text) for text in model.sentences])
    keys = np.array([stream_key(0, str(number)) for number in range(len(prompts))])
    results = []
    for where in (device(), "cpu"):
        backbone = Backbone(model.bundle.model.to(where).eval(), model.bundle.tokenizer)
        samples = sample(backbone, prompts, keys, samples=8, temperature=0.5, max_new=40)
        beams = search(backbone, prompts, catalogue, 16)
        texts: list[list[int]] = []
        for one in samples:
            texts += [ids.tolist() for ids in one.ids]
        logprobs = np.concatenate([one.logprobs for one in samples])
        results.append((texts, logprobs, np.concatenate([one.logprobs for one in beams])))
    (texts, logprobs, beams), (texts_cpu, logprobs_cpu, beams_cpu) = results
    same = np.array([here == on_cpu for here, on_cpu in zip(texts, texts_cpu, strict=True)])
    return [
        {
            "check": "sampling",
            "same_texts": float(same.mean()),
            "logprob": float(np.abs(logprobs - logprobs_cpu)[same].max()),
        },
        {"check": "beams", "logprob": float(np.abs(beams - beams_cpu).max())},
    ]


def benches(commands: list[dict], ends: float, small: bool) -> list[dict]:
    """The rows of benchmarks, each in a process of its own, as far as there is time for them.

    A command has the benchmark as `script`, and its options.
    """
    rows = []
    for command in commands[: 1 if small else None]:
        if small:
            command = {"script": command["script"]}
        options = [f"--{key}={value}" for key, value in command.items() if key != "script"]
        script = str(Path(__file__).with_name(command["script"]))
        seconds_left = ends - time.perf_counter()
        if seconds_left < 5:
            rows.append(command | {"error": "no time was left"})
            continue
        process = subprocess.Popen(
            [sys.executable, script, *(["--small"] if small else options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            printed, errors = process.communicate(timeout=seconds_left)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its own children too
            process.communicate()
            rows.append(command | {"error": f"it did not end within {seconds_left:.0f} s"})
            continue
        if process.returncode:
            rows.append(command | {"error": errors[-500:]})
            continue
        last = json.loads(printed.strip().splitlines()[-1])
        rows += [command | row for row in last.get("rows", [last])]
    return rows


TRAINER = {"script": "trainer.py", "precision": "bf16", "batch": 64, "repeats": 1}
TRAIN = [
    TRAINER | {"shape": "Llama-3.2-1B", "layers": 6},
    TRAINER | {"shape": "SmolLM2-135M", "layers": 30},
    {"script": "train.py"},
]
DECODE = [
    {"script": "score.py", "size": "base"},
    {"script": "generate.py"},
    {"script": "summaries.py", "prompts": 256, "slots": 64},
]


def memory_of(model: str, way: str, recomputes: int, layers: int, rows: int, length: int) -> dict:
    """A command that measures the peak of a training step."""
    command = {"script": "memory.py", "model": model, "way": way, "recomputes": recomputes}
    return command | {"layers": layers, "rows": rows, "length": length}


# a LoRA of Llama-2-7b in whole, then layers of smaller models
MEMORY = [
    memory_of("Llama-2-7b", "LoRA", 1, layers=32, rows=1, length=2048),
    memory_of("Qwen2.5-0.5B", "LoRA", 0, layers=12, rows=16, length=512),
    memory_of("Llama-3.2-1B", "in full", 0, layers=8, rows=16, length=512),
    memory_of("gemma-2-2b", "in full", 1, layers=8, rows=8, length=512),
    memory_of("t5-base", "in full", 0, layers=12, rows=8, length=512),
    memory_of("t5-base", "LoRA", 1, layers=12, rows=8, length=512),
]
MEMORY_SMALL = [memory_of("scratch:tiny", "LoRA", 0, layers=3, rows=1, length=64)]
QUANTISED = [{"script": "finetune.py", "data": "", "model": "random", "modes": "4bit"}]
ADAPTERS = [{"script": "adapters.py", "repeats": 1, "epochs": 1, "alone": 6}]


def small_settings(model: str, given: dict) -> dict:
    """The settings of a run, changed so that it takes seconds, on CPUs without bf16 too."""
    given = {key: value for key, value in given.items() if key not in OFFICE}
    given["precision"] = "fp32"
    given |= {"user_sample": 60, "epochs": 1, "test_users": 20, "valid_users": 20}
    given |= {"samples": 4, "valid_samples": 2} if model == "CALRec" else {"targets": "one"}
    if given["backbone"].startswith("scratch:"):
        given["backbone"] = "scratch:tiny"
    return given


def figures(row: dict) -> dict[str, float]:
    """Metrics of a run's validation and test, as far as it has them."""
    keys = ("ndcg@10_opt", "ndcg@10_pes", "recall@1", "recall@10")
    parts = [part for part in ("valid", "test") if part in row]
    return {f"{part} {key}": row[part][key] for part, key in itertools.product(parts, keys)}


def quality(data: str, saved: str, ends: float, small: bool) -> list[dict]:
    """Validation and test of all runs, and of all ways to decode, that finish in time."""
    from recbole_llm.runs.commands import evaluate_run, run_settings
    from recbole_llm.settings import layers as settings

    rows, starts = [], {}
    for name in SMALL if small else RUNS:
        given = COMMON | RUNS[name] | {"data_path": data, "checkpoint_dir": saved}
        given["backbone"] = starts.get(given["backbone"], given["backbone"])
        model, dataset = given.pop("model"), given.pop("dataset")
        if small:
            dataset, given = "Pet", small_settings(model, given)
        for answer, more in ANSWERS.items() if model == "CALRec" else [("score", {})]:
            if time.perf_counter() > ends:
                return rows
            started = time.perf_counter()
            resolved = settings.resolve(model, dataset, [], given | more)
            # training is the same for all ways to decode
            trained = settings.resolve(model, dataset, [], given)
            run = run_settings(resolved | {key: trained[key] for key in more})
            starts[f"run:{name}"] = f"run:{run.folder.name}"
            run = evaluate_run(run.folder, resolved) if more else run
            row = {
                "run": name,
                "decoding": answer,
                "seconds": round(time.perf_counter() - started),
                "best_epoch": run.row["best_epoch"],
            }
            rows.append(row | figures(run.row))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def personal(data: str, saved: str, small: bool) -> dict:
    """The tables and answers of the personalization spectrum, and its seconds.

    Adapters are trained in this process.
    """
    from recbole_llm.settings import layers as settings
    from recbole_llm.studies.personalization.command import personalize

    own = PERSONAL | {"data_path": data, "checkpoint_dir": saved}
    own |= PERSONAL_SMALL if small else PERSONAL_FULL
    command_settings, layers = settings.of_command("personalize", [], own)
    dataset = "ml-100k" if small else "Games-6k"
    started = time.perf_counter()
    lines = personalize(settings.resolve("TASTELoRA", dataset, layers), command_settings)
    return {"seconds": round(time.perf_counter() - started), "lines": lines}


def main() -> None:
    args = arguments(__doc__, part="all", data="dataset", saved="", minutes=8.0)
    ends = time.perf_counter() + 60 * args.minutes
    import recbole_llm  # noqa: F401

    with tempfile.TemporaryDirectory() as temporary:
        saved = args.saved or temporary
        Path(saved).mkdir(parents=True, exist_ok=True)
        quick = {
            "check": lambda: check(args.small),
            "train": lambda: benches(TRAIN, ends, args.small),
            "memory": lambda: benches(MEMORY_SMALL if args.small else MEMORY, ends, False),
            "decode": lambda: benches(DECODE, ends, args.small),
            "quantised": lambda: benches(QUANTISED, ends, args.small),
            "adapters": lambda: benches(ADAPTERS, ends, args.small),
        }
        parts = quick | {
            "personal": lambda: personal(args.data, saved, args.small),
            "quality": lambda: quality(args.data, saved, ends, args.small),
        }
        results = {}
        for part in quick if args.part == "all" else (known("part", args.part, ["all", *parts]),):
            started = time.perf_counter()
            results[part] = parts[part]()
            line = json.dumps({part: results[part], "seconds": time.perf_counter() - started})
            (Path(saved) / f"{part}.json").write_text(line)
            print(line, flush=True)
    rows = results.pop("decode", [])
    finish(bench="gpu", ratio=rows[0].get("ratio") if rows else None, rows=rows, **results)


if __name__ == "__main__":
    main()
