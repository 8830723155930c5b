"""splits.py: who is predicted what. RecBole's own split is the oracle where it has one."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from recbole_llm.data.cases.splits import make_split
from recbole_llm.data.reading.interactions import Source, load
from recbole_llm.errors import UserError

INTER = ("user_id:token", "item_id:token", "timestamp:float")
PARTS = ("train", "valid", "test")


def random_rows(lengths, items=9, seed=0):
    """Users of these lengths; each user's times are 0, 1, 2, …; the file is in no order."""
    rng = np.random.default_rng(seed)
    rows = []
    for user, length in enumerate(lengths):
        rows += [(f"u{user}", f"i{rng.integers(items)}", time) for time in range(length)]
    return [rows[place] for place in rng.permutation(len(rows))]


@pytest.fixture
def interactions(write):
    def interactions(rows, **filters):
        return load(Source(write({"inter": [INTER, *rows]}), "toy", **filters))

    return interactions


def tokens(interactions, cases):
    """(user, history, target) of every case."""
    token = interactions.items[interactions.item]
    return [
        (interactions.users[user], tuple(token[begin:end]), token[end])
        for user, begin, end in zip(cases.user, cases.begin, cases.end, strict=True)
    ]


def stock_tokens(dataset, part):
    """The same of RecBole's augmented rows."""
    user, item = (dataset.field2id_token[field] for field in ("user_id", "item_id"))
    rows = zip(
        *(part[name].numpy() for name in ("user_id", "item_id_list", "item_length", "item_id")),
        strict=True,
    )
    return [
        (user[u], tuple(item[history[:length]]), item[target])
        for u, history, length, target in rows
    ]


def check_no_leak(interactions, split):
    """No event is in two parts, and no target of validation or test is a training event."""
    rows = np.concatenate([getattr(split, part).end for part in PARTS])
    assert len(np.unique(rows)) == len(rows)
    held_out = np.concatenate([split.valid.end, split.test.end])
    assert not split.train_events[held_out].any()
    assert split.train_events[split.train.end].all()
    for part in PARTS:
        cases = getattr(split, part)
        assert (interactions.user[cases.end] == cases.user).all()
        assert (cases.begin == interactions.start[cases.user]).all() and (
            cases.begin < cases.end
        ).all()


def by_user(interactions, cases):
    """[n_users] number of cases."""
    return np.bincount(cases.user, minlength=len(interactions.users))


# Against RecBole


@pytest.mark.parametrize(
    "rule",
    [
        {"LS": "valid_and_test"},
        {"LS": "test_only"},
        {"RS": [0.8, 0.1, 0.1]},
        {"RS": [0.6, 0.2, 0.2]},
        {"RS": [8, 1, 1]},
        {"RS": [0.5, 0.2, 0.3]},
        {"RS": [0.7, 0.0, 0.3]},
        {"RS": [0.2, 0.4, 0.4]},
    ],
    ids=str,
)
def test_split_is_recboles(write, stock, rule):
    """Users of one to six events, and enough longer ones to meet every rounding of the ratios."""
    lengths = [*range(1, 7)] * 3 + [*range(7, 33)]
    folder = write({"inter": [INTER, *random_rows(lengths)]})
    dataset = stock("SASRec", folder, split=rule)
    expected = [stock_tokens(dataset, part.inter_feat) for part in dataset.build()]
    read = load(Source(folder, "toy", dedup="none"))
    split = make_split(read, rule)
    check_no_leak(read, split)
    for part, rows in zip(PARTS, expected, strict=True):
        assert tokens(read, getattr(split, part)) == rows
    assert len(expected[2]) > 20


def test_leave_one_out_of_short_users(interactions):
    """The test event is kept before the validation event, and a training target before both."""
    read = interactions(random_rows(range(1, 7)), dedup="none")
    split = make_split(read, {"LS": "valid_and_test"})
    places = {part: dict.fromkeys(read.users, ()) for part in PARTS}
    for part in PARTS:
        cases = getattr(split, part)
        for user, end in zip(read.users[cases.user], read.position[cases.end], strict=True):
            places[part][user] += (int(end),)
    order = [f"u{user}" for user in range(6)]
    assert [places["train"][user] for user in order] == [(), (1,), (1,), (1,), (1, 2), (1, 2, 3)]
    assert [places["valid"][user] for user in order] == [(), (), (), (2,), (3,), (4,)]
    assert [places["test"][user] for user in order] == [(), (), (2,), (3,), (4,), (5,)]
    held_out = [2 if len(places["valid"][user]) else len(places["test"][user]) for user in order]
    sizes = dict(zip(read.users, np.add.reduceat(split.train_events, read.start[:-1]), strict=True))
    assert [sizes[user] for user in order] == [
        length - out for length, out in zip(range(1, 7), held_out, strict=True)
    ]


