"""The settings of a run before the user's: RecBole's, the harness's, a model's, a data set's.

RecBole's are in its YAML files, a data set's in properties/dataset, all others in classes.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..contracts.model_spec import ModelSpec
from ..errors import UserError
from . import files, registry, schema
from .beginnings import BEGINNINGS, beginning, fitting
from .harness import HarnessSettings
from .merging import merge
from .reading import Settings, cached_yaml
from .recbole_keys import RecBoleSettings
from .rules import Rule

FEATURES = ("selected_features", "item_attribute")


def rules_of(spec: ModelSpec) -> dict[str, Rule]:
    """Return the rules for a model's settings: RecBole's, the harness's, the model's own."""
    rules = schema.rules(RecBoleSettings) | schema.rules(HarnessSettings)
    return rules | schema.rules(spec.settings) if spec.settings else rules


def group_keys(models: Iterable[str] = ()) -> set[str]:
    """Return the settings of all our models, and of some others, that take dotted names."""
    specs = [registry.find(model) for model in (*registry.OURS, *models)]
    keys: set[str] = set()
    for spec in specs:
        rules = rules_of(spec)
        keys.update(key for key, rule in rules.items() if rule.kind in ("dict", "group"))
    return {key for key in keys if "." not in key}


def default_settings(model: str, dataset: str, given: Sequence[Mapping[str, Any]] = ()) -> Settings:
    """Return all settings of a run before the user's, and before those written with the data.

    Parameters
    ----------
    model, dataset : str
    given : sequence of mapping
        The layers that come over these; they decide which language model the defaults are for.
    """
    settings: Settings = {}
    for layer in [*stock_layers(model), *our_layers(model, dataset, given)]:
        merge(settings, layer)
    if registry.find(model).family == "general":
        # true would let RecBole draw training negatives among the positives
        settings["repeatable"] = False
    names = {"model": model, "dataset": dataset}
    return settings | dict.fromkeys(foreign_features(model)) | names


def our_layers(model: str, dataset: str, given: Sequence[Mapping[str, Any]] = ()) -> list[Settings]:
    """Return the layers of the harness, the model and the dataset.

    A dataset's file may hold a group for one model under its name. Each layer may hold a group
    `scratch` and one `pretrained`: settings that hold for language models which begin so.

    Parameters
    ----------
    model, dataset : str
    given : sequence of mapping
        Layers that come over these, which may name the language model.
    """
    layers = own_layers(model, dataset)
    return fitting(layers, beginning([*layers, *given]))


def own_layers(model: str, dataset: str) -> list[Settings]:
    """Return the layers of the harness, the model and the dataset with their groups."""
    settings = registry.find(model).settings
    of_model = schema.layer(settings) if settings else {}
    of_dataset = cached_yaml(files.properties() / "dataset" / f"{dataset}.yaml")
    grouped = of_one_model(copy.deepcopy(of_dataset), model)
    return [schema.layer(HarnessSettings), of_model, *grouped]


def of_one_model(content: Settings, model: str) -> list[Settings]:
    """Split a dataset's settings: those for all models, and over them its group for one."""
    groups = {name: content.pop(name) for name in list(content) if name in registry.OURS}
    return [content, groups.get(model) or {}]


def check_groups(content: Mapping[str, Any]) -> None:
    """Raise UserError if a dataset's settings have no group under the name of one."""
    for name in (*registry.OURS, *BEGINNINGS):
        group = content.get(name)
        if group is not None and not isinstance(group, dict):
            raise UserError(f"{name}: expected a group of settings, found {group!r}")
        if group and name in registry.OURS:
            try:
                check_groups({key: group.get(key) for key in BEGINNINGS})
            except UserError as error:
                raise UserError(f"{name}.{error}") from None


def stock_layers(model: str) -> list[Settings]:
    """Return RecBole's overall, model, sample and model-type properties, in its order."""
    folder = registry.recbole_folder() / "properties"
    family = registry.find(model).family
    by_type = {
        "text": "sequential",
        "sequential": "sequential",
        "context_aware": "context-aware",
    }.get(family)
    paths = [
        folder / "overall.yaml",
        _model_file(model),
        folder / "dataset" / "sample.yaml",
    ]
    if by_type:
        paths.append(folder / "quick_start_config" / f"{by_type}.yaml")
    return [copy.deepcopy(cached_yaml(path)) for path in paths]


def stock_defaults(model: str) -> Settings:
    """Return RecBole's own settings of one of its models."""
    settings: Settings = {}
    for layer in stock_layers(model):
        settings |= layer
    return settings


def model_defaults(model: str) -> Settings:
    """Return what RecBole's own file of a model sets."""
    return copy.deepcopy(cached_yaml(_model_file(model)))


def feature_keys(model: str) -> list[str]:
    """Return the settings by which a model of RecBole is told which item columns it reads."""
    of_model = cached_yaml(_model_file(model))
    return [key for key in FEATURES if key in of_model]


def foreign_features(model: str) -> list[str]:
    """Return the settings of FEATURES that a model would only carry along: it reads no columns."""
    return [key for key in FEATURES if key not in feature_keys(model)]


def _model_file(model: str) -> Path:
    return registry.recbole_folder() / "properties" / "model" / f"{model}.yaml"
