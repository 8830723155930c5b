"""All settings of a run, from the model, the data set, the user's files and the command line."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from ..errors import UserError
from . import registry, schema, spellings
from .applying import check_keys
from .beginnings import beginning, fitting
from .commands import COMMANDS
from .defaults import (
    FEATURES,
    check_groups,
    default_settings,
    foreign_features,
    of_one_model,
    own_layers,
)
from .harness import HarnessSettings
from .merging import heads, merge
from .reading import Layer, Settings, read_yaml
from .recbole_keys import REPLACED, SHARED
from .rules import check_name, checked
from .stages import with_stages

File = str | Mapping[str, Any]  # the path of a settings file, or what it would hold


def resolve(
    model: str,
    dataset: str,
    files: Sequence[File] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Return all settings of one run.

    Parameters
    ----------
    model, dataset : str
    files : sequence of str or mapping
        YAML files, or what they would hold.
    overrides : mapping, optional
        Dotted keys reach into dicts (`eval_args.mode`).

    Raises
    ------
    UserError
        For an unknown model or key, with the nearest names, and for a value that cannot be.
    """
    model = registry.canonical(model)
    check_name(dataset)
    layers = [*(_read_settings(file, model, dataset) for file in files), overrides or {}]
    prepared = _prepared_file(model, dataset, layers)
    if prepared is None:
        return _resolved(model, dataset, [], layers)
    content = read_yaml(prepared)
    try:
        check_groups(content)
    except UserError as error:
        raise UserError(f"{prepared}: {error}") from None
    of_data = of_one_model(content, model)
    for layer, key in product(of_data, foreign_features(model)):
        layer.pop(key, None)
    try:
        return _resolved(model, dataset, of_data, layers)
    except UserError as error:
        _resolved(model, dataset, [], layers)  # which raises what the user's own layers do wrong
        raise UserError(f"{prepared}: {error}") from None


def plan(
    models: Sequence[str],
    dataset: str,
    files: Sequence[File] = (),
    overrides: Mapping[str, Any] | None = None,
    of_models: Mapping[str, Mapping[str, Any]] | None = None,
    seeds: Sequence[Any] | None = None,
) -> dict[str, list[Settings]]:
    """Return the settings of a comparison.

    Parameters
    ----------
    models : sequence of str
    dataset : str
    files, overrides
        See :func:`resolve`.
    of_models : mapping, optional
        Model: settings of that model alone.
    seeds : sequence of int, optional
        The setting `seeds` where not given.

    Returns
    -------
    dict
        Model: settings for each seed.

    Raises
    ------
    UserError
        For a seed that is given twice, and as :func:`resolve` does.
    """
    planned: dict[str, list[Settings]] = {}
    for model in models:
        settings = dict(overrides or {}) | dict((of_models or {}).get(model, {}))
        resolved = resolve(model, dataset, files, settings)
        chosen = seeds or resolved["seeds"]
        if not chosen:
            planned[model] = [resolved]
            continue
        planned[model] = [
            resolve(model, dataset, files, settings | {"seed": seed}) for seed in chosen
        ]
        counts = Counter(one["seed"] for one in planned[model])
        for seed, count in counts.items():
            if count > 1:
                raise UserError(
                    f"seeds: expected different ones, found {seed} {count} times; a table takes "
                    "each run once"
                )
    return planned


def of_command(
    command: str, files: Sequence[str], overrides: Mapping[str, Any]
) -> tuple[Settings, list[Settings]]:
    """Split what a command of several runs is given.

    Parameters
    ----------
    command : str
        One of :data:`recbole_llm.settings.commands.COMMANDS`.
    files : sequence of str
        Paths of settings files.
    overrides : mapping
        The command line.

    Returns
    -------
    settings : dict
        Of the command itself.
    layers : list of dict
        For its runs.

    Raises
    ------
    UserError
        For a setting of the command that cannot be.
    """
    rules = schema.rules(COMMANDS[command])
    default = schema.defaults(COMMANDS[command])
    pretrained = schema.layer(COMMANDS[command]).get("pretrained", {})
    settings = copy.deepcopy(default)
    layers: list[Settings] = []
    set_by_user: set[str] = set()
    given = [Layer(read_yaml(Path(path)), str(path)) for path in files]
    for layer in [*given, Layer(overrides)]:
        mine = {key: value for key, value in layer.items() if key.partition(".")[0] in default}
        others = {key: value for key, value in layer.items() if key not in mine}
        layers.append(Layer(others, layer.source))
        check_keys(mine, set(default), default)
        merge(settings, mine)
        for key in heads(mine):
            settings[key] = checked(key, settings[key], rules, default.get(key))
            set_by_user.add(key)
    of_runs = settings.get("run", {})
    if beginning([of_runs, *layers]) == "pretrained":
        settings |= {key: value for key, value in pretrained.items() if key not in set_by_user}
    return {key: value for key, value in settings.items() if key != "run"}, [of_runs, *layers]


