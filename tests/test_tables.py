"""interactions.py: which events, users and items there are, and in which order."""

import itertools
from collections import Counter

import numpy as np
import pytest

from recbole_llm.data.reading.interactions import Source, load
from recbole_llm.errors import UserError

INTER = ("user_id:token", "item_id:token", "timestamp:float")
RATED = (*INTER, "rating:float")
ITEM = ("item_id:token", "title:token_seq")


@pytest.fixture
def interactions(write):
    """interactions(rows of .inter, other files, fields of Source)."""

    def interactions(rows, files=None, header=INTER, **filters):
        return load(Source(write({"inter": [header, *rows]} | (files or {})), "toy", **filters))

    return interactions


def sequences(interactions):
    """User token -> item tokens in order."""
    return {
        user: interactions.items[interactions.item[a:b]].tolist()
        for user, a, b in zip(
            interactions.users, interactions.start[:-1], interactions.start[1:], strict=True
        )
    }


def random_rows(seed, events=400, users=40, items=30):
    """Popular and rare users and items, each event at a time of its own, in no order."""
    rng = np.random.default_rng(seed)
    user, item = (rng.integers(0, rng.integers(1, count + 1, events)) for count in (users, items))
    return [
        (f"u{u}", f"i{i}", t) for u, i, t in zip(user, item, rng.permutation(events), strict=True)
    ]


# Order


def test_events_are_in_the_order_of_exact_time(interactions):
    """Trap 3: RecBole keeps times as float32, in steps of 128 s at 1.6e9, and loses this order."""
    rng = np.random.default_rng(0)
    steps = rng.permutation(40)
    times = 1.6e9 + 10 * steps
    rows = [("u", f"i{step}", time) for step, time in zip(steps, times, strict=True)]
    read = interactions(rows)
    assert sequences(read) == {"u": [f"i{step}" for step in range(40)]}
    np.testing.assert_array_equal(read.time, np.sort(times))
    single = times.astype(np.float32)
    assert np.spacing(single[0]) == 128
    assert len(np.unique(single)) < 6
    assert steps[np.argsort(single, kind="stable")].tolist() != list(range(40))


def test_times_may_lie_closer_than_a_second(interactions):
    rows = [
        ("u", "late", "1600000000.0000005"),
        ("u", "early", "1600000000.0000002"),
        ("u", "first", "-5"),
    ]
    assert sequences(interactions(rows)) == {"u": ["first", "early", "late"]}


def test_equal_times_keep_the_order_of_the_file(interactions):
    rng = np.random.default_rng(1)
    rows = [(f"u{rng.integers(5)}", f"i{number}", rng.integers(4)) for number in range(300)]
    expected = {user: [] for user, *_ in rows}
    for now in range(4):
        for user, item, time in rows:
            if time == now:
                expected[user].append(item)
    read = interactions(rows)
    assert sequences(read) == expected
    assert list(read.users) == list(expected)  # numbered by first appearance


def test_the_order_of_the_file_can_be_restored(interactions):
    rows = random_rows(2)
    read = interactions(rows)
    back = read.file_order
    assert (
        list(
            zip(
                read.users[read.user[back]],
                read.items[read.item[back]],
                read.time[back],
                strict=True,
            )
        )
        == rows
    )
    places = itertools.chain.from_iterable(map(range, np.diff(read.start)))
    assert read.position.tolist() == list(places)
    assert list(read.items) == list(dict.fromkeys(row[1] for row in rows))


def test_without_times_the_order_of_the_file_counts(interactions):
    read = interactions([("u", "b"), ("v", "a"), ("u", "a"), ("u", "a")], header=INTER[:2])
    assert sequences(read) == {"u": ["b", "a", "a"], "v": ["a"]}  # two equal rows may be two events
    assert not read.has_time
    assert "no column timestamp" in read.log[0]


def test_ids_that_look_like_nothing_stay(interactions):
    rows = [("NA", "null", 1), ("NA", "007", 2), ("nan", "7", 1), ("nan", "None", 2)]
    files = {"item": [ITEM, ("null", "NA"), ("7", "seven"), ("007", "bond")]}
    read = interactions(rows, files)
    assert sequences(read) == {"NA": ["null", "007"], "nan": ["7", "None"]}
    assert read.item_table["title"].tolist() == ["NA", "bond", "seven", ""]


# Filters

# u took a, b (twice, and once with another rating), b later, a again; v's event is there thrice
TWICE = [
    ("u", "b", 20, 3),
    ("u", "a", 10, 5),
    ("u", "b", 20, 3),
    ("u", "b", 20, 4),
    ("v", "a", 5, 1),
    ("u", "a", 30, 5),
    ("v", "a", 5, 1),
    ("u", "b", 25, 3),
    ("v", "a", 5, 1),
]


@pytest.mark.parametrize(
    ("dedup", "expected"),
    [
        ("event", {"u": ["a", "b", "b", "b", "a"], "v": ["a"]}),
        ("consecutive", {"u": ["a", "b", "b", "b", "a"], "v": ["a"]}),
        ("consecutive_item", {"u": ["a", "b", "a"], "v": ["a"]}),
        ("none", {"u": ["a", "b", "b", "b", "b", "a"], "v": ["a", "a", "a"]}),
    ],
)
def test_dedup(interactions, dedup, expected):
    read = interactions(TWICE, header=RATED, dedup=dedup)
    assert sequences(read) == expected
    left_out = len(TWICE) - sum(map(len, expected.values()))
    assert (f"{left_out} duplicate events left out (dedup: {dedup})" in read.log) == (left_out > 0)


def test_an_event_without_rating_is_user_item_and_time(interactions):
    rows = [row[:3] for row in TWICE]
    assert sequences(interactions(rows)) == {"u": ["a", "b", "b", "a"], "v": ["a"]}


def test_which_of_equal_events_stays(interactions):
    """The first in time of a run, whatever the order of the file."""
    read = interactions([("u", "a", 9), ("u", "a", 3), ("u", "a", 6)], dedup="consecutive_item")
    assert read.time.tolist() == [3]


REVIEWED = (*RATED, "review:token")


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        (
            [("a", 1, 5, "x"), ("b", 1, 5, "y"), ("a", 1, 5, "x")],
            ["a", "b", "a"],
        ),  # another follows
        ([("a", 1, 5, "x"), ("a", 1, 5, "x"), ("b", 1, 5, "y")], ["a", "b"]),
        ([("a", 1, 5, "x"), ("a", 1, 5, "other"), ("a", 1, 5, "")], ["a", "a", "a"]),
        ([("a", 1, 5, ""), ("a", 1, 5, ""), ("a", 1, 4, "")], ["a", "a"]),
        ([("a", 1, "", "x"), ("a", 1, "", "x"), ("a", 2, "", "x")], ["a", "a"]),  # of no rating
    ],
)
def test_consecutive_events_are_one_if_all_that_is_known_of_them_is_equal(interactions, rows, kept):
    rows = [("u", *row) for row in rows] + [("v", *rows[-1]), ("v", *rows[-1])]
    read = interactions(rows, header=REVIEWED, dedup="consecutive")
    assert sequences(read) == {"u": kept, "v": [rows[-1][1]]}
    assert "review" not in read.columns, "it is read for this alone"


def test_consecutive_without_times_or_reviews(interactions):
    """Without times, two equal rows may be two events; a review is compared where there is one."""
    rows = [("u", "a"), ("u", "a"), ("u", "b")]
    assert sequences(interactions(rows, header=INTER[:2], dedup="consecutive")) == {
        "u": ["a", "a", "b"]
    }
    rows = [("u", "a", 1), ("u", "b", 2), ("u", "a", 1), ("u", "a", 1)]
    assert sequences(interactions(rows, dedup="consecutive")) == {"u": ["a", "b"]}


def test_users_are_counted_after_duplicates_are_left_out(interactions):
    rows = [
        ("u", "a", 1),
        ("u", "a", 1),
        ("u", "b", 2),
        ("v", "a", 1),
        ("v", "b", 2),
        ("v", "a", 3),
    ]
    read = interactions(rows, dedup="consecutive", user_interval="[3,inf)")
    assert sequences(read) == {"v": ["a", "b", "a"]}


def test_a_review_column_that_is_asked_for_stays(interactions):
    rows = [("u", "a", 1, 5, "x"), ("u", "b", 2, 5, "y")]
    for asked in (None, frozenset({"review"})):
        read = interactions(rows, header=REVIEWED, dedup="consecutive", inter_columns=asked)
        assert read.columns["review"].tolist() == ["x", "y"]


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ("time:float", "set --TIME_FIELD=time"),
        ("bought_at:float", "set --TIME_FIELD=bought_at"),
        ("reviewDate:float", "set --TIME_FIELD=reviewDate"),
        ("unix_ts:float", "set --TIME_FIELD=unix_ts"),
        ("day:token", "if day:token is the time, write it as a number in a column timestamp:float"),
        ("rating:float", None),
        ("format:float", None),
        ("lifts:float", None),
    ],
)
def test_a_column_that_is_called_like_a_time_is_named(interactions, column, told):
    log = interactions([("u", "a", 1), ("u", "b", 2)], header=(*INTER[:2], column)).log[0]
    assert "no column timestamp" in log
    assert told in log if told else "if " not in log


# Several rows of one id


@pytest.mark.parametrize(
    ("rows", "cells", "told"),
    [
        (
            [("a", "", "x"), ("a", "Apple", "y"), ("b", "B", "z")],
            {"a": ("Apple", "x")},
            "rows of 1 ids differ: a",
        ),
        ([("a", "Apple", ""), ("b", "B", "z"), ("a", "", "x")], {"a": ("Apple", "x")}, ""),
        ([("a", "A", "x"), ("a", "A", "x"), ("a", "A", "x")], {"a": ("A", "x")}, ""),
        ([("a", "", ""), ("a", "", ""), ("b", "B", "NA")], {"a": ("", ""), "b": ("B", "NA")}, ""),
    ],
)
def test_of_several_rows_of_an_item_each_first_cell_with_text_counts(
    interactions, rows, cells, told
):
    files = {"item": [("item_id:token", "title:token_seq", "brand:token"), *rows]}
    read = interactions([("u", "a", 1), ("u", "b", 2)], files)
    (line,) = [line for line in read.log if "further rows" in line]
    repeated = len(rows) - len({row[0] for row in rows})
    assert line.startswith(f"{repeated} further rows of toy.item")
    assert line.endswith(told) and ("differ" in line) == bool(told)
    for item, expected in cells.items():
        assert tuple(read.item_table.loc[list(read.items).index(item)]) == expected


def test_one_row_of_each_item_is_not_worth_a_word(interactions):
    files = {"item": [("item_id:token", "title:token_seq"), ("a", "A"), ("b", "A")]}
    assert not any(
        "further" in line for line in interactions([("u", "a", 1), ("u", "b", 2)], files).log
    )


def test_several_rows_of_a_user_are_joined_too(interactions):
    files = {"user": [("user_id:token", "age:token"), ("u", ""), ("u", "30")]}
    read = interactions([("u", "a", 1)], files)
    assert read.user_table["age"].tolist() == ["30"]
    assert any("1 further rows of toy.user" in line for line in read.log)


@pytest.mark.parametrize(
    ("keep", "expected"), [("first", [("a", 10), ("b", 20)]), ("last", [("b", 25), ("a", 30)])]
)
def test_rm_dup_inter_counts_by_time(interactions, keep, expected):
    rows = [("u", "a", 30), ("u", "b", 25), ("u", "a", 10), ("u", "b", 20), ("v", "a", 15)]
    read = interactions(rows, remove_repeats=keep)
    assert [(item, time) for item, time in zip(read.items[read.item], read.time, strict=True)][
        :-1
    ] == expected
    assert sequences(read)["v"] == ["a"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("users", "items"), [(2, 1), (1, 3), (5, 5), (6, 9)])
def test_k_core_against_a_loop(interactions, seed, users, items):
    rows = random_rows(seed)
    left = rows
    while True:  # one user or item at a time
        by_user, by_item = Counter(row[0] for row in left), Counter(row[1] for row in left)
        bad = [user for user in by_user if by_user[user] < users] or [
            item for item in by_item if by_item[item] < items
        ]
        if not bad:
            break
        left = [row for row in left if bad[0] not in row[:2]]
    read = interactions(rows, user_interval=f"[{users},inf)", item_interval=f"[{items},inf)")
    pairs = set()
    for user, own in sequences(read).items():
        pairs.update((user, item) for item in own)
    assert pairs == {row[:2] for row in left}
    assert len(read.item) == len(left)
    assert len(left) < len(rows) or users < 5


def test_an_upper_bound_on_events(interactions):
    rows = random_rows(0)
    count = Counter(row[0] for row in rows)
    read = interactions(rows, user_interval="(3,12]")
    assert set(read.users) == {user for user in count if 3 < count[user] <= 12} != set(count)


def test_user_sample_is_seeded_and_knows_no_file_order(interactions):
    rows = random_rows(3)
    drawn = [
        set(interactions(given, user_sample=0.3, sample_seed=seed).users)
        for given, seed in ((rows, 5), (rows[::-1], 5), (rows, 6))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    everybody = sequences(interactions(rows))
    assert len(drawn[0]) == round(0.3 * len(everybody))
    sample = interactions(rows, user_sample=0.3, sample_seed=5)
    assert sequences(sample) == {user: everybody[user] for user in sample.users}  # whole users


def test_user_sample_leaves_at_least_one(interactions):
    assert len(interactions([("u", "a", 1), ("v", "b", 1)], user_sample=0.01).users) == 1


def test_user_sample_above_one_is_a_number_of_users(interactions):
    rows = random_rows(3)
    assert len(interactions(rows, user_sample=4).users) == 4 and len(
        interactions(rows, user_sample=10**6).users
    ) == len(interactions(rows).users)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ("[2,4]", [2, 3, 4]),
        ("(2,4]", [3, 4]),
        ("[2,4)", [2, 3]),
        ("(2,4)", [3]),
        ("[3,inf)", [3, 4, 5]),
        ("(-inf, 2]", [1, 2]),
    ],
)
def test_val_interval(interactions, interval, expected):
    rows = [("u", f"i{rating}", rating, rating) for rating in (5, 1, 4, 2, 3)] + [
        ("u", "unrated", 9, "")
    ]
    read = interactions(rows, header=RATED, value_intervals=(("rating", interval),))
    assert read.columns["rating"].tolist() == expected


def test_val_interval_may_bound_time(interactions):
    assert sequences(
        interactions([("u", "a", 1), ("u", "b", 2)], value_intervals=(("timestamp", "[2,inf)"),))
    ) == {"u": ["b"]}


def test_k_core_comes_after_the_other_filters(interactions):
    rows = [("u", "a", 1, 5), ("u", "b", 2, 1), ("v", "a", 1, 5), ("v", "b", 2, 5)]
    read = interactions(
        rows, header=RATED, value_intervals=(("rating", "[3,inf)"),), user_interval="[2,inf)"
    )
    assert sequences(read) == {"v": ["a", "b"]}


# Catalogue and side tables


def test_catalogue(interactions):
    """Trap 4: in RecBole the catalogue grows when an item column is loaded."""
    rows, files = (
        [("u", "b", 1), ("u", "x", 2)],
        {"item": [ITEM, ("c", "see"), ("b", "bee"), ("a", "ay")]},
    )
    met = interactions(rows, files)
    assert met.items.tolist() == ["b", "x"]
    assert met.item_table["title"].tolist() == ["bee", ""]
    every = interactions(rows, files, catalogue="all")
    assert every.items.tolist() == ["b", "x", "a", "c"]
    assert every.item_table["title"].tolist() == ["bee", "", "ay", "see"]
    assert (
        sequences(every) == sequences(met) == {"u": ["b", "x"]}
    )  # an event stays, whether .item knows its item or not
    assert "1 of 2 ids have no row in toy.item: x" in met.log
    assert sequences(interactions(rows, files, need_item_row=True)) == {"u": ["b"]}


