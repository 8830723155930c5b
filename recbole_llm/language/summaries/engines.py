"""Choose who writes summaries, by the setting `summarizer`."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...settings.layers import asks_server, loads_summarizer
from ...storage import run_folders
from ..backbones.precision import KINDS, WeightFormat
from ..backbones.sources import Backbone, check_model_name, errors_naming, load
from ..decoding.compatibility import check_backbone
from ..prompts.instructions import Instructions
from ..tokens.batches import padded_size
from .extractive import Extractive
from .writing import Engine

EXTRACTIVE = "extractive"
FIXED = {"model", "messages", "stream", "n"}  # fields of a request that no setting may replace


def check_summarizer(config: Mapping[str, Any]) -> None:
    """Refuse settings of a summarizer that cannot work, as far as that shows without asking it.

    Parameters
    ----------
    config : mapping
        The settings of the run.

    Raises
    ------
    UserError
        If the settings do not name a summarizer, or contradict each other.
    """
    name = config["summarizer"]
    if name.startswith("scratch:"):
        raise UserError(
            f"summarizer: {name} has random weights and stays as it is; give {EXTRACTIVE}, a hub "
            "id, a folder, run:<id> or a server's URL"
        )
    if asks_server(config) and not config["summarizer_model"]:
        raise UserError(
            "summarizer: a server is asked for a model by name; set --summarizer_model (what "
            f"{name}/models lists)"
        )
    if loads_summarizer(config):
        with errors_naming("summarizer"):
            trusted = bool(config["trust_remote_code"])
            saved, quantize = Path(config["checkpoint_dir"]), config["summarizer_quantize"]
            check_model_name(name, saved, trusted, quantize)
    _check_extra(config)
    if config["summary_tokens"] * 2 > config["summarizer_length"]:
        raise UserError(
            "summary_tokens: expected at most half of summarizer_length "
            f"({config['summarizer_length']}), found {config['summary_tokens']}"
        )


def _check_extra(config: Mapping[str, Any]) -> None:
    extra = config["summarizer_extra"]
    if not extra:
        return
    if not asks_server(config):
        raise UserError(
            "summarizer_extra: these are fields of requests to a server, and the summarizer is "
            f"{config['summarizer']}; leave it out, or set --summarizer to a server's URL"
        )
    fixed = sorted(extra.keys() & FIXED)
    if fixed:
        raise UserError(
            f"summarizer_extra: {', '.join(fixed)} cannot be set here; the model is "
            "summarizer_model, and each request asks for one text"
        )
    try:
        json.dumps(extra)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"summarizer_extra: expected what JSON can say ({error}); put dates in quotes"
        ) from None


def make_engine(
    config: Mapping[str, Any], instructions: Instructions, extractive: Extractive
) -> Engine:
    """Make the engine that a run's settings name.

    Parameters
    ----------
    config : mapping
        The settings of the run.
    instructions : Instructions
        The instructions of the domain.
    extractive : Extractive
        The engine without a language model.

    Returns
    -------
    Engine
        The engine. A local model is loaded only when there is something to write.
    """
    name = config["summarizer"]
    if name == EXTRACTIVE:
        return extractive
    limits = {
        "max_length": config["summarizer_length"],
        "max_new": config["summary_tokens"],
        "temperature": config["summarizer_temperature"],
        "seed": config["seed"],
    }
    if asks_server(config):
        from .server import ServerEngine

        return ServerEngine(
            name,
            config["summarizer_model"],
            instructions,
            parallel=config["summarizer_parallel"],
            retries=config["summarizer_retries"],
            timeout=config["summarizer_timeout"],
            extra=config["summarizer_extra"],
            **limits,
        )
    from .local import LocalEngine

    return LocalEngine(
        _loader(config),
        run_folders.model_id(name, Path(config["checkpoint_dir"])),
        instructions,
        rows=config["summarizer_parallel"],
        quantize=config["summarizer_quantize"],
        precision=config["precision"],
        **limits,
    )


def _loader(config: Mapping[str, Any]) -> Callable[[], Backbone]:
    """Make a function that loads the local model that a run's settings name."""
    name, short = config["summarizer"], KINDS[config["precision"]]
    # nothing is trained, so that the weights themselves may be short
    weight_format = WeightFormat(short, config["summarizer_quantize"], short, config["device"])

    def read() -> Backbone:
        with errors_naming("summarizer"):
            bundle = load(
                name,
                (),
                saved=Path(config["checkpoint_dir"]),
                max_length=0,
                weight_format=weight_format,
                trust_remote_code=bool(config["trust_remote_code"]),
            )
            bundle.model.eval()
            check_backbone(bundle, name)
        if bundle.positions and padded_size(config["summarizer_length"]) > bundle.positions:
            raise UserError(
                f"summarizer_length: expected at most the {bundle.positions} positions of {name}, "
                f"found {config['summarizer_length']}"
            )
        return bundle

    return read


def describe_summarizer(config: Mapping[str, Any]) -> str:
    """Describe the summarizer in one line.

    Parameters
    ----------
    config : mapping
        The settings of the run.

    Returns
    -------
    str
        A line for the log.
    """
    if config["summarizer"] == EXTRACTIVE:
        return (
            "extracts, written by no language model (summarizer: extractive): the most frequent "
            "attributes, and the sentences nearest to all others"
        )
    return f"{config['summary']}, by {config['summarizer_model'] or config['summarizer']}"
