"""Stages: runs that are handed on, each with settings over those of the run that they belong to."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UserError
from . import model_settings, schema
from .applying import apply
from .consistency import check_features, finish
from .harness import HarnessSettings
from .merging import heads
from .reading import Settings
from .rules import nearest

# Settings of a run with stages, never of one stage.
WHOLE = {"model", "dataset"} | schema.names_with(
    schema.Trait.WHOLE_RUN, HarnessSettings, *model_settings.classes()
)


def with_stages(layers: Sequence[Mapping[str, Any]], default: Settings) -> Settings:
    """Return the settings of a run: the user's layers over the defaults, its stages over all that.

    Raises
    ------
    UserError
        For what cannot be taken, and for stages that there are not.
    """
    settings = copy.deepcopy(default)
    apply(layers, settings)
    whole = copy.deepcopy(settings)
    finish(settings, layers)
    check_features(settings)
    if variant := settings.get("variant"):
        if any(layer.get("stages") for layer in layers):
            raise UserError("variant and stages both say which stages there are; leave one out")
        settings["stages"] = list(settings["variants"][variant])
    stages = settings["stages"] or []
    known = list(dict.fromkeys([*(default["stage_settings"] or {}), *stages]))
    for name, stage in (settings["stage_settings"] or {}).items():
        if name not in known:
            names = ", ".join(known) or "(there is none)"
            raise UserError(
                f"stage_settings.{name}: expected one of the stages {names}{nearest(name, known)}"
            )
        settings["stage_settings"][name] = _stage(name, stage, whole, settings)
    for name in stages:
        if name not in (settings["stage_settings"] or {}):
            names = ", ".join(settings["stage_settings"] or {}) or "none"
            raise UserError(
                f"stages: expected some of {names}, which have stage_settings, found {name!r}"
            )
    return settings


def _stage(name: str, layer: object, whole: Settings, settings: Settings) -> Settings:
    """What a stage sets, checked like the settings of a run, and what follows from it."""
    if not isinstance(layer, dict):
        raise UserError(f"stage_settings.{name}: expected a group of settings, found {layer!r}")
    set_here = set(heads(layer))
    if of_run := set_here & WHOLE:
        raise UserError(
            f"stage_settings.{name}: {', '.join(sorted(of_run))} belongs to the whole run; set it "
            "outside the stage"
        )
    full = copy.deepcopy(whole)
    try:
        apply([layer], full)
        finish(full, [layer])
    except UserError as error:
        raise UserError(f"stage_settings.{name}: {error}") from None
    return {
        key: value
        for key, value in full.items()
        if key not in WHOLE and (key in set_here or value != settings[key])
    }
