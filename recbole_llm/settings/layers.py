"""Settings: RecBole's properties, ours over them, the user's over those; every key checked.

Everything up to `recbole_config` is plain YAML and dicts, so that a typo is told before torch is loaded.
"""

import copy
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import yaml

from ..errors import UserError
from ..storage import run_folders
from . import files as resources
from . import registry, spellings, stock
from . import rules as checks

# Keys that RecBole reads but lists in none of its YAML files.
UNLISTED = {
    "MASK_ITEM_SEQ", "POS_ITEMS", "NEG_ITEMS", "MASK_INDEX", "INVERSE_ITEM_SEQ", "CROP_ITEM_SEQ", "CROP_ITEM_SEQ_LEN",
    "REORDER_ITEM_SEQ", "norm", "feature_num", "cin", "has_residual", "contrast", "sim", "use_filter", "tail_ratio",
    "xgb_early_stopping_rounds", "eta", "encoding", "token_num_threshold", "loss_type", "embedding_size",
}  # fmt: skip
# Keys of RecBole that our loading, evaluation and checkpoints replace: setting them would do nothing.
REPLACED = {
    "save_dataset": "data is read afresh", "dataset_save_path": "data is read afresh", "save_dataloaders": "data is read afresh",
    "dataloaders_save_path": "data is read afresh", "filter_inter_by_user_or_item": "use need_item_row",
    "metric_decimal_place": "scores are not rounded", "valid_metric_bigger": "it follows from valid_metric",
    "seq_separator": "sequences are separated by spaces",
    "alias_of_item_id": "lists and targets share one numbering", "alias_of_user_id": "not used", "additional_feat_suffix": "not read",
    "unload_col": "use load_col", "encoding": "atomic files are UTF-8", "eval_batch_size": "use eval_memory",
    "nproc": "one process trains", "world_size": "one process trains", "ip": "one process trains", "port": "one process trains",
    "group_offset": "one process trains", "saved": "every run is stored",
}  # fmt: skip
MERGED = (
    "eval_args",
    "stage_settings",
)  # given in part, the rest stays; any other dict is replaced whole
GROUPS = {  # keys that take dotted names
    "eval_args", "stage_settings", "text_fields", "text_words", "template", "clip_grad_norm", "train_neg_sample_args", "load_col", "val_interval",
    "seq_len", "threshold", "description_fields", "augmentation", "summarizer_extra",
}  # fmt: skip
FEATURES = ("selected_features", "item_attribute")
WHOLE = (
    "model",
    "dataset",
    "variant",
    "variants",
    "stages",
    "stage_settings",
    "seeds",
    "beside",
)  # of a run with stages, never of one stage
# Groups in our files: settings for a language model that begins with random weights, and for one that is pretrained.
BEGINNINGS = ("scratch", "pretrained")
# Keys of models' files that say what the data are. What else is in them was chosen for the model: another dataset does not change it.
ABOUT_DATA = {"description_fields", "domain"}


class Layer(dict):
    """Settings of one source: a file, the command line, a Python call.

    Attributes
    ----------
    source : str
        What stands before a message about one of them; empty for the command line.
    """

    def __init__(self, values: dict, source: str = ""):
        super().__init__(values)
        self.source = source


def read_yaml(path: Path) -> dict:
    if not path.is_file():
        several = "; several are separated by spaces" if set(str(path)) & set(",;[]") else ""
        raise UserError(f"settings file {path} not found{several}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), spellings.Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected `key: value` lines, found a {type(content).__name__}")
    return content


def parse_value(text: str):
    """A value from the command line: YAML, and plain text where that is no YAML.

    A single sign such as `,` or a space is that sign.
    """
    if len(text) == 1 and not text.isalnum() and text != "~":
        return text
    try:
        return yaml.load(text, spellings.Loader)
    except yaml.YAMLError:
        return text


@lru_cache
def _cached_yaml(path: Path) -> dict:
    return read_yaml(path) if path.is_file() else {}


def our_layers(model: str, dataset: str, given: Sequence[dict] = ()) -> list[dict]:
    """Our overall, model and dataset properties; a dataset's may hold a group for one model under its name.

    Each may hold a group `scratch` and one `pretrained`: settings that hold for language models which begin so.

    Parameters
    ----------
    given : layers that come over these, which may name the language model.
    """
    layers = _our_files(model, dataset)
    return _fitting(layers, beginning([*layers, *given]))


