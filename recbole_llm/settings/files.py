"""Where the files that ship with the package live: `properties/` and the bundled sample."""

from functools import lru_cache
from pathlib import Path

from ..errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
SAMPLE = PACKAGE / "data" / "sample"


@lru_cache
def properties() -> Path:
    """Folder with overall.yaml, model/, dataset/ and experiment/.

    In a wheel it is package data (`recbole_llm/properties`); in a checkout or an editable
    install it is the folder beside the package.
    """
    for folder in (PACKAGE / "properties", PACKAGE.parent / "properties"):
        if (folder / "overall.yaml").is_file():
            return folder
    raise UserError(
        f"properties/overall.yaml not found in {PACKAGE} nor beside it: the installation is "
        "incomplete; "
        "run `pip install --force-reinstall recbole_llm`"
    )
