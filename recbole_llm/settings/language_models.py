"""Which language models a run loads."""

from .identity import reads_text_vectors
from .reading import Settings


def asks_server(settings: Settings) -> bool:
    """Whether summaries are written by a server, whose model `summarizer_model` names."""
    if settings.get("summary", "none") == "none":
        return False
    return str(settings["summarizer"]).startswith(("http://", "https://"))


def language_models(settings: Settings) -> dict[str, str]:
    """Return the language models that a run loads beside the weights of `init_from`.

    Returns
    -------
    dict
        The setting that names a language model: its value.
    """
    writes_summaries = (
        settings.get("summary", "none") != "none"
        and settings["summarizer"] != "extractive"
        and not asks_server(settings)
    )
    is_loaded = {
        "backbone": "backbone" in settings and not settings["init_from"],
        "text_encoder": reads_text_vectors(settings),
        "summarizer": writes_summaries,
    }
    return {key: settings[key] for key, loaded in is_loaded.items() if loaded}