def _our_files(model: str, dataset: str) -> list[dict]:
    folder = resources.properties()
    paths = (
        folder / "overall.yaml",
        folder / "model" / f"{model}.yaml",
        folder / "dataset" / f"{dataset}.yaml",
    )
    overall, own, data = (copy.deepcopy(_cached_yaml(path)) for path in paths)
    own |= copy.deepcopy(dict(registry.find(model).defaults))
    return [overall, own, *_grouped(data, model)]


def _fitting(layers: Sequence[dict], begins: str | None) -> list[dict]:
    """Layers without their groups of BEGINNINGS; behind each layer comes its group for weights that begin so."""
    found = []
    for layer in layers:
        plain = {key: value for key, value in layer.items() if key not in BEGINNINGS}
        found += [plain, copy.deepcopy(layer.get(begins) or {})]
    return found


def beginning(layers: Sequence[dict], later: Sequence[Path] = ()) -> str | None:
    """What the language model begins with that the last of these layers name: `scratch` or `pretrained`; None if they name none.

    Of the weights of another run (`init_from`, `run:<id>`), what that run has begun with.

    Parameters
    ----------
    later : folders of runs that begin with this one.

    Raises
    ------
    UserError : for a run that begins with itself.
    """
    named = {
        key: next((layer[key] for layer in reversed(layers) if key in layer), None)
        for key in ("backbone", "init_from", "checkpoint_dir")
    }
    name, saved = named["backbone"], Path(str(named["checkpoint_dir"] or "saved"))
    if name is None:
        return None
    from .run_record import read_run  # which checks a record by the layers of its model

    try:
        if named["init_from"]:
            run = run_folders.find_run(str(named["init_from"]), saved)
        else:
            run = run_folders.backbone_run(str(name), saved)
        stored = run and read_run(run)
    except UserError:  # a run that is not there: who needs it says so
        stored = None
    if stored:
        started = {"checkpoint_dir": run.absolute().parent}
        if run.resolve() in later:
            raise UserError(f"{run}/run.json: this run begins with itself; name another one")
        return beginning([stored["settings"], started], [*later, run.resolve()])
    return "scratch" if str(name).startswith("scratch:") else "pretrained"


def _grouped(data: dict, model: str) -> list[dict]:
    """A dataset's properties: those for all models, and over them its group for this one."""
    models = {name: data.pop(name) for name in list(data) if name in registry.OURS}
    return [data, models.get(model) or {}]


def _check_groups(content: dict) -> None:
    """Raise UserError if a dataset's properties have no group under the name of one."""
    for name in (*registry.OURS, *BEGINNINGS):
        group = content.get(name)
        if group is not None and not isinstance(group, dict):
            raise UserError(f"{name}: expected a group of settings, found {group!r}")
        if group and name in registry.OURS:
            try:
                _check_groups({key: group.get(key) for key in BEGINNINGS})
            except UserError as error:
                raise UserError(f"{name}.{error}") from None


def _stock_layers(model: str) -> list[dict]:
    """RecBole's overall, model, sample and model-type properties, in its order."""
    folder = registry.recbole_folder() / "properties"
    family = registry.find(model).family
    family = "sequential" if family == "text" else family
    by_type = {"sequential": "sequential", "context_aware": "context-aware"}.get(family)
    paths = [
        folder / "overall.yaml",
        folder / "model" / f"{model}.yaml",
        folder / "dataset" / "sample.yaml",
    ]
    if by_type:
        paths.append(folder / "quick_start_config" / f"{by_type}.yaml")
    return [copy.deepcopy(_cached_yaml(path)) for path in paths]


def _stock_defaults(model: str) -> dict:
    """RecBole's own settings of one of its models."""
    settings: dict = {}
    for layer in _stock_layers(model):
        settings |= layer
    return settings


