"""BM25 of texts against the item corpus, many queries at a time."""

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csc_matrix, csr_matrix

from ...data.texts.words import words


class BM25Index:
    """Robertson's BM25 in Lucene's variant, computed by bm25s at index time, so that a query is a sparse product.

    score(q, d) = sum over the words w of q, each as often as it occurs, of
    ln(1 + (N - n_w + 0.5) / (n_w + 0.5)) * f / (f + k1 (1 - b + b |d| / avgdl)).
    """

    def __init__(self, texts: Sequence[str], k1: float = 1.5, b: float = 0.75):
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs every index it builds
        tokens = [words(text) for text in texts]
        self.vocabulary = {
            word: number
            for number, word in enumerate(dict.fromkeys(word for text in tokens for word in text))
        }
        if not self.vocabulary:
            self.matrix = csr_matrix((0, len(texts)), dtype=np.float32)
            return
        index = bm25s.BM25(k1=k1, b=b, method="lucene")
        ids = [[self.vocabulary[word] for word in text] for text in tokens]
        index.index((ids, self.vocabulary), create_empty_token=False, show_progress=False)
        parts = index.scores
        shape = (len(texts), len(self.vocabulary))
        self.matrix = csc_matrix(
            (parts["data"], parts["indices"], parts["indptr"][: shape[1] + 1]), shape
        ).T.tocsr()

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """float32 [queries, items]; a query without any word of the corpus scores 0 everywhere."""
        rows, columns, counts = [], [], []
        for row, query in enumerate(queries):
            for word, count in Counter(words(query)).items():
                if (column := self.vocabulary.get(word)) is not None:
                    rows.append(row)
                    columns.append(column)
                    counts.append(count)
        weights = csr_matrix(
            (np.array(counts, np.float32), (rows, columns)), (len(queries), len(self.vocabulary))
        )
        return (weights @ self.matrix).toarray()

    def coverage(self, query: str) -> np.ndarray:
        """float64 [items]: the share of a query that each item has, by the inverse document frequency of its distinct words.

        Words of no item count too, as the rarest. Zeros for a query without words.
        """
        numbers = [self.vocabulary.get(word) for word in dict.fromkeys(words(query))]
        known = [number for number in numbers if number is not None]
        has = self.matrix[known] > 0
        frequency = np.asarray(has.sum(axis=1)).ravel().astype(np.float64)
        size = self.matrix.shape[1]
        idf = np.log1p((size - frequency + 0.5) / (frequency + 0.5))
        total = idf.sum() + (len(numbers) - len(known)) * np.log1p((size + 0.5) / 0.5)
        return has.T @ idf / total if numbers else np.zeros(size)
