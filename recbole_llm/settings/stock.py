"""What RecBole's own models need of settings and data, said in one line before training begins.

What is not checked here by name is caught by :func:`refusals`, where RecBole builds its parts.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import UserError, described
from ..storage.files import storage_fault
from . import registry, rules
from .reading import Settings

LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop")
# General models whose loss reads no sampled items. All others do, and sequential models where the
# loss is BPR.
NO_NEGATIVES = {
    *("ADMMSLIM", "AsymKNN", "CDAE", "DiffRec", "EASE", "ENMF", "ItemKNN", "LDiffRec"),
    *("MacridVAE", "MultiDAE", "MultiVAE", "NCEPLRec", "Pop", "RaCT", "Random", "RecVAE"),
    "SLIMElastic",
}
# Sequential models that sample items whatever loss_type says, and those that never do.
ALWAYS_NEGATIVES, NEVER_NEGATIVES = ("DIEN", "DIN", "TransRec"), ("BERT4Rec", "RepeatNet")
LOSSES = {
    "CDAE": ("BCE", "MSE"),
    "CORE": ("CE",),
    "FPMC": ("BPR",),
    "GRU4RecCPR": ("CE",),
    "SASRecCPR": ("CE",),
}
NUMBERS = ("float", "float_seq")


def check_learner(settings: Settings) -> None:
    """Raise UserError for an optimizer that the model's trainer does not have.

    RecBole would warn and take Adam.
    """
    model, learner = settings["model"], settings["learner"]
    if registry.find(model).is_text:
        if learner not in ("adam", "muon"):
            nearest = rules.nearest(learner, ("adam", "muon"))
            raise UserError(
                f"learner: {model} and the other text models know adam (AdamW) and muon, found "
                f"{learner!r}{nearest or '; give it to stock models only'}"
            )
    elif learner == "muon":
        raise UserError(
            f"learner: muon is for text models; {model} is trained by one of {', '.join(LEARNERS)}"
        )
    elif learner == "sparse_adam":
        raise UserError(
            f"learner: sparse_adam takes sparse gradients, and {model} has none; use one of "
            f"{', '.join(LEARNERS)}"
        )
    elif learner not in LEARNERS:
        raise UserError(
            f"learner: expected one of {', '.join(LEARNERS)}, found "
            f"{learner!r}{rules.nearest(learner, LEARNERS)}"
        )


def check_settings(settings: Settings, default: Settings) -> None:
    """Refuse settings that a stock model cannot be trained with, or that it does not read.

    Parameters
    ----------
    settings : dict
    default : dict
        RecBole's own settings of the model.

    Raises
    ------
    UserError
    """
    model = settings["model"]
    losses = LOSSES.get(model, ("CE", "BPR") if "loss_type" in default else ())
    if losses and settings["loss_type"] not in losses:
        raise UserError(
            f"loss_type: {model} expects {' or '.join(losses)}, found {settings['loss_type']!r}"
        )
    if _samples(model, settings.get("loss_type")) and not _takes_negatives(settings):
        raise UserError(
            f"train_neg_sample_args: {model} learns from sampled negatives and needs them, found "
            "none; leave the key out, as models with loss_type CE take none by themselves"
        )
    if settings["transform"] != default.get("transform"):
        raise UserError(
            f"transform: {model} reads its sequences {_reading(default.get('transform'))}, found "
            f"{settings['transform'] or 'none'}; leave the key out"
        )
    if settings["preload_weight"] is not None:
        raise UserError(
            "preload_weight: no model of this harness reads it; leave it out, or give texts by "
            "item_features"
        )
    if settings["normalize_field"] is not None and settings["normalize_all"]:
        raise UserError(
            "normalize_field and normalize_all both say what is normalized; leave one out"
        )
    for field, method in (settings["discretization"] or {}).items():
        _check_discretization(field, method, settings["numerical_features"])


def fields(config: Any, interactions: Any) -> dict[str, str]:
    """Describe the columns that a stock model is given.

    Parameters
    ----------
    config : recbole.config.Config
    interactions : recbole_llm.contracts.interactions.Interactions

    Returns
    -------
    dict
        Name: type (token, float, token_seq, float_seq).
    """
    load_col = config["load_col"] or {}
    labels = config["threshold"] or {}
    given = {
        config["USER_ID_FIELD"]: "token",
        config["ITEM_ID_FIELD"]: "token",
        config["TIME_FIELD"]: "float",
    }
    wanted = load_col.get("inter") or []
    for name, values in interactions.columns.items():
        # RecBole makes the label of these columns and removes them
        if (wanted == "*" or name in wanted) and name not in labels:
            given[name] = "float" if values.dtype.kind == "f" else "token"
    if labels:
        given[config["LABEL_FIELD"]] = "float"
    features = [*(config["selected_features"] or []), config["item_attribute"]]
    for kind, types, more in (
        ("item", interactions.item_types, features),
        ("user", interactions.user_types, []),
    ):
        wanted = load_col.get(kind) or []
        for name, type_of in types.items():
            if wanted == "*" or name in wanted or name in more:
                given[name] = type_of
    return given


def check_data(config: Any, interactions: Any, family: str) -> None:
    """Refuse columns that a stock model is not given, or that are of another type than it reads.

    Parameters
    ----------
    config, interactions
        See :func:`fields`.
    family : str
        RecBole's kind of the model.

    Raises
    ------
    UserError
    """
    model, given = config["model"], fields(config, interactions)
    of_events = {config["TIME_FIELD"], config["LABEL_FIELD"], *interactions.columns}
    read = [name for name in config["numerical_features"] or [] if name in of_events]
    read += [name for name in interactions.columns if given.get(name) == "token"]
    if read and family == "context_aware":
        raise UserError(
            f"{model} would read {', '.join(read)} of the event that it is to predict, which "
            "nobody knows before; leave it out of load_col.inter and numerical_features"
        )
    for key in ("numerical_features", "normalize_field"):
        for name in config[key] or []:
            if given.get(name) not in NUMBERS:
                raise _no_number(key, name, config, given)
    attribute = config["item_attribute"]
    if attribute and given.get(attribute) in NUMBERS:
        raise UserError(
            f"item_attribute: {model} learns to name the values of a token column, found "
            f"{attribute}:{given[attribute]}; take another, or write it as token in the .item file"
        )


def numerical_features(config: Any, interactions: Any) -> list[str]:
    """Return the setting with the columns of numbers among `selected_features`.

    RecBole would leave those out, or stop.
    """
    given = fields(config, interactions)
    selected = config["selected_features"] or []
    numbers = [name for name in selected if given.get(name) in NUMBERS]
    return list(dict.fromkeys([*(config["numerical_features"] or []), *numbers]))


def refusal(model: str, what: str, error: BaseException) -> BaseException:
    """Turn an error of RecBole's at settings or data that a stock model cannot take into a line.

    Parameters
    ----------
    model : str
    what : str
        What was to be done, as in "build SASRec from these settings".
    error : BaseException

    Returns
    -------
    BaseException
        A UserError with RecBole's words; the error itself where it is one, is of the disk, or is of
        a text model.
    """
    by_disk = isinstance(error, OSError) or storage_fault(error)
    if isinstance(error, UserError) or by_disk or registry.find(model).is_text:
        return error
    return UserError(f"RecBole cannot {what}: {described(error)}")


@contextmanager
def refusals(model: str, what: str) -> Iterator[None]:
    """Raise :func:`refusal` for what RecBole raises inside."""
    try:
        yield
    except (Exception, SystemExit) as error:  # two models of RecBole leave the process
        line = refusal(model, what, error)
        if line is error:
            raise
        raise line from error


def _samples(model: str, loss: str | None) -> bool:
    """Whether a model's loss reads sampled items."""
    family = registry.find(model).family
    if family == "general":
        return model not in NO_NEGATIVES
    if family == "sequential":
        return model in ALWAYS_NEGATIVES or (loss == "BPR" and model not in NEVER_NEGATIVES)
    return False


