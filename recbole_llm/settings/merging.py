"""How one layer of settings comes over another."""

import copy
from collections.abc import Mapping
from typing import Any

from . import schema
from .harness import HarnessSettings
from .reading import Settings

# Settings that are given in part, the rest stays; any other dict is replaced as a whole.
MERGED = schema.names_with(schema.Trait.MERGED, HarnessSettings)


def merge(settings: Settings, layer: Mapping[str, Any], inside: str = "") -> None:
    """Put a layer over settings, in place.

    Dotted keys and MERGED groups reach inside, any other value replaces. A split is one rule, so
    naming another replaces it even by a dotted key.

    Parameters
    ----------
    settings : dict
    layer : mapping
    inside : str
        The group that both are in.
    """
    for key, value in layer.items():
        head, _, rest = str(key).partition(".")
        if rest:
            value = {rest: value}
        reaches = rest or head in MERGED or inside == "stage_settings"
        if not (reaches and head != "split" and isinstance(value, dict)):
            settings[head] = copy.deepcopy(value)
            continue
        group = settings.get(head)
        settings[head] = copy.deepcopy(group) if isinstance(group, dict) else {}
        if inside == "stage_settings":
            # a stage is a layer itself: its dotted keys reach into the settings of the run
            for name in value:
                settings[head].pop(name, None)
            settings[head] |= copy.deepcopy(value)
        else:
            merge(settings[head], value, inside=head)


def heads(layer: Mapping[str, Any]) -> list[str]:
    """Return the settings that the keys of a layer are of or reach into."""
    return list(dict.fromkeys(str(key).partition(".")[0] for key in layer))