def resolve(
    model: str, dataset: str, files: Sequence[str | dict] = (), overrides: dict | None = None
) -> dict:
    """All settings of one run.

    Parameters
    ----------
    files : YAML files, or what they would hold. overrides : dotted keys reach into dicts (`eval_args.mode`).

    Raises
    ------
    UserError : unknown model or key, with the nearest names; a value that cannot be.
    """
    model = registry.canonical(model)
    checks.check_name(dataset)
    settings, foreign = default_settings(model, dataset), _foreign_features(model)
    layers = [*(_read_settings(file, model, dataset) for file in files), overrides or {}]
    data_path = next(
        (layer["data_path"] for layer in reversed(layers) if "data_path" in layer),
        settings["data_path"],
    )
    data_path = spellings.of_value("data_path", data_path)
    data, prepared = (
        Path(str(data_path)) / dataset / f"{dataset}.{kind}" for kind in ("inter", "yaml")
    )
    beside: list[dict] = []
    if (
        data.is_file() and prepared.is_file()
    ):  # written when the data was prepared, which may have been killed in between
        content = read_yaml(prepared)
        try:
            _check_groups(content)
        except UserError as error:
            raise UserError(f"{prepared}: {error}") from None
        beside = [
            {key: value for key, value in layer.items() if key not in foreign}
            for layer in _grouped(content, model)
        ]
    try:
        return _resolved(model, dataset, beside, layers)
    except UserError as error:
        if beside:
            _resolved(
                model, dataset, [], layers
            )  # which raises what the user's own layers do wrong
            raise UserError(f"{prepared}: {error}") from None
        raise


def _resolved(model: str, dataset: str, beside: list[dict], layers: list[dict]) -> dict:
    """`resolve`, with the properties beside the data as `_grouped` gives them."""
    given = [*beside, *layers]
    settings = default_settings(model, dataset, given)
    begins = beginning([settings, *given])
    return _layered([*_fitting(beside, begins), *layers], settings)


def default_settings(model: str, dataset: str, given: Sequence[dict] = ()) -> dict:
    """All settings of one run before the user's, and before those that were written with the data.

    Parameters
    ----------
    given : the layers that come over these; they decide which language model the defaults are for.
    """
    settings: dict = {}
    for layer in [*_stock_layers(model), *our_layers(model, dataset, given)]:
        _merge(settings, layer)
    if registry.find(model).family == "general":
        settings["repeatable"] = (
            False  # it would let RecBole draw training negatives among the positives
        )
    return settings | dict.fromkeys(_foreign_features(model)) | {"model": model, "dataset": dataset}


def plan(models: Sequence[str], dataset: str, files: list[str] = (), overrides: dict | None = None,
         own: dict[str, dict] | None = None, seeds: Sequence[int] | None = None) -> dict[str, list[dict]]:  # fmt: skip
    """The settings of a comparison: model -> one dict per seed.

    Parameters
    ----------
    own : model -> settings of that model alone.
    seeds : the setting `seeds` where not given.
    """
    planned = {}
    for model in models:
        settings = (overrides or {}) | (own or {}).get(model, {})
        resolved = resolve(model, dataset, files, settings)
        chosen = seeds or resolved["seeds"]
        planned[model] = (
            [resolve(model, dataset, files, settings | {"seed": seed}) for seed in chosen]
            if chosen
            else [resolved]
        )
        counts = Counter(settings["seed"] for settings in planned[model])
        for seed, count in counts.items():
            if count > 1:
                raise UserError(
                    f"seeds: expected different ones, found {seed} {count} times; a table takes "
                    "each run once"
                )
    return planned


def of_command(command: str, files: list[str], overrides: dict) -> tuple[dict, list[dict]]:
    """What a command of several runs is told: its own settings, over those of properties/<command>.yaml, and the layers of settings for its runs."""
    path = resources.properties() / f"{command}.yaml"
    file, rules = (
        copy.deepcopy(_cached_yaml(path)),
        checks.parse_file(path.read_text(encoding="utf-8")),
    )
    groups = {name: file.pop(name, {}) for name in BEGINNINGS}
    own, default, left, asked = copy.deepcopy(file), copy.deepcopy(file), [], set()
    read = [Layer(read_yaml(Path(path)), str(path)) for path in files]
    for layer in [*read, Layer(overrides)]:
        mine = {key: value for key, value in layer.items() if key.partition(".")[0] in own}
        others = {key: value for key, value in layer.items() if key not in mine}
        left.append(Layer(others, layer.source))
        _check_keys(mine, set(own), default)
        _merge(own, mine)
        heads = list(dict.fromkeys(key.partition(".")[0] for key in mine))
        for key in heads:
            own[key] = checks.checked(key, own[key], rules)
        asked.update(heads)
    fitting = groups.get(beginning([own.get("run", {}), *left]) or "", {})
    own |= {key: value for key, value in fitting.items() if key not in asked}
    return {key: value for key, value in own.items() if key != "run"}, [own.get("run", {}), *left]


