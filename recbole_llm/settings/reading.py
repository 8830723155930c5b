"""Settings as users write them: YAML files, and values on the command line."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError
from . import spellings

Settings = dict[str, Any]


class Layer(Settings):
    """Settings of one source: a file, the command line, a Python call.

    Attributes
    ----------
    source : str
        What stands before a message about one of them; empty for the command line.
    """

    def __init__(self, values: Mapping[str, Any], source: str = "") -> None:
        super().__init__(values)
        self.source = source


def source_of(layer: Mapping[str, Any]) -> str:
    """Return where a layer comes from; see :class:`Layer`."""
    return str(getattr(layer, "source", ""))


def read_yaml(path: Path) -> Settings:
    """Read a settings file.

    Raises
    ------
    UserError
        If there is none, or if it holds anything but `key: value` lines.
    """
    if not path.is_file():
        several = "; several are separated by spaces" if set(str(path)) & set(",;[]") else ""
        raise UserError(f"settings file {path} not found{several}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), spellings.Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected `key: value` lines, found a {type(content).__name__}")
    return content


@lru_cache
def cached_yaml(path: Path) -> Settings:
    """Read a file that ships with a package; a file that is not there holds nothing."""
    return read_yaml(path) if path.is_file() else {}


def parse_value(text: str) -> Any:
    """Read a value of the command line: YAML, and plain text where that is no YAML.

    A single sign such as `,` or a space is that sign.
    """
    if len(text) == 1 and not text.isalnum() and text != "~":
        return text
    try:
        return yaml.load(text, spellings.Loader)
    except yaml.YAMLError:
        return text
