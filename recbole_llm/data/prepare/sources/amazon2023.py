"""Amazon Reviews 2023: the benchmark's rating files and metadata (Hou et al., arXiv:2403.03952)."""

from functools import partial

from ..clean import tokens, values
from ..engine import delimited, json_lines
from ..files.raw import Remote
from ..recipe import Files, Recipe, Source, title_alone

SOURCE = Source(
    name="Amazon Reviews 2023",
    page="https://amazon-reviews-2023.github.io/",
    licence="The lab that collected it says that it cannot assign a licence; given out for research with the request to cite.",
    reference="""@article{hou2024bridging,
  title = {Bridging Language and Items for Retrieval and Recommendation},
  author = {Hou, Yupeng and Li, Jiacheng and He, Zhankui and Yan, An and Chen, Xiusi and McAuley, Julian},
  journal = {arXiv preprint arXiv:2403.03952},
  year = {2024}
}""",
)
HOSTS = ("https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/",)
ST5 = (  # nine that ST5-Seq is trained on, and three that it has not seen
    "All_Beauty Baby_Products Video_Games Beauty_and_Personal_Care Cell_Phones_and_Accessories Electronics Health_and_Household Movies_and_TV "
    "Toys_and_Games Books Digital_Music Amazon_Fashion"
).split()
OTHER = (
    "Appliances Arts_Crafts_and_Sewing Automotive CDs_and_Vinyl Clothing_Shoes_and_Jewelry Gift_Cards Grocery_and_Gourmet_Food Handmade_Products "
    "Health_and_Personal_Care Home_and_Kitchen Industrial_and_Scientific Kindle_Store Magazine_Subscriptions Musical_Instruments Office_Products "
    "Patio_Lawn_and_Garden Pet_Supplies Software Sports_and_Outdoors Subscription_Boxes Tools_and_Home_Improvement"
).split()
SPARSE = {
    "Amazon_Fashion",
    "Appliances",
    "Digital_Music",
    "Handmade_Products",
    "Health_and_Personal_Care",
    "Subscription_Boxes",
}  # which have no 5-core
BORDERS = [
    1628643414042,
    1658002729837,
]  # milliseconds: validation begins, test begins; the same for every category


def recipes() -> list[Recipe]:
    found = [_recipe(f"{category}-23", category, "0core") for category in (*ST5, *OTHER)]
    return found + [
        _recipe(f"{category}-23-5core", category, "5core")
        for category in (*ST5, *OTHER)
        if category not in SPARSE
    ]


def _recipe(name: str, category: str, core: str) -> Recipe:
    ratings, metadata = f"{category}.csv.gz", f"meta_{category}.jsonl.gz"
    plain = tuple(file.removesuffix(".gz") for file in (ratings, metadata))
    return Recipe(
        name=name, title=f"Amazon Reviews 2023, {category.replace('_', ' ')} ({core[0]}-core)", source=SOURCE,
        files=(
            Remote(f"benchmark/{core}/rating_only/{ratings}", HOSTS, (plain[0],)),
            Remote(f"raw/meta_categories/{metadata}", HOSTS, (plain[1],)),
        ),
        events=partial(_events, ratings), items=partial(_items, metadata), text=_text, reads=(ratings, metadata), described=True, ascii_only=True,
        columns=("title", "categories", "brand", "price", "description", "attributes"), time="milliseconds since 1970 (UTC)",
        core=5 if core == "5core" else 0,
        settings={
            "text_fields": {"Title": "title", "Description": "description"}, "eval_args": {"split": {"timestamp": BORDERS}},
            **title_alone("ST5Seq", "TASTELoRA"),
        },
        notes=("An item is a parent_asin; of several ratings of one item by one user the benchmark keeps the earliest.",
               "Texts are ASCII, as ST5-Seq has them; the split is at the two times that the benchmark cuts all categories at."),
    )  # fmt: skip


def _events(name: str, files: Files) -> str:
    rows = delimited(files[name], ",", "user_id", "parent_asin", "rating", "timestamp", header=True)
    return (
        'SELECT user_id AS "user", parent_asin AS "item", try_cast(rating AS DOUBLE) AS "rating", try_cast("timestamp" AS BIGINT) AS "time" '
        f"FROM {rows}"
    )


def _items(name: str, files: Files) -> str:
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


def _text(row: dict) -> dict[str, str]:
    price, brand, levels = row["price"] or "", row["store"] or "", values(row["categories"])[1:]
    return {
        "title": row["title"] or "", "categories": " > ".join(levels), "brand": brand,
        "price": f"${price}" if price.replace(".", "", 1).isdecimal() else "", "description": " ".join(values(row["description"])),
        "attributes": tokens(*levels, brand),
    }  # fmt: skip
