"""BM25 of 500 queries over a catalogue: rank_bm25 against ours, equal scores. python bench/bm25.py"""

import re
import sys

from common import arguments, finish, timed


def texts(items: int):
    import numpy as np

    rng = np.random.default_rng(0)
    words = np.array([f"w{number}" for number in range(5000)])
    chance = 1 / np.arange(1, 5001)
    return [
        " ".join(rng.choice(words, size=rng.integers(10, 25), p=chance / chance.sum()))
        for _ in range(items)
    ]


def main():
    args = arguments(__doc__, items=4385, queries=500, repeats=3)
    import numpy as np

    try:
        from rank_bm25 import BM25Okapi
    except ImportError:
        sys.exit("bench/bm25.py compares with rank_bm25: pip install rank_bm25")
    from recbole_llm.language.matching.bm25 import BM25Index

    items, queries = (300, 20) if args.small else (args.items, args.queries)
    corpus = texts(items)
    asked = corpus[:queries]

    class Lucene(BM25Okapi):
        """The same variant as ours: rank_bm25's own inverse document frequency can be negative and its numerator has k1 + 1."""

        def _calc_idf(self, nd):
            self.idf = {
                word: np.log(1 + (self.corpus_size - count + 0.5) / (count + 0.5)) / (self.k1 + 1)
                for word, count in nd.items()
            }

    theirs_index, ours_index = (
        Lucene([re.findall(r"\w+", text) for text in corpus], k1=1.5, b=0.75),
        BM25Index(corpus),
    )
    repeats = 1 if args.small else args.repeats
    runs = [
        (
            timed(lambda: [theirs_index.get_scores(re.findall(r"\w+", query)) for query in asked]),
            timed(ours_index.scores, asked),
        )
        for _ in range(repeats)
    ]
    difference = float(
        max(abs(one - other).max() for one, other in zip(runs[0][0][1], runs[0][1][1], strict=True))
    )
    if difference > 1e-3:
        raise SystemExit(f"the scores differ by {difference}")
    theirs_s, ours_s = (sorted(run[side][0] for run in runs)[len(runs) // 2] for side in (0, 1))
    row = {"items": items, "queries": queries, "rank_bm25_ms": round(1000 * theirs_s / queries, 3), "ours_ms": round(1000 * ours_s / queries, 4),
           "ratio": round(theirs_s / ours_s, 1), "scores_differ_by": difference}  # fmt: skip
    finish(bench="bm25", ratio=row["ratio"], rows=[row])


if __name__ == "__main__":
    main()
