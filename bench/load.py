"""From files to prediction tasks: RecBole's sequential dataset against our cases. python bench/load.py"""

import tempfile
from pathlib import Path

from common import arguments, finish, in_child, peak, random_events, resident, timed


def stock(folder: str) -> dict:
    import recbole_llm  # noqa: F401  # isort: skip  (before recbole: it lets RecBole run on today's numpy and pandas)
    from evaluate import STOCK
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation

    config = Config(
        model="SASRec",
        dataset="random",
        config_dict=STOCK
        | {"MAX_ITEM_LIST_LENGTH": 50, "data_path": folder, "checkpoint_dir": folder},
    )
    before = resident()
    seconds, loaders = timed(lambda: data_preparation(config, create_dataset(config)))
    return {
        "seconds": seconds,
        "peak_mib": peak() - before,
        "kept_mib": resident() - before,
        "train": len(loaders[0]._dataset),
    }


def ours(folder: str) -> dict:
    from recbole_llm.data.recbole.loaders import make_loaders
    from recbole_llm.data.sample.locate import locate
    from recbole_llm.settings import layers as settings

    resolved = settings.resolve("LIR", "random", [], {"data_path": folder, "dedup": "none"})
    config = settings.recbole_config(resolved, locate("random", folder)[1])
    before = resident()
    seconds, loaders = timed(lambda: make_loaders(config))
    return {
        "seconds": seconds,
        "peak_mib": peak() - before,
        "kept_mib": resident() - before,
        "train": len(loaders[0]._dataset.cases),
    }


def main():
    args = arguments(__doc__, side="", folder="")
    if args.side:
        return finish(**{"stock": stock, "ours": ours}[args.side](args.folder))
    rows = []
    for events in [20_000] if args.small else [100_000, 1_000_000]:
        with tempfile.TemporaryDirectory() as folder:
            random_events(Path(folder), events // 20, max(100, events // 50), 20)
            sides = {
                side: in_child(__file__, side=side, folder=folder) for side in ("stock", "ours")
            }
        if sides["stock"]["train"] != sides["ours"]["train"]:
            raise SystemExit(f"not the same tasks: {sides}")
        row = {"events": events}
        for side, one in sides.items():
            row |= {
                f"{side}_{key}": round(one[key], 2) for key in ("seconds", "peak_mib", "kept_mib")
            }
        row["ratio"] = round(sides["stock"]["peak_mib"] / sides["ours"]["peak_mib"], 2)
        print(row)
        rows.append(row)
    finish(bench="load", ratio=rows[-1]["ratio"], rows=rows)


if __name__ == "__main__":
    main()
