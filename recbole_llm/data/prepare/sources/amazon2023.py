"""Amazon Reviews 2023: the benchmark's rating files and metadata (Hou et al., arXiv:2403.03952)."""

from functools import partial
from typing import Any

from ..clean import tokens, values
from ..engine import delimited, json_lines
from ..files.raw import Remote
from ..recipe import Files, Recipe, Source, title_alone

SOURCE = Source(
    name="Amazon Reviews 2023",
    page="https://amazon-reviews-2023.github.io/",
    licence=(
        "The lab that collected it says that it cannot assign a licence; "
        "given out for research with the request to cite."
    ),
    reference="""@article{hou2024bridging,
  title = {Bridging Language and Items for Retrieval and Recommendation},
  author = {Hou, Yupeng and Li, Jiacheng and He, Zhankui and Yan, An and Chen, Xiusi and \
McAuley, Julian},
  journal = {arXiv preprint arXiv:2403.03952},
  year = {2024}
}""",
)
HOSTS = ("https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/",)
# nine categories that ST5-Seq is trained on, then three that it is only tested on
ST5 = (
    "All_Beauty",
    "Baby_Products",
    "Video_Games",
    "Beauty_and_Personal_Care",
    "Cell_Phones_and_Accessories",
    "Electronics",
    "Health_and_Household",
    "Movies_and_TV",
    "Toys_and_Games",
    "Books",
    "Digital_Music",
    "Amazon_Fashion",
)
OTHER = (
    "Appliances",
    "Arts_Crafts_and_Sewing",
    "Automotive",
    "CDs_and_Vinyl",
    "Clothing_Shoes_and_Jewelry",
    "Gift_Cards",
    "Grocery_and_Gourmet_Food",
    "Handmade_Products",
    "Health_and_Personal_Care",
    "Home_and_Kitchen",
    "Industrial_and_Scientific",
    "Kindle_Store",
    "Magazine_Subscriptions",
    "Musical_Instruments",
    "Office_Products",
    "Patio_Lawn_and_Garden",
    "Pet_Supplies",
    "Software",
    "Sports_and_Outdoors",
    "Subscription_Boxes",
    "Tools_and_Home_Improvement",
)
SPARSE = {  # categories without a 5-core
    "Amazon_Fashion",
    "Appliances",
    "Digital_Music",
    "Handmade_Products",
    "Health_and_Personal_Care",
    "Subscription_Boxes",
}
# Times in milliseconds at which validation and testing begin, the same for every category.
SPLIT_TIMES = [1628643414042, 1658002729837]


def recipes() -> list[Recipe]:
    """List the recipes of this source.

    Returns
    -------
    list of Recipe
        The 0-core of every category, then the 5-core of those that have one.
    """
    categories = (*ST5, *OTHER)
    whole = [_recipe(f"{category}-23", category, 0) for category in categories]
    dense = [category for category in categories if category not in SPARSE]
    return whole + [_recipe(f"{category}-23-5core", category, 5) for category in dense]


def _recipe(name: str, category: str, core: int) -> Recipe:
    """The recipe of the k-core of one category."""
    ratings, metadata = f"{category}.csv.gz", f"meta_{category}.jsonl.gz"
    ratings_path = f"benchmark/{core}core/rating_only/{ratings}"
    return Recipe(
        name=name,
        title=f"Amazon Reviews 2023, {category.replace('_', ' ')} ({core}-core)",
        source=SOURCE,
        files=(
            Remote(ratings_path, HOSTS, (ratings.removesuffix(".gz"),)),
            Remote(f"raw/meta_categories/{metadata}", HOSTS, (metadata.removesuffix(".gz"),)),
        ),
        events=partial(_events, ratings),
        items=partial(_items, metadata),
        text=_text,
        columns=("title", "categories", "brand", "price", "description", "attributes"),
        reads=(ratings, metadata),
        core=core,
        described=True,
        ascii_only=True,
        time="milliseconds since 1970 (UTC)",
        settings={
            "text_fields": {"Title": "title", "Description": "description"},
            "eval_args": {"split": {"timestamp": SPLIT_TIMES}},
            **title_alone("ST5Seq", "TASTELoRA"),
        },
        notes=(
            "An item is a parent_asin; of several ratings of one item by one user the benchmark "
            "keeps the earliest.",
            "Texts are ASCII, as ST5-Seq has them; the split is at the two times that the "
            "benchmark cuts all categories at.",
        ),
    )


def _events(name: str, files: Files) -> str:
    """SQL of the ratings."""
    rows = delimited(files[name], ",", "user_id", "parent_asin", "rating", "timestamp", header=True)
    return (
        'SELECT user_id AS "user", parent_asin AS "item", try_cast(rating AS DOUBLE) AS "rating", '
        f'try_cast("timestamp" AS BIGINT) AS "time" FROM {rows}'
    )


def _items(name: str, files: Files) -> str:
    """SQL of the metadata."""
    rows = json_lines(
        files[name],
        parent_asin="VARCHAR",
        title="VARCHAR",
        categories="JSON",
        store="VARCHAR",
        price="VARCHAR",
        description="JSON",
    )
    return f'SELECT parent_asin AS "item", title, categories, store, price, description FROM {rows}'


def _text(row: dict[str, Any]) -> dict[str, str]:
    """The columns of .item of one row."""
    price, brand, levels = row["price"] or "", row["store"] or "", values(row["categories"])[1:]
    return {
        "title": row["title"] or "",
        "categories": " > ".join(levels),
        "brand": brand,
        "price": f"${price}" if price.replace(".", "", 1).isdecimal() else "",
        "description": " ".join(values(row["description"])),
        "attributes": tokens(*levels, brand),
    }
