"""Amazon-M2 (KDD Cup '23): shopping sessions and product attributes, here of the UK."""

from typing import Any

from ..clean import tokens
from ..engine import delimited
from ..files.raw import Remote
from ..recipe import Files, Recipe, Source, title_alone

SOURCE = Source(
    name="Amazon-M2",
    page=(
        "https://www.aicrowd.com/challenges/amazon-kdd-cup-23-multilingual-recommendation-challenge"
    ),
    licence="Given out to registered participants of KDD Cup '23; see its rules there.",
    reference="""@inproceedings{jin2023amazonm2,
  title = {Amazon-M2: A Multilingual Multi-locale Shopping Session Dataset for Recommendation \
and Text Generation},
  author = {Jin, Wei and Mao, Haitao and Li, Zheng and Jiang, Haoming and Luo, Chen and \
Wen, Hongzhi and Han, Haoyu and Lu, Hanqing and
            Wang, Zhengyang and Li, Ruirui and others},
  booktitle = {Advances in Neural Information Processing Systems 36, Datasets and Benchmarks},
  year = {2023}
}""",
)
SESSIONS, PRODUCTS = "sessions_train.csv", "products_train.csv"
LOCALE = "UK"
MISSING_PRICE = 4e7  # a missing price is written as 40000000.07
FIELDS = ("title", "price", "brand", "color", "size", "model", "material", "author", "description")
FEATURES = ("brand", "color", "material", "author")  # the fields that become feature tokens


def recipes() -> list[Recipe]:
    """List the recipes of this source.

    Returns
    -------
    list of Recipe
        The sessions of the UK.
    """
    return [
        Recipe(
            name="Amazon-M2",
            title="Amazon-M2, sessions of the UK (LLM-TRSR)",
            source=SOURCE,
            files=(Remote(SESSIONS), Remote(PRODUCTS)),
            events=_events,
            items=_items,
            text=_text,
            columns=(*FIELDS, "attributes"),
            reads=(SESSIONS, PRODUCTS),
            quoted=(SESSIONS, PRODUCTS),
            length=(11, 26),
            rated=False,
            time="place in the session, from 1",
            settings={
                "text_fields": {name.capitalize(): name for name in FIELDS},
                "eval_args": {"mode": "uni20"},
                **title_alone("ST5Seq", "TASTELoRA"),
            },
            notes=(
                "Sessions have no user ids and no times: every row of the file is a user, called "
                "by its number, and the place in the session is the time. So the data cannot be "
                "split by time, and no two sessions are known to be of one person.",
                "A session is its previous items and its next one: 10 to 25 items of history, as "
                "in LLM-TRSR's released code.",
            ),
        )
    ]


def _events(files: Files) -> str:
    """SQL of the sessions, an item a row.

    The file has the previous items as numpy prints them: quoted ids without commas, over several
    lines.
    """
    rows = delimited(
        files[SESSIONS], ",", "prev_items", "next_item", "locale", quote='"', header=True
    )
    numbered = f"SELECT row_number() OVER () AS number, prev_items, next_item, locale FROM {rows}"
    items = "list_append(regexp_extract_all(prev_items, '''([^'']*)''', 1), next_item)"
    complete = "prev_items IS NOT NULL AND next_item IS NOT NULL AND locale IS NOT NULL"
    sessions = (
        f"SELECT number, CASE WHEN {complete} THEN {items} ELSE [NULL] END AS items "
        f"FROM ({numbered}) WHERE locale IS NULL OR locale = '{LOCALE}'"
    )
    return (
        'SELECT number::VARCHAR AS "user", unnest(items) AS "item", NULL::DOUBLE AS "rating", '
        f'generate_subscripts(items, 1) AS "time" FROM ({sessions})'
    )


def _items(files: Files) -> str:
    """SQL of the products."""
    columns = FIELDS[:-1]
    rows = delimited(files[PRODUCTS], ",", "id", "locale", *columns, "desc", quote='"', header=True)
    return (
        f'SELECT id AS "item", {", ".join(columns)}, "desc" AS description FROM {rows} '
        f"WHERE locale = '{LOCALE}'"
    )


def _text(row: dict[str, Any]) -> dict[str, str]:
    """The columns of .item of one row."""
    texts = {name: row[name] or "" for name in FIELDS}
    try:
        has_price = 0 < float(texts["price"]) < MISSING_PRICE
    except ValueError:
        has_price = False
    return texts | {
        "price": f"£{texts['price']}" if has_price else "",
        "attributes": tokens(*(texts[name] for name in FEATURES)),
    }