def changed(stored: Settings, overrides: Mapping[str, Any], files: Sequence[File] = ()) -> Settings:
    """Return the settings of a stored run with some of them changed."""
    layers = [
        *(_read_settings(file, stored["model"], stored["dataset"]) for file in files),
        overrides,
    ]
    for name in ("model", "dataset"):
        if any(name in layer for layer in layers):
            raise UserError(f"{name}: a run keeps its own, which is {stored[name]}")
    return with_stages(layers, copy.deepcopy(stored))


def moved(stored: Settings, dataset: str) -> Settings:
    """Return the settings of a stored run for another data set.

    What says of the data what they are, and was the old data set's default, becomes the new one's.
    What was chosen for the model stays (learner, weights of losses, epochs, …): one run has one
    training objective.
    """
    # features of the data set, which the other one need not name
    features = {key: stored[key] for key in FEATURES if stored[key]}
    old, new = (
        resolve(stored["model"], name, [], features | {"data_path": stored["data_path"]})
        for name in (stored["dataset"], dataset)
    )
    chosen = _chosen_for_model(stored["model"], dataset)
    return stored | {
        key: new[key]
        for key in new
        if key in stored and key not in chosen and stored[key] == old[key]
    }


def shown(settings: Settings) -> Settings:
    """Return those settings that can be set.

    The others stay at RecBole's values, which RecBole's classes read.
    """
    return {key: value for key, value in settings.items() if key not in REPLACED}


def shared_settings(settings: Settings) -> Settings:
    """Return those settings of a run that another model beside it must share.

    They are of data, split, evaluation and seed. Which cut-offs there are is shared, so the choice
    among them must be; how `valid_metric` treats ties is the model's.
    """
    of_one_model = schema.names_with(schema.Trait.PER_MODEL, HarnessSettings)
    names = schema.defaults(HarnessSettings).keys() - of_one_model | SHARED
    shared = {key: value for key, value in settings.items() if key in names}
    return shared | {"valid_metric": spellings.without_ties(settings["valid_metric"])}


def _resolved(
    model: str,
    dataset: str,
    of_data: Sequence[Mapping[str, Any]],
    layers: Sequence[Mapping[str, Any]],
) -> Settings:
    """:func:`resolve`, with the layers that lie beside the data."""
    given = [*of_data, *layers]
    settings = default_settings(model, dataset, given)
    begins = beginning([settings, *given])
    return with_stages([*fitting(of_data, begins), *layers], settings)


def _prepared_file(model: str, dataset: str, layers: Sequence[Mapping[str, Any]]) -> Path | None:
    """The settings that were written with the data; None where there is no such file."""
    given = [layer["data_path"] for layer in layers if "data_path" in layer]
    data_path = given[-1] if given else default_settings(model, dataset)["data_path"]
    folder = Path(str(spellings.of_value("data_path", data_path))) / dataset
    path = folder / f"{dataset}.yaml"
    # without events the preparation was killed after it had written this file
    is_prepared = (folder / f"{dataset}.inter").is_file() and path.is_file()
    return path if is_prepared else None


def _read_settings(file: File, model: str, dataset: str) -> Layer:
    """A user's settings; they may name the model and the data set, as --print_config does."""
    layer = Layer(file) if isinstance(file, Mapping) else Layer(read_yaml(Path(file)), str(file))
    for key, expected in (("model", model), ("dataset", dataset)):
        name = str(layer.pop(key, expected))
        if (registry.canonical(name) if key == "model" else name) != expected:
            raise UserError(
                f"{file}: its {key} is {name}, but {expected} is asked for; leave one out"
            )
    return layer


def _chosen_for_model(model: str, dataset: str) -> set[str]:
    """Settings of a model's class that another data set does not change."""
    _, of_model, *_ = own_layers(model, dataset)
    names = {*of_model, *of_model.get("pretrained", {})} - {"pretrained"}
    settings = registry.find(model).settings
    about_data = schema.names_with(schema.Trait.ABOUT_DATA, *([settings] if settings else []))
    return names - schema.defaults(HarnessSettings).keys() - about_data
