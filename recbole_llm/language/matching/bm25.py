"""BM25 of texts against the item corpus, many queries at a time."""

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csc_matrix, csr_matrix

from ...data.texts.words import words


class BM25Index:
    """Robertson's BM25 in Lucene's variant.

    bm25s computes the term weights when the index is built, so that a query is a sparse product:
    score(q, d) = sum over the words w of q, each as often as it occurs, of
    ln(1 + (N - n_w + 0.5) / (n_w + 0.5)) * f / (f + k1 (1 - b + b |d| / avgdl)),
    where N is the number of texts, n_w that of texts with w, f the count of w in d, |d| the length
    of d in words, and avgdl the mean length.

    Parameters
    ----------
    texts : sequence of str
        The corpus, one text an item.
    k1 : float
        Saturation of term frequencies.
    b : float
        Strength of the length normalisation, 0 to 1.
    """

    def __init__(self, texts: Sequence[str], k1: float = 1.5, b: float = 0.75):
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs every index it builds
        tokens = [words(text) for text in texts]
        self.vocabulary: dict[str, int] = {}
        for text in tokens:
            for word in text:
                self.vocabulary.setdefault(word, len(self.vocabulary))
        if not self.vocabulary:
            self.matrix = csr_matrix((0, len(texts)), dtype=np.float32)
            return
        index = bm25s.BM25(k1=k1, b=b, method="lucene")
        ids = [list(map(self.vocabulary.__getitem__, text)) for text in tokens]
        index.index((ids, self.vocabulary), create_empty_token=False, show_progress=False)
        weights = index.scores
        shape = (len(texts), len(self.vocabulary))
        columns = (weights["data"], weights["indices"], weights["indptr"][: shape[1] + 1])
        self.matrix = csc_matrix(columns, shape).T.tocsr()  # [words, items]

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Score all items for each query.

        Parameters
        ----------
        queries : sequence of str
            Texts.

        Returns
        -------
        ndarray of float32 [queries, items]
            BM25 scores; zeros for a query without any word of the corpus.
        """
        rows, columns, counts = [], [], []
        for row, query in enumerate(queries):
            for word, count in Counter(words(query)).items():
                column = self.vocabulary.get(word)
                if column is not None:
                    rows.append(row)
                    columns.append(column)
                    counts.append(count)
        weights = csr_matrix(
            (np.array(counts, np.float32), (rows, columns)), (len(queries), len(self.vocabulary))
        )
        return (weights @ self.matrix).toarray()

    def coverage(self, query: str) -> np.ndarray:
        """Compute the share of a query's words that each item has.

        Words are weighted by their inverse document frequency, ln(1 + (N - n_w + 0.5) /
        (n_w + 0.5)). Words of no item count too, as the rarest.

        Parameters
        ----------
        query : str
            A text, of which each distinct word counts once.

        Returns
        -------
        ndarray of float64 [items]
            Shares, 0 to 1; zeros for a query without words.
        """
        numbers = [self.vocabulary.get(word) for word in dict.fromkeys(words(query))]
        known = [number for number in numbers if number is not None]
        has_word = self.matrix[known] > 0
        frequency = np.asarray(has_word.sum(axis=1)).ravel().astype(np.float64)
        size = self.matrix.shape[1]
        idf = np.log1p((size - frequency + 0.5) / (frequency + 0.5))
        total = idf.sum() + (len(numbers) - len(known)) * np.log1p((size + 0.5) / 0.5)
        return has_word.T @ idf / total if numbers else np.zeros(size)
