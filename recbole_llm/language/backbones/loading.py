"""Load model files of any origin.

What a library raises about them becomes one line, and models whose weights are not all in their
files are refused.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ...errors import UserError

MOST_PARAMETERS = 4  # for each byte of weights; files of 16 bits have half a parameter
# A model of so many parameters fits into memory, so that the library may load and report it.
HARMLESS = 10**9
# BERT's family has one beside the last hidden states, and many files leave it out.
POOLER = "pooler"


@contextmanager
def as_user_errors(name: str, folder: str | None = None) -> Iterator[None]:
    """Turn what a library raises about the files of a language model into a UserError.

    Parameters
    ----------
    name : str
        How the user named the model.
    folder : str, optional
        Where its files lie, if they are on this machine; the message names the damaged one.

    Raises
    ------
    UserError
        In place of any other exception but a lack of memory and an interruption.
    """
    try:
        yield
    except (UserError, MemoryError, NameError):  # the last is a fault of ours
        raise
    except Exception as error:
        raise unreadable(name, error, folder) from None
    except BaseException as error:  # the tokenizers library panics on some files
        if type(error).__name__ != "PanicException":
            raise
        raise unreadable(name, error, folder) from None


def unreadable(name: str, error: BaseException, folder: str | None = None) -> UserError:
    """Describe files that cannot be read in one line.

    Parameters
    ----------
    name : str
        How the user named the model.
    error : BaseException
        What the library has raised.
    folder : str, optional
        Where the files lie, if they are on this machine.

    Returns
    -------
    UserError
        The error for the user.
    """
    message = " ".join(str(error).split())
    if "trust_remote_code" in message:
        return needs_own_code(name)
    reason = message[:200] or type(error).__name__
    if isinstance(error, LookupError | TypeError | AttributeError | AssertionError):
        reason = f"{type(error).__name__}: {reason}"
    file = damaged_file(Path(folder)) if folder else None
    if message.startswith("Unrecognized configuration class"):
        file = "config.json"
    where = f", {file} is damaged or of another kind" if file else ""
    return UserError(f"backbone {name!r} cannot be loaded{where}: {reason}")


def needs_own_code(name: str) -> UserError:
    """Describe a folder whose model is defined by Python files in it.

    Parameters
    ----------
    name : str
        How the user named the model.

    Returns
    -------
    UserError
        The error for the user.
    """
    return UserError(
        f"backbone {name!r} has code of its own, which this machine would run; if you trust it, "
        "set --trust_remote_code=true"
    )


def damaged_file(folder: Path) -> str | None:
    """Find the first file of a model's folder that is not of the format that its name promises.

    Parameters
    ----------
    folder : Path
        The folder.

    Returns
    -------
    str or None
        The path below `folder`; None if each file by itself can be read.
    """
    from safetensors import safe_open
    from transformers import AutoConfig, AutoTokenizer

    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return str(path.relative_to(folder))
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]):
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except Exception:
            return str(path.relative_to(folder))
    readers: list[tuple[str, Any]] = [
        ("config.json", AutoConfig),
        ("tokenizer.json", AutoTokenizer),
    ]
    for name, reader in readers:
        if not (folder / name).is_file():
            continue
        try:
            reader.from_pretrained(str(folder), trust_remote_code=False)
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException:
            return name
    return None


@contextmanager
def without_loading_table() -> Iterator[None]:
    """Keep transformers from drawing a table of missing weights; one line of ours says it."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def loading_reports() -> Iterator[list[dict]]:
    """Collect what transformers reports on the weights of every model that it loads.

    This works for models that another library loads too, which would not pass the report on.

    Yields
    ------
    list of dict
        What `from_pretrained` returns under `output_loading_info`, one dict a model, with the names
        of the model's own tensors (`own_keys`) and the beginning (`prefix`) that names have or lack
        in files where a head is beside the model.
    """
    from transformers import PreTrainedModel

    reports: list[dict] = []
    original: Any = PreTrainedModel.from_pretrained
    inner = original.__func__

    def from_pretrained(cls, *args, output_loading_info=False, **kwargs):
        model, report = inner(cls, *args, output_loading_info=True, **kwargs)
        of_model = {"own_keys": set(model.state_dict()), "prefix": f"{model.base_model_prefix}."}
        reports.append(dict(report) | of_model)
        return (model, report) if output_loading_info else model

    with (
        patch.object(PreTrainedModel, "from_pretrained", classmethod(from_pretrained)),
        without_loading_table(),
    ):
        yield reports


