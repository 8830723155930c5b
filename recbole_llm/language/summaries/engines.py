"""Who writes summaries: by the setting `summarizer`."""

import json
from pathlib import Path

from ...errors import UserError
from ...settings.layers import asks_server, language_models
from ...storage import run_folders
from ..backbones.sources import check_model_name, errors_naming, load
from ..decoding.compatibility import check_backbone
from ..prompts.instructions import Instructions
from ..tokens.batches import padded_size
from .extractive import Extractive
from .writing import Engine

EXTRACTIVE = "extractive"
FIXED = {"model", "messages", "stream", "n"}  # fields of a request that no setting may replace


def check_summarizer(config) -> None:
    """Raise UserError for a summarizer that cannot be, as far as that can be seen without asking it."""
    name = config["summarizer"]
    if name.startswith("scratch:"):
        raise UserError(
            f"summarizer: {name} has random weights and stays as it is; give {EXTRACTIVE}, a hub id, a folder, run:<id> or a server's URL"
        )
    if asks_server(config["settings"]) and not config["summarizer_model"]:
        raise UserError(
            f"summarizer: a server is asked for a model by name; set --summarizer_model (what {name}/models lists)"
        )
    if "summarizer" in language_models(config["settings"]):
        with errors_naming("summarizer"):
            trusted = bool(config["trust_remote_code"])
            check_model_name(name, Path(config["checkpoint_dir"]), trusted)
    _check_extra(config)
    if config["summary_tokens"] * 2 > config["summarizer_length"]:
        raise UserError(
            f"summary_tokens: expected at most half of summarizer_length ({config['summarizer_length']}), found {config['summary_tokens']}"
        )


def _check_extra(config) -> None:
    extra = config["summarizer_extra"]
    if not extra:
        return
    if not asks_server(config["settings"]):
        raise UserError(
            f"summarizer_extra: these are fields of requests to a server, and the summarizer is {config['summarizer']}; leave it out, or set --summarizer to a server's URL"
        )
    if fixed := sorted(extra.keys() & FIXED):
        raise UserError(
            f"summarizer_extra: {', '.join(fixed)} cannot be set here; the model is summarizer_model, and each request asks for one text"
        )
    try:
        json.dumps(extra)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"summarizer_extra: expected what JSON can say ({error}); put dates in quotes"
        ) from None


def make_engine(config, instructions: Instructions, extractive: Extractive) -> Engine:
    """The engine that a run's settings name; a local model is loaded only when there is something to write."""
    name = config["summarizer"]
    if name == EXTRACTIVE:
        return extractive
    limits = dict(
        max_length=config["summarizer_length"],
        max_new=config["summary_tokens"],
        temperature=config["summarizer_temperature"],
        seed=config["seed"],
    )
    if asks_server(config["settings"]):
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

    saved = Path(config["checkpoint_dir"])

    def read():
        with errors_naming("summarizer"):
            bundle = load(
                name,
                (),
                saved=saved,
                max_length=0,
                quantize=config["summarizer_quantize"],
                trust_remote_code=bool(config["trust_remote_code"]),
            )
            bundle.model.to(config["device"]).eval()
            check_backbone(bundle, name)
        if bundle.positions and padded_size(config["summarizer_length"]) > bundle.positions:
            raise UserError(
                f"summarizer_length: expected at most the {bundle.positions} positions of {name}, found {config['summarizer_length']}"
            )
        return bundle

    precision = {"quantize": config["summarizer_quantize"], "precision": config["precision"]}
    return LocalEngine(
        read,
        run_folders.model_id(name, saved),
        instructions,
        rows=config["summarizer_parallel"],
        **precision,
        **limits,
    )


def describe_summarizer(config) -> str:
    """One line for the log."""
    if config["summarizer"] == EXTRACTIVE:
        return "extracts, written by no language model (summarizer: extractive): the most frequent attributes, and the sentences nearest to all others"
    return f"{config['summary']}, by {config['summarizer_model'] or config['summarizer']}"