def changed(stored: dict, overrides: dict, files: list[str] = ()) -> dict:
    """The settings of a stored run with some of them changed."""
    settings = copy.deepcopy(stored)
    layers = [
        *(_read_settings(file, stored["model"], stored["dataset"]) for file in files),
        overrides,
    ]
    for name in ("model", "dataset"):
        if any(name in layer for layer in layers):
            raise UserError(f"{name}: a run keeps its own, which is {stored[name]}")
    return _layered(layers, settings)


def check_whole(settings: dict, default: dict) -> None:
    """Raise UserError for settings of which each can be, and that do not fit each other."""
    checks.check_columns(settings, default)
    _finish(settings, [])


def settings_of_config(config) -> dict:
    """Make the settings of a run from RecBole's Config of one of our models.

    Keys that we do not know are RecBole's business: its own code takes any.

    Raises
    ------
    UserError
        For what our commands refuse.
    """
    model, dataset = config["model"], config["dataset"]
    default = default_settings(model, dataset)
    rules, mistakes = checks.rules(registry.find(model)), []
    settings = {key: config[key] if key in config else value for key, value in default.items()}
    settings |= {key: default[key] for key in REPLACED.keys() & default.keys()}
    settings["train_neg_sample_args"] = None  # RecBole has put its own form of "none" there
    settings["data_path"] = str(Path(config["data_path"]).parent)  # RecBole adds the dataset's name
    modes = set(settings["eval_args"]["mode"].values())
    if len(modes) == 1:  # RecBole writes out one mode for both parts
        settings["eval_args"] = settings["eval_args"] | {"mode": modes.pop()}
    for key in settings.keys() & rules.keys():
        value = spellings.of_value(key, settings[key])
        try:
            settings[key] = checks.checked(key, value, rules, default[key])
        except UserError as error:
            mistakes.append(str(error))
    _refuse(sorted(mistakes))
    _finish(settings, [])
    return settings


def moved(stored: dict, dataset: str) -> dict:
    """The settings of a stored run for another dataset: what says of the data what they are, and was the old dataset's default, becomes the new one's.

    What was chosen for the model stays (learner, weights of losses, epochs, …): one run has one training objective.
    """
    features = {
        key: stored[key] for key in FEATURES if stored[key]
    }  # which a dataset need not name
    old, new = (
        resolve(stored["model"], name, [], features | {"data_path": stored["data_path"]})
        for name in (stored["dataset"], dataset)
    )
    overall, model = _our_files(stored["model"], dataset)[:2]
    model = {*model, *(key for name in BEGINNINGS for key in model.get(name) or {})}
    chosen = model - overall.keys() - ABOUT_DATA
    return stored | {
        key: new[key]
        for key in new
        if key in stored and key not in chosen and stored[key] == old[key]
    }


def asks_server(settings: Mapping) -> bool:
    """Whether summaries are written by a server, whose model `summarizer_model` names."""
    return summarises(settings) and settings["summarizer"].startswith(("http://", "https://"))


def summarises(settings: Mapping) -> bool:
    """Whether histories are summarised."""
    return "summary" in settings and settings["summary"] != "none"


def loads_summarizer(settings: Mapping) -> bool:
    """Whether summaries are written by a language model that this process loads."""
    extracts = summarises(settings) and settings["summarizer"] == "extractive"
    return summarises(settings) and not extracts and not asks_server(settings)


def language_models(settings: dict) -> dict[str, str]:
    """The language models that a run of these settings loads beside the weights of `init_from`, by the settings that name them."""
    in_class = "text_encoder" in registry.find(settings["model"]).defaults
    by_text = in_class or settings.get("item_features", "id") != "id"
    read = {
        "backbone": "backbone" in settings and not settings["init_from"],
        "text_encoder": by_text,
        "summarizer": loads_summarizer(settings),
    }
    return {key: settings[key] for key in read if read[key]}


