"""Names of metrics, as RecBole writes them, in lower case."""

RANK_METRICS = ("recall", "hit", "ndcg", "mrr", "precision", "map")  # of ranks, at cut-offs
LIST_METRICS = ("itemcoverage", "averagepopularity", "giniindex", "tailpercentage")  # always there
