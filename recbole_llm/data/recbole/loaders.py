"""Data loaders: RecBole's for training its models, and the cases of each split for evaluation.

For evaluation only the dataset of the split is needed, because our loop reads its cases.
"""

from types import SimpleNamespace
from typing import Any

import torch
from recbole.data.utils import create_samplers, get_dataloader

from ...contracts.model_inputs import ModelInputs
from ...contracts.model_spec import ModelSpec
from ...settings import stock
from .datasets import TextDataset, dataset_class


def make_loaders(
    config: Any, model: ModelSpec, inputs: ModelInputs
) -> tuple[Any, SimpleNamespace, SimpleNamespace]:
    """Make RecBole's datasets and loaders of a run.

    Parameters
    ----------
    config : Config
        RecBole's configuration. For a stock model, `numerical_features` is set in it.
    model : ModelSpec
        The model that is going to read them.
    inputs : ModelInputs
        The interactions and the split.

    Returns
    -------
    tuple
        The loaders of training, validation and testing. The `_dataset` of each has its `cases`.

    Raises
    ------
    UserError
        If RecBole cannot make them.
    """
    if model.is_text:
        dataset = TextDataset(config)
        dataset.inputs = inputs
        train, valid, test = dataset.build()
        loader = CaseLoader(train, config["seed"])
    else:
        config["numerical_features"] = stock.numerical_features(config, inputs.interactions)
        dataset = dataset_class(config["model"], config["MODEL_TYPE"])(config)
        dataset.inputs = inputs
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