def shown(settings: dict) -> dict:
    """Those settings that can be set: the others stay at RecBole's values, which RecBole's classes read."""
    return {key: value for key, value in settings.items() if key not in REPLACED}


def shared_settings(settings: dict) -> dict:
    """Those settings of a run that another model beside it must share: data, split, evaluation, seed."""
    overall = set(_cached_yaml(resources.properties() / "overall.yaml")) - {
        "stages",
        "stage_settings",
        "init_from",
        "precision",
        "stopping_step",
        "trust_remote_code",
        "overwrite",
    }
    data = {"data_path", "checkpoint_dir", "show_progress", "seed", "use_gpu", "USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "RATING_FIELD",
            "val_interval", "rm_dup_inter", "user_inter_num_interval", "item_inter_num_interval", "benchmark_filename", "field_separator",
            "MAX_ITEM_LIST_LENGTH"}  # fmt: skip
    left = ("selected_features", "item_attribute", "item_features", "text_encoder", "repeatable")
    shared = {
        key: value for key, value in settings.items() if key in (overall | data) and key not in left
    }
    # which cut-offs there are is shared, so the choice among them must be; its treatment of ties is the model's
    return shared | {"valid_metric": re.sub("(?i)_(opt|pes)$", "", settings["valid_metric"])}


def _read_settings(file: str | dict, model: str, dataset: str) -> dict:
    """A user's settings file, or what it would hold; it may name the model and the dataset, as --print_config does."""
    layer = Layer(file) if isinstance(file, dict) else Layer(read_yaml(Path(file)), str(file))
    for key, own in (("model", model), ("dataset", dataset)):
        named = str(layer.pop(key, own))
        if (registry.canonical(named) if key == "model" else named) != own:
            raise UserError(f"{file}: its {key} is {named}, but {own} is asked for; leave one out")
    return layer


def _layered(layers: list[dict], default: dict) -> dict:
    """The settings of a run: the user's layers over the default ones, each stage over all that."""
    settings = copy.deepcopy(default)
    _apply(layers, settings)
    whole = copy.deepcopy(settings)
    _finish(settings, layers)
    _need_features(settings, settings["model"])
    if variant := settings.get("variant"):
        if any(layer.get("stages") for layer in layers):
            raise UserError("variant and stages both say which stages there are; leave one out")
        settings["stages"] = list(settings["variants"][variant])
    stages = settings["stages"] or []
    known = list(dict.fromkeys([*(default["stage_settings"] or {}), *stages]))
    for name, stage in (settings["stage_settings"] or {}).items():
        if name not in known:
            raise UserError(
                f"stage_settings.{name}: expected one of the stages "
                f"{', '.join(known) or '(there is none)'}{checks.nearest(name, known)}"
            )
        settings["stage_settings"][name] = _stage(name, stage, whole, settings)
    for name in stages:
        if name not in (settings["stage_settings"] or {}):
            have = ", ".join(settings["stage_settings"] or {}) or "none"
            raise UserError(
                f"stages: expected some of {have}, which have stage_settings, found {name!r}"
            )
    return settings


def _stage(name: str, layer: dict, whole: dict, settings: dict) -> dict:
    """What a stage sets, checked like the settings of a run, and what follows from it."""
    if not isinstance(layer, dict):
        raise UserError(f"stage_settings.{name}: expected a group of settings, found {layer!r}")
    heads = {str(key).partition(".")[0] for key in layer}
    if own := heads.intersection(WHOLE):
        raise UserError(
            f"stage_settings.{name}: {', '.join(sorted(own))} belongs to the whole run; set it "
            "outside the stage"
        )
    full = copy.deepcopy(whole)
    try:
        _apply([layer], full)
        _finish(full, [layer])
    except UserError as error:
        raise UserError(f"stage_settings.{name}: {error}") from None
    return {
        key: value
        for key, value in full.items()
        if key not in WHOLE and (key in heads or value != settings[key])
    }


