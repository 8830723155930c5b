"""MIND (Microsoft News): the clicks of users, and the news (Wu et al., ACL 2020)."""

from typing import Any

from ..clean import tokens
from ..engine import delimited
from ..files.raw import Remote
from ..recipe import Files, Recipe, Source, judged, title_alone

SOURCE = Source(
    name="MIND",
    page="https://msnews.github.io/",
    licence=(
        "Microsoft Research License Terms: research only, not commercial; it must not be given on."
    ),
    reference="""@inproceedings{wu-etal-2020-mind,
  title = {{MIND}: A Large-scale Dataset for News Recommendation},
  author = {Wu, Fangzhao and Qiao, Ying and Chen, Jiun-Hung and Wu, Chuhan and Qi, Tao and \
Lian, Jianxun and Liu, Danyang and Xie, Xing and
            Gao, Jianfeng and Wu, Winnie and Zhou, Ming},
  booktitle = {Proceedings of ACL},
  pages = {3597--3606},
  year = {2020}
}""",
)
HUB = "https://huggingface.co/datasets/Recommenders/MIND/resolve/main/"
SUMS = {"small": "6ef97a271580b98ccfc4301ada55cc639423cb0576a78b8dcfcf74a4dbcc3194"}
BEHAVIORS, NEWS = "behaviors.tsv", "news.tsv"
NEWS_COLUMNS = (
    *("id", "category", "subcategory", "title", "abstract"),
    *("url", "title_entities", "abstract_entities"),
)


def recipes() -> list[Recipe]:
    """List the recipes of this source.

    Returns
    -------
    list of Recipe
        The small and the large dataset.
    """
    return [_recipe(size) for size in ("small", "large")]


def _recipe(size: str) -> Recipe:
    """The recipe of the training part of one of the two sizes."""
    members = {name: (f"MIND{size}_train/{name}",) for name in (BEHAVIORS, NEWS)}
    return Recipe(
        name=f"MIND-{size}",
        title=f"MIND {size}, training part (LLM-TRSR)",
        source=SOURCE,
        files=(Remote(f"MIND{size}_train.zip", (HUB,), sha256=SUMS.get(size), members=members),),
        events=_events,
        items=_items,
        text=_text,
        columns=("title", "category", "subcategory", "abstract", "attributes"),
        reads=(BEHAVIORS, NEWS),
        length=(11, 26),
        rated=False,
        time="place in the history, from 1",
        settings={
            "text_fields": {
                "Category": "category",
                "Subcategory": "subcategory",
                "Title": "title",
            },
            "eval_args": {"mode": "uni20"},
            **judged("news"),
            **title_alone("ST5Seq", "TASTELoRA"),
        },
        notes=(
            "A user's events are the clicks listed in the user's first row of behaviors.tsv, which "
            "have no times: the place in the list is the time. Impressions are not read.",
            "The abstract is a column, and not part of the text: the paper's items have none.",
        ),
    )


def _events(files: Files) -> str:
    """SQL of the clicks.

    A user's history is the same in all rows of the user. It is empty in the first rows of a user
    who is new.
    """
    rows = delimited(files[BEHAVIORS], "\t", "impression", "user", "time", "history", "impressions")
    complete = '"user" IS NOT NULL AND impressions IS NOT NULL'
    history = "CASE WHEN history IS NULL THEN [] ELSE string_split(history, ' ') END"
    numbered = f"""SELECT row_number() OVER () AS number,
        CASE WHEN {complete} THEN "user" END AS "user",
        CASE WHEN {complete} THEN {history} ELSE [NULL] END AS items FROM {rows}"""
    first = f"""SELECT number, "user", items FROM ({numbered}) WHERE len(items) > 0
        QUALIFY "user" IS NULL OR row_number() OVER (PARTITION BY "user" ORDER BY number) = 1"""
    return (
        'SELECT "user", unnest(items) AS "item", NULL::DOUBLE AS "rating", '
        f'generate_subscripts(items, 1) AS "time" FROM ({first} ORDER BY number)'
    )


def _items(files: Files) -> str:
    """SQL of the news."""
    rows = delimited(files[NEWS], "\t", *NEWS_COLUMNS)
    return f'SELECT id AS "item", category, subcategory, title, abstract FROM {rows}'


def _text(row: dict[str, Any]) -> dict[str, str]:
    """The columns of .item of one row."""
    texts = {name: row[name] or "" for name in ("title", "category", "subcategory", "abstract")}
    return texts | {"attributes": tokens(texts["category"], texts["subcategory"])}
