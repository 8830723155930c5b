"""Find the nearest of many vectors by inner product.

The search is exact, tile by tile, or reads some lists of a FAISS index, for catalogues too large
for that.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from ...errors import UserError
from ...storage.files import atomically

JUDGE_QUERIES = 256  # queries by which the recall of an index is measured
MIN_RECALL = 0.99  # recall@10 that an index must reach


def exact_search(
    queries: np.ndarray, vectors: np.ndarray, k: int, memory: float = 128
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest vectors of each query.

    Parameters
    ----------
    queries : ndarray of float32 [n, width]
        Queries.
    vectors : ndarray of float32 [m, width]
        Vectors to search.
    k : int
        Number of neighbours.
    memory : float
        Most MiB of inner products at once.

    Returns
    -------
    tuple of (ndarray of int64 [n, k], ndarray of float32 [n, k])
        Rows of the nearest vectors, best first, and their inner products.
    """
    query = torch.from_numpy(np.ascontiguousarray(queries))
    k, tile = min(k, len(vectors)), max(k, int(memory * 2**20 / 4 / len(queries)))
    best = torch.zeros(len(queries), 0)
    rows = torch.zeros(len(queries), 0, dtype=torch.int64)
    for begin in range(0, len(vectors), tile):
        products = query @ torch.from_numpy(vectors[begin : begin + tile]).T
        tile_best, place = products.topk(min(k, products.shape[1]), dim=1)
        best = torch.cat([best, tile_best], dim=1)
        rows = torch.cat([rows, place + begin], dim=1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        rows = rows.gather(1, order)
    return rows.numpy(), best.numpy()


class InvertedLists:
    """Vectors in lists around centres (FAISS, IVF with whole vectors).

    A search reads the lists whose centres are nearest to the query.

    Parameters
    ----------
    index : faiss.Index
        The FAISS index.
    """

    def __init__(self, index: Any):
        self.index = index

    @classmethod
    def build(cls, vectors: np.ndarray, queries: np.ndarray, seed: int = 0) -> "InvertedLists":
        """Build an index that reads as many lists as a recall@10 of MIN_RECALL takes.

        Parameters
        ----------
        vectors : ndarray of float32 [m, width]
            Vectors to search.
        queries : ndarray of float32 [n, width]
            Queries by which the recall is measured.
        seed : int
            Decides which vectors the centres are trained on.

        Returns
        -------
        InvertedLists
            The index.
        """
        faiss, rng = _faiss(), np.random.default_rng(seed)
        lists = max(1, min(int(4 * len(vectors) ** 0.5), len(vectors) // 40))
        index = faiss.index_factory(
            vectors.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT
        )
        index.train(vectors[rng.permutation(len(vectors))[: 64 * lists]])
        index.add(vectors)
        made, truth = cls(index), exact_search(queries, vectors, 10)[1]
        recall = made.recall(queries, truth)
        while recall < MIN_RECALL and index.nprobe < lists:
            index.nprobe = min(lists, 2 * index.nprobe)
            recall = made.recall(queries, truth)
        logging.getLogger().info(
            f"index of {len(vectors)} vectors: reads {index.nprobe} of {lists} lists, "
            f"recall@10 {recall:.3f} of {len(queries)} queries"
        )
        return made

    def recall(self, queries: np.ndarray, truth: np.ndarray) -> float:
        """Measure the share of the nearest vectors that a search finds.

        Parameters
        ----------
        queries : ndarray of float32 [n, width]
            Queries.
        truth : ndarray of float32 [n, k]
            Inner products of the nearest vectors, as `exact_search` gives them. A vector whose
            product is as large counts as one of the nearest.

        Returns
        -------
        float
            The recall, 0 to 1.
        """
        _, products = self.search(queries, truth.shape[1])
        return float((products >= truth[:, -1:] - 1e-5).mean())

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find near vectors of each query.

        Parameters
        ----------
        queries : ndarray of float32 [n, width]
            Queries.
        k : int
            Number of neighbours.

        Returns
        -------
        tuple of (ndarray of int64 [n, k], ndarray of float32 [n, k])
            As of `exact_search`; -1 with -inf where the lists that are read hold fewer than k
            vectors.
        """
        products, rows = self.index.search(np.ascontiguousarray(queries), k)
        return rows, np.where(rows < 0, -np.inf, products).astype(np.float32)

    @classmethod
    def stored(
        cls, path: Path, vectors: np.ndarray, queries: Callable[[], np.ndarray]
    ) -> "InvertedLists":
        """Read the index from a file, or build it and store it there.

        Parameters
        ----------
        path : Path
            The file. A damaged one is replaced.
        vectors : ndarray of float32 [m, width]
            Vectors to search.
        queries : callable
            Gives the queries by which a new index is judged, see `build`.

        Returns
        -------
        InvertedLists
            The index.
        """
        faiss = _faiss()
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if path.is_file():
                try:
                    return cls(faiss.read_index(str(path)))
                except RuntimeError:  # damaged
                    path.unlink()
            made = cls.build(vectors, queries())
            with atomically(path) as temporary:
                faiss.write_index(made.index, str(temporary))
        return made


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError(
            "index: faiss needs the package faiss-cpu, which is not installed: "
            'pip install "recbole_llm[faiss]"; or set index: exact'
        ) from None
    return faiss
