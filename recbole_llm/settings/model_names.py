"""Model names: ours written out, RecBole's read from its folder; how RecBole finds ours by name."""

import difflib
import importlib
import importlib.util
from functools import lru_cache
from pathlib import Path

from .. import compat
from ..errors import UserError

# class name -> module
OURS = {
    "CALRec": "recbole_llm.models.calrec",
    "LIR": "recbole_llm.models.lir",
    "LLMTRSR": "recbole_llm.models.llmtrsr",
    "RecFormer": "recbole_llm.models.recformer",
    "ST5Seq": "recbole_llm.models.st5seq",
    "TALLRec": "recbole_llm.models.tallrec",
    "TASTELoRA": "recbole_llm.models.tastelora",
    "UniSRec": "recbole_llm.models.unisrec",
}
# stock models that are wrong as they stand; our runner uses the class of these modules
MENDED = {"Pop": "recbole_llm.models.stock.pop", "S3Rec": "recbole_llm.models.stock.s3rec"}
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
)  # that item_features is for; stock ones by models/stock/item_text_embeddings.py


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
