"""Full ranking: RecBole's evaluation against ours, same model, same cases. python bench/evaluate.py

The model is GRU4Rec over 8 items, so that ranking and not the encoder is what takes the time.
"""

import tempfile
from pathlib import Path

from common import arguments, finish, in_child, peak, random_events, resident, timed

LENGTH = 8
STOCK = {"MAX_ITEM_LIST_LENGTH": LENGTH, "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "train_neg_sample_args": None,
         "show_progress": False, "topk": [10],
         "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}, "metrics": ["Recall", "NDCG", "MRR"],
         "valid_metric": "NDCG@10", "metric_decimal_place": 12, "state": "ERROR"}  # fmt: skip


def stock(folder: str, cases: int) -> dict:
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_trainer, init_seed

    import recbole_llm  # noqa: F401 (lets RecBole run on today's numpy and pandas)

    config = Config(model="GRU4Rec", dataset="random", config_dict=STOCK | {"data_path": folder, "checkpoint_dir": folder})
    dataset = create_dataset(config)
    train, _, test = data_preparation(config, dataset)
    init_seed(1, True)
    from recbole.utils import get_model

    model = get_model("GRU4Rec")(config, train._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "GRU4Rec")(config, model)
    trainer.eval_collector.data_collect(train)
    test._dataset.inter_feat = test._dataset.inter_feat[torch.arange(cases)]
    test = type(test)(config, test._dataset, None, shuffle=False)
    before = resident()
    seconds, result = timed(lambda: trainer.evaluate(test, load_best_model=False))
    return {"seconds": seconds, "peak_mib": peak() - before, "result": {key: float(value) for key, value in result.items()}}


def ours(folder: str, cases: int) -> dict:
    import numpy as np

    from recbole_llm import config as settings
    from recbole_llm.evaluation import metrics
    from recbole_llm.runs import Prepared

    own = {"data_path": folder, "checkpoint_dir": folder, "seed": 1, "topk": [10], "dedup": "none", "MAX_ITEM_LIST_LENGTH": LENGTH}
    resolved = settings.resolve("GRU4Rec", "random", [], own)
    _, trainer, (_, _, test) = Prepared(resolved).build()
    test._dataset.cases = test._dataset.cases[np.arange(cases)]
    before = resident()
    seconds, (table, _) = timed(lambda: trainer.rank(test))
    values = metrics.evaluate(table, ["Recall", "NDCG", "MRR"], [10])
    return {"seconds": seconds, "peak_mib": peak() - before, "result": {key: values[key] for key in ("recall@10", "ndcg@10", "mrr@10")}}


def main():
    args = arguments(__doc__, side="", folder="", cases=0, repeats=3)
    if args.side:
        return finish(**{"stock": stock, "ours": ours}[args.side](args.folder, args.cases))
    sizes = [10_000] if args.small else [10_000, 100_000]
    cases = 1024 if args.small else 4096
    rows = []
    for items in sizes:
        with tempfile.TemporaryDirectory() as folder:
            random_events(Path(folder), max(cases, items // 5), items, LENGTH)
            repeats = 1 if args.small else args.repeats
            runs = [{side: in_child(__file__, side=side, folder=folder, cases=cases) for side in ("stock", "ours")} for _ in range(repeats)]
        best = {side: sorted((run[side] for run in runs), key=lambda one: one["seconds"])[len(runs) // 2] for side in ("stock", "ours")}
        difference = max(abs(best["stock"]["result"][key] - best["ours"]["result"][key]) for key in best["ours"]["result"])
        row = {"items": items, "cases": cases, "stock_s": round(best["stock"]["seconds"], 3), "ours_s": round(best["ours"]["seconds"], 3),
               "stock_mib": round(best["stock"]["peak_mib"]), "ours_mib": round(best["ours"]["peak_mib"]), "largest_difference": difference,
               "ratio": round(best["stock"]["seconds"] / best["ours"]["seconds"], 2)}  # fmt: skip
        print(row)
        rows.append(row)
    finish(bench="evaluate", ratio=min(row["ratio"] for row in rows), rows=rows)


if __name__ == "__main__":
    main()