# Trap 8: RecBole tests a sequential and a general model on other users


def test_all_models_have_the_same_cases(write, parts, stock):
    folder = write({"inter": [INTER, *random_rows([1, 2, 2, 3, 3, 4, 5, 6, 7, 8])]})
    reference = None
    for model in ("SASRec", "BPR", "CALRec", "Pop", "LIR", "FM", "GRU4Rec"):
        datasets = parts(model, folder, dedup="none")
        found = [tokens(part.interactions, part.cases) for part in datasets]
        reference = reference or found
        assert found == reference
        for part, cases in zip(datasets, found, strict=True):
            ids = datasets[0].token2id("user_id", [user for user, *_ in cases])
            np.testing.assert_array_equal(part.case_batch(part.cases)["user_id"], ids)
    tested = {}
    for model in ("SASRec", "BPR"):
        dataset = stock(model, folder)
        tested[model] = set(
            dataset.field2id_token["user_id"][dataset.build()[2].inter_feat["user_id"]]
        )
    assert tested["SASRec"] == {user for user, *_ in reference[2]}
    assert tested["BPR"] > tested["SASRec"]


def test_training_rows_hold_no_held_out_event(write, parts):
    """General models learn from events, sequential ones from cases; neither sees a later part."""
    folder = write({"inter": [INTER, *random_rows([3, 5, 8, 8, 13])]})
    for rule in (
        {"LS": "valid_and_test"},
        {"RS": [0.6, 0.2, 0.2]},
        {"temporal": [0.6, 0.2, 0.2]},
        {"timestamp": [3, 5]},
    ):
        events, cases = (
            parts(model, folder, dedup="none", eval_args={"split": rule})[0]
            for model in ("BPR", "SASRec")
        )
        interactions, split = events.interactions, events.split
        early = np.ones(len(interactions.item), dtype=bool)
        early[np.concatenate([split.valid.end, split.test.end])] = False
        if "temporal" in rule:
            early &= interactions.position <= by_user(interactions, split.train)[interactions.user]
        if "timestamp" in rule:
            early &= interactions.time < 3
        for name, owner in (("user_id", interactions.user), ("item_id", interactions.item)):
            np.testing.assert_array_equal(events.inter_feat[name], owner[early] + 1)
            np.testing.assert_array_equal(
                cases.inter_feat[name], owner[early & (interactions.position > 0)] + 1
            )


# The split of the TASTE-LoRA paper


def sizes(length, ratio):
    """(pre-train, continue, future) targets by exact arithmetic."""
    shares = [Fraction(str(share)) for share in ratio]
    later, future = (int(share / sum(shares) * (length - 1)) for share in shares[1:])
    return length - 1 - later - future, later, future


@pytest.mark.parametrize(
    "ratio", [[0.6, 0.2, 0.2], [0.42, 0.29, 0.29], [0.7, 0.1, 0.2], [6, 2, 2], [1, 1, 1]], ids=str
)
def test_temporal_split(interactions, ratio):
    """Each training part gives its last target to its validation.

    A user's sums are therefore three short of the events.
    """
    lengths = [*range(1, 32), 51, 101]
    read = interactions(random_rows(lengths, seed=1), dedup="none")
    parts = {
        part: make_split(read, {"temporal": ratio}, part)
        for part in ("pretrain", "continue", "both")
    }
    for split in parts.values():
        check_no_leak(read, split)
    for user, length in enumerate(np.diff(read.start)):
        pre, later, future = sizes(int(length), ratio)
        places = {}
        for name, part in itertools.product(parts, PARTS):
            cases = getattr(parts[name], part)
            places[name, part] = read.position[cases.end[cases.user == user]].tolist()
        one, two, three = (
            range(1, 1 + pre),
            range(1 + pre, 1 + pre + later),
            range(1 + pre + later, length),
        )
        assert len(three) == future
        expected = {
            "pretrain": ([*one[:-1]], [*one[-1:]]),
            "continue": ([*two[:-1]], [*two[-1:]]),
            "both": ([*one[:-1], *two[:-1]], [*one[-1:], *two[-1:]]),
        }
        for name, (train, valid) in expected.items():
            assert (places[name, "train"], places[name, "valid"], places[name, "test"]) == (
                train,
                valid,
                [*three],
            )
        if later:
            sums = sum(len(places[name, "train"]) for name in ("pretrain", "continue")) + future
            assert sums == length - 3
        if later and ratio[1] == ratio[2]:
            assert len(places["continue", "train"]) + 1 == len(places["continue", "test"])


