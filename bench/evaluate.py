"""Full ranking: RecBole's evaluation against ours, same model, same cases. python bench/evaluate.py

The model is GRU4Rec over 8 items, so that ranking and not the encoder is what takes the time. `ours` is what every validation of a
training run does: ranks and metrics. `final` is what the end of a run does: top-1000 lists and their metrics as well, which RecBole
has none of.
"""

import os
import tempfile
from pathlib import Path

from common import arguments, finish, in_child, peak, random_events, resident, timed

LENGTH = 8
STOCK = {"MAX_ITEM_LIST_LENGTH": LENGTH, "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "train_neg_sample_args": None,
         "show_progress": False, "topk": [10],
         "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}, "metrics": ["Recall", "NDCG", "MRR"],
         "valid_metric": "NDCG@10", "metric_decimal_place": 12, "state": "ERROR"}  # fmt: skip


def stock(folder: str, cases: int) -> dict:
    import recbole_llm  # noqa: F401  # isort: skip  (before recbole: it lets RecBole run on today's numpy and pandas)
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    os.chdir(folder)  # where its tensorboard goes
    config = Config(
        model="GRU4Rec",
        dataset="random",
        config_dict=STOCK | {"data_path": folder, "checkpoint_dir": folder},
    )
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
    tables = test._dataset.tables

    def evaluate():
        table, lists = trainer.rank(test, topk=topk)
        values = metrics.evaluate(table, ["Recall", "NDCG", "MRR"], [10])
        if topk:
            counts = np.bincount(
                tables.item[test._dataset.split.train_events] + 1, minlength=len(tables.items) + 1
            )
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
    return ours(folder, cases, topk=1000)


def main():
    args = arguments(__doc__, side="", folder="", cases=0, repeats=3)
    sides = {"stock": stock, "ours": ours, "final": final}
    if args.side:
        return finish(**sides[args.side](args.folder, args.cases))
    sizes = [10_000] if args.small else [10_000, 100_000]
    cases = 1024 if args.small else 4096
    rows = []
    for items in sizes:
        with tempfile.TemporaryDirectory() as folder:
            random_events(Path(folder), max(cases, items // 5), items, LENGTH)
            repeats = 1 if args.small else args.repeats
            runs = [
                {side: in_child(__file__, side=side, folder=folder, cases=cases) for side in sides}
                for _ in range(repeats)
            ]
        median = {
            side: sorted((run[side] for run in runs), key=lambda one: one["seconds"])[
                len(runs) // 2
            ]
            for side in sides
        }
        difference = max(
            abs(run["stock"]["result"][key] - run[side]["result"][key])
            for run in runs
            for side in sides
            for key in run["ours"]["result"]
        )
        assert difference < 1e-9, f"not the same metrics: {runs}"
        row = {"items": items, "cases": cases}
        for side, one in median.items():
            row |= {f"{side}_s": round(one["seconds"], 3), f"{side}_mib": round(one["peak_mib"])}
        row["largest_difference"] = difference
        for name, side in (("ratio", "ours"), ("final_ratio", "final")):
            row[name] = round(median["stock"]["seconds"] / median[side]["seconds"], 2)
        print(row)
        rows.append(row)
    finish(
        bench="evaluate",
        **{name: min(row[name] for row in rows) for name in ("ratio", "final_ratio")},
        rows=rows,
    )


if __name__ == "__main__":
    main()
