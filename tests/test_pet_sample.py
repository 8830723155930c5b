import csv
import subprocess
import sys
from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pandas as pd
import pytest

from recbole_llm.data.sample.generator import HABITS, REFILL, build_world, write
from recbole_llm.data.sample.words import ARRIVALS, BRANDS, KINDS
from recbole_llm.settings.files import SAMPLE

TEXT = ["title", "categories", "brand", "price", "description"]


def read(suffix):
    frame = pd.read_csv(
        SAMPLE / f"Pet-sample.{suffix}",
        sep="\t",
        dtype=str,
        keep_default_na=False,
        quoting=csv.QUOTE_NONE,
    )
    return frame.rename(columns=lambda name: name.split(":")[0])


@pytest.fixture(scope="module")
def shop():
    return build_world()


@pytest.fixture(scope="module")
def recorded():
    return read("inter")


@pytest.fixture(scope="module")
def sequences(recorded):
    """Item ids of each user in order, events recorded twice taken once."""
    return [group.tolist() for _, group in recorded.drop_duplicates().groupby("user_id").item_id]


@pytest.fixture(scope="module")
def targets(shop, sequences):
    return shop.items.item_id.searchsorted([items[-1] for items in sequences])


@pytest.fixture(scope="module")
def probabilities(shop, sequences):
    """The generator's probabilities of each user's last item, float64 [users, items]."""
    return np.array([shop.next_probabilities(items[:-1]) for items in sequences])


def ndcg_at_10(scores, targets):
    """NDCG@10 per row of scores [rows, items], expected over the orders of tied items."""
    scores = np.round(scores, 12)  # equal probabilities may differ in the last bits
    own = scores[np.arange(len(targets)), targets][:, None]
    above, tied = (scores > own).sum(1), (scores == own).sum(1)
    gain = np.zeros(scores.shape[1])
    gain[:10] = 1 / np.log2(np.arange(2, 12))
    return np.array([gain[a : a + t].mean() for a, t in zip(above, tied)])


def mixture_by_loops(shop, history, z):
    """p(next | z, history) over item rows, as the module's docstring says it."""
    n = len(shop.items)
    preview, arrival, consumable = (
        shop.facts[flag].tolist() for flag in ("preview", "arrival", "consumable")
    )
    habit = HABITS[shop.user_types.habit[z]]
    has_preview = any(preview[bought] for bought in history)
    is_open = []
    for i in range(n):
        closed = any(shop.closes[bought, i] for bought in history)
        too_early = preview[i] and len(history) < 4
        is_open.append(not (closed or too_early or (arrival[i] and not has_preview)))
    again, refill, follow, taste = Counter(), Counter(), Counter(), Counter()
    for i in range(n):
        if history and i == history[-1] and not preview[i]:
            again[i] = 1.0
        if is_open[i]:
            taste[i] = shop.taste[z, i]
        if history and is_open[i] and i != history[-1]:
            follow[i] = shop.follow[history[-1], i]
            if len(history) > 1:
                follow[i] += 0.5 * shop.follow[history[-2], i]
            if i in history and consumable[i]:
                age = history[::-1].index(i) + 1
                refill[i] = REFILL[age] if age < len(REFILL) else 0.2
    parts = [
        (weight, part)
        for weight, part in zip(habit, (again, refill, follow, taste))
        if part.total() > 0
    ]
    scale = sum(weight for weight, _ in parts)
    mixture = np.zeros(n)
    for weight, part in parts:
        share = weight / scale / part.total()
        mixture += [share * part[i] for i in range(n)]
    return mixture.tolist()


def test_the_checked_in_files_come_from_the_generator(tmp_path):
    write(tmp_path)
    for suffix in ("inter", "item"):
        assert (tmp_path / f"Pet-sample.{suffix}").read_bytes() == (
            SAMPLE / f"Pet-sample.{suffix}"
        ).read_bytes()