def _apply(layers: list[dict], settings: dict) -> None:
    """Put the user's layers over settings, which name the keys there are and their kinds.

    Raises
    ------
    UserError
        With every setting of all layers that cannot be taken, a line each.
    """
    spec = registry.find(settings["model"])
    known = (set(settings) | UNLISTED | spec.read_keys) - {"model", "dataset"}
    default, rules = copy.deepcopy(settings), checks.rules(spec)
    mistakes: list[str] = []
    for layer in layers:
        layer, wrong = _effective(layer, known, default)
        mistakes += wrong
        _merge(settings, layer)
        for key in dict.fromkeys(str(key).partition(".")[0] for key in layer):
            value = spellings.of_value(key, settings[key])
            try:
                settings[key] = checks.checked(key, value, rules, default.get(key))
            except UserError as error:
                mistakes.append(_placed(layer, str(error)))
                settings[key] = copy.deepcopy(default.get(key))
    _refuse(mistakes)
    checks.check_columns(settings, default)


def _refuse(mistakes: list[str]) -> None:
    """Raise UserError for settings that cannot be taken, a line each, if there are any."""
    if len(mistakes) > 1:
        lines = "\n  ".join(mistakes)
        raise UserError(f"{len(mistakes)} settings cannot be taken:\n  {lines}")
    if mistakes:
        raise UserError(mistakes[0])


def _placed(layer: dict, message: str) -> str:
    """A message with the file that it is about, if it is about one."""
    source = getattr(layer, "source", "")
    return f"{source}: {message}" if source else message


def _effective(layer: dict, known: set, default: dict) -> tuple[Layer, list[str]]:
    """A layer without the keys that have no effect here, and what is wrong with its other keys."""
    kept, mistakes = {}, []
    for key, value in layer.items():
        head = str(key).partition(".")[0]
        if head in REPLACED:
            if value != default.get(head) and value not in (None, "None"):
                spellings.warn(_placed(layer, f"key {head!r} has no effect here: {REPLACED[head]}"))
            continue
        try:
            _check_keys({key: value}, known, default)
            kept[key] = value
        except UserError as error:
            mistakes.append(_placed(layer, str(error)))
    return Layer(kept, getattr(layer, "source", "")), mistakes


def _finish(settings: dict, layers: list[dict]) -> None:
    """What follows from all layers together, and whether they fit each other."""
    model = settings["model"]
    _cross_entropy(
        settings,
        model,
        asked=any(
            str(key).partition(".")[0] == "train_neg_sample_args"
            for layer in layers
            for key in layer
        ),
    )
    settings["learner"] = settings["learner"].lower()  # as RecBole reads it
    checks.check_log(settings)
    stock.check_learner(settings)
    spec = registry.find(model)
    if not spec.is_text:
        settings["precision"] = (
            "fp32"  # whatever was asked for: it is of LLM backbones, and must not name another run
        )
        stock.check_settings(settings, _stock_defaults(model))
    if settings["item_features"] != "id" and not spec.takes_item_text:
        raise UserError(
            f"item_features: expected id for {spec.name}, found {settings['item_features']!r}; "
            f"give it to {', '.join(registry.TAKE_ITEM_TEXT)} only"
        )
    checks.check_evaluation(settings)


def _merge(settings: dict, layer: dict, inside: str = "") -> None:
    """Put a layer over settings: dotted keys and MERGED groups reach inside, any other value replaces.

    A split is one rule, so naming another replaces it even by a dotted key.
    """
    for key, value in layer.items():
        head, _, rest = str(key).partition(".")
        if rest:
            value = {rest: value}
        reaches = rest or head in MERGED or inside == "stage_settings"
        if reaches and head != "split" and isinstance(value, dict):
            inner = settings.get(head)
            settings[head] = copy.deepcopy(inner) if isinstance(inner, dict) else {}
            if (
                inside == "stage_settings"
            ):  # a layer itself: its dotted keys reach into the settings that it is put over
                settings[head] = {
                    name: old for name, old in settings[head].items() if name not in value
                } | copy.deepcopy(value)
            else:
                _merge(settings[head], value, inside=head)
        else:
            settings[head] = copy.deepcopy(value)


def _foreign_features(model: str) -> list[str]:
    """Settings by which a dataset names the columns of feature models, where the model is none: it would only carry them along."""
    own = _stock_layers(model)[1]
    return [key for key in FEATURES if key not in own]


