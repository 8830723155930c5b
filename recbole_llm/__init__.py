"""LLM-based sequential recommenders in RecBole's harness.

Importing this package registers our models with RecBole lazily: neither RecBole nor torch is loaded.
"""

__version__ = "0.1.0"

from . import recbole_hooks

recbole_hooks.register()


def run(model: str | type, dataset: str, config_files: list[str] = (), **settings):
    """Train, evaluate and store one model; see `recbole_llm.runs.commands.run_model`."""
    from .runs.commands import run_model

    return run_model(model, dataset, config_files, settings)
