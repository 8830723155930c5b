"""A model that is fitted in closed form, as docs/extending.md shows it."""

import numpy as np

from recbole_llm.models import Field, ModelSettings, TextModel


class NextCounts(TextModel):
    """Counts how often an item follows another."""

    class Settings(ModelSettings):
        power: float = Field(1.0, ge=0, description="Exponent of the counts.")

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        counts = np.zeros((len(self.text), len(self.text)))
        train = self.split.train
        for history, target in zip(train.histories(self.interactions), train.end):
            counts[history[-1], self.interactions.item[target]] += 1
        self.weights = counts ** config["power"]

    def score(self, cases):
        newest = [history[-1] for history in cases.histories(self.interactions)]
        return self.weights[newest]