def _need_features(settings: dict, model: str) -> None:
    own = _stock_layers(model)[1]
    for key in FEATURES:
        if key in own and not settings[key]:
            raise UserError(
                f"{model} reads item columns and the dataset names none: set --{key} to columns of "
                "its .item file"
            )


def _cross_entropy(settings: dict, model: str, asked: bool) -> None:
    """A sequential model with cross-entropy takes no sampled negatives: RecBole asks the user to say so, we say it."""
    if registry.find(model).family != "sequential" or settings.get("loss_type") != "CE":
        return
    if asked and settings["train_neg_sample_args"]:
        raise UserError(
            f"train_neg_sample_args: {model} with loss_type CE draws no negatives; leave it out or "
            "set another loss_type"
        )
    settings["train_neg_sample_args"] = None


ARGUMENTS = {"config_files", "print_config"}  # of the command line, beside settings


def _check_keys(layer: dict, known: set, default: dict) -> None:
    for key in layer:
        head, _, rest = str(key).partition(".")
        if head not in known and (newer := spellings.OLD.get(head)):
            raise UserError(f"key {head!r} is of RecBole before 1.0: {newer}")
        if head not in known:
            hint = (
                checks.nearest(head, known - REPLACED.keys() | ARGUMENTS).removeprefix("; ")
                or "run with --print_config to see all keys"
            )
            raise UserError(f"unknown key {head!r}: {hint}")
        if rest and not isinstance(default.get(head), dict | None):
            raise UserError(
                f"key {key!r}: {head} is a {type(default[head]).__name__}, not a group of keys"
            )


# Settings that decide where, how fast and beside whom, not what: they do not make another run of it.
NOT_IN_HASH = {
    "beside", "gpu_id", "use_gpu", "state", "data_path", "checkpoint_dir", "show_progress", "eval_memory", "log_wandb", "wandb_project", "seeds",
    "summarizer_parallel", "summarizer_timeout", "summarizer_retries", "overwrite",
}  # fmt: skip


def settings_hash(settings: dict, **extra) -> str:
    """8 hex digits over everything that can change a result."""
    spec = registry.find(settings["model"])
    # text models read whole histories
    left = NOT_IN_HASH | ({"MAX_ITEM_LIST_LENGTH"} if spec.is_text else set())
    reads_vectors = settings["item_features"] != "id" or "text_encoder" in spec.defaults
    left |= set() if reads_vectors else {"text_encoder"}
    # off, it changes nothing that was computed before there was such a setting
    left |= set() if settings.get("trust_remote_code") else {"trust_remote_code"}
    return digest({key: value for key, value in settings.items() if key not in left} | extra)


def digest(value) -> str:
    """8 hex digits over anything that JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]


def recbole_config(settings: dict, data_path: str | Path):
    """RecBole's Config holding these settings. Reads no sys.argv, evaluates no string, sets no environment."""
    from recbole.config import Config

    class HarnessConfig(Config):
        def _init_parameters_category(self):
            super()._init_parameters_category()
            self.parameters = {key: list(value) for key, value in self.parameters.items()}

        def _load_variable_config_dict(self, config_dict):
            return dict(config_dict)

        def _load_cmd_line(self):
            return {}

        def _load_internal_config_dict(self, model, model_class, dataset):
            self.internal_config_dict = {"MODEL_TYPE": model_class.type}

        def _init_device(self):
            import torch

            gpu = self.final_config_dict["use_gpu"] and torch.cuda.is_available()
            if gpu and self.final_config_dict["gpu_id"] >= torch.cuda.device_count():
                raise UserError(
                    f"gpu_id: this machine has {torch.cuda.device_count()} GPUs, numbered from 0, "
                    f"found {self.final_config_dict['gpu_id']}"
                )
            device = torch.device(f"cuda:{self.final_config_dict['gpu_id']}" if gpu else "cpu")
            self.final_config_dict |= {"single_spec": True, "local_rank": 0, "device": device}

        def compatibility_settings(self):
            """The numpy aliases are set once by compat."""

    defaults = {"metric_decimal_place": 10}
    config = HarnessConfig(
        model=registry.model_class(settings["model"]),
        dataset=settings["dataset"],
        config_dict=copy.deepcopy(settings) | defaults,
    )
    config["data_path"] = str(data_path)
    return config
