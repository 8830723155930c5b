"""Names of metrics, as RecBole writes them, in lower case."""

# computed from the rank of the target at cut-offs
RANK_METRICS = ("recall", "hit", "ndcg", "mrr", "precision", "map")
# computed from the lists of recommended items, for every run
LIST_METRICS = ("itemcoverage", "averagepopularity", "giniindex", "tailpercentage")
