"""BM25 against the formula in float64, and the quasi-round-robin with its traps."""

import math

import numpy as np
import pytest

from recbole_llm.language.matching.bm25 import BM25Index, words
from recbole_llm.language.matching.nearest import InvertedLists, exact_search
from recbole_llm.language.matching.round_robin import distinct_texts, quasi_round_robin

TEXTS = [
    "red dog leash",
    "blue dog bowl",
    "red red ball",
    "cat tree tall tall",
    "",
    "blue dog bowl",
]


def bm25_by_hand(texts, query, k1=1.5, b=0.75):
    documents = [words(text) for text in texts]
    average = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        total = 0.0
        for word in words(query):
            holders = sum(word in other for other in documents)
            count = document.count(word)
            if count:
                idf = math.log(1 + (len(documents) - holders + 0.5) / (holders + 0.5))
                total += idf * count / (count + k1 * (1 - b + b * len(document) / average))
        scores.append(total)
    return scores


@pytest.mark.parametrize("k1,b", [(1.5, 0.75), (0.9, 0.4)])
def test_bm25_is_the_formula(k1, b):
    index = BM25Index(TEXTS, k1, b)
    for query in ["red dog", "dog dog bowl", "tall cat, RED!", "unknown words", ""]:
        assert index.scores([query])[0] == pytest.approx(
            bm25_by_hand(TEXTS, query, k1, b), rel=1e-5
        )


def test_bm25_on_many_queries_is_bm25_on_each():
    index, queries = BM25Index(TEXTS), ["red dog", "", "bowl blue", "cat"]
    assert (
        index.scores(queries) == np.concatenate([index.scores([query]) for query in queries])
    ).all()


def test_equal_texts_tie_exactly():
    scores = BM25Index(TEXTS).scores(["dog bowl blue red"])[0]
    assert scores[1] == scores[5]


def test_a_corpus_without_words():
    assert BM25Index(["", "…"]).scores(["anything"]).tolist() == [[0.0, 0.0]]


def round_robin_by_hand(columns, logprobs, epsilon):
    scores = [0.0] * len(columns[0])
    for column, logprob in zip(columns, logprobs, strict=True):
        low, high = min(column), max(column)
        for item, value in enumerate(column):
            scaled = (value - low) / (high - low) if high > low else 0.0
            scores[item] = max(scores[item], scaled * math.exp(epsilon * logprob))
    return scores


def test_round_robin_is_the_formula():
    rng = np.random.default_rng(0)
    columns, logprobs = rng.random((4, 9)) * 10, -rng.random(4) * 10
    assert quasi_round_robin(columns, logprobs) == pytest.approx(
        round_robin_by_hand(columns.tolist(), logprobs, 1 / 5000), rel=1e-12
    )


def test_the_texts_take_turns_in_the_order_of_their_probability():
    columns = np.array([[1.0, 9.0, 0.0, 0.0], [0.0, 1.0, 5.0, 0.0], [0.0, 0.5, 0.0, 2.0]])
    assert np.argsort(-quasi_round_robin(columns, np.array([-1.0, -3.0, -2.0]))).tolist()[:3] == [
        1,
        3,
        2,
    ]


def test_a_flat_column_says_nothing():
    flat = np.full((1, 5), 3.0)
    assert quasi_round_robin(flat, np.array([-1.0])).tolist() == [0.0] * 5
    useful = np.array([[3.0] * 5, [0.0, 1.0, 0.0, 0.0, 0.5]])
    assert quasi_round_robin(useful, np.array([-0.1, -9.0])).argmax() == 1
    assert not np.isnan(quasi_round_robin(useful, np.array([-0.1, -9.0]))).any()


def test_no_text_ties_everything():
    assert quasi_round_robin(np.zeros((0, 4)), np.zeros(0)).tolist() == [0.0] * 4


def test_the_most_probable_of_equal_texts_stays():
    assert distinct_texts(["b", "a", "b", "c"], np.array([-5.0, -2.0, -1.0, -3.0])) == (
        ["b", "a", "c"],
        [-1.0, -2.0, -3.0],
        [2, 1, 1],
    )
    assert distinct_texts([], np.array([])) == ([], [], [])


# --- nearest vectors ------------------------------------------------------------------------------


