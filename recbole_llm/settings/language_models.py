"""Which language models a run loads."""

from collections.abc import Mapping
from typing import Any

from .identity import reads_text_vectors


def summarises(settings: Mapping[str, Any]) -> bool:
    """Whether histories are summarised."""
    return "summary" in settings and settings["summary"] != "none"


def asks_server(settings: Mapping[str, Any]) -> bool:
    """Whether summaries are written by a server, whose model `summarizer_model` names."""
    is_address = summarises(settings) and settings["summarizer"].startswith(("http://", "https://"))
    return bool(is_address)


def loads_summarizer(settings: Mapping[str, Any]) -> bool:
    """Whether summaries are written by a language model that this process loads."""
    extracts = summarises(settings) and settings["summarizer"] == "extractive"
    return summarises(settings) and not extracts and not asks_server(settings)


def language_models(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the language models that a run loads beside the weights of `init_from`.

    Returns
    -------
    dict
        The setting that names a language model: its value.
    """
    is_loaded = {
        "backbone": "backbone" in settings and not settings["init_from"],
        "text_encoder": reads_text_vectors(settings),
        "summarizer": loads_summarizer(settings),
    }
    return {key: settings[key] for key, loaded in is_loaded.items() if loaded}
