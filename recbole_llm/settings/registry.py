"""Which models there are: ours, RecBole's, those of installed packages, and a user's own class.

Everything that depends on a model's kind asks the :class:`ModelSpec` that :func:`find` gives. It is
found by name alone, without torch, except for a class of the user's own, which is imported.
"""

import difflib
import importlib.util
from functools import lru_cache
from pathlib import Path

from .. import compat
from ..contracts.model_spec import ModelSpec
from ..errors import UserError

# Class name: module.
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
# Stock models that are wrong as they stand. Our runner uses the classes of these modules.
MENDED = {"Pop": "recbole_llm.models.stock.pop", "S3Rec": "recbole_llm.models.stock.s3rec"}
# RecBole names the files of its tree models unlike their classes.
TREES = {"lightgbm": "LightGBM", "xgboost": "XGBoost"}
ALIASES = {"ncf": "NeuMF"}  # the papers' names of stock models
# Models that `item_features` is for; the stock ones by models/stock/item_text_embeddings.py.
TAKE_ITEM_TEXT = ("UniSRec", "SASRec", "GRU4Rec", "NARM", "CORE", "NeuMF", "DIN", "DIEN")
ENTRY_POINTS = "recbole_llm.models"  # the group under which an installed package names its models


@lru_cache
def recbole_folder() -> Path:
    """Folder of the installed RecBole, which is not imported."""
    compat.require_recbole()
    spec = importlib.util.find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the installation of RecBole is incomplete: it has no folder")
    return Path(spec.submodule_search_locations[0])


@lru_cache
def stock_models() -> dict[str, str]:
    """RecBole's models, none of which is imported: class name -> family, such as `sequential`."""
    families = {
        path.stem.lower(): path.parent.name.removesuffix("_recommender")
        for path in (recbole_folder() / "model").glob("*_recommender/*.py")
    }
    names = [path.stem for path in (recbole_folder() / "properties" / "model").glob("*.yaml")]
    names = [TREES.get(name, name) for name in names] + ["Random"]
    return {name: families[name.lower()] for name in names if name.lower() in families}


@lru_cache
def installed_models() -> dict[str, str]:
    """Models of installed packages: name of the entry point -> "module:Class"."""
    from importlib.metadata import entry_points

    return {entry.name: entry.value for entry in entry_points(group=ENTRY_POINTS)}


def find(model: str | type) -> ModelSpec:
    """The model that a name, "module:Class", a class or an entry point stands for.

    Parameters
    ----------
    model : str or type
        A name in any spelling (`ST5-Seq`, `sasrec`); "module:Class", where the module is a file in
        the current folder or can be imported; or a class.

    Raises
    ------
    UserError
        With the nearest names, or with what is wrong with the class.

    Examples
    --------
    >>> find("st5-seq").key
    'ST5Seq'
    >>> find("sasrec").family
    'sequential'
    """
    if isinstance(model, type):
        if _is_builtin(model):
            return _spec(model.__name__)
        from . import guests  # which needs pydantic

        return guests.of_class(model)
    if ":" in model:
        from . import guests

        return guests.of_path(model)
    return _spec(_known_name(model))


def canonical(name: str) -> str:
    """The setting `model` for any spelling of a model's name; see :func:`find`."""
    return find(name).key


@lru_cache
def _known_name(name: str) -> str:
    names = [*installed_models(), *stock_models(), *OURS]  # the last of equal spellings holds
    known = {_plain(model): model for model in names} | ALIASES
    plain = _plain(name)
    if plain not in known:
        near = [known[match] for match in difflib.get_close_matches(plain, known, n=3, cutoff=0.5)]
        if near:
            hint = f"did you mean {' or '.join(near)}? A class of your own is module:{name}"
        else:
            hint = (
                f"ours are {', '.join(OURS)}; stock ones are RecBole's; "
                "your own is --model=module:Class"
            )
        raise UserError(f"unknown model {name!r}: {hint}")
    return known[plain]


def _plain(name: str) -> str:
    return "".join(char for char in name.lower() if char.isalnum())


def models_with(setting: str) -> list[str]:
    """Names of models of the user's and of ours that declare a setting; none if many do."""
    from . import guests, model_settings  # which need pydantic

    known = {name: model_settings.find(name) for name in OURS}
    known |= {spec.name: spec.settings for spec in guests.known()}
    owners = [name for name, own in known.items() if own and setting in own.model_fields]
    return owners if len(owners) <= 2 else []


def _is_builtin(model: type) -> bool:
    name = model.__name__
    if name in OURS:
        return model.__module__ == OURS[name]
    is_stock = model.__module__.startswith("recbole.model.") or model.__module__ in MENDED.values()
    return name in stock_models() and is_stock


@lru_cache
def _spec(name: str) -> ModelSpec:
    if name not in OURS and name not in stock_models():
        from . import guests

        return guests.of_path(installed_models()[name], key=name)
    from . import model_settings  # which needs pydantic

    return ModelSpec(
        key=name,
        name=name,
        family="text" if name in OURS else stock_models()[name],
        module=OURS.get(name) or MENDED.get(name),
        takes_item_text=name in TAKE_ITEM_TEXT,
        tree=name in TREES.values(),
        settings=model_settings.find(name),
    )


def model_class(name: str) -> type:
    """Return the class of a model that `find` knows. Importing it imports torch."""
    return find(name).load()
