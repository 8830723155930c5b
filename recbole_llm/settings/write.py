"""Write the files that follow from the classes of settings: YAML and docs/settings.md.

    python -m recbole_llm.settings.write [FOLDER]

FOLDER is the checkout, by default that of this package.
"""

import inspect
import sys
from pathlib import Path

from ..storage.screen import say
from . import model_settings, registry, schema
from .commands import COMMANDS
from .files import PACKAGE
from .harness import HarnessSettings
from .reference import markdown
from .rendering import yaml_of


def written_files() -> dict[str, str]:
    """Return the path of each file, from the root of the checkout, and its content."""
    contents = {"properties/overall.yaml": _yaml(HarnessSettings)}
    for command, settings in COMMANDS.items():
        contents[f"properties/{command}.yaml"] = _yaml(settings)
    for model in (*registry.OURS, *model_settings.STOCK):
        of_model = model_settings.find(model)
        if of_model is not None:
            contents[f"properties/model/{model}.yaml"] = _yaml(of_model)
    return contents | {"docs/settings.md": markdown()}


def main(folder: Path) -> None:
    """Write all files below a folder, and name those that change."""
    for name, content in written_files().items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
            say(f"written: {path}")


def _yaml(settings: type[schema.ModelSettings]) -> str:
    origin = Path(inspect.getfile(settings)).resolve().relative_to(PACKAGE.parent)
    return yaml_of(settings, origin.as_posix())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE.parent)
