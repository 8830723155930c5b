"""The ten nearest of a million item vectors: exactly, and by the lists of a FAISS index. python bench/index.py"""

import sys

from common import arguments, finish, timed


def main():
    args = arguments(__doc__, items=1_000_000, width=384, queries=1000)
    import numpy as np

    try:
        import faiss  # noqa: F401
    except ImportError:
        sys.exit("bench/index.py needs FAISS: pip install faiss-cpu")
    from recbole_llm.language.matching.nearest import InvertedLists, exact_search

    items, queries = (4000, 100) if args.small else (args.items, args.queries)
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(max(20, items // 100), args.width)).astype(np.float32)

    def drawn(count):
        """Vectors of length 1 around common centres, as items of one kind are."""
        vectors = kinds[rng.integers(len(kinds), size=count)] + rng.standard_normal(
            (count, args.width), dtype=np.float32
        )
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    vectors, asked = drawn(items), drawn(queries)
    build_s, index = timed(InvertedLists.build, vectors, drawn(256))
    exact_s, (_, truth) = timed(exact_search, asked, vectors, 10)
    index_s, _ = timed(index.search, asked, 10)
    row = {
        "items": items, "width": args.width, "queries": queries, "exact_ms": round(1000 * exact_s / queries, 3),
        "index_ms": round(1000 * index_s / queries, 3), "ratio": round(exact_s / index_s, 1), "recall@10": round(index.recall(asked, truth), 4),
        "build_s": round(build_s, 1), "lists": index.index.nlist, "lists_read": index.index.nprobe,
    }  # fmt: skip
    finish(bench="index", ratio=row["ratio"], rows=[row])


if __name__ == "__main__":
    main()
