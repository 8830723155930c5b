"""The user's layers over the defaults: every key known, every value checked."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UserError
from . import registry, spellings
from .consistency import check_columns
from .defaults import rules_of
from .merging import heads, merge
from .reading import Layer, Settings, source_of
from .recbole_keys import REPLACED, UNLISTED
from .rules import checked, nearest

# Arguments of the command line, beside settings.
ARGUMENTS = {"config_files", "print_config"}


def apply(layers: Sequence[Mapping[str, Any]], settings: Settings) -> None:
    """Put the user's layers over settings, in place.

    Parameters
    ----------
    layers : sequence of mapping
    settings : dict
        They say which keys there are and what kind each is.

    Raises
    ------
    UserError
        With every setting of all layers that cannot be taken, a line each.
    """
    spec = registry.find(settings["model"])
    known = (set(settings) | UNLISTED | spec.read_keys) - {"model", "dataset"}
    default, rules = copy.deepcopy(settings), rules_of(spec)
    mistakes: list[str] = []
    for given in layers:
        layer, wrong = _effective(given, known, default)
        mistakes += wrong
        merge(settings, layer)
        for key in heads(layer):
            value = spellings.of_value(key, settings[key])
            try:
                settings[key] = checked(key, value, rules, default.get(key))
            except UserError as error:
                mistakes.append(_placed(layer, str(error)))
                settings[key] = copy.deepcopy(default.get(key))
    refuse(mistakes)
    check_columns(settings, default)


def refuse(mistakes: Sequence[str]) -> None:
    """Raise UserError for settings that cannot be taken, a line each, if there are any."""
    if len(mistakes) > 1:
        lines = "\n  ".join(mistakes)
        raise UserError(f"{len(mistakes)} settings cannot be taken:\n  {lines}")
    if mistakes:
        raise UserError(mistakes[0])


def check_keys(layer: Mapping[str, Any], known: set[str], default: Mapping[str, Any]) -> None:
    """Raise UserError for a key that there is not, with the nearest.

    Parameters
    ----------
    layer : mapping
    known : set of str
    default : mapping
        Keys with dots reach only into settings that are groups here.
    """
    for key in layer:
        head, _, rest = str(key).partition(".")
        if head not in known and (newer := spellings.OLD.get(head)):
            raise UserError(f"key {head!r} is of RecBole before 1.0: {newer}")
        if head not in known:
            raise UserError(f"unknown key {head!r}: {_hint(head, known)}")
        if rest and not isinstance(default.get(head), dict | None):
            kind = type(default[head]).__name__
            raise UserError(f"key {key!r}: {head} is a {kind}, not a group of keys")


def _hint(key: str, known: set[str]) -> str:
    """What to type in place of a key that the model does not have."""
    owners = registry.models_with(key)
    if owners:
        names = " and ".join(owners)
        return f"it is a setting of {names}; in a table of several set --{owners[0]}.{key}"
    near = nearest(key, known - REPLACED.keys() | ARGUMENTS).removeprefix("; ")
    return near or "run with --print_config to see all keys"


def _effective(
    layer: Mapping[str, Any], known: set[str], default: Mapping[str, Any]
) -> tuple[Layer, list[str]]:
    """A layer without the keys that have no effect here, and what is wrong with its other keys."""
    effective: Settings = {}
    mistakes: list[str] = []
    for key, value in layer.items():
        head = str(key).partition(".")[0]
        if head in REPLACED:
            if value != default.get(head) and value not in (None, "None"):
                reason = f"key {head!r} has no effect here: {REPLACED[head]}"
                spellings.warn(_placed(layer, reason))
            continue
        try:
            check_keys({key: value}, known, default)
            effective[key] = value
        except UserError as error:
            mistakes.append(_placed(layer, str(error)))
    return Layer(effective, source_of(layer)), mistakes


def _placed(layer: Mapping[str, Any], message: str) -> str:
    """A message with the file that it is about, if it is about one."""
    source = source_of(layer)
    return f"{source}: {message}" if source else message
