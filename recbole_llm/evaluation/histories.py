"""Histories of general models at evaluation: all interactions before a case's target.

A sequential model reads the history that comes with a case. RecBole's general models instead store
a matrix of users and items when they are built, which has training interactions only: at test it
lacks the validation interaction. For a model that computes its users from such a matrix,
:func:`by_history` replaces it by the interactions before each case's target while the case is
scored, and restores it afterwards. A model that learns a vector per user (matrix factorisation,
graph convolution) has no place for them: its users stay as they were trained.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from recbole.utils import ModelType

from ..contracts.cases import Cases


class Histories:
    """The interactions before the targets of some cases, at most one case of each user.

    Users and items are numbered as in RecBole: row and column 0 are padding.

    Parameters
    ----------
    dataset : dataset of RecBole
        The data.
    cases : Cases
        The cases.

    Attributes
    ----------
    shape : tuple of int
        Numbers of users and items, padding included.
    rows : ndarray of int64, [n_interactions]
        Row of each interaction in the dataset.
    user : ndarray of int64, [n_interactions]
        User of each interaction. Those of one user are consecutive, oldest first.
    item : ndarray of int64, [n_interactions]
        Item of each interaction.
    place : ndarray of int64, [n_interactions]
        Index of each interaction in its history, oldest first.
    length : ndarray of int64, [n_users]
        Number of interactions; 0 for users without a case.
    """

    def __init__(self, dataset: Any, cases: Cases) -> None:
        interactions = dataset.interactions
        self.dataset = dataset
        self.shape = (len(interactions.users) + 1, len(interactions.items) + 1)
        sizes = cases.end - cases.begin
        first = np.cumsum(sizes) - sizes
        self.place = np.arange(sizes.sum()) - np.repeat(first, sizes)
        self.rows = np.repeat(cases.begin, sizes) + self.place
        self.user = np.repeat(cases.user.astype(np.int64) + 1, sizes)
        self.item = interactions.item[self.rows].astype(np.int64) + 1
        self.length = np.zeros(self.shape[0], dtype=np.int64)
        self.length[cases.user.astype(np.int64) + 1] = sizes

    def values(self, field: str) -> np.ndarray:
        """Look up a column of the interactions.

        Parameters
        ----------
        field : str
            Name of the column.

        Returns
        -------
        ndarray of float, [n_interactions]
            Its values.
        """
        values: np.ndarray = self.dataset.events[field].numpy()[self.rows]
        return values

    def matrix(self) -> sp.csr_matrix:
        """Count interactions, like `Dataset.inter_matrix` of RecBole.

        Returns
        -------
        csr_matrix of float32, [n_users, n_items]
            The counts.
        """
        ones = np.ones(len(self.item), dtype=np.float32)
        return sp.coo_matrix((ones, (self.user, self.item)), shape=self.shape).tocsr()

    def padded(
        self,
        values: np.ndarray | None = None,
        most: int | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pad histories, like `Dataset.history_item_matrix` of RecBole, but from the newest ones.

        Parameters
        ----------
        values : ndarray of float, [n_interactions], optional
            Value of each interaction; 1 by default.
        most : int, optional
            Maximum number of interactions of a history, the newest ones; all by default.
        device : torch.device, optional
            Where the tensors are.

        Returns
        -------
        items : Tensor of int64, [n_users, longest]
            Items, padded by 0 on the right.
        weights : Tensor of float32, [n_users, longest]
            Their values, padded likewise.
        length : Tensor of int64, [n_users]
            Lengths of the histories.
        """
        length = self.length if most is None else np.minimum(self.length, most)
        place = self.place - (self.length - length)[self.user]
        chosen = torch.from_numpy(np.flatnonzero(place >= 0))
        index = (torch.from_numpy(self.user)[chosen], torch.from_numpy(place)[chosen])
        values = np.ones(len(self.item)) if values is None else values
        items = torch.zeros(self.shape[0], max(1, int(length.max())), dtype=torch.int64)
        weights = torch.zeros(items.shape, dtype=torch.float32)
        items[index] = torch.from_numpy(self.item)[chosen]
        weights[index] = torch.as_tensor(values, dtype=torch.float32)[chosen]
        return items.to(device), weights.to(device), torch.from_numpy(length).to(device)


# dotted names of a model's attributes -> their values
Attributes = dict[str, Any]


def _matrix(model: Any, histories: Histories) -> Attributes:
    return {"interaction_matrix": histories.matrix()}


def _item_knn(model: Any, histories: Histories) -> Attributes | None:
    if model.method != "item":
        # the neighbours of a user are those of training
        return None
    return {"pred_mat": histories.matrix() @ model.w}


def _asymmetric_knn(model: Any, histories: Histories) -> Attributes | None:
    if model.method != "item":
        return None
    matrix = histories.matrix()
    users = np.flatnonzero(histories.length)
    counts = matrix[users]
    user_norm = np.asarray(counts.power(2).sum(axis=1)) ** model.beta
    item_norm = np.asarray(model.w.power(2).sum(axis=1)) ** (1 - model.beta)
    scores = (counts @ model.w).toarray() / (user_norm @ item_norm.T + 1e-6)
    ones = np.ones(len(users), dtype=np.float32)
    shape = (len(histories.length), len(users))
    place = sp.csr_matrix((ones, (users, np.arange(len(users)))), shape=shape)
    return {"pred_mat": place @ sp.csr_matrix((scores**model.q).astype(np.float32))}


