"""On a GPU: are the numbers right, how fast is it, and how good do larger models get?

    python bench/gpu.py --part=all --data=FOLDER --saved=FOLDER --minutes=20

check: decoding, and training steps of CALRec and TALLRec in fp32, against the CPU. speed: generate.py, train.py, adapters.py and score.py.
personal: the personalization spectrum of Games-6k by scratch:base. quality: CALRec on Scientific, then judges on Office, in the order of RUNS until
the time is used up. Called again with the same --saved both go on where they stopped. FOLDER of --data holds Scientific/, Office/ and Games-6k/. The
last line has everything that was found.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import arguments, device, finish

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
JUDGE = {"dataset": "Office", "text_fields": {"Title": "title"}, "backbone": "run:base, Office", "negatives": 4, "learner": "muon", "learning_rate": 0.001,
         "train_batch_size": 32, "pass_tokens": 65536, "epochs": 4}  # fmt: skip
RUNS = {
    "small": WRITER | {"backbone": "scratch:small", "epochs": 40, "learning_rate": 0.003},
    "base": WRITER | {"backbone": "scratch:base", "epochs": 40, "learning_rate": 0.001},
    "base, Office": WRITER | OFFICE | {"backbone": "scratch:base", "epochs": 20, "learning_rate": 0.001},
    "TALLRec": JUDGE | {"model": "TALLRec", "recent_items": 10},
    "LLMTRSR, hierarchical": JUDGE | {"model": "LLMTRSR", "summary": "hierarchical"},
    "LLMTRSR, recurrent": JUDGE | {"model": "LLMTRSR", "summary": "recurrent"},
    "base, contrastive": WRITER | {"backbone": "scratch:base", "epochs": 40, "learning_rate": 0.001, "alpha": 0.125, "beta": -0.025},
    "base, two stages": WRITER | {
        "backbone": "scratch:base", "stages": ["joint", "target"],
        "stage_settings": {
            "joint": {"datasets": ["Scientific", "Office", "Games-6k"], "epochs": 20, "learning_rate": 0.001},
            "target": {"datasets": None, "select_on": None, "epochs": 20, "learning_rate": 0.0005},
        },
    },
}  # fmt: skip
SMALL = ("small", "base, Office", "TALLRec", "LLMTRSR, hierarchical")
ANSWERS = {
    "sample": {},
    "constrained": {"decoding": "constrained"},
    "constrained, blend 1": {"decoding": "constrained", "blend": 1.0},
}


def check() -> list[dict]:
    """Differences between this device and the CPU, in fp32 without TensorFloat-32."""
    import copy

    import numpy as np
    import torch

    from recbole_llm.language.backbones.sources import Backbone
    from recbole_llm.language.decoding.constrained_search import Catalogue, search
    from recbole_llm.language.decoding.sampling import sample, stream_key
    from recbole_llm.runs.runner import Runner
    from recbole_llm.runs.spec import describe
    from recbole_llm.settings import layers as settings

    torch.backends.cuda.matmul.allow_tf32 = False
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        own = {"checkpoint_dir": folder, "show_progress": False, "train_batch_size": 32}
        for name in ("TALLRec", "CALRec"):
            _, trainer, _ = Runner(describe(settings.resolve(name, "Pet", [], own))).build()
            model = trainer.model
            groups = model.examples(0)[:32]
            before = copy.deepcopy(model.state_dict())
            losses, gradients = [], []
            for where in (device(), "cpu"):
                model.load_state_dict(before)
                model.to(where)
                model.device = trainer.device = torch.device(where)
                trainer.optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
                losses.append(trainer._step(groups))
                gradients.append([parameter.grad.cpu().clone() for parameter in model.parameters()])
            largest = max(
                (a - b).abs().max().item() / b.abs().max().item()
                for a, b in zip(*gradients, strict=True)
                if b.abs().max() > 0
            )
            rows.append(
                {
                    "check": f"training step of {name}",
                    "loss": abs(losses[0] / losses[1] - 1),
                    "gradient": largest,
                }
            )
        catalogue = Catalogue([model.encoder.item(text) for text in model.sentences])
        prompts = [group[0].ids for group in groups[:8]]
        found = []
        for where in (device(), "cpu"):
            backbone = Backbone(model.bundle.model.to(where).eval(), model.bundle.tokenizer)
            keys = np.array([stream_key(0, str(number)) for number in range(len(prompts))])
            drawn = sample(backbone, prompts, keys, samples=8, temperature=0.5, max_new=40)
            reached = search(backbone, prompts, catalogue, 16)
            found.append(([ids.tolist() for one in drawn for ids in one.ids], np.concatenate([one.logprobs for one in drawn]),
                          np.concatenate([one.logprobs for one in reached])))  # fmt: skip
        (texts, logprobs, beams), (texts_cpu, logprobs_cpu, beams_cpu) = found
        same = np.array([a == b for a, b in zip(texts, texts_cpu, strict=True)])
        rows.append(
            {
                "check": "sampling",
                "same_texts": float(same.mean()),
                "logprob": float(np.abs(logprobs - logprobs_cpu)[same].max()),
            }
        )
        rows.append({"check": "beams", "logprob": float(np.abs(beams - beams_cpu).max())})
    return rows


def speed(small: bool) -> list[dict]:
    """The rows of four benches, each in its own process; small: of the last, since each has a check of its own."""
    rows = []
    for script in ("generate.py", "train.py", "adapters.py", "score.py")[-1 if small else 0 :]:
        command = [sys.executable, str(Path(__file__).with_name(script)), *["--small"] * small]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        result = (
            json.loads(done.stdout.strip().splitlines()[-1])
            if done.returncode == 0
            else {"rows": [{"error": done.stderr[-500:]}]}
        )
        rows += [{"bench": script} | row for row in result["rows"]]
    return rows


def quality(data: str, saved: str, ends: float, small: bool) -> list[dict]:
    """Validation and test of every run and way to answer that was finished in time."""
    from recbole_llm.runs.commands import evaluate_run, run_settings
    from recbole_llm.settings import layers as settings

    rows, starts = [], {}
    for name in SMALL if small else RUNS:
        own = RUNS[name]
        given = (
            COMMON
            | own
            | {
                "data_path": data,
                "checkpoint_dir": saved,
                "backbone": starts.get(own["backbone"], own["backbone"]),
            }
        )
        model, dataset = given.pop("model"), given.pop("dataset")
        if small:
            dataset, given = (
                "Pet",
                {key: value for key, value in given.items() if key not in OFFICE},
            )
            given |= {"user_sample": 60, "epochs": 1, "test_users": 20, "valid_users": 20}
            given |= {"samples": 4, "valid_samples": 2} if model == "CALRec" else {"targets": "one"}
            given |= (
                {"backbone": "scratch:tiny"} if given["backbone"].startswith("scratch:") else {}
            )
        for answer, more in ANSWERS.items() if model == "CALRec" else [("score", {})]:
            if time.perf_counter() > ends:
                return rows
            started = time.perf_counter()
            resolved = settings.resolve(model, dataset, [], given | more)
            run = run_settings(
                resolved | {key: settings.resolve(model, dataset, [], given)[key] for key in more}
            )
            starts[f"run:{name}"] = f"run:{run.folder.name}"
            run = evaluate_run(run.folder, resolved) if more else run
            keep = {f"{part} {key}": run.row[part][key] for part in ("valid", "test") for key in ("ndcg@10_opt", "ndcg@10_pes", "recall@1", "recall@10")
                    if part in run.row}  # fmt: skip
            rows.append(
                {
                    "run": name,
                    "decoding": answer,
                    "seconds": round(time.perf_counter() - started),
                    "best_epoch": run.row["best_epoch"],
                }
                | keep
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def personal(data: str, saved: str, small: bool) -> dict:
    """The tables and answers of the personalization spectrum, and its seconds; adapters are trained in this process."""
    from recbole_llm.settings import layers as settings
    from recbole_llm.studies.personalization.command import personalize

    own = {
        "data_path": data,
        "checkpoint_dir": saved,
        "show_progress": False,
        "precision": "bf16",
        "jobs": "serial",
    }
    if small:
        own |= {
            "user_sample": 4,
            "epochs": 1,
            "adapter_epochs": 1,
            "models": "2,3,5",
            "own_users": 2,
            "scratch_vocabulary": 600,
        }
    else:
        own |= {"backbone": "scratch:base", "learner": "muon", "train_batch_size": 64, "epochs": 6, "max_length": 256, "segments": 2, "pass_tokens": 65536,
                "low_activity": 4, "adapter_batch_size": 32, "adapter_learning_rate": 0.0003}  # fmt: skip
    told, layers = settings.of_command("personalize", [], own)
    started = time.perf_counter()
    lines = personalize(
        settings.resolve("TASTELoRA", "ml-100k" if small else "Games-6k", layers), told
    )
    return {"seconds": round(time.perf_counter() - started), "lines": lines}


def main():
    args = arguments(__doc__, part="all", data="dataset", saved="", minutes=20.0)
    ends = time.perf_counter() + 60 * args.minutes
    import recbole_llm  # noqa: F401

    wanted = ("check", "speed", "personal", "quality") if args.part == "all" else (args.part,)
    with tempfile.TemporaryDirectory() as temporary:
        saved = args.saved or temporary
        parts = {"check": check, "speed": lambda: speed(args.small), "personal": lambda: personal(args.data, saved, args.small),
                 "quality": lambda: quality(args.data, saved, ends, args.small)}  # fmt: skip
        found = {}
        for part in wanted:
            found[part] = parts[part]()
            print(json.dumps({part: found[part]}), flush=True)
    rows = found.pop("speed", [])
    finish(bench="gpu", ratio=rows[0].get("ratio") if rows else None, rows=rows, **found)


if __name__ == "__main__":
    main()
