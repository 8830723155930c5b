"""Generated texts are read as attributes, and matched to items by the longest agreement."""

import numpy as np
import pytest
from worlds import prepared

from recbole_llm.data.sample import locate
from recbole_llm.evaluation.metrics import evaluate
from recbole_llm.evaluation.ranks import UNNAMED
from recbole_llm.language.matching.hierarchical import HierarchicalIndex, parse, rank_matches
from recbole_llm.language.matching.matching import BM25Match, HierarchicalMatch
from recbole_llm.models.lir import LIR

EPSILON = {"epsilon": 0.0002, "bm25_k1": 1.5, "bm25_b": 0.75}
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
    assert scores.tolist() == [2, UNNAMED, 3, UNNAMED]


def mangled(sentence, title, rng):
    """Return a sentence as a model may write it.

    Its price or title may belong to no item, or it may be unreadable.
    """
    kind = rng.choice(["whole", "price", "title", "garbage"], p=[0.75, 0.2, 0.03, 0.02])
    if kind == "price":
        return sentence[: sentence.rindex("Price: ")] + "Price: $0.01."
    if kind == "title":
        return sentence.replace(title, f"{title} of another kind")
    return "#### 77" if kind == "garbage" else sentence


@pytest.fixture(scope="module")
def matched(tmp_path_factory):
    """Return metrics of both matches on the synthetic shop, and the Bayes bound.

    Both match the same texts, which are drawn from a mixture of the generator's distribution of the
    next item and the uniform one. Every fifth case has nothing but unreadable texts.
    """
    from recbole_llm.data.sample.generator import build_world

    world, rng = build_world(), np.random.default_rng(0)
    _, model, trainer, (_, _, test) = prepared(
        "LIR", tmp_path_factory.mktemp("pet"), "Pet", test_users=200
    )
    interactions, cases = test._dataset.interactions, test._dataset.cases
    number = {item: row for row, item in enumerate(interactions.items)}
    place = np.array([number.get(item, -1) for item in world.items.item_id])
    answers = {}
    for row, history in enumerate(cases.histories(interactions)):
        wanted = world.next_probabilities(list(interactions.items[history]))[place >= 0]
        wanted = 0.5 * wanted / wanted.sum() + 0.5 / len(wanted)
        drawn = rng.choice(place[place >= 0], size=10, replace=False, p=wanted)
        texts = [
            mangled(model.text.sentence(item), model.text.values[item][0], rng) for item in drawn
        ]
        answers[int(cases.end[row])] = ["#### 77"] * 10 if row % 5 == 0 else texts
    found = {}
    for match in (HierarchicalMatch(model.text), BM25Match(model.text, EPSILON)):

        def score(self, some, match=match):
            return np.stack([match.scores(answers[int(end)], -np.arange(10.0)) for end in some.end])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LIR, "score", score)
            patch.setattr(LIR, "names_all", False)
            table, top = trainer.rank(test, topk=20)
        values = evaluate(table, ["recall", "ndcg", "mrr"], [10])
        found[type(match).__name__] = (values, table, top, model.rates())
    bound = locate.bayes_bound("Pet-sample", interactions, cases, [10])["ndcg@10"]
    return found["HierarchicalMatch"], found["BM25Match"], bound


def test_an_item_that_no_text_names_is_a_miss_in_every_order_of_ties(matched):
    (values, table, top, _), _, _ = matched
    listed = (top.items >= 0).sum(axis=1)
    unnamed = table.above == table.n_candidates - 1
    assert 0.3 < unnamed.mean() < 0.9 and (table.tied[unnamed] == 0).all()
    assert (table.above + table.tied < listed)[~unnamed].all()
    assert values["recall@10_opt"] - values["recall@10_pes"] < 0.005
    assert values["recall@10_pes"] > 0.1


def test_no_order_of_ties_beats_the_bayes_ranking(matched):
    *rows, bound = matched
    for values, *_ in rows:
        assert values["ndcg@10_pes"] <= values["ndcg@10"] <= values["ndcg@10_opt"] < bound


def test_hierarchical_match_is_near_bm25_of_the_same_texts(matched):
    """The paper compares them by the mean of optimistic and pessimistic metrics."""
    hierarchical, bm25 = (
        values["ndcg@10_opt"] + values["ndcg@10_pes"] for values, *_ in matched[:2]
    )
    assert -0.10 <= hierarchical / bm25 - 1 <= 0.02


@pytest.mark.parametrize("which", [0, 1])
def test_what_names_nothing_is_counted_and_its_target_is_last(matched, which):
    _, table, top, rates = matched[which]
    silent = table.fallback
    assert silent.mean() == pytest.approx(0.2, abs=0.01) and rates["unmatched"] == silent.mean()
    assert (table.above[silent] == table.n_candidates[silent] - 1).all()
    assert (table.tied[silent] == 0).all() and (top.items[silent] == -1).all()
