"""Each case has one uniform draw of negatives, equal for all models, runs and item numberings."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chi2, chisquare

from recbole_llm.contracts.cases import Cases
from recbole_llm.data.cases.candidates import draw_candidates
from recbole_llm.data.cases.splits import make_split
from recbole_llm.data.reading.interactions import Source, load
from recbole_llm.errors import UserError

INTER = ("user_id:token", "item_id:token", "timestamp:float")
ITEMS = 30


def random_rows(users=12, length=6, items=ITEMS, seed=0):
    """Return events that cover every item; users repeat items."""
    rng = np.random.default_rng(seed)
    rows = [
        (f"u{user}", f"i{rng.integers(items)}", time)
        for user, time in itertools.product(range(users), range(length))
    ]
    return (
        rows
        + [("everything", f"i{item}", item) for item in range(items - 8)]
        + [("rest", f"i{item}", item) for item in range(items - 8, items)]
    )


@pytest.fixture
def world(write):
    """Return world(rows): their interactions and test cases."""

    def world(rows, **filters):
        interactions = load(Source(write({"inter": [INTER, *rows]}), "toy", **filters))
        return interactions, make_split(interactions, {"LS": "valid_and_test"}).test

    return world


def tokens(interactions, cases, candidates):
    """Return (user, target) -> drawn item tokens."""
    keys = zip(
        interactions.users[cases.user],
        interactions.items[interactions.item[cases.end]],
        strict=True,
    )
    return dict(zip(keys, interactions.items[candidates].tolist(), strict=True))


@pytest.mark.parametrize("count", [1, 5, 8])
@pytest.mark.parametrize("exclude", ["user", "target"])
def test_no_item_twice_and_none_that_is_excluded(world, count, exclude):
    interactions, cases = world(random_rows())
    met_drawn = 0
    for seed in range(20):
        candidates = draw_candidates(interactions, cases, count, seed, exclude)
        assert candidates.shape == (len(cases), count) and candidates.dtype == np.int64
        assert candidates.min() >= 0 and candidates.max() < ITEMS
        for user, end, row in zip(cases.user, cases.end, candidates, strict=True):
            met = set(interactions.item[interactions.start[user] : interactions.start[user + 1]])
            assert len(set(row)) == count
            assert interactions.item[end] not in row
            met_drawn += len(met & set(row))
    assert (met_drawn == 0) == (exclude == "user")


def test_all_that_is_left_can_be_drawn(world):
    interactions, cases = world(random_rows())
    case = cases[interactions.users[cases.user] == "everything"]
    candidates = tokens(interactions, case, draw_candidates(interactions, case, 8, 0))
    assert {key: sorted(row) for key, row in candidates.items()} == {
        ("everything", "i21"): sorted(f"i{item}" for item in range(22, 30))
    }
    candidates = draw_candidates(interactions, cases, ITEMS - 1, 0, "target")
    assert all(
        sorted([*row, interactions.item[end]]) == list(range(ITEMS))
        for row, end in zip(candidates, cases.end, strict=True)
    )


def test_too_few_items_are_told(world):
    interactions, cases = world(random_rows())
    with pytest.raises(UserError, match="uni9: user everything leaves only 8 items"):
        draw_candidates(interactions, cases, 9, 0)
    with pytest.raises(UserError, match="uni30"):
        draw_candidates(interactions, cases, ITEMS, 0, "target")
    with pytest.raises(UserError, match="candidates_exclude"):
        draw_candidates(interactions, cases, 1, 0, "nobody")


def test_a_draw_knows_only_its_case_and_the_seed(world):
    interactions, cases = world(random_rows())
    candidates = draw_candidates(interactions, cases, 8, 3)
    np.random.seed(0)
    np.testing.assert_array_equal(candidates, draw_candidates(interactions, cases, 8, 3))
    np.testing.assert_array_equal(
        candidates[[7, 2]], draw_candidates(interactions, cases[np.array([7, 2])], 8, 3)
    )
    other = draw_candidates(interactions, cases, 8, 4)
    assert sum(set(a) != set(b) for a, b in zip(candidates, other, strict=True)) > len(cases) / 2
    assert len({tuple(row) for row in draw_candidates(interactions, cases, 8, 3, "target")}) == len(
        cases
    )


def test_two_cases_of_one_user_and_target_differ(world):
    """A user who buys an item twice has two cases."""
    interactions, _ = world(
        [("u", item, time) for time, item in enumerate("abababab")]
        + [("v", f"i{item}", item) for item in range(40)]
    )
    cases = make_split(interactions, {"timestamp": [2, 4]}).test
    candidates = draw_candidates(interactions, cases[interactions.users[cases.user] == "u"], 8, 0)
    assert len({tuple(row) for row in candidates}) == 4


@pytest.mark.parametrize("exclude", ["user", "target"])
def test_another_numbering_gives_the_same_items(world, exclude):
    rows = random_rows()
    expected = None
    for order in (
        slice(None),
        slice(None, None, -1),
        np.random.default_rng(1).permutation(len(rows)),
    ):
        interactions, cases = world(np.array(rows, dtype=object)[order].tolist(), dedup="none")
        found = tokens(interactions, cases, draw_candidates(interactions, cases, 8, 5, exclude))
        expected = expected or (found, interactions.items.tolist())
        assert found == expected[0]
    assert interactions.items.tolist() != expected[1]


def test_every_model_has_the_same_candidates(write, parts):
    item = [
        ("item_id:token", "title:token_seq"),
        *((f"i{item}", f"word{item}") for item in range(60)),
    ]
    folder = write({"inter": [INTER, *random_rows()], "item": item})
    columns = {"inter": ["user_id", "item_id"], "item": ["item_id", "title"]}
    settings = {
        "SASRec": {},
        "BPR": {},
        "CALRec": {},
        "FDSA": {"selected_features": ["title"]},
        "FM": {"load_col": columns},
    }
    for catalogue, size in (("met", 30), ("all", 60)):
        expected = None
        for model, own in settings.items():
            test = parts(model, folder, catalogue=catalogue, **own)[2]
            candidates = draw_candidates(test.interactions, test.cases, 8, 2020)
            assert len(test.interactions.items) == size == test.item_num - 1
            found = {
                user: test.id2token("item_id", row + 1).tolist()
                for user, row in zip(
                    test.interactions.users[test.cases.user], candidates, strict=True
                )
            }
            expected = expected or found
            assert found == expected


def test_uniform_over_the_free_items(world):
    """Counts over many seeds fit a uniform draw by a chi-squared test.

    Without replacement, their variance is that of a multinomial times 1 - K / free.
    """
    interactions, cases = world(random_rows(users=4))
    draws = [
        tokens(interactions, cases, draw_candidates(interactions, cases, 6, seed))
        for seed in range(600)
    ]
    for key in draws[0]:
        met = set(
            interactions.items[
                interactions.item[interactions.user == interactions.users.tolist().index(key[0])]
            ]
        )
        free = sorted(set(interactions.items) - met)
        count = Counter(itertools.chain.from_iterable(draw[key] for draw in draws))
        assert set(count) == set(free)
        observed = np.array([count[item] for item in free])
        statistic = (
            chisquare(observed).statistic / (1 - 6 / len(free)) * (len(free) - 1) / len(free)
        )
        assert statistic < chi2.ppf(0.9999, len(free) - 1)
        first = Counter(draw[key][0] for draw in draws)
        assert chisquare([first[item] for item in free]).pvalue > 1e-4


def test_draws_of_cases_are_independent(world):
    """The candidates of two users overlap by chance alone."""
    interactions, _ = world(
        [("u", "a", 0), ("v", "b", 0)] + [("w", f"i{item}", item) for item in range(50)]
    )
    cases = Cases(np.array([0, 1], np.int32), np.array([0, 1]), np.array([0, 1]))
    draws = [draw_candidates(interactions, cases, 10, seed) for seed in range(300)]
    overlap = [len(set(a) & set(b)) for a, b in draws]
    assert abs(np.mean(overlap) - 100 / 51) < 0.35  # standard error 0.07


def test_recboles_own_candidates(write, stock):
    """RecBole redraws negatives at every pass, with repetitions, and draws from the user's history.

    This is trap 5, the reason for our own draw.
    """
    from recbole.data import data_preparation

    folder = write({"inter": [INTER, *random_rows()]})
    dataset = stock("SASRec", folder, mode="uni8")
    test = data_preparation(dataset.config, dataset)[2]
    np.random.seed(0)

    def one_pass():
        """Return user -> the negatives, which follow the positive."""
        found = {}
        for interaction, *_ in test:
            user, item = interaction["user_id"].numpy(), interaction["item_id"].numpy()
            found |= {own: item[user == own][1:].tolist() for own in np.unique(user)}
        return found

    first, second = one_pass(), one_pass()
    history = {
        user: set(dataset.inter_feat["item_id"][dataset.inter_feat["user_id"] == user].tolist())
        for user in first
    }
    assert {len(row) for row in first.values()} == {8}
    assert first != second
    assert any(len(set(row)) < 8 for row in first.values())
    assert any(history[user] & set(row) for user, row in first.items())
