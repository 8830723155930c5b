"""The nearest of many vectors by inner product: exactly, tile by tile, or by the lists of a FAISS index, for catalogues too large for that."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from ...errors import UserError
from ...storage.files import atomically

ASKED, WANTED = (
    256,
    0.99,
)  # queries by which an index is judged, and the recall@10 that it is to have


def exact(
    queries: np.ndarray, vectors: np.ndarray, k: int, memory: float = 128
) -> tuple[np.ndarray, np.ndarray]:
    """(int64 rows [n, k], float32 products [n, k]), best first, with at most `memory` MiB of products at once."""
    asked = torch.from_numpy(np.ascontiguousarray(queries))
    k, tile = min(k, len(vectors)), max(k, int(memory * 2**20 / 4 / len(queries)))
    best, rows = torch.zeros(len(queries), 0), torch.zeros(len(queries), 0, dtype=torch.int64)
    for begin in range(0, len(vectors), tile):
        products = asked @ torch.from_numpy(vectors[begin : begin + tile]).T
        found, place = products.topk(min(k, products.shape[1]), dim=1)
        best, rows = torch.cat([best, found], dim=1), torch.cat([rows, place + begin], dim=1)
        best, kept = best.topk(min(k, best.shape[1]), dim=1)
        rows = rows.gather(1, kept)
    return rows.numpy(), best.numpy()


class InvertedLists:
    """Vectors in lists around centres, of which a search reads those nearest to a query (FAISS, IVF with whole vectors)."""

    def __init__(self, index):
        self.index = index

    @classmethod
    def build(cls, vectors: np.ndarray, asked: np.ndarray, seed: int = 0) -> "InvertedLists":
        """An index that reads as many lists as it takes to find 99 % of the ten nearest of some queries."""
        faiss, rng = _faiss(), np.random.default_rng(seed)
        lists = max(1, min(int(4 * len(vectors) ** 0.5), len(vectors) // 40))
        index = faiss.index_factory(
            vectors.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT
        )
        index.train(vectors[rng.permutation(len(vectors))[: 64 * lists]])
        index.add(vectors)
        made, truth = cls(index), exact(asked, vectors, 10)[1]
        while (recall := made.recall(asked, truth)) < WANTED and index.nprobe < lists:
            index.nprobe = min(lists, 2 * index.nprobe)
        logging.getLogger().info(
            f"index of {len(vectors)} vectors: reads {index.nprobe} of {lists} lists, recall@10 {recall:.3f} of {len(asked)} queries"
        )
        return made

    def recall(self, queries: np.ndarray, truth: np.ndarray) -> float:
        """Share of the nearest that a search finds; truth : their products, as `exact` gives them. What is as near is as good."""
        return float((self.search(queries, truth.shape[1])[1] >= truth[:, -1:] - 1e-5).mean())

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `exact`; where the lists that were read hold fewer than k vectors, -1 with -inf."""
        products, rows = self.index.search(np.ascontiguousarray(queries), k)
        return rows, np.where(rows < 0, -np.inf, products).astype(np.float32)

    @classmethod
    def stored(
        cls, path: Path, vectors: np.ndarray, asked: Callable[[], np.ndarray]
    ) -> "InvertedLists":
        """The index in a file, or a new one of these vectors, which is then stored there. asked : gives the queries that judge it."""
        faiss = _faiss()
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if path.is_file():
                try:
                    return cls(faiss.read_index(str(path)))
                except RuntimeError:  # damaged
                    path.unlink()
            made = cls.build(vectors, asked())
            with atomically(path) as temporary:
                faiss.write_index(made.index, str(temporary))
        return made


def _faiss():
    try:
        import faiss
    except ImportError:
        raise UserError(
            "index: faiss needs the package faiss-cpu, which is not installed: "
            'pip install "recbole_llm[faiss]"; or set index: exact'
        ) from None
    return faiss
