"""Pre-split files bring their own cases, over the same sequences."""

import pytest

from recbole_llm.data.cases.splits import make_split
from recbole_llm.data.reading.interactions import Source, load
from recbole_llm.errors import UserError

INTER = ("user_id:token", "item_id:token", "timestamp:float")
SPLIT = ("user_id:token", "item_id_list:token_seq", "item_id:token")


def sequences(interactions):
    """Return user token -> item tokens in temporal order."""
    return {
        user: interactions.items[interactions.item[a:b]].tolist()
        for user, a, b in zip(
            interactions.users, interactions.start[:-1], interactions.start[1:], strict=True
        )
    }


def case_tokens(interactions, cases, longest=None):
    """Return (user, history, target) of every case, as tokens."""
    token = interactions.items[interactions.item]
    return [
        (
            interactions.users[user],
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
    """Leave-one-out gives the cases of Scientific's split files.

    These hold the newest 50 items of a history.
    """
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
        "train": [("u", "a b", "c"), ("v", "a", "b"), ("u", "a", "b")],
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
    """Each row holds three items of the sequence a b c a b d e."""
    windows = [("u", "a b", "c"), ("u", "b c", "a"), ("u", "c a", "b")]
    read = presplit(train=windows, valid=[("u", "a b", "d")], test=[("u", "b d", "e")])
    split = make_split(read, {})
    assert case_tokens(read, split.test) == [("u", ("b", "d"), "e")]
    assert not (
        split.train_events[split.test.end].any() or split.train_events[split.valid.end].any()
    )


def test_a_row_without_a_history_is_an_event_and_no_case(presplit):
    """A dataset that is split here treats the first event of a user alike."""
    read = presplit(
        train=[("u", "", "a"), ("u", "a", "b"), ("v", "  ", "c"), ("w", "b c", "a")],
        valid=[("u", "a b", "c"), ("v", "", "b")],
        test=[("w", "b c a", "b"), ("v", "", "a")],
    )
    split = make_split(read, {})
    assert case_tokens(read, split.train) == [("u", ("a",), "b"), ("w", ("b", "c"), "a")]
    assert [case[0] for case in case_tokens(read, split.valid)] == ["u"]
    assert [case[0] for case in case_tokens(read, split.test)] == ["w"]
    learned = read.items[read.item[split.train_events]].tolist()
    assert sorted(learned) == ["a", "a", "b", "b", "c", "c"], "v's c is learned, b and a are not"
    assert "4 rows have an empty item_id_list (train 2, valid 1, test 1)" in read.log[1]


def test_tests_without_any_history_are_told(presplit):
    read = presplit(train=[("u", "a", "b")], test=[("u", "", "c"), ("v", "", "a")])
    with pytest.raises(UserError, match="leaves no test case"):
        make_split(read, {})


def padded(pad, side, size=4):
    """Return rows of three users whose lists are padded."""
    rows = {"train": [], "valid": [], "test": []}
    for user, items in (("u", "abcdef"), ("v", "bcdefa"), ("w", "fedcba")):
        for end in range(1, 6):
            history = list(items[:end][-size:])
            fill = [pad] * (size - len(history))
            cells = fill + history if side == "head" else history + fill
            part = {4: "valid", 5: "test"}.get(end, "train")
            rows[part].append((user, " ".join(cells), items[end]))
    return rows


@pytest.mark.parametrize("side", ["head", "tail"])
@pytest.mark.parametrize("pad", ["0", "[PAD]", "<pad>", "-1", "NaN", "no_item"])
def test_padding_is_no_item(presplit, pad, side):
    read, bare = presplit(**padded(pad, side)), presplit(**padded("", side))
    assert sorted(read.items) == sorted("abcdef") and sequences(read) == sequences(bare)
    for part in ("train", "valid", "test"):
        assert case_tokens(read, getattr(make_split(read, {}), part)) == case_tokens(
            bare, getattr(make_split(bare, {}), part)
        )
    assert f"{pad!r} in item_id_list is taken for padding and left out 18 times" in read.log[1]
    assert not any("padding" in line for line in bare.log)


def test_lists_of_padding_alone_are_empty(presplit):
    read = presplit(
        train=[("u", "0 0", "a"), ("u", "a 0", "b"), ("v", "0 0", "b"), ("v", "b 0", "a")],
        test=[("u", "a b", "a")],
    )
    assert sorted(read.items) == ["a", "b"] and len(make_split(read, {}).train) == 2
    assert "2 rows have an empty item_id_list (train 2)" in read.log[2]


@pytest.mark.parametrize(
    ("rows", "items"),
    [
        # item 0 is the first of somebody's list, and nobody is told to buy it
        ([("u", "0", "1"), ("u", "0 1", "2"), ("v", "1", "2")], "0 1 2"),
        ([("u", "0 1", "2"), ("v", "0 2", "1")], "0 1 2"),  # of several, once in each
        ([("u", "0 0 1", "2"), ("u", "1 0 2", "1"), ("v", "0 0 2", "1")], "0 1 2"),  # in the middle
        ([("u", "1 0 0", "2"), ("v", "2 0 0", "0")], "0 1 2"),  # a target
        ([("u", "x x a", "b"), ("v", "x b", "a")], "a b x"),  # lists of any length
        ([("u", "null a", "b"), ("v", "b", "a")], "a b null"),
    ],
)
def test_an_item_at_an_end_of_lists_is_not_padding(presplit, rows, items):
    read = presplit(train=rows, test=rows[:1])
    assert sorted(read.items) == items.split()
    assert not any("padding" in line for line in read.log)


@pytest.mark.parametrize(
    ("cell", "token"),
    [
        ("a,b", "a,b"),
        ("['a', 'b']", "['a',"),
        ("[a b]", "[a"),
        ("a|b", "a|b"),
        ("a, b", "a,"),
    ],
)
def test_lists_of_another_form_are_told(presplit, cell, token):
    rows = [("u", "a", "b"), ("v", "b", "a")]
    with pytest.raises(UserError) as caught:
        presplit(train=rows, valid=rows, test=[*rows, ("w", cell, "a")])
    said = str(caught.value)
    assert "toy.test.inter, line 4: expected ids separated by spaces in item_id_list" in said
    assert repr(token) in said and "\n" not in said


def test_ids_may_have_any_sign(presplit):
    read = presplit(
        train=[("u", "a,b [x]", "c|d"), ("v", "c|d", "[x]")], test=[("u", "[x]", "c|d")]
    )
    assert sorted(read.items) == ["[x]", "a,b", "c|d"]


def test_what_has_a_row_in_item_is_an_item(write):
    rows = padded("0", "tail")
    files = {f"{part}.inter": [SPLIT, *own] for part, own in rows.items()}
    item = [("item_id:token", "title:token_seq"), ("0", "Nothing at all"), ("a", "A")]
    read = load(Source(write(files | {"item": item}), "toy", benchmark=tuple(rows)))
    assert "0" in read.items and not any("padding" in line for line in read.log)


@pytest.mark.parametrize("header", [("user_id:token", "item_id:token"), INTER])
def test_files_of_single_interactions_are_told_what_lacks_and_what_to_do(write, header):
    files = {f"{part}.inter": [header, ("u", "a", 1)[: len(header)]] for part in ("a", "b", "c")}
    with pytest.raises(UserError) as caught:
        load(Source(write(files), "toy", benchmark=("a", "b", "c")))
    said = str(caught.value)
    assert "expected a column item_id_list:token_seq, the history before each item_id" in said
    assert "found " + ", ".join(name.split(":")[0] for name in header) in said
    assert "toy.inter" in said and "leave benchmark_filename out" in said and "\n" not in said


def test_lists_and_targets_share_one_numbering(presplit):
    """RecBole silently numbers them apart unless alias_of_item_id is set."""
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
