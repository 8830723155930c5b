"""Settings of each model: a class in the module of the model's name, in lower case."""

import importlib
from functools import lru_cache

from .. import registry
from ..schema import ModelSettings

STOCK = ("Pop", "RepeatNet", "S3Rec")  # models of RecBole with settings of ours


@lru_cache
def find(model: str) -> type[ModelSettings] | None:
    """Return the settings of a model of this package, or those that we add to one of RecBole's.

    Parameters
    ----------
    model : str
        Name of the class.

    Returns
    -------
    type or None
        None where RecBole's own settings are all.
    """
    if model not in registry.OURS and model not in STOCK:
        return None
    name = "stock" if model in STOCK else model.lower()
    module = importlib.import_module(f"{__name__}.{name}")
    settings: type[ModelSettings] = getattr(module, f"{model}Settings")
    return settings


def classes() -> list[type[ModelSettings]]:
    """Return the settings of all models that have some of ours."""
    known = [find(model) for model in (*registry.OURS, *STOCK)]
    return [settings for settings in known if settings is not None]
