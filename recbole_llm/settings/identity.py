"""What makes two runs the same."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from . import model_settings, recbole_keys, registry, schema
from .harness import HarnessSettings
from .reading import Settings

# Settings that decide where, how fast and beside whom a run is made, not what it computes: they do
# not make another run of it.
NOT_IN_HASH = recbole_keys.OUTSIDE_IDENTITY | schema.names_with(
    schema.Trait.OUTSIDE_IDENTITY,
    recbole_keys.RecBoleSettings,
    HarnessSettings,
    *model_settings.classes(),
)


def settings_hash(settings: Settings, **extra: object) -> str:
    """Return 8 hex digits over everything that can change a result."""
    spec = registry.find(settings["model"])
    left_out = set(NOT_IN_HASH)
    if spec.is_text:
        left_out.add("MAX_ITEM_LIST_LENGTH")  # text models read whole histories
    if not settings.get("datasets"):
        left_out.add("mixture_exponent")
    if not reads_text_vectors(settings):
        left_out.add("text_encoder")
    classes: list[Any] = [HarnessSettings, spec.settings]
    for described in filter(None, classes):
        default = schema.defaults(described)
        for name in schema.names_with(schema.Trait.CAME_LATER, described):
            if settings.get(name) == default[name]:
                left_out.add(name)
    return digest({key: value for key, value in settings.items() if key not in left_out} | extra)


def reads_text_vectors(settings: Mapping[str, Any]) -> bool:
    """Whether a run reads vectors of `text_encoder`."""
    of_model = registry.find(settings["model"]).settings
    has_encoder = of_model is not None and "text_encoder" in of_model.model_fields
    return has_encoder or settings.get("item_features", "id") != "id"


def digest(value: object) -> str:
    """Return 8 hex digits over anything that JSON can say."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
