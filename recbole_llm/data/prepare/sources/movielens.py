"""MovieLens 100K and 1M, in the columns that RecBole has for them (Harper and Konstan, TiiS 2015)."""

import re

from ..engine import delimited
from ..files.raw import Remote
from ..recipe import Files, Recipe, Source, judged, title_alone

SOURCE = Source(
    name="MovieLens",
    page="https://grouplens.org/datasets/movielens/",
    licence="GroupLens: research use with acknowledgement; not to be given on or used commercially without permission.",
    reference="""@article{harper2015movielens,
  title = {The MovieLens Datasets: History and Context},
  author = {Harper, F. Maxwell and Konstan, Joseph A.},
  journal = {ACM Transactions on Interactive Intelligent Systems},
  volume = {5}, number = {4}, pages = {19:1--19:19},
  year = {2015}
}""",
)
HOST = "https://files.grouplens.org/datasets/movielens/"
GENRES = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War Western"
).split()
YEAR = re.compile(r"\s*\((\d{4})\)\s*$")
FIELDS = {"Title": "movie_title", "Year": "release_year", "Genre": "class"}


def recipes() -> list[Recipe]:
    features = {"selected_features": ["class"], "item_attribute": "class"}
    own = {
        "source": SOURCE,
        "settings": {"text_fields": FIELDS}
        | features
        | judged("movies")
        | title_alone("ST5Seq", column="movie_title"),
        "text": _text,
        "columns": tuple(FIELDS.values()),
    }
    return [
        Recipe(
            name="ml-100k", title="MovieLens 100K", **own, events=_events_100k, items=_items_100k, reads=("u.data", "u.item"),
            files=(Remote("ml-100k.zip", (HOST,), size=4924029, md5="0e33842e24a9c977be4e0107933c0723",
                          members={"u.data": ("ml-100k/u.data",), "u.item": ("ml-100k/u.item",)}),),
        ),
        Recipe(
            name="ml-1m", title="MovieLens 1M", **own, events=_events_1m, items=_items_1m, reads=("ratings.dat", "movies.dat"),
            files=(Remote("ml-1m.zip", (HOST,), md5="c4d9eecfca2ab87c1945afe126590906",
                          members={"ratings.dat": ("ml-1m/ratings.dat",), "movies.dat": ("ml-1m/movies.dat",)}),),
        ),
    ]  # fmt: skip


def _ratings(rows: str) -> str:
    return f'SELECT "user", "item", try_cast(rating AS DOUBLE) AS "rating", try_cast("time" AS BIGINT) AS "time" FROM {rows}'


def _events_100k(files: Files) -> str:
    return _ratings(delimited(files["u.data"], "\t", "user", "item", "rating", "time"))


def _events_1m(files: Files) -> str:
    return _ratings(delimited(files["ratings.dat"], "::", "user", "item", "rating", "time"))


def _items_100k(files: Files) -> str:
    flags = [f"genre{number}" for number in range(len(GENRES))]
    rows = delimited(
        files["u.item"], "|", "id", "title", "released", "video", "url", *flags, encoding="latin-1"
    )
    named = ", ".join(
        f"CASE WHEN {flag} = '1' THEN '{genre.replace(chr(39), chr(39) * 2)}' END"
        for flag, genre in zip(flags, GENRES, strict=True)
    )
    return f"""SELECT id AS "item", title, concat_ws(' ', {named}) AS genres FROM {rows}"""


def _items_1m(files: Files) -> str:
    rows = delimited(files["movies.dat"], "::", "id", "title", "genres", encoding="latin-1")
    return f"""SELECT id AS "item", title, replace(genres, '|', ' ') AS genres FROM {rows}"""


def _text(row: dict) -> dict[str, str]:
    title = row["title"] or ""
    year = YEAR.search(title)
    return {
        "movie_title": YEAR.sub("", title),
        "release_year": year[1] if year else "",
        "class": row["genres"] or "",
    }
