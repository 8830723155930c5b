"""text.py: what a text model is told about an item."""

import numpy as np
import pytest

from recbole_llm.data.reading.interactions import Source, load
from recbole_llm.data.texts.text import ItemText
from recbole_llm.errors import UserError

ITEM = ("item_id:token", "title:token_seq", "categories:token_seq", "price:float")
ROWS = [
    ("a", "Red  Ball (large)", "Toys Balls", "9.90"),
    ("b", "", "Toys", ""),
    ("c", "Red Ball (large)", "Toys  Balls ", "9.90"),
    ("d", "NA", "", "0"),
    ("e", "", "", ""),
]
FIELDS = {"Title": "title", "Category": "categories", "Price": "price"}


@pytest.fixture
def interactions(write):
    def interactions(rows=ROWS, header=ITEM):
        inter = [("user_id:token", "item_id:token"), *(("u", item) for item in "abcde")]
        return load(
            Source(write({"inter": inter} | ({"item": [header, *rows]} if rows else {})), "toy")
        )

    return interactions


def test_attributes_stand_in_the_order_of_the_fields(interactions):
    text = ItemText.from_interactions(interactions(), {"Price": "price", "Title": "title"})
    assert text.names == ("Price", "Title")
    assert text.values[0] == ("9.90", "Red Ball (large)")  # the price as it is written
    assert len(text) == 5


def test_an_items_own_id_may_be_an_attribute(interactions):
    known = interactions()
    text = ItemText.from_interactions(known, {"Id": "item_id", "Title": "title"})
    assert text.names == ("Id", "Title") and [row[0] for row in text.values] == known.items.tolist()


def test_sentence_names_the_attributes(interactions):
    text = ItemText.from_interactions(interactions(), FIELDS)
    assert [text.sentence(item) for item in range(5)] == [
        "Title: Red Ball (large). Category: Toys Balls. Price: 9.90.",
        "Title: Unknown. Category: Toys. Price: Unknown.",
        "Title: Red Ball (large). Category: Toys Balls. Price: 9.90.",
        "Title: NA. Category: Unknown. Price: 0.",
        "Title: Unknown. Category: Unknown. Price: Unknown.",
    ]


def test_plain_holds_what_is_known(interactions):
    text = ItemText.from_interactions(interactions(), FIELDS)
    assert [text.plain(item) for item in range(5)] == [
        "Red Ball (large) Toys Balls 9.90",
        "Toys",
        "Red Ball (large) Toys Balls 9.90",
        "NA 0",
        "",
    ]


def test_long_attributes_are_cut_by_words(interactions):
    text = ItemText.from_interactions(interactions(), FIELDS, {"Title": 2, "Category": 1})
    assert text.values[0] == ("Red Ball", "Toys", "9.90")
    assert text.values[1] == ("Unknown", "Toys", "Unknown")
    exact = ItemText.from_interactions(interactions(), FIELDS, {"Title": 3})
    assert exact.values[0][0] == "Red Ball (large)"


def test_a_missing_column_is_left_out_and_said(interactions):
    text = ItemText.from_interactions(interactions(), {"Brand": "brand"} | FIELDS)
    assert text.names == ("Title", "Category", "Price")
    assert "no column brand: the text has no Brand" in text.log
    assert text.sentence(1).startswith("Title: Unknown.")


def test_items_without_text_are_counted(interactions):
    assert (
        "1 of 5 items have no text at all: all their attributes are Unknown"
        in ItemText.from_interactions(interactions(), FIELDS).log
    )
    assert (
        "2 of 5 items have no text at all: all their attributes are Unknown"
        in ItemText.from_interactions(interactions(), {"Category": "categories"}).log
    )
    assert (
        ItemText.from_interactions(
            interactions(ROWS[:3] + [("d", "x", "", ""), ("e", "y", "", "")]), FIELDS
        ).log
        == ()
    )


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        (
            ROWS,
            {"Brand": "brand", "Kind": "kind"},
            "expected one of the columns brand, kind, found title, categories, price",
        ),
        ([], FIELDS, "found no item file"),
        (ROWS, {}, "has no text"),
        (
            [(item, "", " ", "") for item in "abcde"],
            FIELDS,
            "every cell of title, categories, price is empty",
        ),
        (
            [("A", "text", "of", "1")],
            FIELDS,
            (
                "dataset toy: no item_id of the events has a row in toy.item: "
                "the events have 'a', the rows 'A'; write"
            ),
        ),
        (
            [("z", "", "", ""), ("a", "", " ", "")],
            FIELDS,
            "every cell of title, categories, price is empty",
        ),
    ],
)
def test_no_text_at_all_is_an_error(interactions, rows, fields, message):
    with pytest.raises(UserError) as caught:
        ItemText.from_interactions(interactions(rows), fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_catalogue_of_other_items_is_an_error_too(write):
    """`catalogue: all` makes items of the rows of .item; the items of the events have no text."""
    folder = write(
        {
            "inter": [("user_id:token", "item_id:token"), ("u", "3"), ("u", "4")],
            "item": [ITEM, ("3.0", "Ball", "Toys", "1")],
        }
    )
    for catalogue in ("met", "all"):
        with pytest.raises(
            UserError,
            match=(
                "no item_id of the events has a row in toy.item: "
                "the events have '3', the rows '3.0'"
            ),
        ):
            ItemText.from_interactions(load(Source(folder, "toy", catalogue=catalogue)), FIELDS)


def test_equal_texts_are_found(interactions):
    text = ItemText.from_interactions(interactions(), FIELDS)
    first, inverse = text.unique
    assert first.tolist() == [0, 1, 3, 4]
    assert inverse.tolist() == [0, 1, 0, 2, 3]
    sentences = np.array([text.sentence(item) for item in range(5)])
    assert (sentences[first][inverse] == sentences).all()
    assert len(set(sentences[first])) == len(first)


def test_equal_words_of_other_attributes_are_another_text(interactions):
    rows = [
        ("a", "x", "y z", ""),
        ("b", "x y", "z", ""),
        ("c", "x", "y z", ""),
        ("d", "", "x", ""),
        ("e", "x", "", ""),
    ]
    assert ItemText.from_interactions(interactions(rows), FIELDS).unique[1].tolist() == [
        0,
        1,
        0,
        2,
        3,
    ]


def test_text_is_that_of_the_item(shared):
    """Every item of Scientific beside its line in the file."""
    folder = shared / "data" / "Scientific"
    interactions = load(Source(folder, "Scientific"))
    text = ItemText.from_interactions(interactions, {"Title": "title", "Brand": "brand"})
    lines = [
        line.split("\t")
        for line in (folder / "Scientific.item").read_text(encoding="utf-8").split("\n")[1:]
        if line
    ]
    columns = (folder / "Scientific.item").open(encoding="utf-8").readline().split("\t")
    title = columns.index("title:token_seq")
    known = {line[0]: " ".join(line[title].split()) for line in lines}
    assert [row[0] for row in text.values] == [known[item] for item in interactions.items]
    assert len(text.unique[0]) < len(text)
