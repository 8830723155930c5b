"""From files to prediction tasks: RecBole's sequential dataset against our cases.

python bench/load.py
"""

import tempfile
from pathlib import Path

from common import arguments, finish, in_child, peak, random_events, resident, timed


def stock(folder: str) -> dict:
    """Seconds and memory of RecBole, and its number of training cases."""
    # before recbole, which does not run on today's numpy and pandas without it
    import recbole_llm  # noqa: F401  # isort: skip
    from evaluate import STOCK
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation

    own = {"MAX_ITEM_LIST_LENGTH": 50, "data_path": folder, "checkpoint_dir": folder}
    config = Config(model="SASRec", dataset="random", config_dict=STOCK | own)
    before = resident()
    seconds, loaders = timed(lambda: data_preparation(config, create_dataset(config)))
    return {
        "seconds": seconds,
        "peak_mib": peak() - before,
        "kept_mib": resident() - before,
        "train": len(loaders[0]._dataset),
    }


def ours(folder: str) -> dict:
    """Seconds and memory of our loaders, and their number of training cases."""
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


SIDES = {"stock": stock, "ours": ours}


def main() -> None:
    args = arguments(__doc__, side="", folder="")
    if args.side:
        finish(**SIDES[args.side](args.folder))
        return
    rows = []
    for events in [20_000] if args.small else [100_000, 1_000_000]:
        with tempfile.TemporaryDirectory() as folder:
            random_events(Path(folder), events // 20, max(100, events // 50), 20)
            sides = {side: in_child(__file__, side=side, folder=folder) for side in SIDES}
        if sides["stock"]["train"] != sides["ours"]["train"]:
            raise SystemExit(f"not the same tasks: {sides}")
        row = {"events": events}
        for side, result in sides.items():
            for key in ("seconds", "peak_mib", "kept_mib"):
                row[f"{side}_{key}"] = round(result[key], 2)
        row["ratio"] = round(sides["stock"]["peak_mib"] / sides["ours"]["peak_mib"], 2)
        print(row)
        rows.append(row)
    finish(bench="load", ratio=rows[-1]["ratio"], rows=rows)


if __name__ == "__main__":
    main()
