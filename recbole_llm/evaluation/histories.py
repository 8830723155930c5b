"""Histories of general models at evaluation: all events before a case's target.

A sequential model reads the history that comes with a case. RecBole's general models instead store
a matrix of users and items when they are built, which holds training events only: at test they would
not know of the validation event. Where a model computes its user from such a matrix,
:func:`by_history` puts the events before each case's target into it while the case is scored, and
puts the matrix of training back afterwards. A model that learns a vector per user (matrix
factorisation, graph convolution) has nothing to put them into: its users stay as they were trained.
"""

from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from recbole.utils import ModelType

from ..contracts.cases import Cases


class Histories:
    """The events before the targets of some cases, at most one case of each user.

    Users and items are numbered as in RecBole: row and column 0 are padding.

    Attributes
    ----------
    user : int64 [n_events], the user of each event; events of one user stand together, oldest first.
    item : int64 [n_events].
    place : int64 [n_events], how many events of the same history are older.
    length : int64 [n_users], number of events; 0 for users without a case.
    """

    def __init__(self, dataset, cases: Cases):
        tables = dataset.tables
        self.dataset = dataset
        self.shape = (len(tables.users) + 1, len(tables.items) + 1)
        sizes = cases.end - cases.begin
        first = np.cumsum(sizes) - sizes
        self.place = np.arange(sizes.sum()) - np.repeat(first, sizes)
        self.rows = np.repeat(cases.begin, sizes) + self.place
        self.user = np.repeat(cases.user.astype(np.int64) + 1, sizes)
        self.item = tables.item[self.rows].astype(np.int64) + 1
        self.length = np.zeros(self.shape[0], dtype=np.int64)
        self.length[cases.user.astype(np.int64) + 1] = sizes

    def values(self, field: str) -> np.ndarray:
        """float [n_events]: a column of the interactions."""
        return self.dataset.events[field].numpy()[self.rows]

    def matrix(self) -> sp.csr_matrix:
        """float32 [n_users, n_items]: counts of events, as of `Dataset.inter_matrix`."""
        ones = np.ones(len(self.item), dtype=np.float32)
        return sp.coo_matrix((ones, (self.user, self.item)), shape=self.shape).tocsr()

    def padded(self, values=None, most: int | None = None, device=None) -> tuple[torch.Tensor, ...]:
        """As `Dataset.history_item_matrix`, but of more than `most` events the newest stay.

        Parameters
        ----------
        values : float [n_events], 1 for each event by default.

        Returns
        -------
        tuple
            int64 [n_users, longest] items and float32 [n_users, longest] values, padded by 0 on the right; int64
            [n_users] lengths.
        """
        length = self.length if most is None else np.minimum(self.length, most)
        place = self.place - (self.length - length)[self.user]
        chosen = torch.from_numpy(np.flatnonzero(place >= 0))
        at = (torch.from_numpy(self.user)[chosen], torch.from_numpy(place)[chosen])
        values = np.ones(len(self.item)) if values is None else values
        items = torch.zeros(self.shape[0], max(1, int(length.max())), dtype=torch.int64)
        weights = torch.zeros(items.shape, dtype=torch.float32)
        items[at] = torch.from_numpy(self.item)[chosen]
        weights[at] = torch.as_tensor(values, dtype=torch.float32)[chosen]
        return items.to(device), weights.to(device), torch.from_numpy(length).to(device)


def _matrix(model, histories: Histories) -> dict:
    return {"interaction_matrix": histories.matrix()}


def _item_knn(model, histories: Histories) -> dict | None:
    if model.method != "item":
        return None  # neighbours of a user are those of training
    return {"pred_mat": histories.matrix() @ model.w}


def _asymmetric_knn(model, histories: Histories) -> dict | None:
    if model.method != "item":
        return None
    matrix = histories.matrix()
    users = np.flatnonzero(histories.length)
    events = matrix[users]
    user_norm = np.asarray(events.power(2).sum(axis=1)) ** model.beta
    item_norm = np.asarray(model.w.power(2).sum(axis=1)) ** (1 - model.beta)
    scores = (events @ model.w).toarray() / (user_norm @ item_norm.T + 1e-6)
    ones = np.ones(len(users), dtype=np.float32)
    place = sp.csr_matrix(
        (ones, (users, np.arange(len(users)))), shape=(len(histories.length), len(users))
    )
    return {"pred_mat": place @ sp.csr_matrix((scores**model.q).astype(np.float32))}


def _projected(model, histories: Histories) -> dict:
    users = histories.matrix() @ model.item_projection
    return {"user_embeddings": torch.from_numpy(users).to(model.user_embeddings)}


def _rated(model, histories: Histories) -> dict:
    values = None
    if getattr(model, "time_aware", False):  # DiffRec and LDiffRec: newer events weigh more
        span = np.maximum(histories.length - 1, 1)[histories.user]
        values = model.w_min + (model.w_max - model.w_min) * histories.place / span
    items, values, _ = histories.padded(values, device=model.device)
    return {"history_item_id": items, "history_item_value": values}


