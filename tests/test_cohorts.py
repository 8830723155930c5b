"""Continue Train alone assigns users to cohorts, and decides whom an adapter helps."""

import numpy as np
import pytest
from worlds import write_cycle

from recbole_llm.data.cases.splits import make_split
from recbole_llm.data.reading.interactions import Source, load
from recbole_llm.errors import UserError
from recbole_llm.evaluation.ranks import RankTable
from recbole_llm.studies.personalization import cohorts
from recbole_llm.studies.personalization.cohorts import LOW, Cohorts
from recbole_llm.studies.personalization.outcomes import by_activity, outcomes, user_values

SPLIT = {"temporal": [0.5, 0.3, 0.2]}


def tables_of(folder, changes=()):
    """Return interactions of two kinds of users: even ones buy drinks, odd ones buy food.

    changes : (user, step) -> another item.
    """
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    rows = ["user_id:token\titem_id:token\ttimestamp:float\trating:float"]
    for user in range(20):
        for step in range(20 + user % 3):
            item = 2 * int(rng.integers(6)) + user % 2
            item = dict(changes).get((user, step), item)
            rows.append(f"u{user}\ti{item}\t{step}\t{1 + user % 2 * 4}")
    (folder / "shop.inter").write_text("\n".join(rows) + "\n")
    items = [f"i{item}\t{kind} {item}\t{kind}s" for item, kind in enumerate(["drink", "food"] * 6)]
    (folder / "shop.item").write_text(
        "\n".join(["item_id:token\ttitle:token_seq\tcategories:token", *items]) + "\n"
    )
    people = [f"u{user}\t{20 + user % 2 * 40}\t{'F' if user % 2 else 'M'}" for user in range(20)]
    (folder / "shop.user").write_text(
        "\n".join(["user_id:token\tage:float\tgender:token", *people]) + "\n"
    )
    return load(Source(folder, "shop"))


def rows_of(interactions):
    part = make_split(interactions, SPLIT, "continue")
    return np.concatenate([part.train.end, part.valid.end])


def kinds(found, interactions):
    """Return whether two cohorts are the even and the odd users."""
    odd = np.array([int(user[1:]) % 2 for user in interactions.users])
    return (found.of == odd).all() or (found.of == 1 - odd).all()


def vectors_of(interactions):
    return np.array(
        [
            [1.0, 0.0] if title.startswith("drink") else [0.0, 1.0]
            for title in interactions.item_table["title"]
        ]
    )


def made(kind, interactions, count=2):
    rows, everybody = rows_of(interactions), np.ones(len(interactions.users), dtype=bool)
    if kind == "text":
        return cohorts.by_text(interactions, rows, everybody, vectors_of(interactions), count, 2, 0)
    if kind == "features":
        return cohorts.by_features(
            interactions, rows, everybody, ["categories"], "rating", count, 0
        )
    return cohorts.by_attributes(interactions, everybody, ["age", "gender"], count, 0)


@pytest.mark.parametrize("kind", ["text", "features", "attributes"])
def test_users_of_one_kind_are_one_cohort(tmp_path, kind):
    interactions = tables_of(tmp_path)
    found = made(kind, interactions)
    assert kinds(found, interactions) and found.sizes.tolist() == [10, 10]
    silhouettes = found.silhouettes()
    assert set(silhouettes) == {*found.names, "all"} and min(silhouettes.values()) > 0.3


@pytest.mark.parametrize("kind", ["text", "features"])
def test_future_test_decides_nothing_and_continue_train_does(tmp_path, kind):
    interactions = tables_of(tmp_path / "one")
    future = make_split(interactions, SPLIT, "continue").test.end
    other = {
        key: 11 - int(interactions.items[interactions.item[row]][1:])
        for key, row in zip(_keys(interactions, future), future, strict=True)
    }
    moved = tables_of(tmp_path / "two", other)
    assert (moved.items[moved.item] != interactions.items[interactions.item]).sum() == len(
        future
    ) and (made(kind, moved).of == made(kind, interactions).of).all()
    own = [
        row for row in rows_of(interactions) if interactions.users[interactions.user[row]] == "u0"
    ]
    switched = tables_of(tmp_path / "three", dict.fromkeys(_keys(interactions, own), 1))
    assert kinds(made(kind, interactions), interactions) and not kinds(
        made(kind, switched), switched
    )


def _keys(interactions, rows):
    return [
        (int(interactions.users[interactions.user[row]][1:]), int(interactions.position[row]))
        for row in rows
    ]


