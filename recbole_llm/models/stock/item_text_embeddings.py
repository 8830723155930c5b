"""`item_features` for RecBole's models: frozen text vectors through a projection, in place of id embeddings or added to them."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from recbole.model.layers import FMEmbedding
from torch import nn

from ...data.texts.text import ItemText
from ...language.vectors import frozen_vectors


class Vectors(NamedTuple):
    """Frozen vectors of users or items by RecBole's number, which is padding at 0.

    distinct : float32 [distinct, width]. number : int64 [rows], which of them is whose; the padding's is zero.
    """

    distinct: torch.Tensor
    number: torch.Tensor

    @classmethod
    def of(cls, rows: torch.Tensor) -> "Vectors":
        """From float32 [rows - 1, width]. Equal rows are one, so that true ties stay ties."""
        rows = F.pad(rows, (0, 0, 1, 0)).numpy()
        first: dict[bytes, int] = {}
        number = np.array([first.setdefault(row.tobytes(), len(first)) for row in rows])
        return cls(
            torch.from_numpy(rows[np.unique(number, return_index=True)[1]]),
            torch.from_numpy(number),
        )


class TextEmbedding(nn.Module):
    """Takes the place of an nn.Embedding: row i is the projection of vector i, plus the old row i where `keep` is set; the padding is zero.

    The projection has no bias, so that it leaves the padding alone. It starts, on vectors whose squared length is 1 on average, at the scale at
    which the model starts its own embeddings; and a step on it moves a row about as far as the same step on an id embedding would.

    projection : another's, which is shared.
    """

    def __init__(
        self, ids: nn.Embedding, vectors: Vectors, keep: bool, projection: nn.Linear | None = None
    ):
        super().__init__()
        if projection is None:
            projection = nn.Linear(vectors.distinct.shape[1], ids.embedding_dim, bias=False)
            nn.init.normal_(projection.weight, std=ids.weight.detach().std().item())
        self.projection, self.by_id = projection, ids if keep else None
        self.register_buffer(
            "vectors", vectors.distinct, persistent=False
        )  # computed again from the texts, wherever the weights are loaded
        self.register_buffer("number", vectors.number, persistent=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """int64 [...] -> float32 [..., size]; only these rows are projected."""
        distinct, place = self.number[rows].unique(return_inverse=True)
        found = F.embedding(place, self.projection(self.vectors[distinct]))
        return found if self.by_id is None else found + self.by_id(rows) * (rows != 0)[..., None]

    @property
    def weight(self) -> torch.Tensor:
        """float32 [rows, size]: the whole table, as RecBole's losses and rankings over the catalogue read it."""
        table = F.embedding(self.number, self.projection(self.vectors))
        return table if self.by_id is None else table + F.pad(self.by_id.weight[1:], (0, 0, 1, 0))


class Fields(nn.Module):
    """RecBole's FMEmbedding as one table for each field, so that one of them can be replaced."""

    def __init__(self, glued: FMEmbedding, sizes: list[int]):
        super().__init__()
        tables = glued.embedding.weight.detach().split(sizes)
        self.tables = nn.ModuleList(
            nn.Embedding.from_pretrained(table.clone(), freeze=False) for table in tables
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [rows, fields] -> float32 [rows, fields, size]."""
        return torch.stack(
            [
                table(column)
                for table, column in zip(self.tables, tokens.unbind(dim=1), strict=True)
            ],
            dim=1,
        )


def item_vectors(text: ItemText, config) -> Vectors:
    """Of every item's text, centred and of squared length 1 on average, both over the catalogue."""
    vectors = torch.from_numpy(
        frozen_vectors(
            config["text_encoder"], [text.plain(item) for item in range(len(text))], config
        )
    )
    vectors = vectors - vectors.mean(dim=0)
    return Vectors.of(
        vectors / vectors.square().sum(dim=1).mean().sqrt().clamp(min=1e-12)
    )  # zero where all texts are equal


def user_means(items: Vectors, dataset) -> Vectors:
    """Of every user, the mean of the items' vectors over the events of training; zero where there is none."""
    tables, learned = dataset.tables, dataset.split.train_events
    begin = np.searchsorted(tables.user[learned], np.arange(len(tables.users)))
    met = items.number[torch.from_numpy(tables.item[learned].astype(np.int64) + 1)]
    return Vectors.of(F.embedding_bag(met, items.distinct, torch.from_numpy(begin), mode="mean"))


def _item_embedding(model, dataset, vectors: Vectors, keep: bool) -> None:
    model.item_embedding = TextEmbedding(model.item_embedding, vectors, keep)


def _neumf(model, dataset, vectors: Vectors, keep: bool) -> None:
    """By one projection for users and items, since the mean of projected vectors is the projected mean."""
    means = user_means(vectors, dataset)
    for part in ("mf", "mlp"):
        items = TextEmbedding(getattr(model, f"item_{part}_embedding"), vectors, keep)
        users = TextEmbedding(
            getattr(model, f"user_{part}_embedding"), means, keep, items.projection
        )
        setattr(model, f"item_{part}_embedding", items)
        setattr(model, f"user_{part}_embedding", users)


def _item_field(model, dataset, vectors: Vectors, keep: bool) -> None:
    layer = model.embedding_layer
    fields = Fields(layer.token_embedding_table["item"], layer.token_field_dims["item"])
    at = layer.token_field_names["item"].index(dataset.iid_field)
    fields.tables[at] = TextEmbedding(fields.tables[at], vectors, keep)
    layer.token_embedding_table["item"] = fields


# stock model -> where it keeps its item embeddings
ADAPTERS = (
    dict.fromkeys(("SASRec", "GRU4Rec", "NARM", "CORE"), _item_embedding)
    | {"NeuMF": _neumf}
    | dict.fromkeys(("DIN", "DIEN"), _item_field)
)


def know_by_text(model, dataset, config) -> None:
    """Let a stock model, as it was constructed, know items by their texts, as `item_features` says: text or both.

    dataset : the training part.

    Raises
    ------
    UserError : for a dataset without texts, or a text encoder that cannot be.
    """
    text = dataset.inputs.text
    for line in text.log:
        model.logger.info(f"{dataset.tables.name}: {line}")
    vectors, keep = item_vectors(text, config), config["item_features"] == "both"
    ADAPTERS[config["model"]](model, dataset, vectors, keep)
    if not keep and dataset.item_feat is None:  # by their columns, items of one text may differ
        _, first, number = np.unique(
            vectors.number[1:].numpy(), return_index=True, return_inverse=True
        )
        if len(first) < len(number):
            model.register_buffer("alike", torch.from_numpy(first[number]), persistent=False)
    model.to(config["device"])
