"""How stock RecBole code finds our models, datasets, trainer and settings by name."""

import functools
import importlib
import importlib.util

from . import compat
from .errors import UserError
from .settings import registry


def register() -> None:
    """Let stock RecBole code find our models, datasets and trainer by name. Imports nothing now."""
    compat.install()
    for name, module in registry.OURS.items():
        alias = f"recbole.model.sequential_recommender.{name.lower()}"
        compat.alias(alias, functools.partial(_content_of_alias, name, module))
    compat.after_import(
        "recbole.data.dataset",
        lambda module: _serve(
            module, "Dataset", "recbole_llm.data.recbole.datasets", "TextDataset"
        ),
    )
    compat.after_import(
        "recbole.trainer",
        lambda module: _serve(
            module, "Trainer", "recbole_llm.runs.recbole_trainer", "RecBoleTrainer"
        ),
    )
    compat.after_import("recbole.config.configurator", _extend_config)
    compat.after_import("recbole.trainer.hyper_tuning", _need_hyperopt)
    compat.after_import(
        "recbole.evaluator.register",
        lambda module: importlib.import_module("recbole_llm.evaluation.metrics").register(),
    )


def _content_of_alias(name: str, module: str) -> dict[str, type]:
    """What the module under whose name RecBole looks for one of our models holds."""
    return {name: getattr(importlib.import_module(module), name)}


def _need_hyperopt(module) -> None:
    """RecBole's HyperTuning: say in one line that it needs what RecBole does not install."""
    init = module.HyperTuning.__init__

    @functools.wraps(init)
    def checked(self, *args, **kwargs):
        if importlib.util.find_spec("hyperopt") is None:
            raise UserError(
                "RecBole's HyperTuning needs hyperopt, which RecBole does not install; "
                "pip install hyperopt, or search by `recbole-llm tune --model=…` instead"
            )
        init(self, *args, **kwargs)

    module.HyperTuning.__init__ = checked


def _serve(package, suffix: str, module: str, attribute: str) -> None:
    """Give a RecBole package `<OurModel><suffix>`, resolved when it is first asked for."""

    def resolve(name: str):
        if name.removesuffix(suffix) in registry.OURS and name.endswith(suffix):
            return getattr(importlib.import_module(module), attribute)
        raise AttributeError(f"module {package.__name__!r} has no attribute {name!r}")

    package.__getattr__ = resolve


def _extend_config(module) -> None:
    """Stock Config: layer our properties, but only for our models."""
    original = module.Config._load_internal_config_dict

    def load(self, model, model_class, dataset):
        original(self, model, model_class, dataset)
        if model in registry.OURS:
            from .settings.layers import our_layers

            for layer in our_layers(model, dataset, [self.external_config_dict]):
                self.internal_config_dict.update(layer)
            given = self.external_config_dict.get("eval_args")
            if isinstance(given, dict):  # RecBole fills what is not given with defaults of its own
                ours = self.internal_config_dict["eval_args"]
                self.external_config_dict["eval_args"] = ours | given

    module.Config._load_internal_config_dict = load
    init = module.Config.__init__

    @functools.wraps(init)
    def checked(self, *args, **kwargs):
        init(self, *args, **kwargs)
        if type(self) is module.Config and self.model in registry.OURS:
            from .settings.layers import settings_of_config

            settings_of_config(self)

    module.Config.__init__ = checked
