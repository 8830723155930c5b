"""Text models, and everything that a user's own model needs, by one import.

    from recbole_llm.models import Field, Trainable, TrainingSettings, VectorModel

See docs/extending.md.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import Field

    from ..contracts.cases import Cases
    from ..contracts.models import ContrastiveTrainable, Scorer, Trainable
    from ..evaluation.ranks import UNNAMED
    from ..language.tokens.batches import Batch, Tokens
    from ..settings.groups import (
        BackboneSettings,
        GenerationSettings,
        LoraSettings,
        TextEncoderSettings,
        TrainingSettings,
    )
    from ..settings.schema import ModelSettings
    from .base.backbone_model import BackboneModel
    from .base.generative_model import GenerativeModel
    from .base.pointwise_model import CandidateJudge
    from .base.sentence_model import SentenceModel
    from .base.text_model import TextModel
    from .base.token_training import TokenTrainable
    from .base.vector_model import VectorModel

# name -> its module, which is imported when the name is used: language models load slowly
PLACES = {
    "Field": "pydantic",
    "Cases": "recbole_llm.contracts.cases",
    "ContrastiveTrainable": "recbole_llm.contracts.models",
    "Scorer": "recbole_llm.contracts.models",
    "Trainable": "recbole_llm.contracts.models",
    "UNNAMED": "recbole_llm.evaluation.ranks",
    "BackboneSettings": "recbole_llm.settings.groups",
    "GenerationSettings": "recbole_llm.settings.groups",
    "LoraSettings": "recbole_llm.settings.groups",
    "TextEncoderSettings": "recbole_llm.settings.groups",
    "TrainingSettings": "recbole_llm.settings.groups",
    "ModelSettings": "recbole_llm.settings.schema",
    "BackboneModel": "recbole_llm.models.base.backbone_model",
    "GenerativeModel": "recbole_llm.models.base.generative_model",
    "CandidateJudge": "recbole_llm.models.base.pointwise_model",
    "SentenceModel": "recbole_llm.models.base.sentence_model",
    "TextModel": "recbole_llm.models.base.text_model",
    "TokenTrainable": "recbole_llm.models.base.token_training",
    "VectorModel": "recbole_llm.models.base.vector_model",
    "Batch": "recbole_llm.language.tokens.batches",
    "Tokens": "recbole_llm.language.tokens.batches",
}
__all__ = [
    "BackboneModel",
    "BackboneSettings",
    "Batch",
    "CandidateJudge",
    "Cases",
    "ContrastiveTrainable",
    "Field",
    "GenerationSettings",
    "GenerativeModel",
    "LoraSettings",
    "ModelSettings",
    "Scorer",
    "SentenceModel",
    "TextEncoderSettings",
    "TextModel",
    "TokenTrainable",
    "Tokens",
    "Trainable",
    "TrainingSettings",
    "UNNAMED",
    "VectorModel",
]


def __getattr__(name: str):
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(PLACES[name]), name)