def test_random_cohorts_have_the_same_sizes_and_the_same_low_activity_users(tmp_path):
    interactions = tables_of(tmp_path)
    rows = rows_of(interactions)
    low = cohorts.activity(interactions, rows) < 6
    assert 0 < low.sum() < 18
    text = cohorts.by_text(
        interactions, rows, ~low, vectors_of(interactions), 2, 2, 0
    ).with_low_activity(low)
    drawn = cohorts.at_random(text, 0)
    assert (
        text.names[0] == drawn.names[0] == LOW
        and (text.of[low] == 0).all()
        and (drawn.of[low] == 0).all()
    )
    assert drawn.sizes.tolist() == text.sizes.tolist() and (drawn.of != text.of).any()
    assert set(text.silhouettes()) == {*text.names[1:], "all"} and drawn.silhouettes() == {}
    assert (cohorts.at_random(text, 0).of == drawn.of).all() and (
        cohorts.at_random(text, 1).of != drawn.of
    ).any()


def test_a_users_own_file(tmp_path):
    interactions = tables_of(tmp_path)
    path = tmp_path / "mine.tsv"
    path.write_text("u0\tlate\nu3\tearly\nu4\tlate\nnobody\tlate\n")
    found = cohorts.from_file(interactions, path)
    assert (
        found.names == ("early", "late")
        and found.sizes.tolist() == [1, 2]
        and (found.of >= 0).sum() == 3
    )
    path.write_text("nobody\tlate\n")
    with pytest.raises(UserError, match="names no user of shop"):
        cohorts.from_file(interactions, path)
    path.write_text("u0 late\n")
    with pytest.raises(UserError, match="expected a user, a tab"):
        cohorts.from_file(interactions, path)


def test_too_few_to_cluster_is_said(tmp_path):
    interactions = tables_of(tmp_path)
    with pytest.raises(UserError, match="at least 5 different users or items to cluster, found 2"):
        made("attributes", interactions, 5)
    with pytest.raises(
        UserError, match="expected the columns height of users, found the columns age, gender"
    ):
        cohorts.by_attributes(interactions, np.ones(20, dtype=bool), ["height"], 2, 0)
    with pytest.raises(UserError, match="no .user file"):
        bare = load(Source(write_cycle(tmp_path) / "cycle", "cycle"))
        cohorts.by_attributes(bare, np.ones(len(bare.users), dtype=bool), ["age"], 2, 0)


def test_silhouettes_are_sklearns_over_those_who_were_clustered():
    from sklearn.metrics import silhouette_score

    rng = np.random.default_rng(0)
    space = rng.normal(size=(12, 3))
    of = np.array([0] * 4 + [1] * 4 + [2] * 3 + [-1])
    space[:4] = np.nan  # a cohort that was not clustered
    found = Cohorts(("low", "a", "b"), of, space).silhouettes()
    assert found["all"] == pytest.approx(silhouette_score(space[4:11], of[4:11])) and set(
        found
    ) == {"a", "b", "all"}


# --- outcomes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        ([1, 1, 0, 0], [0, 0, 1, 1], "win"),  # better in two, worse in two
        ([1, 1, 1, 1], [0, 0, 0, 0], "win"),
        ([0, 0, 0, 1], [1, 1, 1, 0], "loss"),
        ([0, 0, 0, 1], [1, 1, 1, 1], "loss"),
        ([1, 1, 1, 1], [1, 1, 1, 1], "draw"),
        ([0, 0, 0, 0], [0, 0, 0, 0], "inconclusive"),
        ([1, 0, 1, 1], [0, 0, 1, 1], "mixed"),  # better in one alone
        ([0, 0, 1, 1], [1, 1, 1, 1], "mixed"),  # worse in two
        ([1, 0, 0, 1], [0, 1, 1, 1], "mixed"),
    ],
)
def test_the_papers_rules(own, other, expected):
    assert outcomes(np.array([own], float), np.array([other], float)).tolist() == [expected]


def test_the_first_four_rules_exclude_each_other():
    grid = np.stack(np.meshgrid(*[[0.0, 0.5, 1.0]] * 8), axis=-1).reshape(-1, 8)
    own, other = grid[:, :4], grid[:, 4:]
    gap = own - other
    better, worse, same = (gap > 0).sum(axis=1), (gap < 0).sum(axis=1), (gap == 0).all(axis=1)
    nothing = ~own.any(axis=1) & ~other.any(axis=1)
    rules = np.stack([better >= 2, worse >= 3, same & ~nothing, nothing])
    assert (rules.sum(axis=0) <= 1).all()
    names = np.array(["win", "loss", "draw", "inconclusive"])
    expected = np.where(rules.any(axis=0), names[rules.argmax(axis=0)], "mixed")
    assert (outcomes(own, other) == expected).all()


