"""Raw reviews to atomic files: scripts of json.loads and pandas against ours.

    python bench/prepare.py

`usual` reads both files into pandas by the function on the data's page, which most repositories
copy. `careful` keeps only the fields that it needs. All sides write the same interactions.
"""

import gzip
import html
import json
import re
import shutil
import tempfile
from operator import itemgetter
from pathlib import Path

from common import arguments, finish, in_child, median, peak, timed

REVIEWS, METADATA = "Toys_and_Games_5.json.gz", "meta_Toys_and_Games.json.gz"
WORDS = [
    *("great", "product", "works", "well", "my", "dog", "loves", "it", "would", "buy", "again"),
    *("shipping", "fast", "quality", "good", "price", "the", "and", "for", "with", "very"),
    *("small", "large", "broke", "after", "weeks"),
]
# fewest interactions of a user and of an item
LEAST = (15, 5)
KEYS = ("reviewerID", "asin", "overall", "unixReviewTime")
TEXTS = ("title", "category", "brand", "price", "description")


def generate(folder: Path, rows: int) -> None:
    """Write reviews and metadata in the format of Amazon's 2018 release.

    A review has 600 bytes. There are 20 reviews per item, and two fifths of the items have none.
    """
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
    with gzip.open(folder / REVIEWS, "wt", compresslevel=1) as file:
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
    with gzip.open(folder / METADATA, "wt", compresslevel=1) as file:
        for item in range(rows // 20 + 1):
            bought = [f"B{(item * 31 + step) % rows:09d}" for step in range(60)]
            record = {
                "category": ["Toys & Games", "Puzzles", "3-D Puzzles &amp; more"],
                "tech1": "",
                "description": ["", texts[item % 2000]],
                "fit": "",
                "title": f"Made-Up Toy {item}, 3 &quot; tall",
                "also_buy": bought,
                "also_view": bought,
                "brand": "Acme",
                "feature": texts[:3],
                "rank": [">#39,015 in Toys &amp; Games"],
                "details": {},
                "main_cat": "Toys & Games",
                "price": "$12.99",
                "asin": f"B{item:09d}",
            }
            file.write(json.dumps(record) + "\n")


def usual(folder: Path) -> None:
    """Read both files completely."""
    import pandas as pd

    def frame(path):
        rows = {}
        with gzip.open(path, "rb") as file:
            for number, line in enumerate(file):
                rows[number] = json.loads(line)
        return pd.DataFrame.from_dict(rows, orient="index")

    reviews = frame(folder / REVIEWS)[list(KEYS)]
    metadata = frame(folder / METADATA)
    _write(folder, reviews, lambda ids: metadata[metadata["asin"].isin(ids)].to_dict("records"))


def careful(folder: Path) -> None:
    """Read line by line."""
    import pandas as pd

    def records(path):
        with gzip.open(path, "rt") as file:
            yield from map(json.loads, file)

    reviews = pd.DataFrame(map(itemgetter(*KEYS), records(folder / REVIEWS)))

    def described(ids):
        return [record for record in records(folder / METADATA) if record["asin"] in ids]

    _write(folder, reviews, described)


def _clean(value: str | list[str]) -> str:
    """A text without markup and repeated spaces."""
    text = " ".join(value) if isinstance(value, list) else value
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html.unescape(text))).strip()


def _write(folder: Path, events, described) -> None:
    """Filter, clean and write, as both scripts do.

    Parameters
    ----------
    folder : Path
        Where to write.
    events : DataFrame
        The reviews, with the columns `KEYS`.
    described : callable
        Takes a set of item ids, and returns their records of metadata.
    """
    import pandas as pd

    events.columns = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    new = ~events.duplicated()
    while True:
        before = len(events)
        for column, least in zip(events.columns[:2], LEAST):
            counts = events[column][new].value_counts()
            is_frequent = events[column].isin(counts[counts >= least].index)
            events, new = events[is_frequent], new[is_frequent]
        if len(events) == before:
            break
    items = {}
    for record in described(set(events["item_id:token"])):
        items[record["asin"]] = [_clean(record[name]) for name in TEXTS]
    events = events.sort_values(["user_id:token", "timestamp:float"], kind="stable")
    events.to_csv(folder / "script.inter", sep="\t", index=False)
    columns = [f"{name}:token_seq" for name in TEXTS]
    table = pd.DataFrame.from_dict(items, orient="index", columns=columns).sort_index()
    table.to_csv(folder / "script.item", sep="\t", index_label="item_id:token")


def ours(folder: Path) -> None:
    """Run our `prepare`."""
    from recbole_llm.data.prepare.convert import prepare
    from recbole_llm.data.prepare.files.raw import Net
    from recbole_llm.data.prepare.sources import catalogue

    prepare(catalogue.find("Toys"), folder / "data", folder, Net(), log=str)


SIDES = {"usual": usual, "careful": careful, "ours": ours}


def lines(path: Path) -> list[str]:
    """Lines of a file, with numbers in one format."""
    cells = (line.split("\t") for line in path.read_text().splitlines()[1:])
    return [f"{user} {item} {float(rating)} {float(time)}" for user, item, rating, time in cells]


def compare(rows: int, repeats: int) -> dict:
    """The figures of all sides for so many reviews."""
    # `usual` would take some 25 GiB for the largest size
    sides = [side for side in SIDES if side != "usual" or rows < 10**7]
    folder = Path(tempfile.mkdtemp())
    try:
        generate(folder, rows)
        runs: dict[str, list[dict]] = {side: [] for side in sides}
        for _ in range(repeats if rows < 10**7 else 1):
            for side in sides:
                shutil.rmtree(folder / "data", ignore_errors=True)
                runs[side].append(in_child(__file__, side=side, folder=folder))
                if side != "ours":
                    expected = lines(folder / "script.inter")
        written = lines(folder / "data" / "Toys" / "Toys.inter")
        assert written == expected, "not the same interactions in the same order"
    finally:
        shutil.rmtree(folder)
    seconds = {}
    for side, results in runs.items():
        seconds[side] = median([result["seconds"] for result in results])
    row = {
        "reviews": rows,
        "ratio": round(seconds[sides[0]] / seconds["ours"], 2),
        "rows_s": round(rows / seconds["ours"]),
    }
    for side, results in runs.items():
        row[f"{side}_s"] = round(seconds[side], 2)
        row[f"{side}_mib"] = max(result["peak"] for result in results)
    return row


def main() -> None:
    args = arguments(__doc__, rows=0, repeats=3, side="", folder="")
    if args.side:
        seconds, _ = timed(SIDES[args.side], Path(args.folder))
        finish(seconds=seconds, peak=peak())
        return
    sizes = [10**5] if args.small else [10**5, 10**6, 10**7]
    results = []
    for rows in [args.rows] if args.rows else sizes:
        results.append(compare(rows, args.repeats))
        print(results[-1])
    finish(bench="prepare", ratio=results[-1]["ratio"], rows=results)


if __name__ == "__main__":
    main()
