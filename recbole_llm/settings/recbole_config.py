"""RecBole's Config at the edge: made of our settings, or made into our settings."""

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ..errors import UserError
from . import model_settings, registry, schema, spellings
from .applying import refuse
from .consistency import finish
from .defaults import default_settings, rules_of
from .harness import HarnessSettings
from .reading import Settings
from .recbole_keys import REPLACED
from .rules import checked, nearest


def recbole_config(settings: Settings, data_path: str | Path) -> Any:
    """Return RecBole's Config holding these settings.

    It reads no sys.argv, evaluates no string and sets no environment.
    """
    from recbole.config import Config

    class HarnessConfig(Config):
        parameters: dict[str, list[str]]

        def _init_parameters_category(self) -> None:
            super()._init_parameters_category()
            self.parameters = {key: list(value) for key, value in self.parameters.items()}

        def _load_variable_config_dict(self, config_dict: Settings) -> Settings:
            return dict(config_dict)

        def _load_cmd_line(self) -> Settings:
            return {}

        def _load_internal_config_dict(self, model: str, model_class: Any, dataset: str) -> None:
            self.internal_config_dict = {"MODEL_TYPE": model_class.type}

        def _init_device(self) -> None:
            config = self.final_config_dict
            config |= {"single_spec": True, "local_rank": 0, "device": _device(config)}

        def compatibility_settings(self) -> None:
            """The numpy aliases are set once by compat."""

    defaults = {"metric_decimal_place": 10}
    config = HarnessConfig(
        model=registry.model_class(settings["model"]),
        dataset=settings["dataset"],
        config_dict=copy.deepcopy(settings) | defaults,
    )
    config["data_path"] = str(data_path)
    return config


def settings_of_config(config: Any) -> Settings:
    """Make the settings of a run from RecBole's Config of one of our models.

    Keys that we do not know are RecBole's business: its own code takes any.

    Parameters
    ----------
    config : recbole.config.Config

    Raises
    ------
    UserError
        For what our commands refuse.
    """
    model, dataset = config["model"], config["dataset"]
    default, rules = default_settings(model, dataset), rules_of(registry.find(model))
    in_config = [key for key in default.keys() - REPLACED.keys() if key in config]
    settings = default | {key: config[key] for key in in_config}
    settings["eval_args"] = default["eval_args"] | settings["eval_args"]
    settings["train_neg_sample_args"] = None  # RecBole has put its own form of "none" there
    settings["data_path"] = str(Path(config["data_path"]).parent)  # RecBole adds the dataset's name
    modes = set(settings["eval_args"]["mode"].values())
    if len(modes) == 1:  # RecBole writes out one mode for both parts
        settings["eval_args"] = settings["eval_args"] | {"mode": modes.pop()}
    mistakes = []
    for key in settings.keys() & rules.keys():
        value = spellings.of_value(key, settings[key])
        try:
            settings[key] = checked(key, value, rules, default[key])
        except UserError as error:
            mistakes.append(str(error))
    refuse(sorted(mistakes))
    finish(settings, [])
    return settings


def _device(config: Settings) -> Any:
    """The device that `use_gpu` and `gpu_id` choose."""
    import torch

    if not (config["use_gpu"] and torch.cuda.is_available()):
        return torch.device("cpu")
    if config["gpu_id"] >= torch.cuda.device_count():
        raise UserError(
            f"gpu_id: this machine has {torch.cuda.device_count()} GPUs, numbered from 0, found "
            f"{config['gpu_id']}"
        )
    return torch.device(f"cuda:{config['gpu_id']}")


@contextmanager
def known_keys_only(
    config_class: Any, is_watched: Callable[[str], object], error: type[Exception]
) -> Iterator[None]:
    """Raise an error where code reads a setting that no model has, such as a misspelt one.

    RecBole's Config gives None for it.

    Parameters
    ----------
    config_class : type
        RecBole's Config, which is patched for the length of the block.
    is_watched : callable
        Takes the name of a module that reads a setting; whether it is watched.
    error : type of Exception
        What is raised.
    """
    inner = config_class.__getitem__
    known = {"stage"}  # which is set for a run of several stages alone
    known.update(schema.defaults(HarnessSettings))
    for settings in model_settings.classes():
        known.update(schema.defaults(settings))

    def strict(config: Any, key: str) -> Any:
        frame: Any = sys._getframe(1)
        while frame.f_code is strict.__code__:  # of a block around this one
            frame = frame.f_back
        reader = frame.f_globals["__name__"]
        if is_watched(reader) and key not in config and key not in known:
            hint = nearest(key, known.union(config.final_config_dict))
            raise error(f"{reader} reads the setting {key!r}, which the model does not have{hint}")
        return inner(config, key)

    with patch.object(config_class, "__getitem__", strict):
        yield
