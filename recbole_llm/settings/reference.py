"""The reference of all settings, docs/settings.md."""

from collections.abc import Iterable

from . import model_settings, registry, schema
from .commands import COMMANDS
from .harness import HarnessSettings
from .recbole_keys import RecBoleSettings
from .rendering import flow, notes

INTRODUCTION = """# Settings

Written from the classes in `recbole_llm/settings/` by `python -m recbole_llm.settings.write`; a
change belongs there. The same is told by `recbole-llm help NAME`, for a model or a command.

A setting is `--key=value` on the command line, `key: value` in a file that `--config_files=FILE`
names, or an argument of `recbole_llm.run`. A dot reaches into a group: `--eval_args.mode=uni20`.
Later ones come over earlier ones: RecBole's own properties, those of the harness, of the model, of
the data set (`properties/dataset/`, and the file that was written with the data), your files in
their order, the command line. `--print_config` shows what comes out.

A type such as `float, > 0` says what a value may be; `~` is null, for "not set". A list may be
given as a single value or as `1,5,10`.
"""
TABLE = "| setting | type | default | meaning |\n| --- | --- | --- | --- |"


def markdown() -> str:
    """Write the reference of all settings."""
    parts = [INTRODUCTION, "## All models", *_sections(HarnessSettings, "###")]
    parts += ["## RecBole's keys", *_sections(RecBoleSettings, "###")]
    parts.append("## Models")
    for model in (*registry.OURS, *model_settings.STOCK):
        settings = model_settings.find(model)
        if settings is not None:
            parts += [f"### {model}", f"`--model={model}`", *_sections(settings, "####")]
    parts.append("## Commands")
    for command, settings in COMMANDS.items():
        parts += [f"### {command}", f"`{settings.example}`", *_sections(settings, "####")]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _sections(settings: type[schema.ModelSettings], heading: str) -> list[str]:
    parts = [_escaped("\n".join(notes(settings)))]
    sections: dict[str, list[str]] = {}
    for setting in schema.settings_of(settings):
        sections.setdefault(setting.section, []).extend(_rows(setting, ""))
    for section, rows in sections.items():
        parts += [f"{heading} {section}"] if section else []
        parts.append("\n".join([TABLE, *rows]))
    return parts


def _rows(setting: schema.Setting, above: str) -> Iterable[str]:
    """A row of the table for a setting, and one for each setting inside it."""
    meaning = setting.help
    if setting.pretrained:
        value = flow(setting.pretrained.value)
        meaning += f" `{value}` for pretrained weights: {setting.pretrained.help}"
    default = "" if setting.spelled_out else f"`{flow(setting.default)}`"
    cells = [f"`{above}{setting.name}`", str(setting.rule), default, meaning]
    yield f"| {' | '.join(_escaped(cell) for cell in cells)} |"
    for inner in setting.spelled_out:
        yield from _rows(inner, f"{above}{setting.name}.")


def _escaped(text: str) -> str:
    """A text without what Markdown would read as the border of a cell or as a tag."""
    return text.replace("|", "\\|").replace("<", "&lt;")