def test_side_tables_follow_the_ids(interactions):
    files = {
        "item": [
            (*ITEM, "price:float"),
            ("c", "see", "3.50"),
            ("a", "ay", ""),
            ("c", "twice", "9"),
        ],
        "user": [("user_id:token", "age:token"), ("v", "30"), ("u", "20")],
    }
    read = interactions([("u", "a", 1), ("v", "c", 1), ("w", "c", 1)], files)
    assert read.item_table.to_dict("list") == {
        "title": ["ay", "see"],
        "price": ["", "3.50"],
    }  # the first row of an id, as written
    assert read.user_table.to_dict("list") == {"age": ["20", "30", ""]}
    assert read.item_types == {"title": "token_seq", "price": "float"}


def test_no_item_file(interactions):
    read = interactions([("u", "a", 1), ("u", "b", 2)], catalogue="all")
    assert read.items.tolist() == ["a", "b"]
    assert read.item_table.shape == (2, 0)


def test_further_columns_stay_with_their_events(interactions):
    rows = [("u", "b", 2, 1, "x"), ("v", "a", 1, 2, "y"), ("u", "a", 1, 3, "z")]
    header = (*RATED, "tag:token")
    read = interactions(rows, header=header, inter_columns=frozenset({"tag"}))
    assert read.columns["tag"].tolist() == ["z", "x", "y"]
    assert read.columns["rating"].tolist() == [3, 1, 2]
    assert set(interactions(rows, header=header).columns) == {"rating"}
    assert set(interactions(rows, header=header, inter_columns=None).columns) == {"rating", "tag"}


# Fingerprint

EVENTS = [("u", "a", 1, 5), ("u", "b", 2, 4), ("u", "c", 2, 4), ("v", "b", 1, 3), ("v", "a", 2, 3)]
RENAMED = [(user, "A" if item == "a" else item, *more) for user, item, *more in EVENTS]
SIDE = {
    "item": [ITEM, ("a", "ay"), ("b", "bee"), ("c", "see"), ("unmet", "nothing")],
    "user": [("user_id:token", "age:token"), ("u", "20"), ("v", "30")],
}


def change(rows, at, *row):
    return [*rows[:at], *([row] if row else []), *rows[at + 1 :]]


@pytest.mark.parametrize(
    ("rows", "files"),
    [
        (EVENTS[:-1], {}),
        ([*EVENTS, ("v", "c", 9, 3)], {}),
        (change(EVENTS, 4, "v", "c", 2, 3), {}),
        (change(EVENTS, 4, "v", "a", 2.0000001, 3), {}),
        (change(EVENTS, 4, "v", "a", 2, 4), {}),
        (change(EVENTS, 4, "w", "a", 2, 3), {}),
        ([EVENTS[0], EVENTS[2], EVENTS[1], *EVENTS[3:]], {}),  # two tied events change places
        (RENAMED, {"item": change(SIDE["item"], 1, "A", "ay")}),
        (EVENTS, {"item": change(SIDE["item"], 2, "b", "Bee")}),
        (EVENTS, {"item": change(SIDE["item"], 2)}),
        (EVENTS, {"item": [("item_id:token", "name:token_seq"), *SIDE["item"][1:]]}),
        (EVENTS, {"item": [("item_id:token", "title:token"), *SIDE["item"][1:]]}),
        (EVENTS, {"user": change(SIDE["user"], 1, "u", "21")}),
        (EVENTS, {"user": [("user_id:token", "age:float"), *SIDE["user"][1:]]}),
    ],
    ids=[
        "less",
        "more",
        "item",
        "time",
        "rating",
        "user",
        "order",
        "id",
        "text",
        "no text",
        "column",
        "type",
        "user column",
        "user type",
    ],
)
def test_fingerprint_changes_with_the_data(interactions, rows, files):
    assert (
        interactions(EVENTS, SIDE, RATED).fingerprint
        != interactions(rows, SIDE | files, RATED).fingerprint
    )


