"""Model names: ours written out, RecBole's read from its folder; how RecBole finds ours by name."""

import difflib
import importlib
import importlib.util
from functools import lru_cache
from pathlib import Path

from . import compat
from .errors import UserError

# class name -> module
OURS = {
    "CALRec": "recbole_llm.model.calrec",
    "LIR": "recbole_llm.model.lir",
    "LLMTRSR": "recbole_llm.model.llmtrsr",
    "RecFormer": "recbole_llm.model.recformer",
    "ST5Seq": "recbole_llm.model.st5seq",
    "TALLRec": "recbole_llm.model.tallrec",
    "TASTELoRA": "recbole_llm.model.tastelora",
    "UniSRec": "recbole_llm.model.unisrec",
}
# stock models that are wrong as they stand; our runner uses the class of these modules
MENDED = {"Pop": "recbole_llm.model.pop", "S3Rec": "recbole_llm.model.s3rec"}
TREES = {
    "lightgbm": "LightGBM",
    "xgboost": "XGBoost",
}  # RecBole names their files unlike their classes
ALIASES = {"ncf": "NeuMF"}  # the papers' names of stock models
BY_TEXT = (
    "UniSRec",
    "SASRec",
    "GRU4Rec",
    "NARM",
    "CORE",
    "NeuMF",
    "DIN",
    "DIEN",
)  # that item_features is for; stock ones by features.py


@lru_cache
def recbole_folder() -> Path:
    compat.require_recbole()
    return Path(importlib.util.find_spec("recbole").submodule_search_locations[0])


@lru_cache
def stock_models() -> dict[str, str]:
    """RecBole's models: class name -> family (`sequential`, `general`, …), without importing any."""
    families = {
        path.stem.lower(): path.parent.name.removesuffix("_recommender")
        for path in (recbole_folder() / "model").glob("*_recommender/*.py")
    }
    names = [path.stem for path in (recbole_folder() / "properties" / "model").glob("*.yaml")]
    names = [TREES.get(name, name) for name in names] + ["Random"]
    return {name: families[name.lower()] for name in names if name.lower() in families}


def canonical(name: str) -> str:
    """The class name for any spelling (`ST5-Seq`, `sasrec`); UserError with the nearest names otherwise."""
    known = {_plain(model): model for model in [*stock_models(), *OURS]} | ALIASES
    plain = _plain(name)
    if plain not in known:
        near = [known[match] for match in difflib.get_close_matches(plain, known, n=3, cutoff=0.5)]
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else f"ours are {', '.join(OURS)}; stock ones are RecBole's"
        )
        raise UserError(f"unknown model {name!r}: {hint}")
    return known[plain]


def _plain(name: str) -> str:
    return "".join(char for char in name.lower() if char.isalnum())


def model_class(name: str) -> type:
    """The class of a canonical name (imports torch)."""
    if name in TREES.values():
        raise UserError(
            f"{name}: tree models are not run by this harness; use recbole.quick_start.run_recbole"
        )
    if module := (OURS | MENDED).get(name):
        return getattr(importlib.import_module(module), name)
    from recbole.utils import get_model

    return get_model(name)


def register() -> None:
    """Let stock RecBole code find our models, datasets and trainer by name. Imports nothing now."""
    compat.install()
    for name, module in OURS.items():
        compat.alias(
            f"recbole.model.sequential_recommender.{name.lower()}",
            lambda name=name, module=module: {name: getattr(importlib.import_module(module), name)},
        )
    compat.after_import(
        "recbole.data.dataset",
        lambda module: _serve(module, "Dataset", "recbole_llm.data.dataset", "TextDataset"),
    )
    compat.after_import(
        "recbole.trainer",
        lambda module: _serve(module, "Trainer", "recbole_llm.trainer", "LLMTrainer"),
    )
    compat.after_import("recbole.config.configurator", _extend_config)
    compat.after_import(
        "recbole.evaluator.register",
        lambda module: importlib.import_module("recbole_llm.evaluation.metrics").register(),
    )


def _serve(package, suffix: str, module: str, attribute: str) -> None:
    """Give a RecBole package `<OurModel><suffix>`, resolved when it is first asked for."""

    def resolve(name: str):
        if name.removesuffix(suffix) in OURS and name.endswith(suffix):
            return getattr(importlib.import_module(module), attribute)
        raise AttributeError(f"module {package.__name__!r} has no attribute {name!r}")

    package.__getattr__ = resolve


def _extend_config(module) -> None:
    """Stock Config: layer our properties, but only for our models."""
    original = module.Config._load_internal_config_dict

    def load(self, model, model_class, dataset):
        original(self, model, model_class, dataset)
        if model in OURS:
            from .config import our_layers

            for layer in our_layers(model, dataset, [self.external_config_dict]):
                self.internal_config_dict.update(layer)

    module.Config._load_internal_config_dict = load