@pytest.mark.slow
def test_command_line_and_light_imports(tmp_path):
    code = (
        "import runpy, sys;"
        "runpy.run_module('recbole_llm.data.sample.generator', run_name='__main__');"
        "print([m for m in ('torch', 'recbole') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "new"), "--seed", "3"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
    assert (tmp_path / "new" / "Pet-sample.inter").read_bytes() != (
        SAMPLE / "Pet-sample.inter"
    ).read_bytes()


def test_file_format(shop, recorded):
    raw = {
        suffix: (SAMPLE / f"Pet-sample.{suffix}").read_text("utf-8") for suffix in ("inter", "item")
    }
    assert sum(len(text.encode()) for text in raw.values()) <= 1_000_000
    assert raw["inter"].startswith("user_id:token\titem_id:token\trating:float\ttimestamp:float\n")
    assert raw["item"].startswith(
        "item_id:token\ttitle:token_seq\tcategories:token_seq\tbrand:token_seq\t"
        "price:float\tdescription:token_seq\n"
    )
    for text, tabs in zip(raw.values(), (3, 5)):
        assert '"' not in text and {line.count("\t") for line in text.splitlines()} == {tabs}
    items = read("item")
    assert items.item_id.tolist() == shop.items.item_id.tolist() and items.item_id.is_unique
    assert items.title.ne("").all() and items.price.astype(float).between(1, 200).all()
    assert set(recorded.item_id) <= set(items.item_id)
    clock = recorded.timestamp.astype(float)
    assert clock.is_monotonic_increasing
    assert pd.to_datetime(clock, unit="s").dt.year.between(2015, 2019).all()
    assert set(recorded.rating.astype(float)) == {1, 2, 3, 4, 5}


def test_words_fit_together():
    for kind in KINDS.values():
        assert all(KINDS[name].pet == kind.pet for name in kind.follows)
        assert kind.price[0] <= kind.price[1]
        if kind.text.startswith("A {}"):
            assert not any(style[0] in "AEIOU" for style in kind.styles.split("|"))
    assert len(BRANDS) == 25 and set(ARRIVALS) == {kind.pet for kind in KINDS.values()}


def test_sizes_of_the_shop(shop, sequences):
    lengths = [len(items) for items in sequences]
    assert len(sequences) == 600 and 380 <= len(shop.items) <= 430
    assert min(lengths) == 5 and 20 <= max(lengths) <= 25 and 8 <= np.mean(lengths) <= 10


def test_some_events_are_recorded_twice(recorded, sequences):
    events = sum(map(len, sequences))
    assert 0.01 <= 1 - events / len(recorded) <= 0.02


def test_items_are_bought_again(sequences):
    """At once, or later, as what is used up is."""
    pairs = list(chain.from_iterable(map(pairwise, sequences)))
    assert 0.05 <= np.mean([a == b for a, b in pairs]) <= 0.12
    refills = []
    for items in sequences:
        for t in range(1, len(items)):
            refills.append(items[t] in items[: t - 1] and items[t] != items[t - 1])
    assert 0.2 <= np.mean(refills) <= 0.35


def test_users_are_loyal_to_brands(shop, sequences):
    brands = shop.facts.set_index(shop.items.item_id).brand
    loyalty = [Counter(brands[items]).most_common(1)[0][1] / len(items) for items in sequences]
    assert np.mean(loyalty) >= 0.5


def test_kinds_of_items_follow_one_another(shop, sequences):
    kind = shop.facts.set_index(shop.items.item_id).kind.to_dict()
    pairs = chain.from_iterable(map(pairwise, sequences))
    followed = [(a, b) for a, b in pairs if kind[a] in KINDS and KINDS[kind[a]].follows]
    assert np.mean([kind[b] in KINDS[kind[a]].follows for a, b in followed]) >= 0.3


def test_puppies_grow_up(shop, sequences):
    """Who buys puppy food buys the adult food of the same brand and flavour later."""
    facts = shop.facts.set_index(shop.items.item_id)
    kind, line = facts.kind.to_dict(), facts.brand + facts["style"]
    grown = []
    for items in sequences:
        for t, puppy in enumerate(items):
            if kind[puppy] == "puppy":
                adult = [item for item in items[t:] if kind[item] == "adult"]
                grown.append(any(line[item] == line[puppy] for item in adult))
    assert np.mean(grown) >= 0.3


def test_some_items_are_new_at_the_end(shop, sequences):
    early = set(chain.from_iterable(items[:-2] for items in sequences))
    cold = set(chain.from_iterable(items[-2:] for items in sequences)) - early
    assert 0.04 <= len(cold) / len(shop.items) <= 0.08
    assert not early & set(shop.items.item_id[shop.facts.arrival])
    assert 0.03 <= np.mean([items[-1] in cold for items in sequences]) <= 0.1


def test_some_texts_are_equal_or_lack_a_part(shop):
    assert 6 <= shop.items.duplicated(TEXT, keep=False).sum() <= 12
    assert 4 <= shop.items.brand.eq("").sum() <= 15
    assert 4 <= shop.items.description.eq("").sum() <= 15


def test_float32_time_would_tie_events(recorded):
    once = recorded.drop_duplicates().assign(clock=lambda frame: frame.timestamp.astype(float))
    assert not once.duplicated(["user_id", "clock"]).any()
    assert (
        once.assign(clock=once.clock.astype("float32")).duplicated(["user_id", "clock"]).sum() > 100
    )


def test_probabilities_are_a_distribution(shop, sequences):
    histories = [[]]
    for items in sequences[:20]:
        histories += [items[:cut] for cut in range(1, len(items))]
    for history in histories:
        p = shop.next_probabilities(history)
        assert p.shape == (len(shop.items),) and p.dtype == np.float64
        assert p.min() >= 0 and p.sum() == pytest.approx(1, abs=1e-12)
        assert shop.posterior(history).sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.slow
def test_filtering_equals_brute_force_over_types(shop, sequences):
    preview = set(shop.items.item_id[shop.facts.preview])
    with_box = next(items for items in sequences if preview & set(items[:-1]))
    doubled = next(items for items in sequences if items[0] == items[1])
    for items in (doubled[:3], with_box[:-1]):
        rows = shop.items.item_id.searchsorted(items).tolist()
        joint = np.zeros(len(shop.user_types))
        after = np.zeros((len(shop.user_types), len(shop.items)))
        for z, prior in enumerate(shop.user_types.prior):
            joint[z] = prior * np.prod(
                [mixture_by_loops(shop, rows[:t], z)[rows[t]] for t in range(len(rows))]
            )
            after[z] = mixture_by_loops(shop, rows, z)
        np.testing.assert_allclose(
            shop.posterior(items), joint / joint.sum(), rtol=1e-9, atol=1e-15
        )
        np.testing.assert_allclose(
            shop.next_probabilities(items), joint @ after / joint.sum(), rtol=1e-9, atol=1e-15
        )


def test_histories_the_shop_cannot_produce_are_refused(shop):
    arrival = shop.items.item_id[shop.facts.arrival].iloc[0]
    with pytest.raises(ValueError, match=rf"event 1 \({arrival}\) cannot follow"):
        shop.next_probabilities([arrival])
    with pytest.raises(ValueError, match="found 'P9999'"):
        shop.next_probabilities(["P9999"])


def test_bayes_ranking_attains_its_expected_ndcg(shop, sequences, targets, probabilities):
    best, gain = np.sort(probabilities)[:, ::-1], 1 / np.log2(np.arange(2, 12))
    some = shop.bayes_ndcg([items[:-1] for items in sequences[:50]], [1, 10])
    assert some == pytest.approx(
        {1: best[:50, 0].mean(), 10: (best[:50, :10] @ gain).mean()}, rel=1e-12
    )
    expected = (best[:, :10] @ gain).mean()
    realised = ndcg_at_10(probabilities, targets)
    assert abs(realised.mean() - expected) <= 3 * realised.std() / np.sqrt(len(realised))

    # The distribution is right, not only its order: the log-likelihood equals the expected one.
    logs = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    surprise = logs[np.arange(len(targets)), targets] - (probabilities * logs).sum(1)
    assert abs(surprise.mean()) <= 3 * surprise.std() / np.sqrt(len(surprise))


def test_bayes_beats_words_and_words_beat_popularity(shop, sequences, targets, probabilities):
    bayes = ndcg_at_10(probabilities, targets).mean()
    counts = Counter(chain.from_iterable(items[:-1] for items in sequences))
    popular = np.array([counts[item] for item in shop.items.item_id], float)
    popularity = ndcg_at_10(np.tile(popular, (len(targets), 1)), targets).mean()
    words = [
        set(f"{title} {path}".lower().split())
        for title, path in zip(shop.items.title, shop.items.categories)
    ]
    last = shop.items.item_id.searchsorted([items[-2] for items in sequences])
    shared = np.zeros((len(last), len(words)))
    for row, item in enumerate(last):
        shared[row] = [len(words[item] & other) for other in words]
    overlap = ndcg_at_10(shared, targets).mean()
    assert 0.45 <= bayes <= 0.6 and 0.03 <= popularity <= 0.1
    assert 1.3 * popularity < overlap < 0.6 * bayes
