"""BM25 of 500 queries over a catalogue: rank_bm25 against ours, with equal scores.

python bench/bm25.py
"""

import re
import sys

from common import arguments, finish, median_seconds


def texts(items: int) -> list[str]:
    """Texts of 10 to 24 words, whose frequencies follow Zipf's law."""
    import numpy as np

    rng = np.random.default_rng(0)
    words = np.array([f"w{number}" for number in range(5000)])
    chance = 1 / np.arange(1, 5001)
    return [
        " ".join(rng.choice(words, size=rng.integers(10, 25), p=chance / chance.sum()))
        for _ in range(items)
    ]


def main() -> None:
    args = arguments(__doc__, items=4385, queries=500, repeats=3)
    import numpy as np

    try:
        from rank_bm25 import BM25Okapi
    except ImportError:
        sys.exit("bench/bm25.py compares with rank_bm25: pip install rank_bm25")
    from recbole_llm.language.matching.bm25 import BM25Index

    class Lucene(BM25Okapi):
        """rank_bm25 in the variant of ours.

        Its inverse document frequency can be negative, and its numerator has the factor k1 + 1.
        """

        def _calc_idf(self, nd):
            self.idf = {
                word: np.log(1 + (self.corpus_size - count + 0.5) / (count + 0.5)) / (self.k1 + 1)
                for word, count in nd.items()
            }

    items, queries = (300, 20) if args.small else (args.items, args.queries)
    corpus = texts(items)
    tokens = [re.findall(r"\w+", text) for text in corpus]
    rank_bm25, index = Lucene(tokens, k1=1.5, b=0.75), BM25Index(corpus)

    def theirs():
        return [rank_bm25.get_scores(re.findall(r"\w+", query)) for query in corpus[:queries]]

    def ours():
        return index.scores(corpus[:queries])

    difference = float(np.abs(np.stack(theirs()) - ours()).max())
    if difference > 1e-3:
        raise SystemExit(f"the scores differ by {difference}")
    seconds = median_seconds({"theirs": theirs, "ours": ours}, 1 if args.small else args.repeats)
    row = {
        "items": items,
        "queries": queries,
        "rank_bm25_ms": round(1000 * seconds["theirs"] / queries, 3),
        "ours_ms": round(1000 * seconds["ours"] / queries, 4),
        "ratio": round(seconds["theirs"] / seconds["ours"], 1),
        "scores_differ_by": difference,
    }
    finish(bench="bm25", ratio=row["ratio"], rows=[row])


if __name__ == "__main__":
    main()
