"""What `recbole-llm help` says of the settings of a model or a command."""

import inspect
import textwrap
from collections.abc import Iterable

from . import registry, schema
from .defaults import model_defaults, rules_of
from .harness import HarnessSettings
from .recbole_keys import RecBoleSettings
from .rendering import WIDTH, flow, notes

MORE = "Settings of every model: recbole-llm help settings"


def model_help(name: str) -> str:
    """Describe a model and its settings.

    Parameters
    ----------
    name : str
        A name in any spelling, or "module:Class".

    Raises
    ------
    UserError
        For a model that there is not, with the nearest names.
    """
    spec = registry.find(name)
    parts = [f"--model={spec.key}"]
    if spec.guest and (written := vars(spec.load()).get("__doc__")):
        parts.append(inspect.cleandoc(written).partition("\n\n")[0])
    of_recbole = model_defaults(spec.key) if not spec.is_text else {}
    if spec.settings is not None:
        parts.append(settings_help(spec.settings))
    elif spec.read_keys:
        parts.append(f"Settings that its source reads: {', '.join(sorted(spec.read_keys))}")
    elif not of_recbole:
        parts.append("It has no settings of its own.")
    if of_recbole:
        known = rules_of(spec)
        lines = ["Settings of RecBole for this model"]
        for key, value in of_recbole.items():
            kind = f"   ({known[key]})" if key in known else ""
            lines.append(f"  --{key}={flow(value)}{kind}")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, MORE])


def shared_help() -> str:
    """Describe the settings of every model, and RecBole's keys."""
    return "\n\n".join([settings_help(HarnessSettings), settings_help(RecBoleSettings)])


def settings_help(settings: type[schema.ModelSettings]) -> str:
    """Describe the settings of a class in its sections: default, type, meaning."""
    lines = notes(settings) if vars(settings).get("__doc__") else []
    section = None
    for setting in schema.settings_of(settings):
        if setting.section != section:
            section = setting.section
            lines += ["", section or "Settings"]
        lines += _described(setting, "")
    return "\n".join(lines).strip()


def models_help() -> str:
    """Name all models."""
    stock = ", ".join(sorted(registry.stock_models()))
    kinds = {"Models": ", ".join(registry.OURS), "RecBole's": stock}
    if installed := registry.installed_models():
        kinds["Of installed packages"] = ", ".join(sorted(installed))
    kinds["Your own"] = "module:Class, such as my_models:TwoTower (docs/extending.md)"
    lines: list[str] = []
    for kind, names in kinds.items():
        lines += _wrapped(f"{kind}: {names}", "", "  ")
    return "\n".join(lines)


def _described(setting: schema.Setting, above: str) -> Iterable[str]:
    meaning = setting.help
    if setting.pretrained:
        value = flow(setting.pretrained.value)
        meaning += f" For pretrained weights {value}: {setting.pretrained.help}"
    value = "" if setting.spelled_out else f"={flow(setting.default)}"
    yield from _wrapped(f"--{above}{setting.name}{value}   ({setting.rule})", "  ", " " * 4)
    yield from _wrapped(meaning, " " * 6, " " * 6)
    for inner in setting.spelled_out:
        yield from _described(inner, f"{above}{setting.name}.")


def _wrapped(text: str, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )
