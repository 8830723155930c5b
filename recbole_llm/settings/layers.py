"""Settings of runs, as the rest of the package uses them.

RecBole's properties come first, ours over them, the user's over those, and every key is checked.
Everything but `recbole_config` is plain YAML, classes and dicts, so that a typo is told before
torch is loaded.
"""

from .beginnings import BEGINNINGS, beginning
from .consistency import check_whole
from .defaults import FEATURES, default_settings, our_layers
from .identity import NOT_IN_HASH, digest, settings_hash
from .language_models import asks_server, language_models, loads_summarizer, summarises
from .merging import MERGED
from .reading import Layer, parse_value, read_yaml
from .recbole_config import recbole_config, settings_of_config
from .recbole_keys import REPLACED, UNLISTED
from .resolving import changed, moved, of_command, plan, resolve, shared_settings, shown
from .stages import WHOLE

__all__ = [
    "BEGINNINGS",
    "FEATURES",
    "Layer",
    "MERGED",
    "NOT_IN_HASH",
    "REPLACED",
    "UNLISTED",
    "WHOLE",
    "asks_server",
    "beginning",
    "changed",
    "check_whole",
    "default_settings",
    "digest",
    "language_models",
    "loads_summarizer",
    "moved",
    "of_command",
    "our_layers",
    "parse_value",
    "plan",
    "read_yaml",
    "recbole_config",
    "resolve",
    "settings_hash",
    "settings_of_config",
    "shared_settings",
    "shown",
    "summarises",
]
