"""Amazon Reviews 2018: 5-core reviews and metadata as gzipped JSON lines.

Ni, Li and McAuley, EMNLP-IJCNLP 2019.
"""

import re
from functools import partial
from typing import Any

from ..clean import clean, tokens, values
from ..engine import hashed, json_lines
from ..files.raw import Remote
from ..recipe import Files, Recipe, Source, title_alone

SOURCE = Source(
    name="Amazon Reviews 2018",
    page="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/",
    licence=(
        "No licence is published; given out for research with the request to cite. "
        "The texts belong to the shop and its sellers."
    ),
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
    "AMAZON_FASHION",
    "All_Beauty",
    "Appliances",
    "Arts_Crafts_and_Sewing",
    "Automotive",
    "Books",
    "CDs_and_Vinyl",
    "Cell_Phones_and_Accessories",
    "Clothing_Shoes_and_Jewelry",
    "Digital_Music",
    "Electronics",
    "Gift_Cards",
    "Grocery_and_Gourmet_Food",
    "Home_and_Kitchen",
    "Industrial_and_Scientific",
    "Kindle_Store",
    "Luxury_Beauty",
    "Magazine_Subscriptions",
    "Movies_and_TV",
    "Musical_Instruments",
    "Office_Products",
    "Patio_Lawn_and_Garden",
    "Pet_Supplies",
    "Prime_Pantry",
    "Software",
    "Sports_and_Outdoors",
    "Tools_and_Home_Improvement",
    "Toys_and_Games",
    "Video_Games",
)
SHORT = {  # name of the dataset -> category
    "Scientific": "Industrial_and_Scientific",
    "Instruments": "Musical_Instruments",
    "Arts": "Arts_Crafts_and_Sewing",
    "Office": "Office_Products",
    "Games": "Video_Games",
    "Pet": "Pet_Supplies",
    "CDs": "CDs_and_Vinyl",
    "Automotive": "Automotive",
    "Cell": "Cell_Phones_and_Accessories",
    "Clothing": "Clothing_Shoes_and_Jewelry",
    "Electronics": "Electronics",
    "Food": "Grocery_and_Gourmet_Food",
    "Home": "Home_and_Kitchen",
    "Movies": "Movies_and_TV",
    "Toys": "Toys_and_Games",
    "Beauty": "All_Beauty",
    "Sports": "Sports_and_Outdoors",
}
SAMPLED = {"Office": 0.5, "Pet": 0.2}  # fraction of users; CALRec, section 4
CALREC = (  # the datasets of CALRec
    *("Scientific", "Instruments", "Arts", "Office", "Games", "Pet"),  # targets
    "CDs",  # selects the checkpoint of Stage I
    *("Automotive", "Cell", "Clothing", "Electronics", "Food", "Home", "Movies"),  # only Stage I
)
CALREC_SETTINGS = {
    "text_fields": {
        "Title": "title",
        "Category": "main_category",
        "Brand": "brand",
        "Price": "price",
    },
    "dedup": "consecutive",
    "user_inter_num_interval": "[5,inf)",  # counted after dedup
}
LEAST = {"Toys": (15, 5)}  # least interactions of a user and of an item; TASTE-LoRA, section 4
PRICE = re.compile(r"\$[\d,]+(\.\d\d)?")
# Some departments are a picture of their name.
PICTURE = re.compile(r"<img\b[^>]*\balt=\"([^\"]*)\"", re.IGNORECASE)
AUTHOR = re.compile(r"Visit Amazon's (.+) Page")
LEVELS = 3  # number of category levels in the text: the last ones
LEVEL_LENGTH = 60  # most characters of a level; longer ones are sentences of descriptions


def recipes() -> list[Recipe]:
    """List the recipes of this source.

    Returns
    -------
    list of Recipe
        The datasets with short names, and every category as a whole that has none.
    """
    short = [_recipe(name, category) for name, category in SHORT.items()]
    whole = {
        category for name, category in SHORT.items() if name not in SAMPLED and name not in LEAST
    }
    long = [_recipe(f"{category}-18", category) for category in CATEGORIES if category not in whole]
    return short + long


def _recipe(name: str, category: str) -> Recipe:
    """The recipe of one category; datasets of CALRec have its columns and settings."""
    reviews, metadata = f"{category}_5.json.gz", f"meta_{category}.json.gz"
    is_calrec = name in CALREC
    columns = ["title", "categories", "brand", "price", "description", "attributes"]
    notes = [
        "Times are of whole days: events of one user and day stand in the order of the raw file.",
        "Categories are the last three levels, without the root; "
        "a price that is a range or none is empty.",
    ]
    settings: dict[str, Any] = {}
    if is_calrec:
        columns.insert(1, "main_category")
        notes.append(
            "The main category is the store's department, which is CALRec's Category. "
            "`review` is a hash of a review's text: runs leave out an event that follows an equal "
            "one, and then users with fewer than 5 events, as CALRec does."
        )
        settings = CALREC_SETTINGS | title_alone("ST5Seq", "TASTELoRA")
    return Recipe(
        name=name,
        title=f"Amazon Reviews 2018, {category.replace('_', ' ')} (5-core)",
        source=SOURCE,
        files=(
            Remote(f"categoryFilesSmall/{reviews}", HOSTS, (reviews.removesuffix(".gz"),)),
            Remote(f"metaFiles2/{metadata}", HOSTS, (metadata.removesuffix(".gz"),)),
        ),
        events=partial(_events, reviews, is_calrec),
        items=partial(_items, metadata),
        text=_text,
        columns=tuple(columns),
        reads=(reviews, metadata),
        users=SAMPLED.get(name, 1.0),
        least=LEAST.get(name, (1, 1)),
        reviewed=is_calrec,
        settings=settings,
        notes=tuple(notes),
    )


def _events(name: str, reviewed: bool, files: Files) -> str:
    """SQL of the reviews, with a hash of their texts if `reviewed`."""
    columns = {
        "reviewerID": "VARCHAR",
        "asin": "VARCHAR",
        "overall": "DOUBLE",
        "unixReviewTime": "BIGINT",
    }
    if reviewed:
        columns["reviewText"] = "VARCHAR"
    review = f""", {hashed("reviewText")} AS "review" """ if reviewed else ""
    return (
        'SELECT reviewerID AS "user", asin AS "item", overall AS "rating", '
        f'unixReviewTime AS "time"{review} FROM {json_lines(files[name], **columns)}'
    )


def _items(name: str, files: Files) -> str:
    """SQL of the metadata."""
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


def _text(row: dict[str, Any]) -> dict[str, str]:
    """The columns of .item of one row."""
    levels = [clean(level) for level in values(row["category"])[1:]]
    levels = [level for level in levels if level and len(level) <= LEVEL_LENGTH][-LEVELS:]
    brand = clean(row["brand"] or "").removeprefix("by ")
    author = AUTHOR.fullmatch(brand)
    if author:
        brand = author[1]
    price = (row["price"] or "").strip()
    department = row["main_cat"] or ""
    picture = PICTURE.search(department)
    if picture:
        department = picture[1]
    return {
        "title": row["title"] or "",
        "main_category": department,
        "categories": " > ".join(levels),
        "brand": brand,
        "price": price if PRICE.fullmatch(price) else "",
        "description": " ".join(values(row["description"])),
        "attributes": tokens(*levels, brand),
    }