def vectors_of_kinds(count, seed, kinds=20, width=16):
    centres = np.random.default_rng(0).normal(size=(kinds, width))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(kinds, size=count)] + 0.5 * rng.normal(size=(count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("memory", [128, 0.001])
def test_the_nearest_are_the_nearest_whatever_the_tile(memory):
    queries, vectors = vectors_of_kinds(7, 1), vectors_of_kinds(500, 2)
    rows, products = exact_search(queries, vectors, 10, memory=memory)
    everything = queries.astype(float) @ vectors.T.astype(float)
    assert np.allclose(products, -np.sort(-everything, axis=1)[:, :10], atol=1e-6)
    assert np.allclose(np.take_along_axis(everything, rows, axis=1), products, atol=1e-6)
    assert exact_search(queries, vectors[:4], 10, memory=memory)[0].shape == (7, 4)


def test_an_index_finds_nearly_all_and_knows_how_many(tmp_path):
    pytest.importorskip("faiss")
    vectors, queries = vectors_of_kinds(4000, 1), vectors_of_kinds(50, 2)
    index = InvertedLists.stored(tmp_path / "index.faiss", vectors, lambda: queries)
    truth = exact_search(queries, vectors, 10)
    rows, products = index.search(queries, 10)
    found = np.mean(
        [len(set(one) & set(other)) / 10 for one, other in zip(rows, truth[0], strict=True)]
    )
    assert (
        index.recall(queries, truth[1]) == pytest.approx(found)
        and found > 0.95
        and index.index.nprobe < index.index.nlist
    )
    again = InvertedLists.stored(
        tmp_path / "index.faiss", vectors_of_kinds(10, 3), lambda: pytest.fail("made again")
    )
    assert (again.search(queries, 10)[0] == rows).all()
    index.index.nprobe = 1
    assert index.recall(queries, truth[1]) < found
    (tmp_path / "index.faiss").write_bytes(b"half")
    assert (
        InvertedLists.stored(tmp_path / "index.faiss", vectors, lambda: queries).search(
            queries, 10
        )[0]
        == rows
    ).all()


def test_an_index_is_judged_by_what_is_asked_of_it():
    """Histories are means of vectors, which lie farther from all items than items do.

    An index therefore reads more lists for them.
    """
    pytest.importorskip("faiss")
    vectors = vectors_of_kinds(4000, 1, kinds=200)
    means = vectors[np.random.default_rng(0).integers(4000, size=(100, 5))].mean(axis=1)
    easy, hard = (InvertedLists.build(vectors, asked) for asked in (vectors[:100], means))
    truth = exact_search(means, vectors, 10)[1]
    assert (
        hard.recall(means, truth) >= 0.99 > easy.recall(means, truth)
        and hard.index.nprobe > easy.index.nprobe
    )


def test_what_an_index_does_not_hold_is_no_item():
    pytest.importorskip("faiss")
    rows, products = InvertedLists.build(vectors_of_kinds(3, 1), vectors_of_kinds(2, 2)).search(
        vectors_of_kinds(2, 2), 5
    )
    assert (
        (rows[:, 3:] == -1).all()
        and np.isneginf(products[:, 3:]).all()
        and (rows[:, :3] >= 0).all()
    )


@pytest.mark.parametrize("seed", range(5))
def test_coverage_is_the_share_of_a_query_by_the_rarity_of_its_words(seed):
    rng = np.random.default_rng(seed)
    letters = list("abcdefghij")
    texts = [" ".join(rng.choice(letters, size=4)) for _ in range(30)]
    query = " ".join([*rng.choice(letters, size=5), "unknown", "rare"])
    sets = [set(words(text)) for text in texts]
    counts = {}
    for word in set(words(query)):
        counts[word] = sum(word in own for own in sets)
    idf = {word: np.log(1 + (30 - n + 0.5) / (n + 0.5)) for word, n in counts.items()}
    expected = []
    for own in sets:
        expected.append(sum(idf[word] for word in idf if word in own) / sum(idf.values()))
    assert BM25Index(texts).coverage(query) == pytest.approx(expected)
    assert (BM25Index(texts).coverage("…") == 0).all()
    assert (BM25Index(["", "!"]).coverage("a b") == 0).all()
