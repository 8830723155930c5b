"""A model of a user's own, as docs/extending.md shows it."""

import torch
import torch.nn.functional as F
from torch import nn

from recbole_llm.models import Field, TextEncoderSettings, Trainable, TrainingSettings, VectorModel


class TwoTower(VectorModel, Trainable):
    """A tower for users and one for items, over frozen text vectors."""

    class Settings(TrainingSettings, TextEncoderSettings):
        width: int = Field(64, ge=1, description="Length of the vectors of users and items.")
        temperature: float = Field(0.07, gt=0, description="Of the softmax over the catalogue.")

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.texts = self.text_vectors()
        self.items = nn.Linear(self.texts.shape[1], config["width"])
        self.users = nn.Linear(self.texts.shape[1], config["width"])

    def encode_items(self, items):
        return F.normalize(self.items(self.texts[items]), dim=1)

    def encode_users(self, cases):
        histories = cases.histories(self.interactions)
        means = torch.stack([self.texts[items].mean(dim=0) for items in histories])
        return F.normalize(self.users(means), dim=1)

    def loss(self, cases):
        items = self.encode_items(self.first)
        scores = self.encode_users(cases) @ items.T / self.config["temperature"]
        targets = torch.from_numpy(self.same[self.interactions.item[cases.end]])
        return F.cross_entropy(scores, targets.to(self.device), reduction="sum")
