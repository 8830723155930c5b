"""Generated texts read as attributes, and matched to items by the longest agreement."""

import numpy as np
import pytest

from recbole_llm.retrieval.hierarchical import HierarchicalIndex, parse, rank_matches

NAMES = ("Title", "Category", "Brand", "Price")
ITEMS = [
    ("Red Leash", "Dogs", "Bo", "$5.00"),
    ("Red Leash", "Dogs", "Bo", "$6.00"),
    ("Red Leash", "Dogs", "Ka", "$5.00"),
    ("Blue  Bowl", "Cats", "Ka", "Unknown"),
    ("Red Leash", "Dogs", "Bo", "$5.00"),
]


@pytest.mark.parametrize(
    "text,values",
    [
        (
            "Title: Red Leash. Category: Dogs. Brand: Bo. Price: $5.00.",
            ("Red Leash", "Dogs", "Bo", "$5.00"),
        ),
        (
            "  Title: Dr. Who No. 5. Category: A. B. Brand: St. Bo. Price: 1.5.",
            ("Dr. Who No. 5", "A. B", "St. Bo", "1.5"),
        ),
        ("Title: Red Leash. Category: Dogs. Brand: Bo", ("Red Leash", "Dogs", "Bo")),
        (
            "Title: Red Leash. Brand: Bo. Price: $5.00.",
            ("Red Leash",),
        ),  # the category is missing: only the title stands in its place
        ("Category: Dogs. Title: Red Leash.", ()),
        ("", ()),
        ("Title: .", ("",)),
    ],
)
def test_parse(text, values):
    assert parse(text, NAMES) == values


@pytest.mark.parametrize(
    "values,items,size",
    [
        (("Red Leash", "Dogs", "Bo", "$5.00"), [0, 4], 4),
        (("Red Leash", "Dogs", "Bo", "$9.00"), [0, 1, 4], 3),
        (("Red Leash", "Dogs", "Zu", "$5.00"), [0, 1, 2, 4], 2),
        (("Red Leash", "Cats", "Bo", "$5.00"), [0, 1, 2, 4], 1),
        (("Blue Bowl", "Cats", "Ka", "Unknown"), [3], 4),
        (("Green Ball", "Dogs", "Bo", "$5.00"), [], 0),
        ((), [], 0),
    ],
)
def test_match(values, items, size):
    found, agreed = HierarchicalIndex(ITEMS).match(values)
    assert (found.tolist(), agreed) == (items, size)


def test_an_item_has_the_place_of_its_best_text():
    scores = rank_matches([np.array([2]), np.array([0, 2]), np.zeros(0, int)], 4)
    assert scores.tolist() == [2, 0, 3, 0]
