"""Text models for which users and items are vectors, and scores their inner products."""

from abc import abstractmethod
from pathlib import Path

import numpy as np
import torch

from ...contracts.cases import Cases
from ...data.cases.splits import draw
from ...errors import UserError
from ...evaluation.ranks import UNNAMED
from ...language.matching.nearest import JUDGE_QUERIES, InvertedLists
from ...storage.content_cache import name_of
from .text_model import TextModel, as_array


def check_datasets(config, stages: str) -> None:
    """Refuse several datasets for a phase whose softmax is over one catalogue.

    Parameters
    ----------
    config : Config
        The settings `phase` and `datasets`.
    stages : str
        The value of `stages` that the message recommends.

    Raises
    ------
    UserError
        If `phase` is "finetune" and there are `datasets`.
    """
    if config["phase"] == "finetune" and config["datasets"]:
        raise UserError(
            "datasets: phase finetune trains on the items of one dataset; set --phase=pretrain, "
            f"or --stages='{stages}'"
        )


def distinct(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the distinct vectors: texts may differ in parts that an encoder does not see.

    Parameters
    ----------
    vectors : ndarray [n, width]
        Vectors.

    Returns
    -------
    distinct : ndarray [m, width]
        The vectors without repetition, by first occurrence.
    number : ndarray of int64 [n]
        The index of each vector in `distinct`.
    """
    known: dict[bytes, int] = {}
    number = np.array([known.setdefault(vector.tobytes(), len(known)) for vector in vectors])
    return vectors[np.unique(number, return_index=True)[1]], number


def _forget_item_vectors(model: "VectorModel", _keys: object) -> None:
    """Forget the vectors of items: they are of the weights before those that were read."""
    model.item_vectors = None


class VectorModel(TextModel):
    """A text model for which users and items are vectors, and a score their inner product.

    Subclasses implement `encode_users` and `encode_items`.

    Attributes
    ----------
    first : ndarray of int64 [texts]
        One item of each distinct text. Equal texts are encoded and scored once, so that items with
        equal texts have exactly equal scores.
    same : ndarray of int64 [items]
        The number of each item's text.
    weights : Path or None
        Folder of the run whose weights the model has; None while it is trained.
    item_vectors : Tensor of float [vectors, width] or None
        Distinct vectors of the catalogue by the current weights; None before they are computed.
    column : ndarray of int64 [items]
        The index of each item's vector in `item_vectors`.
    """

    weights: Path | None
    item_vectors: torch.Tensor | None
    column: np.ndarray

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.first, self.same = self.text.unique
        self.weights = None
        self.item_vectors = None
        self.register_load_state_dict_post_hook(_forget_item_vectors)

    @abstractmethod
    def encode_users(self, cases: Cases) -> np.ndarray | torch.Tensor:
        """Encode the histories of cases.

        Parameters
        ----------
        cases : Cases
            The cases.

        Returns
        -------
        ndarray or Tensor of float32 [cases, width]
            One vector for each case.
        """

    @abstractmethod
    def encode_items(self, items: np.ndarray) -> np.ndarray | torch.Tensor:
        """Encode items.

        A ranking encodes the catalogue once: one item of each distinct text.

        Parameters
        ----------
        items : ndarray of int [n]
            Item numbers.

        Returns
        -------
        ndarray or Tensor of float32 [n, width]
            One vector for each item.
        """

    def start_ranking(self, part, selecting, folder=None):
        """Forget the vectors of items: the weights may have changed."""
        super().start_ranking(part, selecting, folder)
        self.weights, self.item_vectors = folder, None

    def catalogue_vectors(self) -> torch.Tensor:
        """Encode the catalogue, once for all rankings by the same weights.

        Returns
        -------
        Tensor of float [vectors, width]
            The distinct vectors; `column` maps each item to one of them.
        """
        if self.item_vectors is None:
            vectors, number = distinct(as_array(self.encode_items(self.first)))
            self.item_vectors = torch.from_numpy(vectors).to(self.device)
            self.column = number[self.same]
        return self.item_vectors

    def probed(self, cases):
        """Encode users alone: encoding a catalogue takes long, and uses the same weights."""
        return self.encode_users(cases)

    def score(self, cases):
        """Score every item by the inner product of vectors."""
        users = torch.from_numpy(as_array(self.encode_users(cases))).to(self.device)
        items = self.catalogue_vectors()
        # products are in float32, also of vectors that were computed in a lower precision
        with torch.autocast(users.device.type, enabled=False):
            return (users @ items.T).cpu().numpy()[:, self.column]

    def nearest_items(self, cases: Cases, k: int, folder: Path) -> np.ndarray:
        """Score the items that a FAISS index finds.

        Parameters
        ----------
        cases : Cases
            The cases.
        k : int
            Number of items to find for each case; items with equal vectors count once.
        folder : Path
            Where the index of these item vectors is stored. Its recall is measured by users of the
            validation part when it is built.

        Returns
        -------
        ndarray of float32 [cases, items]
            Scores as in `score`; `UNNAMED` for items that were not found.
        """
        vectors = self.catalogue_vectors().cpu().numpy()
        path = folder / f"index-{name_of(vectors.tobytes()).hex()[:16]}.faiss"
        index = InvertedLists.stored(path, vectors, self._judging_vectors)
        rows, products = index.search(as_array(self.encode_users(cases)), k)
        # a search that finds too few vectors gives the index -1: the last column takes their scores
        scores = np.full((len(cases), len(vectors) + 1), UNNAMED, dtype=np.float32)
        np.put_along_axis(scores, rows, products, axis=1)
        return scores[:, self.column]

    def _judging_vectors(self) -> np.ndarray:
        """Vectors of users by which the recall of an index is measured."""
        cases = self.split.valid if len(self.split.valid) else self.split.train
        return as_array(self.encode_users(draw(cases, JUDGE_QUERIES)))
