"""MovieLens 100K and 1M, with the columns that RecBole has for them.

Harper and Konstan, TiiS 2015.
"""

import re
from typing import Any

from ..engine import delimited
from ..files.raw import Remote
from ..recipe import Files, Recipe, Source, judged, title_alone

SOURCE = Source(
    name="MovieLens",
    page="https://grouplens.org/datasets/movielens/",
    licence=(
        "GroupLens: research use with acknowledgement; "
        "not to be given on or used commercially without permission."
    ),
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
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
YEAR = re.compile(r"\s*\((\d{4})\)\s*$")
FIELDS = {"Title": "movie_title", "Year": "release_year", "Genre": "class"}
SETTINGS: dict[str, Any] = {
    "text_fields": FIELDS,
    "selected_features": ["class"],
    "item_attribute": "class",
    **judged("movies"),
    **title_alone("ST5Seq", column="movie_title"),
}


def recipes() -> list[Recipe]:
    """List the recipes of this source.

    Returns
    -------
    list of Recipe
        The two datasets.
    """
    return [
        Recipe(
            name="ml-100k",
            title="MovieLens 100K",
            source=SOURCE,
            files=(
                Remote(
                    "ml-100k.zip",
                    (HOST,),
                    size=4924029,
                    md5="0e33842e24a9c977be4e0107933c0723",
                    members={"u.data": ("ml-100k/u.data",), "u.item": ("ml-100k/u.item",)},
                ),
            ),
            events=_events_100k,
            items=_items_100k,
            text=_text,
            columns=tuple(FIELDS.values()),
            reads=("u.data", "u.item"),
            settings=SETTINGS,
        ),
        Recipe(
            name="ml-1m",
            title="MovieLens 1M",
            source=SOURCE,
            files=(
                Remote(
                    "ml-1m.zip",
                    (HOST,),
                    md5="c4d9eecfca2ab87c1945afe126590906",
                    members={
                        "ratings.dat": ("ml-1m/ratings.dat",),
                        "movies.dat": ("ml-1m/movies.dat",),
                    },
                ),
            ),
            events=_events_1m,
            items=_items_1m,
            text=_text,
            columns=tuple(FIELDS.values()),
            reads=("ratings.dat", "movies.dat"),
            settings=SETTINGS,
        ),
    ]


def _ratings(rows: str) -> str:
    """SQL of the ratings among the rows of a file."""
    return (
        'SELECT "user", "item", try_cast(rating AS DOUBLE) AS "rating", '
        f'try_cast("time" AS BIGINT) AS "time" FROM {rows}'
    )


def _events_100k(files: Files) -> str:
    """SQL of the ratings of MovieLens 100K."""
    return _ratings(delimited(files["u.data"], "\t", "user", "item", "rating", "time"))


def _events_1m(files: Files) -> str:
    """SQL of the ratings of MovieLens 1M."""
    return _ratings(delimited(files["ratings.dat"], "::", "user", "item", "rating", "time"))


def _items_100k(files: Files) -> str:
    """SQL of the movies of MovieLens 100K, which has a column of 0 or 1 for each genre."""
    flags = [f"genre{number}" for number in range(len(GENRES))]
    rows = delimited(
        files["u.item"], "|", "id", "title", "released", "video", "url", *flags, encoding="latin-1"
    )
    genres = []
    for flag, genre in zip(flags, GENRES, strict=True):
        name = genre.replace("'", "''")
        genres.append(f"CASE WHEN {flag} = '1' THEN '{name}' END")
    names = ", ".join(genres)
    return f"""SELECT id AS "item", title, concat_ws(' ', {names}) AS genres FROM {rows}"""


def _items_1m(files: Files) -> str:
    """SQL of the movies of MovieLens 1M."""
    rows = delimited(files["movies.dat"], "::", "id", "title", "genres", encoding="latin-1")
    return f"""SELECT id AS "item", title, replace(genres, '|', ' ') AS genres FROM {rows}"""


def _text(row: dict[str, Any]) -> dict[str, str]:
    """The columns of .item of one row; the year is at the end of the raw title."""
    title = row["title"] or ""
    year = YEAR.search(title)
    return {
        "movie_title": YEAR.sub("", title),
        "release_year": year[1] if year else "",
        "class": row["genres"] or "",
    }