def check_complete(name: str, kind: str, reports: Iterable[dict], pooler: bool = True) -> None:
    """Refuse a model some of whose weights were not in its files and were drawn at random.

    Parameters
    ----------
    name : str
        How the user named the model.
    kind : str
        What the model was expected to be, such as causal LM.
    reports : iterable of dict
        What `loading_reports` gives. transformers counts neither tied weights nor buffers that are
        not stored among the missing ones.
    pooler : bool
        Whether the model's pooler is used.

    Raises
    ------
    UserError
        With the number of such weights and the name of the first.
    """
    for report in reports:
        absent = {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
        for key in report["missing_keys"]:
            if pooler or POOLER not in key.split("."):
                absent.add(key)
        if absent:
            raise UserError(
                f"backbone {name!r} is no whole {kind}: {len(absent)} of its weights are missing "
                f"or of another shape, the first is {min(absent)}"
            )
        beyond = layers_beyond(report)
        if beyond:
            raise UserError(
                f"backbone {name!r} is another {kind} than its config.json says: its files have "
                f"{len(beyond)} weights of layers that this does not count, the first is "
                f"{min(beyond)}"
            )


def layers_beyond(report: dict) -> set[str]:
    """Find weights in the files that belong to further layers of a model's own stacks.

    Whatever else the model does not have, such as a head, a decoder beside an encoder or a buffer
    that is computed, is none of them.

    Parameters
    ----------
    report : dict
        One of `loading_reports`.

    Returns
    -------
    set of str
        The names of these weights.
    """

    def without_numbers(key: str) -> str:
        return re.sub(r"(?<![^.])\d+(?![^.])", "*", key.removeprefix(report["prefix"]))

    patterns = {without_numbers(key) for key in report["own_keys"]}
    beyond = set()
    for key in report["unexpected_keys"]:
        pattern = without_numbers(key)
        if "*" in pattern and pattern in patterns:
            beyond.add(key)
    return beyond


def check_size(name: str, trust_remote_code: bool) -> None:
    """Refuse a folder whose config.json is of a far larger model than its weights can be.

    The library would draw what is missing at random before it reports it, and run out of memory.

    Parameters
    ----------
    name : str
        Hub id or folder; of a hub id nothing is checked.
    trust_remote_code : bool
        Whether Python files of the model may be run.

    Raises
    ------
    UserError
        For a model of more than MOST_PARAMETERS parameters a byte of its files. What the
        configuration says of layers, width and vocabulary is a lower bound of them.
    """
    from transformers import AutoConfig

    folder = Path(name)
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    if not (folder / "config.json").is_file() or not files:
        return
    config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None):
        return
    text = config.get_text_config()
    width = getattr(text, "hidden_size", None)
    layers = getattr(text, "num_hidden_layers", None)
    vocabulary = getattr(text, "vocab_size", None)
    if not (isinstance(width, int) and isinstance(layers, int) and isinstance(vocabulary, int)):
        return
    parameters = layers * 4 * width**2 + vocabulary * width
    size = sum(path.stat().st_size for path in files)
    if parameters > max(HARMLESS, MOST_PARAMETERS * size):
        raise UserError(
            f"backbone {name!r}: config.json is of a model of at least {parameters} parameters, "
            f"and the weights beside it are {size} bytes: one of them is another model's"
        )
