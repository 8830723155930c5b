"""benchmark.py: pre-split files bring their own cases, over the same sequences."""

import pytest

from recbole_llm.data.splits import make_split
from recbole_llm.data.tables import Source, load
from recbole_llm.errors import UserError

INTER = ("user_id:token", "item_id:token", "timestamp:float")
SPLIT = ("user_id:token", "item_id_list:token_seq", "item_id:token")


def sequences(tables):
    """user token -> item tokens in order."""
    return {
        user: tables.items[tables.item[a:b]].tolist()
        for user, a, b in zip(tables.users, tables.start[:-1], tables.start[1:], strict=True)
    }


def case_tokens(tables, cases, longest=None):
    """(user, history, target) of every case, by tokens."""
    token = tables.items[tables.item]
    return [
        (
            tables.users[user],
            tuple(token[begin:end][-longest:] if longest else token[begin:end]),
            token[end],
        )
        for user, begin, end in zip(cases.user, cases.begin, cases.end, strict=True)
    ]


@pytest.fixture
def presplit(write):
    def presplit(**parts):
        files = {
            f"{part}.inter": [SPLIT, *parts.get(part, [])] for part in ("train", "valid", "test")
        }
        return load(Source(write(files), "toy", benchmark=("train", "valid", "test")))

    return presplit


def test_published_splits_are_leave_one_out(shared):
    """Both ways into Scientific, whose split files hold the newest 50 items of a history."""
    folder = shared / "data" / "Scientific"
    whole = load(Source(folder, "Scientific"))
    split = load(Source(folder, "Scientific", benchmark=("train", "valid", "test")))
    assert sequences(split) == sequences(whole)
    mine, theirs = make_split(whole, {"LS": "valid_and_test"}), make_split(split, {})
    for part in ("train", "valid", "test"):
        expected, found = (
            case_tokens(whole, getattr(mine, part), 50),
            case_tokens(split, getattr(theirs, part)),
        )
        assert sorted(found) == sorted(expected)
        assert len(found) == {"train": 34101}.get(part, 8442)
    held_out = mine.train_events.sum()
    assert held_out == theirs.train_events.sum() == len(whole.item) - 2 * 8442


def test_every_row_is_a_case_with_its_own_history(presplit):
    rows = {
        "train": [("u", "a b", "c"), ("v", "a", "b"), ("u", "a", "b"), ("w", "", "c")],
        "valid": [
            ("u", "a b c", "d"),
            ("v", "z y", "x"),
        ],  # v's list does not continue its training row
        "test": [("u", "c d", "e"), ("v", "y x", "y"), ("w", "q", "a")],  # windows that were cut
    }
    read = presplit(**rows)
    split = make_split(read, {})
    for part, expected in rows.items():
        assert case_tokens(read, getattr(split, part)) == [
            (user, tuple(items.split()), target) for user, items, target in expected
        ]


def test_windows_of_one_length_are_joined(presplit):
    """Rows that hold three items each, cut from a b c a b d e."""
    windows = [("u", "a b", "c"), ("u", "b c", "a"), ("u", "c a", "b")]
    read = presplit(train=windows, valid=[("u", "a b", "d")], test=[("u", "b d", "e")])
    split = make_split(read, {})
    assert case_tokens(read, split.test) == [("u", ("b", "d"), "e")]
    assert not (
        split.train_events[split.test.end].any() or split.train_events[split.valid.end].any()
    )


def test_lists_and_targets_share_one_numbering(presplit):
    """RecBole numbers them apart unless alias_of_item_id is set, without a word."""
    read = presplit(train=[("u", "b a", "c"), ("v", "c b", "a")], test=[("u", "b a c", "b")])
    assert sorted(read.items) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "hold no row"),
        ({"train": [("u", "a", "b"), ("", "a", "b")]}, "train.inter, line 3: user_id is empty"),
        ({"test": [("u", "a", "")]}, "test.inter, line 2: item_id is empty"),
    ],
)
def test_mistakes_in_split_files(presplit, parts, message):
    with pytest.raises(UserError) as caught:
        presplit(**parts)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "suffixes", "message"),
    [
        (
            {"train.inter": [SPLIT], "valid.inter": [SPLIT]},
            ("train", "valid", "test"),
            "toy.test.inter not found",
        ),
        ({"train.inter": [SPLIT]}, ("train",), "expected three suffixes"),
        ({"train.inter": [INTER]}, ("train", "valid", "test"), "expected a column item_id_list"),
    ],
)
def test_wrong_split_files(write, files, suffixes, message):
    with pytest.raises(UserError, match=message):
        load(Source(write(files), "toy", benchmark=suffixes))
