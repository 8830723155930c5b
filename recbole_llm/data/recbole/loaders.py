"""Data loaders: RecBole's for training its models, and the cases of each split for evaluation.

For evaluation only the dataset of the split is needed, because our loop reads its cases.
"""

from types import SimpleNamespace
from typing import Any

import torch
from recbole.data.utils import create_samplers, get_dataloader

from ...settings import registry, stock
from .datasets import TextDataset, dataset_class, load_tables


def make_loaders(config: Any) -> tuple[Any, SimpleNamespace, SimpleNamespace]:
    """Read and split the dataset of a configuration.

    Parameters
    ----------
    config : Config
        RecBole's configuration. For a stock model, `numerical_features` is set in it.

    Returns
    -------
    tuple
        The loaders of training, validation and testing. The `_dataset` of each has its `cases`.

    Raises
    ------
    UserError
        If the dataset cannot be read or split.
    """
    is_text = registry.of_config(config).is_text
    if is_text:
        train, valid, test = TextDataset(config).build()
        loader = CaseLoader(train, config["seed"])
    else:
        config["numerical_features"] = stock.numerical_features(config, load_tables(config))
        dataset = dataset_class(config["model"], config["MODEL_TYPE"])(config)
        train, valid, test = dataset.build()
        loader = _recbole_loader(config, dataset, [train, valid, test])
    return loader, SimpleNamespace(_dataset=valid), SimpleNamespace(_dataset=test)


def _recbole_loader(config: Any, dataset: Any, splits: list[Any]) -> Any:
    """RecBole's training loader, with a sampler of negatives only if the model needs one.

    RecBole makes samplers for evaluation, too, which fails if a user has seen every item.
    """
    distribution = (config["train_neg_sample_args"] or {}).get("distribution", "none")
    sampler = None
    if distribution != "none":
        sampler = create_samplers(config, dataset, splits)[0]
    return get_dataloader(config, "train")(config, splits[0], sampler, shuffle=config["shuffle"])


class CaseLoader:
    """The training cases of a text model; `LLMTrainer` orders and batches them by length.

    Parameters
    ----------
    dataset : TextDataset
        The training dataset.
    seed : int
        Seed of the order of the cases.
    """

    def __init__(self, dataset: TextDataset, seed: int):
        self._dataset = dataset
        self.generator = torch.Generator()
        self.generator.manual_seed(seed)