def test_a_threshold_makes_small_differences_none():
    own, other = np.array([[0.50, 0.50, 0.5, 0.5]]), np.array([[0.49, 0.49, 0.5, 0.5]])
    assert outcomes(own, other).tolist() == ["win"] and outcomes(
        own, other, threshold=0.02
    ).tolist() == ["draw"]


def test_a_users_metrics_are_means_over_its_cases():
    above = np.array([0, 20, 3])
    table = RankTable(
        user=np.array(["b", "a", "b"], dtype=object),
        target=np.array(["x", "y", "z"], dtype=object),
        position=np.arange(3),
        above=above,
        tied=np.zeros(3, int),
        n_candidates=np.full(3, 100),
        fallback=np.zeros(3, bool),
    )
    users, cases, values = user_values(table)
    assert users.tolist() == ["a", "b"] and cases.tolist() == [1, 2]
    assert values[0].tolist() == [0, 0, 0, 0] and values[1] == pytest.approx(
        [1, 1, *[(1 + 1 / np.log2(5)) / 2] * 2]
    )


def test_equal_metrics_in_another_order_of_cases_are_a_draw():
    """Equal ranks in two orders have means that differ in the last bits, which decides nothing."""
    rng = np.random.default_rng(0)
    own, other = np.empty((400, 4)), np.empty((400, 4))
    for user in range(400):
        gains = 1 / np.log2(1 + rng.integers(1, 30, 7))
        for metric in range(4):
            own[user, metric] = np.cumsum(gains)[-1] / 7
            other[user, metric] = np.cumsum(rng.permutation(gains))[-1] / 7
    assert (own != other).any(axis=1).mean() > 0.5
    assert set(outcomes(own, other)) == {"draw"} == set(outcomes(own, other, threshold=0.3))


def test_groups_by_activity_have_fixed_borders():
    """The paper defines low activity as 6 to 10 test items, however active the others are."""
    cases = np.array([1, 5, 6, 10, 11, 20, 21, 500])
    found = by_activity(cases, (5, 10, 20))
    assert found.of.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and found.sizes.tolist() == [2, 2, 2, 2]
    assert found.names == (
        "very low (up to 5)",
        "low (6 to 10)",
        "high (11 to 20)",
        "very high (more than 20)",
    )
    games = by_activity(np.repeat([2, 3, 4, 9], 5), (5, 10, 20))
    assert games.sizes.tolist() == [15, 5, 0, 0] and games.names == found.names
    other = by_activity(cases, (5, 6))
    assert other.names == ("up to 5", "6", "more than 6") and other.sizes.tolist() == [2, 1, 5]


def test_quartiles_hold_like_numbers_of_users_and_equal_users_stay_together():
    cases = np.repeat(np.arange(1, 9), 10)
    assert by_activity(cases, None).sizes.tolist() == [20, 20, 20, 20]
    skewed = np.array([3] * 70 + [4] * 10 + [5] * 10 + [9] * 10)
    found = by_activity(skewed, None).of
    assert (
        all(len(set(found[skewed == size])) == 1 for size in (3, 4, 5, 9))
        and (np.diff(found) >= 0).all()
        and found[-1] == 3
    )


def test_low_activity_stays_apart_in_a_file_that_was_written_by_the_command(tmp_path):
    interactions = tables_of(tmp_path / "shop")
    path = tmp_path / "mine.tsv"
    lines = [f"u{user}\t{LOW if user < 6 else f'feature {user % 2}'}" for user in range(20)]
    path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    mine = cohorts.from_file(interactions, path)
    drawn = cohorts.at_random(mine, 1)
    low = mine.names.index(LOW)
    assert mine.names == ("feature 0", "feature 1", LOW) and (mine.of >= 0).all()
    assert (
        ((drawn.of == low) == (mine.of == low)).all()
        and (drawn.of != mine.of).any()
        and drawn.sizes.tolist() == mine.sizes.tolist()
    )
    path.write_text("user\tcohort\nu1\tmine\nu99\tother\n")
    assert cohorts.from_file(interactions, path).names == ("mine",)
    path.write_text("u1\tmine\nu2\tmine\nu1\tother\n")
    with pytest.raises(UserError, match="names user u1 more than once"):
        cohorts.from_file(interactions, path)