def _deep_factors(model, histories: Histories) -> dict:
    rated = model.inter_matrix_type == "rating"
    items, values, _ = histories.padded(
        histories.values(model.RATING) if rated else None, device=model.device
    )
    return {"history_item_id": items, "history_item_value": values}


def _bounded(model, histories: Histories) -> dict:
    items, _, length = histories.padded(
        most=histories.dataset.config["history_len"], device=model.device
    )
    return {"history_item_id": items, "history_item_len": length}


def _masked(model, histories: Histories) -> dict:
    items, _, length = histories.padded(device=model.device)
    inside = torch.arange(items.shape[1], device=items.device) < length[:, None]
    return {"history_item_matrix": items, "history_lens": length, "mask_mat": inside.float()}


def _text_means(model, histories: Histories) -> dict | None:
    """Of NeuMF with item_features text or both: its user is the mean of the items' vectors."""
    if not hasattr(model.user_mf_embedding, "vectors"):
        return None
    items = model.item_mf_embedding
    first = np.flatnonzero(histories.place == 0)
    users = histories.user[first]
    met = items.number[torch.from_numpy(histories.item).to(items.number.device)]
    offsets = torch.from_numpy(first).to(met.device)
    means = F.embedding_bag(met, items.vectors, offsets, mode="mean")
    number = torch.zeros(len(histories.length), dtype=torch.int64)
    number[torch.from_numpy(users)] = torch.arange(1, len(users) + 1)
    rows = {"vectors": F.pad(means, (0, 0, 1, 0)), "number": number.to(met.device)}
    parts = ("user_mf_embedding", "user_mlp_embedding")
    return {f"{part}.{name}": value for part in parts for name, value in rows.items()}


# Class -> what takes the place of its attributes; None where its settings leave nothing to replace.
READERS: dict[str, Callable] = {
    "ADMMSLIM": _matrix,
    "AsymKNN": _asymmetric_knn,
    "CDAE": _rated,
    "DMF": _deep_factors,
    "DiffRec": _rated,
    "EASE": _matrix,
    "FISM": _masked,
    "ItemKNN": _item_knn,
    "LDiffRec": _rated,
    "MacridVAE": _rated,
    "MultiDAE": _rated,
    "MultiVAE": _rated,
    "NAIS": _masked,
    "NCEPLRec": _projected,
    "NeuMF": _text_means,
    "RaCT": _rated,
    "RecVAE": _rated,
    "SLIMElastic": _matrix,
    "SimpleX": _bounded,
}
NO_USERS = ("Pop", "Random")  # their scores are of items alone


def replacement(model) -> Callable | None:
    """The function of READERS for a model's class, or for the class that it is derived from."""
    names = [kind.__name__ for kind in type(model).__mro__]
    return next((READERS[name] for name in names if name in READERS), None)


def users_as_trained(model, dataset) -> bool:
    """Whether a model's scores of a case leave out what its user did after training."""
    if model.type == ModelType.SEQUENTIAL or type(model).__name__ in NO_USERS:
        return False
    replace = replacement(model)
    if replace is None or dataset.config["history_at_test"] != "all":
        return True
    return replace(model, Histories(dataset, dataset.cases[:1])) is None


def by_history(
    model, dataset, cases: Cases, score: Callable[[np.ndarray], torch.Tensor]
) -> torch.Tensor:
    """Scores of cases by `score`, each under the history of its own case where the model reads one.

    The cases of one user have different histories, and a matrix has one row for the user: so the first cases of all
    users are scored together, then the second ones, and so on. The model is left as it was.

    Parameters
    ----------
    score : gives the scores of some cases, by their places in `cases`, int64 [n].

    Returns
    -------
    float [cases, items], in the order of `cases`.
    """
    replace = replacement(model)
    if replace is None or dataset.config["history_at_test"] != "all":
        return score(np.arange(len(cases)))
    turn = _turns(cases.user)
    groups = [np.flatnonzero(turn == number) for number in range(turn.max() + 1)]
    scores = []
    for group in groups:
        attributes = replace(model, Histories(dataset, cases[group]))
        with _attributes(model, attributes or {}):
            scores.append(score(group))
    if len(groups) == 1:
        return scores[0]
    order = torch.from_numpy(np.argsort(np.concatenate(groups)))
    return torch.cat(scores).index_select(0, order.to(scores[0].device))


def _turns(user: np.ndarray) -> np.ndarray:
    """int64 [cases]: how many cases before it are of the same user."""
    order = np.argsort(user, kind="stable")
    place = np.arange(len(user))
    is_first = np.append(True, user[order[1:]] != user[order[:-1]])
    turn = np.empty(len(user), dtype=np.int64)
    turn[order] = place - np.maximum.accumulate(np.where(is_first, place, 0))
    return turn


@contextmanager
def _attributes(model, values: dict):
    """A model with other values of some attributes, by dotted names, which are put back after."""
    owners = {name: model.get_submodule(name.rpartition(".")[0]) for name in values}
    before = {name: getattr(owners[name], name.rpartition(".")[2]) for name in values}
    try:
        for name, value in values.items():
            setattr(owners[name], name.rpartition(".")[2], value)
        yield
    finally:
        for name, value in before.items():
            setattr(owners[name], name.rpartition(".")[2], value)
