"""The setting `item_features` for RecBole's models.

Frozen text vectors, through a trained projection, replace id embeddings or are added to them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from recbole.model.layers import FMEmbedding
from torch import nn

from ...data.texts.text import ItemText
from ...language.vectors import frozen_vectors


class Vectors(NamedTuple):
    """Frozen vectors of users or items, by RecBole's number, of which 0 is padding.

    Attributes
    ----------
    distinct : Tensor of float32 [distinct, width]
        The distinct vectors.
    number : Tensor of int64 [rows]
        The index of each row's vector in `distinct`. The vector of the padding is zero.
    """

    distinct: torch.Tensor
    number: torch.Tensor

    @classmethod
    def of(cls, rows: torch.Tensor) -> "Vectors":
        """Find the distinct vectors, so that rows with equal vectors have exactly equal scores.

        Parameters
        ----------
        rows : Tensor of float32 [rows - 1, width]
            The vectors of all rows but the padding.

        Returns
        -------
        Vectors
            The vectors with the padding.
        """
        padded = F.pad(rows, (0, 0, 1, 0)).numpy()
        first: dict[bytes, int] = {}
        number = np.array([first.setdefault(row.tobytes(), len(first)) for row in padded])
        distinct = padded[np.unique(number, return_index=True)[1]]
        return cls(torch.from_numpy(distinct), torch.from_numpy(number))


class TextEmbedding(nn.Module):
    """Takes the place of an nn.Embedding.

    Row i is the projection of vector i, plus the row i of the old embedding with `keep`; the
    padding is zero. The projection has no bias, so that it leaves the padding at zero. On vectors
    whose squared length is 1 on average, it starts at the scale of the model's own embeddings, and
    a step changes a row about as much as the same step on an id embedding.

    Parameters
    ----------
    ids : nn.Embedding
        The embedding to replace.
    vectors : Vectors
        The frozen vectors.
    keep : bool
        Whether the old embedding is added.
    projection : nn.Linear, optional
        A projection that is shared with another TextEmbedding.
    """

    vectors: torch.Tensor
    number: torch.Tensor

    def __init__(
        self, ids: nn.Embedding, vectors: Vectors, keep: bool, projection: nn.Linear | None = None
    ):
        super().__init__()
        if projection is None:
            projection = nn.Linear(vectors.distinct.shape[1], ids.embedding_dim, bias=False)
            nn.init.normal_(projection.weight, std=ids.weight.detach().std().item())
        self.projection, self.by_id = projection, ids if keep else None
        # not persistent: wherever the weights are loaded, they are computed from the texts again
        self.register_buffer("vectors", vectors.distinct, persistent=False)
        self.register_buffer("number", vectors.number, persistent=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Look rows up; only these rows are projected.

        Parameters
        ----------
        rows : Tensor of int64 [...]
            Row numbers.

        Returns
        -------
        Tensor of float32 [..., size]
            The rows.
        """
        distinct, place = self.number[rows].unique(return_inverse=True)
        embedded = F.embedding(place, self.projection(self.vectors[distinct]))
        if self.by_id is None:
            return embedded
        return embedded + self.by_id(rows) * (rows != 0)[..., None]

    @property
    def weight(self) -> torch.Tensor:
        """All rows, float32 [rows, size], for RecBole's losses and rankings over the catalogue."""
        table = F.embedding(self.number, self.projection(self.vectors))
        return table if self.by_id is None else table + F.pad(self.by_id.weight[1:], (0, 0, 1, 0))


