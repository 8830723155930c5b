"""Amazon Reviews 2018: 5-core reviews and metadata as gzipped JSON lines (Ni, Li and McAuley, EMNLP-IJCNLP 2019)."""

import re
from functools import partial

from ..clean import clean, tokens, values
from ..engine import hashed, json_lines
from ..files.raw import Remote
from ..recipe import Files, Recipe, Source, title_alone

SOURCE = Source(
    name="Amazon Reviews 2018",
    page="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/",
    licence="No licence is published; given out for research with the request to cite. The texts belong to the shop and its sellers.",
    reference="""@inproceedings{ni-etal-2019-justifying,
  title = {Justifying Recommendations using Distantly-Labeled Reviews and Fine-Grained Aspects},
  author = {Ni, Jianmo and Li, Jiacheng and McAuley, Julian},
  booktitle = {Proceedings of EMNLP-IJCNLP},
  year = {2019}
}""",
)
HOSTS = (
    "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2/",
    "https://datarepo.eng.ucsd.edu/mcauley_group/data/amazon_v2/",
    "https://jmcauley.ucsd.edu/data/amazon_v2/",
)
CATEGORIES = (
    "AMAZON_FASHION All_Beauty Appliances Arts_Crafts_and_Sewing Automotive Books CDs_and_Vinyl Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry "
    "Digital_Music Electronics Gift_Cards Grocery_and_Gourmet_Food Home_and_Kitchen Industrial_and_Scientific Kindle_Store Luxury_Beauty "
    "Magazine_Subscriptions Movies_and_TV Musical_Instruments Office_Products Patio_Lawn_and_Garden Pet_Supplies Prime_Pantry Software "
    "Sports_and_Outdoors Tools_and_Home_Improvement Toys_and_Games Video_Games"
).split()
SHORT = {
    "Scientific": "Industrial_and_Scientific", "Instruments": "Musical_Instruments", "Arts": "Arts_Crafts_and_Sewing", "Office": "Office_Products",
    "Games": "Video_Games", "Pet": "Pet_Supplies", "CDs": "CDs_and_Vinyl", "Automotive": "Automotive", "Cell": "Cell_Phones_and_Accessories",
    "Clothing": "Clothing_Shoes_and_Jewelry", "Electronics": "Electronics", "Food": "Grocery_and_Gourmet_Food", "Home": "Home_and_Kitchen",
    "Movies": "Movies_and_TV", "Toys": "Toys_and_Games", "Beauty": "All_Beauty", "Sports": "Sports_and_Outdoors",
}  # fmt: skip
SAMPLED = {"Office": 0.5, "Pet": 0.2}  # CALRec, section 4
CALREC = (  # its six targets, the category that chooses the checkpoint of Stage I, and seven that only Stage I has
    "Scientific Instruments Arts Office Games Pet CDs Automotive Cell Clothing Electronics Food Home Movies"
).split()
CALREC_SETTINGS = {
    "text_fields": {
        "Title": "title",
        "Category": "main_category",
        "Brand": "brand",
        "Price": "price",
    },
    "dedup": "consecutive",
    "user_inter_num_interval": "[5,inf)",  # of the events that dedup leaves
}
LEAST = {"Toys": (15, 5)}  # TASTE-LoRA, section 4
PRICE = re.compile(r"\$[\d,]+(\.\d\d)?")
PICTURE = re.compile(
    r"<img\b[^>]*\balt=\"([^\"]*)\"", re.IGNORECASE
)  # some departments are a picture of their name
AUTHOR = re.compile(r"Visit Amazon's (.+) Page")
LEVELS, LEVEL = (
    3,
    60,
)  # most levels of a category that are kept, the last ones; longest name of one, in characters: others are sentences of descriptions


def recipes() -> list[Recipe]:
    short = [_recipe(name, category) for name, category in SHORT.items()]
    whole = {
        category for name, category in SHORT.items() if name not in SAMPLED and name not in LEAST
    }  # under the short name already
    return short + [
        _recipe(f"{category}-18", category) for category in CATEGORIES if category not in whole
    ]


def _recipe(name: str, category: str) -> Recipe:
    reviews, metadata = f"{category}_5.json.gz", f"meta_{category}.json.gz"
    columns = ("title", "categories", "brand", "price", "description", "attributes")
    paper = name in CALREC
    notes = ("Times are of whole days: events of one user and day stand in the order of the raw file.",
             "Categories are the last three levels, without the root; a price that is a range or none is empty.")  # fmt: skip
    if paper:
        columns = ("title", "main_category", *columns[1:])
        notes += (
            "The main category is the store's department, which is CALRec's Category. `review` is a hash of a review's text: "
            "runs leave out an event that follows an equal one, and then users with fewer than 5 events, as CALRec does.",
        )  # fmt: skip
    return Recipe(
        name=name, title=f"Amazon Reviews 2018, {category.replace('_', ' ')} (5-core)", source=SOURCE,
        files=(
            Remote(f"categoryFilesSmall/{reviews}", HOSTS, (reviews.removesuffix(".gz"),)),
            Remote(f"metaFiles2/{metadata}", HOSTS, (metadata.removesuffix(".gz"),)),
        ),
        events=partial(_events, reviews, paper), items=partial(_items, metadata), text=_text, reads=(reviews, metadata),
        columns=columns, users=SAMPLED.get(name, 1.0), least=LEAST.get(name, (1, 1)), reviewed=paper, notes=notes,
        settings=CALREC_SETTINGS | title_alone("ST5Seq", "TASTELoRA") if paper else {},
    )  # fmt: skip


def _events(name: str, reviewed: bool, files: Files) -> str:
    columns = {
        "reviewerID": "VARCHAR",
        "asin": "VARCHAR",
        "overall": "DOUBLE",
        "unixReviewTime": "BIGINT",
    }
    if reviewed:
        columns["reviewText"] = "VARCHAR"
    review = f""", {hashed("reviewText")} AS "review" """ if reviewed else ""
    return f"""SELECT reviewerID AS "user", asin AS "item", overall AS "rating", unixReviewTime AS "time"{review}
        FROM {json_lines(files[name], **columns)}"""


def _items(name: str, files: Files) -> str:
    rows = json_lines(
        files[name],
        asin="VARCHAR",
        title="VARCHAR",
        category="JSON",
        main_cat="VARCHAR",
        brand="VARCHAR",
        price="VARCHAR",
        description="JSON",
    )
    return (
        f'SELECT asin AS "item", title, category, main_cat, brand, price, description FROM {rows}'
    )


def _text(row: dict) -> dict[str, str]:
    levels = [
        level for level in map(clean, values(row["category"])[1:]) if level and len(level) <= LEVEL
    ][-LEVELS:]
    brand = clean(row["brand"] or "").removeprefix("by ")
    brand = author[1] if (author := AUTHOR.fullmatch(brand)) else brand
    price = (row["price"] or "").strip()
    department = row["main_cat"] or ""
    if picture := PICTURE.search(department):
        department = picture[1]
    return {
        "title": row["title"] or "", "main_category": department, "categories": " > ".join(levels), "brand": brand,
        "price": price if PRICE.fullmatch(price) else "", "description": " ".join(values(row["description"])), "attributes": tokens(*levels, brand),
    }  # fmt: skip
