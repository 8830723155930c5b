"""Full ranking: RecBole's evaluation against ours, with the same model and the same cases.

    python bench/evaluate.py

The model is GRU4Rec over 8 items, so that ranking takes most of the time, and not the encoder.
`ours` is what every validation of a training run does: ranks and metrics. `final` is what the end
of a run does: top-1000 lists and their metrics as well, which RecBole does not have.
"""

import itertools
import os
import tempfile
from pathlib import Path

from common import arguments, finish, in_child, peak, random_events, resident, timed

LENGTH = 8
STOCK = {
    "MAX_ITEM_LIST_LENGTH": LENGTH,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "train_neg_sample_args": None,
    "show_progress": False,
    "topk": [10],
    "eval_args": {
        "split": {"LS": "valid_and_test"},
        "order": "TO",
        "group_by": "user",
        "mode": "full",
    },
    "metrics": ["Recall", "NDCG", "MRR"],
    "valid_metric": "NDCG@10",
    "metric_decimal_place": 12,
    "state": "ERROR",
}


def stock(folder: str, cases: int) -> dict:
    """Seconds, memory and metrics of RecBole's evaluation."""
    # before recbole, which does not run on today's numpy and pandas without it
    import recbole_llm  # noqa: F401  # isort: skip
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    # RecBole writes the files of its tensorboard into the working directory
    os.chdir(folder)
    folders = {"data_path": folder, "checkpoint_dir": folder}
    config = Config(model="GRU4Rec", dataset="random", config_dict=STOCK | folders)
    dataset = create_dataset(config)
    train, _, test = data_preparation(config, dataset)
    init_seed(1, True)
    model = get_model("GRU4Rec")(config, train._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "GRU4Rec")(config, model)
    trainer.eval_collector.data_collect(train)
    test._dataset.inter_feat = test._dataset.inter_feat[torch.arange(cases)]
    test = type(test)(config, test._dataset, None, shuffle=False)
    before = resident()
    seconds, result = timed(lambda: trainer.evaluate(test, load_best_model=False))
    return {
        "seconds": seconds,
        "peak_mib": peak() - before,
        "result": {key: float(value) for key, value in result.items()},
    }


def ours(folder: str, cases: int, topk: int = 0) -> dict:
    """Seconds, memory and metrics of our evaluation, with top lists if `topk` is not 0."""
    import numpy as np

    from recbole_llm.evaluation import metrics
    from recbole_llm.runs.runner import Runner
    from recbole_llm.runs.spec import describe
    from recbole_llm.settings import layers as settings

    own = {
        "data_path": folder,
        "checkpoint_dir": folder,
        "seed": 1,
        "topk": [10],
        "dedup": "none",
        "MAX_ITEM_LIST_LENGTH": LENGTH,
    }
    resolved = settings.resolve("GRU4Rec", "random", [], own)
    _, trainer, (_, _, test) = Runner(describe(resolved)).build()
    test._dataset.cases = test._dataset.cases[np.arange(cases)]
    interactions = test._dataset.interactions

    def evaluate():
        table, lists = trainer.rank(test, topk=topk)
        values = metrics.evaluate(table, ["Recall", "NDCG", "MRR"], [10])
        if topk:
            train_items = interactions.item[test._dataset.split.train_events]
            counts = np.bincount(train_items + 1, minlength=len(interactions.items) + 1)
            values |= metrics.list_metrics(lists.items + 1, counts, [10])
        return values

    before = resident()
    seconds, values = timed(evaluate)
    return {
        "seconds": seconds,
        "peak_mib": peak() - before,
        "result": {key: values[key] for key in ("recall@10", "ndcg@10", "mrr@10")},
    }


def final(folder: str, cases: int) -> dict:
    """Seconds, memory and metrics of our evaluation at the end of a run."""
    return ours(folder, cases, topk=1000)


SIDES = {"stock": stock, "ours": ours, "final": final}


def compare(items: int, cases: int, repeats: int) -> dict:
    """The figures of all sides for a catalogue of so many items."""
    runs: dict[str, list[dict]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        random_events(Path(folder), max(cases, items // 5), items, LENGTH)
        for _ in range(repeats):
            for side, results in runs.items():
                results.append(in_child(__file__, side=side, folder=folder, cases=cases))
    expected = runs["stock"][0]["result"]
    largest_difference = 0.0
    for result in itertools.chain.from_iterable(runs.values()):
        for key, value in result["result"].items():
            largest_difference = max(largest_difference, abs(value - expected[key]))
    assert largest_difference < 1e-9, f"not the same metrics: {runs}"
    row = {"items": items, "cases": cases}
    seconds = {}
    for side, results in runs.items():
        results.sort(key=lambda result: result["seconds"])
        middle = results[len(results) // 2]
        seconds[side] = middle["seconds"]
        row[f"{side}_s"] = round(middle["seconds"], 3)
        row[f"{side}_mib"] = round(middle["peak_mib"])
    row["largest_difference"] = largest_difference
    row["ratio"] = round(seconds["stock"] / seconds["ours"], 2)
    row["final_ratio"] = round(seconds["stock"] / seconds["final"], 2)
    return row


def main() -> None:
    args = arguments(__doc__, side="", folder="", cases=0, repeats=3)
    if args.side:
        finish(**SIDES[args.side](args.folder, args.cases))
        return
    sizes = [10_000] if args.small else [10_000, 100_000]
    cases = 1024 if args.small else 4096
    repeats = 1 if args.small else args.repeats
    rows = []
    for items in sizes:
        rows.append(compare(items, cases, repeats))
        print(rows[-1])
    ratio = min(row["ratio"] for row in rows)
    final_ratio = min(row["final_ratio"] for row in rows)
    finish(bench="evaluate", ratio=ratio, final_ratio=final_ratio, rows=rows)


if __name__ == "__main__":
    main()
