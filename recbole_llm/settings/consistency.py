"""Whether the settings of a run fit each other."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from ..contracts.evaluation_mode import EvaluationMode
from ..contracts.metrics import LIST_METRICS, RANK_METRICS
from ..errors import UserError
from . import registry, stock
from .defaults import feature_keys, stock_defaults
from .merging import heads
from .reading import Settings
from .rules import nearest
from .spellings import without_ties


def check_log(settings: Settings) -> None:
    """Raise UserError for a log that nothing would be written to."""
    if settings["log_wandb"]:
        raise UserError(
            "log_wandb: nothing is logged to Weights & Biases here; leave it out: every run's "
            "folder has a log, tensorboard files and run.json"
        )


def check_evaluation(settings: Settings) -> None:
    """Raise UserError for evaluation settings that do not fit each other."""
    args, topk, metrics = settings["eval_args"], settings["topk"], settings["metrics"]
    mode = args["mode"]
    if isinstance(mode, dict) and (not mode or mode.keys() - {"valid", "test"}):
        raise UserError(
            f"eval_args.mode: expected one mode, or one for valid and one for test, found {mode!r}"
        )
    for part in ("valid", "test"):
        EvaluationMode.of_part(mode, part)
    if (args["order"], args["group_by"]) != ("TO", "user"):
        raise UserError(
            f"eval_args: order is always TO and group_by always user here, found {args['order']} "
            f"and {args['group_by']}"
        )
    for key in ("topk", "metrics"):
        if not settings[key]:
            raise UserError(f"{key}: expected one at least, found []")
    for metric in metrics:
        if metric.lower() not in RANK_METRICS + LIST_METRICS:
            raise UserError(
                "metrics: expected some of Recall, Hit, NDCG, MRR, Precision, MAP, found "
                f"{metric!r}"
            )
    ranked = {metric.lower() for metric in metrics} - set(LIST_METRICS)
    if not ranked:
        raise UserError(f"metrics: expected one of {', '.join(RANK_METRICS)} at least, found none")
    computed = {f"{metric}@{k}" for metric, k in product(ranked, topk)} | ranked & {"mrr"}
    if without_ties(settings["valid_metric"].lower()) not in computed:
        raise UserError(
            f"valid_metric: expected one of {', '.join(sorted(computed))}, found "
            f"{settings['valid_metric']!r}; change it, metrics or topk"
        )


def check_columns(settings: Settings, default: Settings) -> None:
    """Raise UserError for names of texts and columns that nothing would read."""
    fields = settings["text_fields"]
    if not fields:
        raise UserError(
            "text_fields: expected attribute names with their columns, such as {Title: title}, "
            "found none"
        )
    for name, words in settings[
        "text_words"
    ].items():  # a default may be about a dataset with more attributes
        if name not in fields and default["text_words"].get(name) != words:
            raise UserError(
                f"text_words.{name}: expected a name of text_fields, which has "
                f"{', '.join(fields)}{nearest(name, fields)}"
            )
    if settings["threshold"] is not None and len(settings["threshold"]) != 1:
        raise UserError(
            f"threshold: expected one column with its least value, such as {{rating: 4}}, found "
            f"{settings['threshold']!r}"
        )
    for suffix, columns in (settings["load_col"] or {}).items():
        if columns not in (None, "*") and not (
            isinstance(columns, list) and all(isinstance(column, str) for column in columns)
        ):
            raise UserError(
                f"load_col.{suffix}: expected a list of columns such as [user_id, item_id], or "
                f"'*', found {columns!r}"
            )


def check_features(settings: Settings) -> None:
    """Raise UserError where a model reads item columns and nothing names them."""
    model = settings["model"]
    for key in feature_keys(model):
        if not settings[key]:
            raise UserError(
                f"{model} reads item columns and the dataset names none: set --{key} to columns of "
                "its .item file"
            )


def check_whole(settings: Settings, default: Settings) -> None:
    """Raise UserError for settings that are right one by one, and that do not fit each other."""
    check_columns(settings, default)
    finish(settings, [])


def finish(settings: Settings, layers: Sequence[Mapping[str, Any]]) -> None:
    """Set what follows from all settings together, and check that they fit each other.

    Parameters
    ----------
    settings : dict
        Changed in place.
    layers : sequence of mapping
        The user's, which are in the settings already.

    Raises
    ------
    UserError
        For settings that do not fit each other.
    """
    spec = registry.find(settings["model"])
    _leave_out_negatives(
        settings, is_set=any("train_neg_sample_args" in heads(layer) for layer in layers)
    )
    settings["learner"] = settings["learner"].lower()  # as RecBole reads it
    check_log(settings)
    stock.check_learner(settings)
    if not spec.is_text:
        # whatever was set: it is of language models, and must not name another run
        settings["precision"] = "fp32"
        stock.check_settings(settings, stock_defaults(settings["model"]))
    if settings["item_features"] != "id" and not spec.takes_item_text:
        raise UserError(
            f"item_features: expected id for {spec.name}, found {settings['item_features']!r}; "
            f"give it to {', '.join(registry.TAKE_ITEM_TEXT)} only"
        )
    check_evaluation(settings)


def _leave_out_negatives(settings: Settings, is_set: bool) -> None:
    """A sequential model with cross-entropy takes no sampled negatives.

    RecBole asks the user to say so.
    """
    model = settings["model"]
    if registry.find(model).family != "sequential" or settings.get("loss_type") != "CE":
        return
    if is_set and settings["train_neg_sample_args"]:
        raise UserError(
            f"train_neg_sample_args: {model} with loss_type CE draws no negatives; leave it out or "
            "set another loss_type"
        )
    settings["train_neg_sample_args"] = None