def _projected(model: Any, histories: Histories) -> Attributes:
    users = histories.matrix() @ model.item_projection
    return {"user_embeddings": torch.from_numpy(users).to(model.user_embeddings)}


def _rated(model: Any, histories: Histories) -> Attributes:
    values = None
    # DiffRec and LDiffRec: newer interactions weigh more
    if getattr(model, "time_aware", False):
        span = np.maximum(histories.length - 1, 1)[histories.user]
        values = model.w_min + (model.w_max - model.w_min) * histories.place / span
    items, values, _ = histories.padded(values, device=model.device)
    return {"history_item_id": items, "history_item_value": values}


def _deep_factors(model: Any, histories: Histories) -> Attributes:
    rated = model.inter_matrix_type == "rating"
    ratings = histories.values(model.RATING) if rated else None
    items, values, _ = histories.padded(ratings, device=model.device)
    return {"history_item_id": items, "history_item_value": values}


def _bounded(model: Any, histories: Histories) -> Attributes:
    most = histories.dataset.config["history_len"]
    items, _, length = histories.padded(most=most, device=model.device)
    return {"history_item_id": items, "history_item_len": length}


def _masked(model: Any, histories: Histories) -> Attributes:
    items, _, length = histories.padded(device=model.device)
    inside = torch.arange(items.shape[1], device=items.device) < length[:, None]
    return {"history_item_matrix": items, "history_lens": length, "mask_mat": inside.float()}


def _text_means(model: Any, histories: Histories) -> Attributes | None:
    """For NeuMF with item_features text or both, whose user is the mean of the items' vectors."""
    if not hasattr(model.user_mf_embedding, "vectors"):
        return None
    items = model.item_mf_embedding
    first = np.flatnonzero(histories.place == 0)
    users = histories.user[first]
    numbers = items.number[torch.from_numpy(histories.item).to(items.number.device)]
    offsets = torch.from_numpy(first).to(numbers.device)
    means = F.embedding_bag(numbers, items.vectors, offsets, mode="mean")
    number = torch.zeros(len(histories.length), dtype=torch.int64)
    number[torch.from_numpy(users)] = torch.arange(1, len(users) + 1)
    number = number.to(numbers.device)
    vectors = F.pad(means, (0, 0, 1, 0))
    attributes: Attributes = {}
    for part in ("user_mf_embedding", "user_mlp_embedding"):
        attributes |= {f"{part}.vectors": vectors, f"{part}.number": number}
    return attributes


# takes a model and histories, returns values that replace its attributes; None if its settings
# leave nothing to replace
Reader = Callable[[Any, Histories], Attributes | None]
# by the name of the model's class
READERS: dict[str, Reader] = {
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
# models whose scores are the same for all users
NO_USERS = ("Pop", "Random")


def replacement(model: Any) -> Reader | None:
    """Find the function that makes a model read other histories.

    Parameters
    ----------
    model : recommender of RecBole
        The model.

    Returns
    -------
    callable or None
        The function in `READERS` for its class or for the closest base class.
    """
    names = [kind.__name__ for kind in type(model).__mro__]
    return next((READERS[name] for name in names if name in READERS), None)


def users_as_trained(model: Any, dataset: Any) -> bool:
    """Tell whether a model's scores ignore what users did after training.

    Parameters
    ----------
    model : recommender of RecBole
        The model.
    dataset : dataset of RecBole
        The data that it was built on.

    Returns
    -------
    bool
        False for models whose scores depend on the history of a case, or on no user.
    """
    if model.type == ModelType.SEQUENTIAL or type(model).__name__ in NO_USERS:
        return False
    replace = replacement(model)
    if replace is None or dataset.config["history_at_test"] != "all":
        return True
    return replace(model, Histories(dataset, dataset.cases[:1])) is None


def by_history(
    model: Any, dataset: Any, cases: Cases, score: Callable[[np.ndarray], torch.Tensor]
) -> torch.Tensor:
    """Score cases, each with its own history if the model reads one.

    A matrix has one row per user, but the cases of one user have different histories. Therefore
    the first cases of all users are scored together, then their second ones, and so on. The model
    is unchanged afterwards.

    Parameters
    ----------
    model : recommender of RecBole
        The model.
    dataset : dataset of RecBole
        The data that it was built on.
    cases : Cases
        The cases.
    score : callable
        Takes indices of cases, int64 [n], and returns their scores, float [n, n_items].

    Returns
    -------
    Tensor of float, [n_cases, n_items]
        Scores, in the order of `cases`.
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
    """Number of earlier cases of the same user, int64 [n_cases]."""
    order = np.argsort(user, kind="stable")
    place = np.arange(len(user))
    is_first = np.append(True, user[order[1:]] != user[order[:-1]])
    turn = np.empty(len(user), dtype=np.int64)
    turn[order] = place - np.maximum.accumulate(np.where(is_first, place, 0))
    return turn


@contextmanager
def _attributes(model: Any, values: Attributes) -> Iterator[None]:
    """Replace attributes of a model inside a block."""
    owners = {name: model.get_submodule(name.rpartition(".")[0]) for name in values}
    before = {name: getattr(owners[name], name.rpartition(".")[2]) for name in values}
    try:
        for name, value in values.items():
            setattr(owners[name], name.rpartition(".")[2], value)
        yield
    finally:
        for name, value in before.items():
            setattr(owners[name], name.rpartition(".")[2], value)
