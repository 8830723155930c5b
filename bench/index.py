"""The ten nearest of a million item vectors: exact search against the lists of a FAISS index.

python bench/index.py
"""

import sys

from common import arguments, finish, timed


def main() -> None:
    args = arguments(__doc__, items=1_000_000, width=384, queries=1000)
    import numpy as np

    try:
        import faiss  # noqa: F401
    except ImportError:
        sys.exit("bench/index.py needs FAISS: pip install faiss-cpu")
    from recbole_llm.language.matching.nearest import InvertedLists, exact_search

    items, queries = (4000, 100) if args.small else (args.items, args.queries)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(max(20, items // 100), args.width)).astype(np.float32)

    def sample(count):
        """Unit vectors around common centres, like those of items of one kind."""
        noise = rng.standard_normal((count, args.width), dtype=np.float32)
        vectors = centres[rng.integers(len(centres), size=count)] + noise
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    vectors, users = sample(items), sample(queries)
    build_s, index = timed(InvertedLists.build, vectors, sample(256))
    exact_s, (_, nearest) = timed(exact_search, users, vectors, 10)
    index_s, _ = timed(index.search, users, 10)
    row = {
        "items": items,
        "width": args.width,
        "queries": queries,
        "exact_ms": round(1000 * exact_s / queries, 3),
        "index_ms": round(1000 * index_s / queries, 3),
        "ratio": round(exact_s / index_s, 1),
        "recall@10": round(index.recall(users, nearest), 4),
        "build_s": round(build_s, 1),
        "lists": index.index.nlist,
        "lists_read": index.index.nprobe,
    }
    finish(bench="index", ratio=row["ratio"], rows=[row])


if __name__ == "__main__":
    main()