def test_equal_data_have_equal_fingerprints(interactions):
    prints = {
        interactions(EVENTS, SIDE, RATED).fingerprint,
        interactions(EVENTS, SIDE, RATED).fingerprint,
        interactions(
            [*EVENTS, EVENTS[0]], SIDE, RATED
        ).fingerprint,  # what dedup takes out never was
        interactions(
            EVENTS, SIDE | {"item": [ITEM, *SIDE["item"][:0:-1]]}, RATED
        ).fingerprint,  # order of .item
        interactions(
            EVENTS, SIDE | {"item": SIDE["item"][:-1]}, RATED
        ).fingerprint,  # an item nobody met
    }
    assert len(prints) == 1
    assert interactions(EVENTS, SIDE, RATED, catalogue="all").fingerprint not in prints


# Errors


@pytest.mark.parametrize(
    ("rows", "files", "header", "filters", "message"),
    [
        ([("u", 1)], {}, ("user_id:token", "timestamp:float"), {}, "expected a column item_id"),
        ([("a", 1)], {}, ("item_id:token", "timestamp:float"), {}, "expected a column user_id"),
        ([("u", "a", 1), ("", "a", 2)], {}, INTER, {}, "line 3: user_id is empty"),
        ([("u", "", 1)], {}, INTER, {}, "line 2: item_id is empty"),
        (
            [("u", "a", 1), ("u", "a", "")],
            {},
            INTER,
            {},
            (
                "toy.inter, line 3: expected a finite number "
                "in column timestamp, found '' (1 such lines)"
            ),
        ),
        (
            [("u", "a", "inf"), ("u", "b", "1e400")],
            {},
            INTER,
            {},
            "toy.inter, line 2: expected a finite number in column timestamp, found 'inf' (2 such",
        ),
        (
            [("u", "a", 1), ("u", "b", "-1e400")],
            {},
            INTER,
            {},
            "toy.inter, line 3: expected a finite number in column timestamp, found '-1e400'",
        ),
        (
            [("u", "a", "2020-01-01")],
            {},
            (*INTER[:2], "timestamp:token"),
            {},
            "expected timestamp:float",
        ),
        ([], {}, INTER, {}, "no event is left"),
        ([("u", "a", 1)], {}, INTER, {"user_interval": "[5,inf)"}, "no event is left"),
        (
            [("u", "a", 1)],
            {},
            INTER,
            {"value_intervals": (("rating", "[5,inf)"),)},
            "has no column rating",
        ),
        (
            [("u", "a", 1)],
            {},
            INTER,
            {"value_intervals": (("item_id", "['a']"),)},
            "column item_id",
        ),
        (
            [("u", "a", 1)],
            {},
            INTER,
            {"inter_columns": frozenset({"ratng"})},
            "has no column ratng",
        ),
        (
            [("u", "a", 1)],
            {},
            INTER,
            {"item_interval": "5"},
            "item_inter_num_interval: expected an interval",
        ),
        (
            [("u", "a", 1)],
            {},
            INTER,
            {"item_interval": "[1,2,3]"},
            "item_inter_num_interval: expected an interval",
        ),
        ([("u", "a", 1)], {}, INTER, {"user_sample": 0}, "user_sample"),
        ([("u", "a", 1)], {}, INTER, {"user_sample": 1.5}, "user_sample"),
        ([("u", "a", 1)], {}, INTER, {"dedup": "all"}, "dedup"),
        ([("u", "a", 1)], {}, INTER, {"remove_repeats": "all"}, "rm_dup_inter"),
        ([("u", "a", 1)], {}, INTER, {"catalogue": "some"}, "catalogue"),
        (
            [("u", "a", 1)],
            {"item": [("id:token",), ("a",)]},
            INTER,
            {},
            "expected a column item_id",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(interactions, rows, files, header, filters, message):
    with pytest.raises(UserError) as caught:
        interactions(rows, files, header, **filters)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told(write):
    with pytest.raises(UserError, match="toy.inter not found"):
        load(Source(write({}), "toy"))
