"""Amazon-M2 (KDD Cup '23): shopping sessions and product attributes, here of the UK."""

from ..clean import tokens
from ..engine import delimited
from ..files.raw import Remote
from ..recipe import Files, Recipe, Source, title_alone

SOURCE = Source(
    name="Amazon-M2",
    page="https://www.aicrowd.com/challenges/amazon-kdd-cup-23-multilingual-recommendation-challenge",
    licence="Given out to registered participants of KDD Cup '23; see its rules there.",
    reference="""@inproceedings{jin2023amazonm2,
  title = {Amazon-M2: A Multilingual Multi-locale Shopping Session Dataset for Recommendation and Text Generation},
  author = {Jin, Wei and Mao, Haitao and Li, Zheng and Jiang, Haoming and Luo, Chen and Wen, Hongzhi and Han, Haoyu and Lu, Hanqing and
            Wang, Zhengyang and Li, Ruirui and others},
  booktitle = {Advances in Neural Information Processing Systems 36, Datasets and Benchmarks},
  year = {2023}
}""",
)
SESSIONS, PRODUCTS = "sessions_train.csv", "products_train.csv"
LOCALE, MISSING = "UK", 4e7  # a price of 40000000.07 stands for none
FIELDS = ("title", "price", "brand", "color", "size", "model", "material", "author", "description")
FEATURES = ("brand", "color", "material", "author")


def recipes() -> list[Recipe]:
    return [Recipe(
        name="Amazon-M2", title="Amazon-M2, sessions of the UK (LLM-TRSR)", source=SOURCE, files=(Remote(SESSIONS), Remote(PRODUCTS)),
        events=_events, items=_items, text=_text, columns=(*FIELDS, "attributes"),
        reads=(SESSIONS, PRODUCTS), quoted=(SESSIONS, PRODUCTS), length=(11, 26), rated=False,
        time="place in the session, from 1",
        settings={"text_fields": {name.capitalize(): name for name in FIELDS}, "eval_args": {"mode": "uni20"}, **title_alone("ST5Seq", "TASTELoRA")},
        notes=("Sessions have no user ids and no times: every row of the file is a user, called by its number, and the place in the session is the time. "
               "So the data cannot be split by time, and no two sessions are known to be of one person.",
               "A session is its previous items and its next one: 10 to 25 items of history, as in LLM-TRSR's released code."),
    )]  # fmt: skip


def _events(files: Files) -> str:
    rows = delimited(
        files[SESSIONS], ",", "prev_items", "next_item", "locale", quote='"', header=True
    )
    numbered = f"SELECT row_number() OVER () AS number, prev_items, next_item, locale FROM {rows}"
    # the list is as numpy prints it: quoted ids without commas, over several lines
    items = "list_append(regexp_extract_all(prev_items, '''([^'']*)''', 1), next_item)"
    whole = "prev_items IS NOT NULL AND next_item IS NOT NULL AND locale IS NOT NULL"
    listed = f"SELECT number, CASE WHEN {whole} THEN {items} ELSE [NULL] END AS items FROM ({numbered}) WHERE locale IS NULL OR locale = '{LOCALE}'"
    return f"""SELECT number::VARCHAR AS "user", unnest(items) AS "item", NULL::DOUBLE AS "rating", generate_subscripts(items, 1) AS "time" FROM ({listed})"""


def _items(files: Files) -> str:
    rows = delimited(
        files[PRODUCTS], ",", "id", "locale", *FIELDS[:-1], "desc", quote='"', header=True
    )
    return f"""SELECT id AS "item", {", ".join(FIELDS[:-1])}, "desc" AS description FROM {rows} WHERE locale = '{LOCALE}'"""


def _text(row: dict) -> dict[str, str]:
    found = {name: row[name] or "" for name in FIELDS}
    try:
        known = 0 < float(found["price"]) < MISSING
    except ValueError:
        known = False
    return found | {
        "price": f"£{found['price']}" if known else "",
        "attributes": tokens(*(found[name] for name in FEATURES)),
    }
