"""Yelp Open Dataset: places and their reviews as JSON lines."""

from dataclasses import replace
from typing import Any

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
ARCHIVE = Remote(
    "yelp_dataset.tar",
    also=("yelp_dataset.tgz", "yelp_dataset.tar.gz", "Yelp-JSON.zip"),
    members={REVIEWS: ("review.json", f"{REVIEWS}.gz"), PLACES: ("business.json", f"{PLACES}.gz")},
)
DESCRIBED = {"text_fields": {"Title": "title", "Description": "description"}}  # ST5-Seq's texts


def recipes() -> list[Recipe]:
    """List the recipes of this source.

    Returns
    -------
    list of Recipe
        The datasets of TASTE-LoRA and of ST5-Seq.
    """
    st5 = Recipe(
        name="Yelp-ST5",
        title="Yelp, every user (ST5-Seq)",
        source=SOURCE,
        files=(ARCHIVE,),
        events=_events,
        items=_items,
        text=_text,
        columns=("title", "categories", "address", "city", "state", "description", "attributes"),
        reads=(REVIEWS, PLACES),
        described=True,
        time_column="date",
        ascii_only=True,
        settings={**DESCRIBED, **title_alone("TASTELoRA"), **judged("places")},
        notes=(
            "The figures of the papers are of the 2018 release (round 11); "
            "another round gives others.",
        ),
    )
    fields = {"Title": "title", "Address": "address", "City": "city", "State": "state"}
    taste = replace(
        st5,
        name="Yelp",
        title="Yelp, a fifth of the users (TASTE-LoRA)",
        users=0.2,
        least=(15, 5),
        described=False,
        ascii_only=False,
        settings={"text_fields": fields, "ST5Seq": DESCRIBED, **judged("places")},
    )
    return [taste, st5]


def _events(files: Files) -> str:
    """SQL of the reviews. Releases have days or seconds, without a time zone."""
    rows = json_lines(
        files[REVIEWS], user_id="VARCHAR", business_id="VARCHAR", stars="DOUBLE", date="VARCHAR"
    )
    time = time_columns('"date"')
    return f'SELECT user_id AS "user", business_id AS "item", stars AS "rating", {time} FROM {rows}'


def _items(files: Files) -> str:
    """SQL of the places."""
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


def _text(row: dict[str, Any]) -> dict[str, str]:
    """The columns of .item of one row.

    Categories are a list in earlier rounds and a string later. No name of a category has a comma.
    """
    categories = ", ".join(values(row["categories"]))
    address = ", ".join(filter(None, (row["address"], row["city"], row["state"])))
    return {
        "title": row["title"] or "",
        "categories": categories,
        "address": row["address"] or "",
        "city": row["city"] or "",
        "state": row["state"] or "",
        "description": f"{categories}. {address}" if categories else address,
        "attributes": tokens(*categories.split(","), row["city"] or ""),
    }
