"""How settings look as YAML."""

import inspect
import json
import textwrap
from collections.abc import Iterable, Mapping
from decimal import Decimal

import yaml

from . import schema, spellings

WIDTH = 100  # of a line
COLUMN = 32  # where the type of a value begins
BEGINNING = (
    "For a language model with pretrained weights: a hub id, folder or package, or a run that "
    "began with one."
)


def flow(value: object) -> str:
    """Write a value as YAML on one line."""
    if value is None:
        return "~"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        text = format(Decimal(repr(value)), "f")
        return text if "." in text else f"{text}.0"
    if isinstance(value, list):
        return f"[{', '.join(map(flow, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{flow(name)}: {flow(one)}' for name, one in value.items())}}}"
    return _text(value) if isinstance(value, str) else str(value)


def yaml_of(settings: type[schema.ModelSettings], origin: str) -> str:
    """Write the settings of a class as a YAML file with their types and help.

    Parameters
    ----------
    settings : type
    origin : str
        The file of the class, which the header names.
    """
    lines = [f"# python run_recbole_llm.py {settings.example}", *_comment(notes(settings))]
    lines += ["#", "# Written by `python -m recbole_llm.settings.write` from", f"# {origin}."]
    described = schema.settings_of(settings)
    section = None
    for setting in described:
        if setting.section != section:
            section = setting.section
            lines += ["", f"# --- {section} ---"] if section else [""]
        lines += setting_lines(setting)
    pretrained = {one.name: one.pretrained for one in described if one.pretrained}
    if pretrained:
        lines += ["", *_comment([BEGINNING]), "pretrained:"]
    for name, other in pretrained.items():
        lines += [*_comment([other.help], "  "), f"  {name}: {flow(other.value)}"]
    return "\n".join(lines) + "\n"


def commented(
    settings: Mapping[str, object], classes: Iterable[type[schema.ModelSettings]], indent: str = ""
) -> str:
    """Write settings of a run as YAML, with the type and the help of each that a class describes.

    Parameters
    ----------
    settings : mapping
        Settings and their values.
    classes : iterable of type
        The classes that describe them; of two that describe one setting, the later holds.
    indent : str
        What each line begins with.
    """
    described: dict[str, schema.Setting] = {}
    for one in classes:
        described |= {setting.name: setting for setting in schema.settings_of(one)}
    lines: list[str] = []
    for name in sorted(settings):
        if name in described:
            lines += _comment([f"({described[name].rule}) {described[name].help}".strip()], indent)
        text = yaml.safe_dump({name: settings[name]}, allow_unicode=True, width=WIDTH)
        lines += [indent + line for line in text.splitlines()]
    return "\n".join(lines) + "\n"


def notes(settings: type[schema.ModelSettings]) -> list[str]:
    """Lines of the docstring of a class, which say what its model or command is."""
    return inspect.cleandoc(vars(settings)["__doc__"]).splitlines()


def setting_lines(setting: schema.Setting, indent: str = "") -> list[str]:
    """Write a setting as YAML, its help above it and its type behind it."""
    lines = _comment(filter(None, [setting.help]), indent)
    value = setting.default
    if setting.spelled_out:
        lines.append(f"{indent}{setting.name}:")
        for inner in setting.spelled_out:
            lines += setting_lines(inner, f"{indent}  ")
        return lines
    line = f"{indent}{setting.name}: {flow(value)}"
    if len(line) <= WIDTH or not isinstance(value, dict):
        return lines + _with_type(line, setting, indent)
    lines += _with_type(f"{indent}{setting.name}:", setting, indent)
    return lines + [f"{indent}  {flow(name)}: {flow(one)}" for name, one in value.items()]


def _with_type(line: str, setting: schema.Setting, indent: str) -> list[str]:
    """A line with the type of its value behind it, or above it where the line would be too long."""
    full = f"{line:<{COLUMN - 1}} # {setting.rule}"
    return [full] if len(full) <= WIDTH else [f"{indent}# ({setting.rule})", line]


def _comment(paragraphs: Iterable[str], indent: str = "") -> list[str]:
    lines: list[str] = []
    for paragraph in paragraphs:
        lines += textwrap.wrap(
            paragraph,
            WIDTH,
            initial_indent=f"{indent}# ",
            subsequent_indent=f"{indent}# ",
            break_long_words=False,
            break_on_hyphens=False,
        ) or [f"{indent}#"]
    return lines


def _text(value: str) -> str:
    """A text without quotes where YAML reads it as the same text, also inside a list."""
    try:
        read = [yaml.load(text, spellings.Loader) for text in (f"[{value}]", f"{value}")]
    except yaml.YAMLError:
        read = []
    is_plain = read == [[value], value] and "#" not in value and ": " not in value
    return value if is_plain else json.dumps(value, ensure_ascii=False)
