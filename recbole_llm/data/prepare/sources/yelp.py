"""Yelp Open Dataset: places and their reviews as JSON lines."""

from ..clean import tokens, values
from ..engine import json_lines
from ..files.raw import Remote
from ..recipe import Files, Recipe, Source, judged, title_alone
from ..times import time_columns

SOURCE = Source(
    name="Yelp Open Dataset",
    page="https://www.yelp.com/dataset",
    licence="Yelp Dataset Terms of Use: academic and non-commercial use; it must not be given on.",
    reference="""@misc{yelp,
  title = {Yelp Open Dataset},
  author = {{Yelp Inc.}},
  howpublished = {https://www.yelp.com/dataset}
}""",
)
REVIEWS, PLACES = "yelp_academic_dataset_review.json", "yelp_academic_dataset_business.json"
FILES = (Remote(
    "yelp_dataset.tar", also=("yelp_dataset.tgz", "yelp_dataset.tar.gz", "Yelp-JSON.zip"),
    members={REVIEWS: ("review.json", f"{REVIEWS}.gz"), PLACES: ("business.json", f"{PLACES}.gz")},
),)  # fmt: skip
DESCRIBED = {"text_fields": {"Title": "title", "Description": "description"}}  # ST5-Seq's of Yelp
COLUMNS = ("title", "categories", "address", "city", "state", "description", "attributes")


def recipes() -> list[Recipe]:
    own = {
        "source": SOURCE,
        "files": FILES,
        "events": _events,
        "items": _items,
        "text": _text,
        "columns": COLUMNS,
        "reads": (REVIEWS, PLACES),
        "time_column": "date",
    }
    year = (
        "The figures of the papers are of the 2018 release (round 11); another round gives others."
    )
    return [
        Recipe(
            name="Yelp", title="Yelp, a fifth of the users (TASTE-LoRA)", **own, users=0.2, least=(15, 5), notes=(year,),
            settings={"text_fields": {"Title": "title", "Address": "address", "City": "city", "State": "state"}, "ST5Seq": DESCRIBED, **judged("places")},
        ),
        Recipe(
            name="Yelp-ST5", title="Yelp, every user (ST5-Seq)", **own, described=True, ascii_only=True, notes=(year,),
            settings={**DESCRIBED, **title_alone("TASTELoRA"), **judged("places")},
        ),
    ]  # fmt: skip


def _events(files: Files) -> str:
    rows = json_lines(
        files[REVIEWS], user_id="VARCHAR", business_id="VARCHAR", stars="DOUBLE", date="VARCHAR"
    )
    # releases have days or seconds, of no time zone that they tell
    time = time_columns('"date"')
    return f'SELECT user_id AS "user", business_id AS "item", stars AS "rating", {time} FROM {rows}'


def _items(files: Files) -> str:
    rows = json_lines(
        files[PLACES],
        business_id="VARCHAR",
        name="VARCHAR",
        address="VARCHAR",
        city="VARCHAR",
        state="VARCHAR",
        categories="JSON",
    )
    return (
        f'SELECT business_id AS "item", name AS title, address, city, state, categories FROM {rows}'
    )


def _text(row: dict) -> dict[str, str]:
    categories = ", ".join(
        values(row["categories"])
    )  # a list in earlier rounds, a string later; no name has a comma
    address = ", ".join(filter(None, (row["address"], row["city"], row["state"])))
    return {
        "title": row["title"] or "", "categories": categories, "address": row["address"] or "", "city": row["city"] or "", "state": row["state"] or "",
        "description": f"{categories}. {address}" if categories else address, "attributes": tokens(*categories.split(","), row["city"] or ""),
    }  # fmt: skip