class Fields(nn.Module):
    """RecBole's FMEmbedding as one table for each field, so that one of them can be replaced.

    Parameters
    ----------
    glued : FMEmbedding
        The embedding of all fields in one table.
    sizes : list of int
        Number of rows of each field.
    """

    def __init__(self, glued: FMEmbedding, sizes: list[int]):
        super().__init__()
        tables = glued.embedding.weight.detach().split(sizes)
        self.tables = nn.ModuleList(
            nn.Embedding.from_pretrained(table.clone(), freeze=False) for table in tables
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Look tokens up.

        Parameters
        ----------
        tokens : Tensor of int64 [rows, fields]
            One token of each field.

        Returns
        -------
        Tensor of float32 [rows, fields, size]
            Their embeddings.
        """
        columns = zip(self.tables, tokens.unbind(dim=1), strict=True)
        return torch.stack([table(column) for table, column in columns], dim=1)


def item_vectors(text: ItemText, config) -> Vectors:
    """Embed the texts of all items, centred and scaled to a squared length of 1 on average.

    Parameters
    ----------
    text : ItemText
        The texts.
    config : Config
        The setting `text_encoder`, and those of `frozen_vectors`.

    Returns
    -------
    Vectors
        The vectors; zero where all texts are equal.
    """
    texts = [text.plain(item) for item in range(len(text))]
    vectors = torch.from_numpy(frozen_vectors(config["text_encoder"], texts, config))
    vectors = vectors - vectors.mean(dim=0)
    return Vectors.of(vectors / vectors.square().sum(dim=1).mean().sqrt().clamp(min=1e-12))


def user_means(items: Vectors, dataset) -> Vectors:
    """Average the vectors of the items in each user's training events.

    Parameters
    ----------
    items : Vectors
        The vectors of items.
    dataset : Dataset
        The training part.

    Returns
    -------
    Vectors
        The vectors of users; zero for a user without training events.
    """
    interactions, learned = dataset.interactions, dataset.split.train_events
    begin = np.searchsorted(interactions.user[learned], np.arange(len(interactions.users)))
    numbers = items.number[torch.from_numpy(interactions.item[learned].astype(np.int64) + 1)]
    means = F.embedding_bag(numbers, items.distinct, torch.from_numpy(begin), mode="mean")
    return Vectors.of(means)


def _replace_item_embedding(model, dataset, vectors: Vectors, keep: bool) -> None:
    model.item_embedding = TextEmbedding(model.item_embedding, vectors, keep)


def _replace_neumf_embeddings(model, dataset, vectors: Vectors, keep: bool) -> None:
    """Use one projection for users and items: a projected mean is a mean of projected vectors."""
    means = user_means(vectors, dataset)
    for part in ("mf", "mlp"):
        items = TextEmbedding(getattr(model, f"item_{part}_embedding"), vectors, keep)
        users = TextEmbedding(
            getattr(model, f"user_{part}_embedding"), means, keep, items.projection
        )
        setattr(model, f"item_{part}_embedding", items)
        setattr(model, f"user_{part}_embedding", users)


def _replace_item_field(model, dataset, vectors: Vectors, keep: bool) -> None:
    layer = model.embedding_layer
    fields = Fields(layer.token_embedding_table["item"], layer.token_field_dims["item"])
    at = layer.token_field_names["item"].index(dataset.iid_field)
    fields.tables[at] = TextEmbedding(fields.tables[at], vectors, keep)
    layer.token_embedding_table["item"] = fields


# model of RecBole -> the function that replaces its item embeddings
ADAPTERS: dict[str, Callable[[Any, Any, Vectors, bool], None]] = {
    **dict.fromkeys(("SASRec", "GRU4Rec", "NARM", "CORE"), _replace_item_embedding),
    "NeuMF": _replace_neumf_embeddings,
    **dict.fromkeys(("DIN", "DIEN"), _replace_item_field),
}


def know_by_text(model, dataset, config) -> None:
    """Replace the item embeddings of a model of RecBole as the setting `item_features` says.

    Parameters
    ----------
    model : AbstractRecommender
        The model as it was constructed.
    dataset : Dataset
        The training part.
    config : Config
        The settings; `item_features` is "text" or "both".

    Raises
    ------
    UserError
        If the dataset has no texts, or the text encoder cannot be used.
    """
    text = dataset.inputs.text
    for line in text.log:
        model.logger.info(f"{dataset.interactions.name}: {line}")
    vectors, keep = item_vectors(text, config), config["item_features"] == "both"
    ADAPTERS[config["model"]](model, dataset, vectors, keep)
    # items with equal texts tie, unless other columns tell them apart
    if not keep and dataset.item_feat is None:
        _, first, number = np.unique(
            vectors.number[1:].numpy(), return_index=True, return_inverse=True
        )
        if len(first) < len(number):
            model.register_buffer("alike", torch.from_numpy(first[number]), persistent=False)
    model.to(config["device"])
