"""Text models for which users and items are vectors: the contract `encode`, and what ranking and recommending by it need."""

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
    """Raise UserError where a softmax over one catalogue is to be trained on several."""
    if config["phase"] == "finetune" and config["datasets"]:
        raise UserError(
            "datasets: phase finetune trains on the items of one dataset; set --phase=pretrain, "
            f"or --stages='{stages}'"
        )


def distinct(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(vectors without repetition, int64 [n] which of them each is): texts may differ in what an encoder does not see."""
    number: dict[bytes, int] = {}
    row = np.array([number.setdefault(vector.tobytes(), len(number)) for vector in vectors])
    return vectors[np.unique(row, return_index=True)[1]], row


class VectorModel(TextModel):
    """A text model for which users and items are vectors, and a score their inner product. Subclasses give `encode_users` and `encode_items`.

    Attributes
    ----------
    first, same : one item of each distinct vector, and for every item the number of its vector. Equal texts are encoded and scored once, so
        that true ties stay ties.
    weights : folder of the run whose weights these are, once they are trained.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.first, self.same = self.text.unique
        self.weights: Path | None = None
        self.item_vectors: torch.Tensor | None = None

    @abstractmethod
    def encode_users(self, cases: Cases) -> np.ndarray | torch.Tensor:
        """float32 [cases, width]: of what the users of these cases have met."""

    @abstractmethod
    def encode_items(self, items: np.ndarray) -> np.ndarray | torch.Tensor:
        """float32 [items, width] of items by number.

        A ranking encodes the catalogue once: one item of each distinct text.
        """

    def start_ranking(self, part, selecting, folder=None):
        super().start_ranking(part, selecting, folder)
        self.weights, self.item_vectors = folder, None  # the weights may have changed

    def catalogue_vectors(self) -> torch.Tensor:
        """Distinct vectors of `encode_items`, once for all rankings by the same weights; `column` says which is each item's."""
        if self.item_vectors is None:
            vectors, row = distinct(as_array(self.encode_items(self.first)))
            self.item_vectors, self.column = (
                torch.from_numpy(vectors).to(self.device),
                row[self.same],
            )
        return self.item_vectors

    def probed(self, cases):
        """Vectors of users: those of items are by the same weights, but of a whole catalogue."""
        return self.encode_users(cases)

    def score(self, cases):
        users = torch.from_numpy(as_array(self.encode_users(cases))).to(self.device)
        with torch.autocast(
            users.device.type, enabled=False
        ):  # vectors may come from a short precision, their products do not
            return (users @ self.catalogue_vectors().T).cpu().numpy()[:, self.column]

    def nearest_items(self, cases: Cases, k: int, folder: Path) -> np.ndarray:
        """[cases, items] scores as in `score` of k items and more that a FAISS index finds, all others `UNNAMED`.

        folder : where the index of these item vectors is stored. It is judged by users of validation when it is made.
        """
        vectors = self.catalogue_vectors().cpu().numpy()
        path = folder / f"index-{name_of(vectors.tobytes()).hex()[:16]}.faiss"
        index = InvertedLists.stored(
            path,
            vectors,
            lambda: as_array(
                self.encode_users(
                    draw(
                        self.split.valid if len(self.split.valid) else self.split.train,
                        JUDGE_QUERIES,
                    )
                )
            ),
        )
        rows, products = index.search(as_array(self.encode_users(cases)), k)
        scores = np.full(
            (len(cases), len(vectors) + 1), UNNAMED, dtype=np.float32
        )  # the last for what was not found
        np.put_along_axis(scores, rows, products, axis=1)
        return scores[:, self.column]