def _takes_negatives(settings: Settings) -> bool:
    args = settings["train_neg_sample_args"]
    return args is not None and args.get("distribution", "uniform") not in (None, "none")


def _reading(transform: str | None) -> str:
    return f"by {transform}" if transform else "as they are"


def _check_discretization(field: str, given: Any, numerical: Iterable[str]) -> None:
    key = f"discretization.{field}"
    if field not in numerical:
        raise UserError(
            f"{key}: expected one of numerical_features, which are {', '.join(numerical) or 'none'}"
        )
    method = given.get("method") if isinstance(given, dict) else None
    if method not in ("ED", "LD"):
        raise UserError(
            f"{key}: expected {{method: ED, bucket: 10}} or {{method: LD}}, found {given!r}"
        )
    bucket = given.get("bucket", 1 if method == "LD" else None)
    if not isinstance(bucket, int) or isinstance(bucket, bool) or bucket < 1:
        raise UserError(
            f"{key}.bucket: expected a whole number from 1 up, found "
            f"{'none' if bucket is None else repr(bucket)}"
        )


def _no_number(key: str, name: str, config: Any, given: Mapping[str, str]) -> UserError:
    numbers = ", ".join(other for other, kind in given.items() if kind in NUMBERS)
    if name in (config["threshold"] or {}):
        hint = f"; threshold.{name} makes labels of it"
    elif name in given:
        hint = f"; {name} is a {given[name]} column"
    else:
        hint = rules.nearest(name, given) or "; set load_col to give it more"
    return UserError(
        f"{key}: expected columns of numbers that {config['model']} is given, which are {numbers}, "
        f"found {name!r}{hint}"
    )
