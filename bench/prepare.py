"""Raw reviews into atomic files: scripts of json.loads and pandas against ours, the same events. python bench/prepare.py

`usual` reads both files into pandas by the function that the data's page gives and most repositories copy; `careful` keeps what is needed of each line.
"""

import gzip
import html
import json
import re
import shutil
import tempfile
from pathlib import Path

from common import arguments, finish, in_child, peak, timed

WORDS = "great product works well my dog loves it would buy again shipping fast quality good price the and for with very small large broke after weeks".split()
LEAST = (15, 5)  # events of a user, of an item


def generate(folder: Path, rows: int) -> None:
    """Reviews and metadata as Amazon's 2018 release has them: 600 bytes a review; a twentieth as many items as reviews, two fifths of which nobody met."""
    import numpy as np

    rng = np.random.default_rng(0)
    texts = [
        " ".join(rng.choice(WORDS, size=int(size))) for size in rng.integers(5, 120, size=2000)
    ]
    users, items = (
        np.minimum(rng.lognormal(0, 1.5, rows) / 60 * most, most - 1).astype(int)
        for most in (rows // 8 + 1, rows // 20 + 1)
    )
    times = 1400000000 + rng.integers(0, 1500, rows) * 86400
    with gzip.open(folder / "Toys_and_Games_5.json.gz", "wt", compresslevel=1) as file:
        for row, (user, item, moment) in enumerate(
            zip(users.tolist(), items.tolist(), times.tolist(), strict=True)
        ):
            file.write(
                f'{{"overall": {row % 5 + 1}.0, "vote": "3", "verified": true, "reviewTime": "09 '
                f'1, 2016", "reviewerID": "A{user:013d}", '
                f'"asin": "B{item:09d}", "style": {{"Size:": " 7.0 oz"}}, "reviewerName": "J. '
                f'Doe", "reviewText": "{texts[row % 2000]}", '
                f'"summary": "Good", "unixReviewTime": {moment}}}\n'
            )
    with gzip.open(folder / "meta_Toys_and_Games.json.gz", "wt", compresslevel=1) as file:
        for item in range(rows // 20 + 1):
            bought = [f"B{(item * 31 + step) % rows:09d}" for step in range(60)]
            file.write(json.dumps({
                "category": ["Toys & Games", "Puzzles", "3-D Puzzles &amp; more"], "tech1": "", "description": ["", texts[item % 2000]], "fit": "",
                "title": f"Made-Up Toy {item}, 3 &quot; tall", "also_buy": bought, "also_view": bought, "brand": "Acme", "feature": texts[:3],
                "rank": [">#39,015 in Toys &amp; Games"], "details": {}, "main_cat": "Toys & Games", "price": "$12.99", "asin": f"B{item:09d}",
            }) + "\n")  # fmt: skip


KEYS, TEXTS = (
    ("reviewerID", "asin", "overall", "unixReviewTime"),
    ("title", "category", "brand", "price", "description"),
)


def usual(folder: Path) -> None:
    import pandas as pd

    def frame(path):
        rows = {}
        for number, line in enumerate(gzip.open(path, "rb")):
            rows[number] = json.loads(line)
        return pd.DataFrame.from_dict(rows, orient="index")

    reviews = frame(folder / "Toys_and_Games_5.json.gz")[list(KEYS)]
    metadata = frame(folder / "meta_Toys_and_Games.json.gz")
    _write(folder, reviews, lambda met: metadata[metadata["asin"].isin(met)].to_dict("records"))


def careful(folder: Path) -> None:
    import pandas as pd

    def lines(path):
        with gzip.open(path, "rt") as file:
            yield from map(json.loads, file)

    reviews = pd.DataFrame(
        [tuple(row[key] for key in KEYS) for row in lines(folder / "Toys_and_Games_5.json.gz")]
    )
    _write(
        folder,
        reviews,
        lambda met: [
            row for row in lines(folder / "meta_Toys_and_Games.json.gz") if row["asin"] in met
        ],
    )


def _write(folder: Path, events, described) -> None:
    """Filter, clean and write, as both scripts do. described : items -> their rows of metadata."""
    import pandas as pd

    def clean(value):
        value = " ".join(value) if isinstance(value, list) else value
        return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html.unescape(value))).strip()

    events.columns = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    new = ~events.duplicated()
    while True:
        before = len(events)
        for column, least in zip(events.columns[:2], LEAST):
            counts = events[column][new].value_counts()
            kept = events[column].isin(counts[counts >= least].index)
            events, new = events[kept], new[kept]
        if len(events) == before:
            break
    items = {
        row["asin"]: [clean(row[name]) for name in TEXTS]
        for row in described(set(events["item_id:token"]))
    }
    events.sort_values(["user_id:token", "timestamp:float"], kind="stable").to_csv(
        folder / "script.inter", sep="\t", index=False
    )
    columns = [f"{name}:token_seq" for name in TEXTS]
    pd.DataFrame.from_dict(items, orient="index", columns=columns).sort_index().to_csv(
        folder / "script.item", sep="\t", index_label="item_id:token"
    )


def ours(folder: Path) -> None:
    from recbole_llm.data.prepare.convert import prepare
    from recbole_llm.data.prepare.files.raw import Net
    from recbole_llm.data.prepare.sources import catalogue

    prepare(catalogue.find("Toys"), folder / "data", folder, Net(), log=str)


SIDES = {"usual": usual, "careful": careful, "ours": ours}


def lines(path: Path) -> list[str]:
    """Lines of a file, numbers as numbers."""
    cells = (line.split("\t") for line in path.read_text().splitlines()[1:])
    return [
        f"{user} {item} {float(rating)} {float(moment)}" for user, item, rating, moment in cells
    ]


def main():
    args = arguments(__doc__, rows=0, repeats=3, side="", folder="")
    if args.side:
        seconds, _ = timed(SIDES[args.side], Path(args.folder))
        return finish(seconds=seconds, peak=peak())
    found = []
    for rows in [args.rows] if args.rows else [10**5] if args.small else [10**5, 10**6, 10**7]:
        folder = Path(tempfile.mkdtemp())
        sides = [
            side for side in SIDES if side != "usual" or rows < 10**7
        ]  # it would take some 25 GiB
        try:
            generate(folder, rows)
            runs = {side: [] for side in sides}
            for _ in range(args.repeats if rows < 10**7 else 1):
                for side in sides:
                    shutil.rmtree(folder / "data", ignore_errors=True)
                    runs[side].append(in_child(__file__, side=side, folder=folder))
                    if side != "ours":
                        expected = lines(folder / "script.inter")
            assert expected == lines(folder / "data" / "Toys" / "Toys.inter"), (
                "all give the same events in the same order"
            )
        finally:
            shutil.rmtree(folder)
        best = {
            side: sorted(run["seconds"] for run in own)[len(own) // 2] for side, own in runs.items()
        }
        most = {side: max(run["peak"] for run in own) for side, own in runs.items()}
        row = {
            "reviews": rows,
            "ratio": round(best[sides[0]] / best["ours"], 2),
            "rows_s": round(rows / best["ours"]),
        }
        for side in sides:
            row |= {f"{side}_s": round(best[side], 2), f"{side}_mib": most[side]}
        print(row)
        found.append(row)
    finish(bench="prepare", ratio=found[-1]["ratio"], rows=found)


if __name__ == "__main__":
    main()
