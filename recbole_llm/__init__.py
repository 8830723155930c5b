"""LLM-based sequential recommenders in RecBole's harness.

Importing this package registers our models with RecBole lazily: it loads neither RecBole nor torch.
"""

__version__ = "0.1.0"

from typing import TYPE_CHECKING

from . import recbole_hooks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .runs.run import Run

__all__ = ["run"]

recbole_hooks.register()


def run(
    model: str | type,
    dataset: str,
    config_files: "Sequence[str | dict[str, Any]]" = (),
    **settings: "Any",
) -> "Run":
    """Train, evaluate and store one model.

    Parameters
    ----------
    model : str or type
        Name, "module:Class" or class.
    dataset : str
        Name of the dataset.
    config_files : sequence of str or dict
        YAML files, or what they would hold; the last of equal keys holds.
    **settings
        Settings over those of the files.

    Returns
    -------
    Run
        Its folder, its result row, its metrics (`values`) and the ranks of its cases (`ranks()`).

    Raises
    ------
    UserError
        For settings or data that cannot be taken.
    """
    from .runs.commands import run_model

    return run_model(model, dataset, config_files, settings)
