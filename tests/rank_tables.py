"""Rank tables from a few numbers, for tests of what is computed from them."""

import numpy as np

from recbole_llm.evaluation.ranks import RankTable


def make_table(above, tied=None, n_candidates=None, user=None, target=None):
    """One case per entry of above, each of another user where none is given."""
    n = len(above)
    tied = np.zeros(n, int) if tied is None else tied
    return RankTable(
        user=np.array([f"u{i}" for i in range(n)] if user is None else user),
        target=np.array([f"i{i}" for i in range(n)] if target is None else target),
        position=np.arange(n),
        above=np.asarray(above),
        tied=np.asarray(tied),
        n_candidates=np.full(
            n,
            1 + max((a + t for a, t in zip(above, tied)), default=0)
            if n_candidates is None
            else n_candidates,
        ),
        fallback=np.zeros(n, bool),
    )
