"""BM25 against the formula in float64, and the quasi-round-robin with its traps."""

import math

import numpy as np
import pytest

from recbole_llm.retrieval.bm25 import BM25Index, words
from recbole_llm.retrieval.round_robin import distinct, quasi_round_robin

TEXTS = ["red dog leash", "blue dog bowl", "red red ball", "cat tree tall tall", "", "blue dog bowl"]


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
        assert index.scores([query])[0] == pytest.approx(bm25_by_hand(TEXTS, query, k1, b), rel=1e-5)


def test_bm25_on_many_queries_is_bm25_on_each():
    index, queries = BM25Index(TEXTS), ["red dog", "", "bowl blue", "cat"]
    assert (index.scores(queries) == np.concatenate([index.scores([query]) for query in queries])).all()


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
    assert quasi_round_robin(columns, logprobs) == pytest.approx(round_robin_by_hand(columns.tolist(), logprobs, 1 / 5000), rel=1e-12)


def test_the_texts_take_turns_in_the_order_of_their_probability():
    columns = np.array([[1.0, 9.0, 0.0, 0.0], [0.0, 1.0, 5.0, 0.0], [0.0, 0.5, 0.0, 2.0]])
    assert np.argsort(-quasi_round_robin(columns, np.array([-1.0, -3.0, -2.0]))).tolist()[:3] == [1, 3, 2]


def test_a_flat_column_says_nothing():
    flat = np.full((1, 5), 3.0)
    assert quasi_round_robin(flat, np.array([-1.0])).tolist() == [0.0] * 5
    useful = np.array([[3.0] * 5, [0.0, 1.0, 0.0, 0.0, 0.5]])
    assert quasi_round_robin(useful, np.array([-0.1, -9.0])).argmax() == 1
    assert not np.isnan(quasi_round_robin(useful, np.array([-0.1, -9.0]))).any()


def test_no_text_ties_everything():
    assert quasi_round_robin(np.zeros((0, 4)), np.zeros(0)).tolist() == [0.0] * 4


def test_the_most_probable_of_equal_texts_stays():
    assert distinct(["b", "a", "b", "c"], np.array([-5.0, -2.0, -1.0, -3.0])) == (["b", "a", "c"], [-1.0, -2.0, -3.0], [2, 1, 1])
    assert distinct([], np.array([])) == ([], [], [])