def test_temporal_parts_share_no_event(interactions):
    read = interactions(random_rows([40, 17, 6], seed=2))
    pretrain, later = (
        make_split(read, {"temporal": [0.6, 0.2, 0.2]}, part) for part in ("pretrain", "continue")
    )
    rows = np.concatenate(
        [pretrain.train.end, pretrain.valid.end, later.train.end, later.valid.end, later.test.end]
    )
    assert len(np.unique(rows)) == len(rows) == len(read.item) - len(read.users)
    assert not (pretrain.train_events & later.train_events).any()


# Absolute times


def test_timestamp_boundaries(interactions):
    """A target at the first time validates, one at the second tests; float32 cannot part them."""
    first, second = 1_600_000_001, 1_600_000_003
    rows = [
        ("u", "a", 1),
        *(("u", f"i{step}", 1_600_000_000 + step) for step in (4, 3, 2, 1, 0)),
        ("v", "late", second),
        ("v", "later", second + 5),
    ]
    read = interactions(rows)
    split = make_split(read, {"timestamp": [first, second]})
    check_no_leak(read, split)
    assert np.float32(first) == np.float32(second)
    targets = {}
    for part in PARTS:
        found = tokens(read, getattr(split, part))
        targets[part] = [(user, target) for user, _, target in found]
    assert targets == {
        "train": [("u", "i0")],
        "valid": [("u", "i1"), ("u", "i2")],
        "test": [("u", "i3"), ("u", "i4"), ("v", "later")],
    }
    assert read.items[read.item[split.train_events]].tolist() == [
        "a",
        "i0",
    ]  # v's first event is in the test period


# Mistakes


@pytest.mark.parametrize(
    ("rule", "part", "message"),
    [
        (
            {"LS": "last"},
            "pretrain",
            "eval_args.split.LS: expected valid_and_test or test_only, found 'last'",
        ),
        (
            {"LS": "valid_only"},
            "pretrain",
            "eval_args.split.LS: expected valid_and_test or test_only",
        ),  # RecBole's, without a test case
        ({"RS": [0.8, 0.2]}, "pretrain", "three ratios"),
        ({"RS": [0.8, 0.3, -0.1]}, "pretrain", "three ratios"),
        ({"RS": None}, "pretrain", "three ratios"),
        ({"temporal": ["a", "b", "c"]}, "pretrain", "three ratios"),
        ({"temporal": [0.6, 0.2, 0.2]}, "later", "eval_args.part"),
        ({"timestamp": [1]}, "pretrain", "two times"),
        ({"timestamp": ["May", "June"]}, "pretrain", "two times"),
        ({"timestamp": [5, 3]}, "pretrain", "found [5, 3], whose first time is after the second"),
        ({"timestamp": [".nan", 3]}, "pretrain", "two times"),
        ({"timestamp": [90, 99]}, "pretrain", "leaves no test case"),
        ({"timestamp": [-9, -5]}, "pretrain", "leaves no train case"),
        ({"TS": [0.8, 0.1, 0.1]}, "pretrain", "expected one of"),
        ({"LS": "valid_and_test", "RS": [8, 1, 1]}, "pretrain", "expected one of"),
        (None, "pretrain", "expected one of"),
    ],
)
def test_mistakes_are_told_in_one_line(interactions, rule, part, message):
    read = interactions(random_rows([8, 9]))
    with pytest.raises(UserError) as caught:
        make_split(read, rule, part)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_split_by_time_needs_times(write):
    read = load(Source(write({"inter": [INTER[:2], ("u", "a"), ("u", "b"), ("u", "c")]}), "toy"))
    with pytest.raises(UserError, match="no time column"):
        make_split(read, {"timestamp": [1, 2]})


def test_only_short_users_leave_no_case(interactions):
    with pytest.raises(UserError, match="longest sequence: 2 events"):
        make_split(interactions(random_rows([1, 2, 2])), {"LS": "valid_and_test"})
