"""Raw files of each source, in its own format and with its warts.

The shops are invented: they sell twelve items, and every user buys these in the same order.
"""

import csv
import gzip
import io
import json
import random
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

from worlds import FRUIT

from recbole_llm.data.reading.atomic import read_atomic

USERS, EVENTS, DAY = 24, 16, 86400


def tables(folder, name):
    inter, item = (read_atomic(folder / name / f"{name}.{kind}") for kind in ("inter", "item"))
    return inter, item.set_index("item_id")


def unsigned(recipe):
    """Return a recipe without sizes and checksums of the real files."""
    return replace(
        recipe,
        files=tuple(replace(remote, size=None, md5=None, sha256=None) for remote in recipe.files),
    )


def walks(users: int = USERS, events: int = EVENTS):
    """Yield (user, place, item) of every event: each user starts anywhere and buys in one order."""
    rng = random.Random(0)
    for user in range(users):
        start = rng.randrange(len(FRUIT))
        for place in range(events):
            yield user, place, (start + place) % len(FRUIT)


def lines(rows) -> bytes:
    return "".join(
        (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n"
        for row in rows
    ).encode()


def packed(rows) -> bytes:
    """Compress lines; the same lines give the same bytes at any time."""
    return gzip.compress(lines(rows), mtime=0)


def reviews2018() -> list:
    """Return the lines of reviews."""
    events = [
        {
            "overall": float(1 + item % 5),
            "verified": True,
            "reviewTime": "09 1, 2016",
            "reviewerID": f"A{user}",
            "asin": f"B{item}",
            "style": {"Size:": " 7.0 oz"},
            "reviewText": 'Line one.\n"Line" two\t.',
            "unixReviewTime": 1472688000 + DAY * (place // 2),
        }
        for user, place, item in walks()
    ]
    events.insert(3, events[2])
    events.insert(5, '{"overall": 5.0, "reviewerID": "A1", "asi')
    events.insert(7, {"overall": 5.0, "asin": "B1", "unixReviewTime": 1472688000})
    events += [events[0] | {"reviewerID": f"A{user}", "asin": "BUNKNOWN"} for user in range(6)]
    events += [
        events[0] | {"reviewerID": "ATWICE", "asin": f"B{item % 12}", "overall": item % 3}
        for item in range(14)
    ] * 2  # fourteen, each of them twice
    return events


def metadata2018() -> list:
    """Return the lines of metadata."""
    picture = '<img src="https://x.invalid/a.png" class="nav-categ-image" alt="AMAZON FASHION"/>'
    items = [
        {
            "category": [
                "Toys & Games",
                "Puzzles &amp; Games",
                "Puzzles",
                "3-D Puzzles",
                "Includes many more words than any level's name could have, so </span>",
            ],
            "description": [
                "",
                f"A <b>fresh</b> {word}.<br />Really&nbsp;fresh.",
                "<style>.a{b:c}</style>",
            ],
            "title": f"{word} juice, 3&quot; tall",
            "brand": "by\n    Acme",
            "feature": [],
            "price": f"${number}.50",
            "asin": f"B{number}",
            "main_cat": "Toys &amp; Games" if number % 2 else picture,
        }
        for number, word in enumerate(FRUIT)
    ]
    items[0] |= {
        "brand": "Visit Amazon's J. Doe Page",
        "price": "$1,234.00",
        "title": '"Apple" &amp;amp; \t juice \u200b🍎',
        "description": "plain",
    }
    items[1] |= {"price": "$3.00 - $9.50", "category": []}
    items[2] |= {
        "price": ".a-box-inner{background-color:#fff}#alohaBuyBoxWidget{float:left}",
        "brand": None,
    }
    items[3] = {"asin": "B3", "title": "var aPageStart = (new Date()).getTime();"}
    items.insert(0, {"asin": "B4", "title": "", "brand": "None of it"})
    items.insert(0, {"asin": "B6", "title": "<style>.a{b:c}</style>"})
    items += [
        items[7] | {"title": "another title of it"},
        {"asin": "BNOBODY", "title": "unmet"},
        "no json",
    ]
    return items


def amazon2018(folder: Path, category: str = "Toys_and_Games") -> None:
    """Write reviews and metadata of Amazon 2018.

    Warts: a broken line, a line without a user, a duplicate review, equal times, a review of an
    item without metadata.
    """
    (folder / f"{category}_5.json.gz").write_bytes(packed(reviews2018()))
    (folder / f"meta_{category}.json.gz").write_bytes(packed(metadata2018()))


def amazon2023(folder: Path, category: str = "All_Beauty") -> None:
    """Write ratings and metadata of Amazon 2023.

    Warts: prices of three kinds, null and list values, characters outside of ASCII, ratings of
    items without metadata or without a title.
    """
    begin, end = 1628643414042, 1658002729837
    with gzip.open(folder / f"{category}.csv.gz", "wt", encoding="utf-8") as file:
        file.write("user_id,parent_asin,rating,timestamp\n")
        for user, place, item in walks():
            time = (begin if place < 14 else end) + place
            if place < 12:
                time -= 10**9
            file.write(f"U{user},P{item},{1 + item % 5}.0,{time}\n")
        file.write(
            "U0,PUNKNOWN,5.0,1628643414042\n"
            "U0,PBLANK,5.0,1628643414043\n"
            "U0,PSCRIPT,5.0,1628643414043\n"
            "U1,P1,5.0\n"
        )
    items = [
        {
            "main_category": None,
            "title": f"{word} crème",
            "average_rating": 4.4,
            "features": ["Glass"],
            "description": ["One.", "Two – three."],
            "price": 12.5,
            "images": [],
            "store": "Acme",
            "categories": ["Beauty", "Skin", "Face"],
            "details": {"Brand": "Acme", "Ranks": {"a": 1}},
            "parent_asin": f"P{number}",
            "bought_together": None,
        }
        for number, word in enumerate(FRUIT)
    ]
    items[1] |= {"price": None, "store": None, "categories": [], "description": []}
    items[2] |= {"price": "from 12.99"}
    items += [
        items[0] | {"parent_asin": "PBLANK", "title": None},
        items[0] | {"parent_asin": "PSCRIPT", "title": "<b>–</b>"},
        items[0],
    ]
    (folder / f"meta_{category}.jsonl.gz").write_bytes(packed(items))


def yelp(folder: Path) -> None:
    """Write reviews and businesses of Yelp into a tar within a zip.

    Warts: dates of two forms, categories as a string, a list and null, stars of two forms.
    """
    reviews = [
        {
            "review_id": f"r{user}-{place}",
            "user_id": f"u{user}",
            "business_id": f"b{item}",
            "stars": 5 if place % 2 else 3.0,
            "text": "Nice.\n\nReally.",
            "date": f"2016-05-{place + 1:02}" if user % 2 else f"2018-07-{place + 1:02} 22:09:11",
        }
        for user, place, item in walks(60, 24)
    ]
    places = [
        {
            "business_id": f"b{number}",
            "name": f"{word.title()} Café",
            "address": f"{number} Main St, Suite 2",
            "city": "Phoenix",
            "state": "AZ",
            "categories": [["Cafes", "Food"], "Cafes, Food", None][number % 3],
            "attributes": {"BusinessParking": {"garage": False}},
            "hours": None,
        }
        for number, word in enumerate(FRUIT)
    ]
    places[1] |= {"address": "", "city": ""}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as holder:
        for name, rows in (("review", reviews), ("business", places), ("tip", [])):
            data = lines(rows)
            info = tarfile.TarInfo(f"yelp_academic_dataset_{name}.json")
            info.size = len(data)
            holder.addfile(info, io.BytesIO(data))
    with zipfile.ZipFile(folder / "Yelp-JSON.zip", "w") as holder:
        holder.writestr("Yelp JSON/yelp_dataset.tar", buffer.getvalue())


def m2(folder: Path) -> None:
    """Write sessions and products of Amazon-M2.

    Warts: lists as numpy prints them, over several lines; sessions that are too short, too long,
    of other locales or truncated; products of several locales.
    """

    def printed(ids):
        quoted = [f"'{one}'" for one in ids]
        rows = [" ".join(quoted[at : at + 5]) for at in range(0, len(quoted), 5)]
        return "[" + "\n ".join(rows) + "]"

    with open(folder / "sessions_train.csv", "w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["prev_items", "next_item", "locale"])
        for session in range(USERS):
            for size, locale in ((12 + session % 3, "UK"), (3, "UK"), (27, "UK"), (13, "DE")):
                ids = [f"B{(session + place) % len(FRUIT)}" for place in range(size + 1)]
                out.writerow([printed(ids[:-1]), ids[-1], locale])
        out.writerow(["['B1']", "", "UK"])
        out.writerow(["['B1']"])
    columns = [
        "id",
        "locale",
        "title",
        "price",
        "brand",
        "color",
        "size",
        "model",
        "material",
        "author",
        "desc",
    ]
    with open(folder / "products_train.csv", "w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(columns)
        for number, word in enumerate(FRUIT):
            price = "40000000.07" if number == 1 else f"{number + 1}.99"
            out.writerow([f"B{number}", "DE", f"{word} Saft", "1.0", *[""] * 7])
            text = f'A "made up" {word},\nover two lines.' if number else ""
            out.writerow(
                [
                    f"B{number}",
                    "UK",
                    f"{word} mug, blue",
                    price,
                    "NA" if number == 2 else "Acme",
                    "Blue",
                    "",
                    "M-1",
                    "Ceramic",
                    "",
                    text,
                ]
            )


def mind(folder: Path, size: str = "small") -> None:
    """Write behaviors and news of MIND into a folder within a zip.

    Warts: an empty history, several rows of a user, truncated rows, unbalanced quotes, an empty
    abstract.
    """
    behaviors, number = [], 0
    for user in range(USERS):
        history = " ".join(f"N{(user + place) % len(FRUIT)}" for place in range(12 + user % 3))
        for own in (
            ("", history, "N1 N2 N3 N4 N5 N6 N7 N8 N9 N10 N11 N0")
            if user == 3
            else (history, history)
        ):
            number += 1
            behaviors.append(
                f"{number}\tU{user}\t11/15/2019 {1 + user % 12}:55:22 PM\t{own}\tN1-0 N2-1"
            )
    behaviors.append(f"{number + 1}\tU999\t11/15/2019 8:55:22 AM\tN1 N2\tN300-0")
    behaviors += ["cut", f"{number + 2}\tU3\t11/15/2019 8:55:22 AM\tN1 N2"]
    news = [
        f'N{number}\tsports\t{word}_ball\tWhat "{word} means for you\t'
        f'{"" if number % 2 else "An abstract."}\thttps://x.invalid\t[{{"Label": "Acme"}}]\t[]'
        for number, word in enumerate(FRUIT)
    ]
    with zipfile.ZipFile(folder / f"MIND{size}_train.zip", "w") as holder:
        holder.writestr(f"MIND{size}_train/behaviors.tsv", "\n".join(behaviors) + "\n")
        holder.writestr(f"MIND{size}_train/news.tsv", "\n".join(news) + "\n")


def ml_100k(folder: Path) -> None:
    """Write ratings and films of MovieLens 100K, in latin-1 and with a film without a year."""
    ratings = "".join(
        f"{user + 1}\t{item + 1}\t{1 + item % 5}\t{880000000 + place}\n"
        for user, place, item in walks()
    )
    genres = ["0", "1", "0", "0", "1"] + ["0"] * 14
    films = [
        f"{number + 1}|{word.title()}é, The (19{70 + number})|01-Jan-1995||http://x"
        f"|{'|'.join(genres)}"
        for number, word in enumerate(FRUIT)
    ]
    films[2] = f"3|unknown||||{'|'.join(['1'] + ['0'] * 18)}"
    with zipfile.ZipFile(folder / "ml-100k.zip", "w") as holder:
        holder.writestr("ml-100k/u.data", ratings)
        holder.writestr("ml-100k/u.item", ("\n".join(films) + "\n").encode("latin-1"))


def ml_1m(folder: Path) -> None:
    """Write ratings and films of MovieLens 1M, with `::` between cells and a colon within one."""
    ratings = "".join(
        f"{user + 1}::{item + 1}::{1 + item % 5}::{970000000 + place}\n"
        for user, place, item in walks()
    )
    films = [
        f"{number + 1}::{word.title()}: The Film é (19{70 + number})::Animation|Children's"
        for number, word in enumerate(FRUIT)
    ]
    with zipfile.ZipFile(folder / "ml-1m.zip", "w") as holder:
        holder.writestr("ml-1m/ratings.dat", ratings)
        holder.writestr("ml-1m/movies.dat", ("\n".join(films) + "\n").encode("latin-1"))
