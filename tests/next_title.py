"""The generative model of docs/extending.md."""

from dataclasses import replace

import numpy as np

from recbole_llm.models import (
    BackboneSettings,
    Field,
    GenerationSettings,
    GenerativeModel,
    LoraSettings,
    TrainingSettings,
)


class NextTitle(GenerativeModel):
    """A causal language model reads the newest items and learns to write the next one."""

    class Settings(TrainingSettings, BackboneSettings, LoraSettings, GenerationSettings):
        recent: int = Field(3, ge=1, description="Newest items of a history that are read.")
        learning_rate: float = 0.003

    def prompts(self, cases):
        return super().prompts(self.newest(cases))

    def examples(self, epoch):
        return self.texts_of(self.newest(self.split.train))

    def newest(self, cases):
        begin = np.maximum(cases.begin, cases.end - self.config["recent"])
        return replace(cases, begin=begin)
