"""Data loaders: RecBole's own for training; for evaluation only the part's dataset, since our loop reads cases."""

from types import SimpleNamespace

import torch
from recbole.data.utils import create_samplers, get_dataloader

from ...settings import registry, stock
from .datasets import TextDataset, dataset_class, load_tables


def make_loaders(config) -> tuple:
    """(train, valid, test): `_dataset` of each carries its cases."""
    is_text = registry.of_config(config).is_text
    if not is_text:
        config["numerical_features"] = stock.numerical_features(config, load_tables(config))
    dataset = (TextDataset if is_text else dataset_class(config["model"], config["MODEL_TYPE"]))(
        config
    )
    parts = dataset.build()
    if is_text:
        train = CaseLoader(parts[0], config["seed"])
    else:
        # stock code makes samplers for evaluation too, and cannot where a user has met every item
        draws = (config["train_neg_sample_args"] or {}).get("distribution", "none") != "none"
        sampler = create_samplers(config, dataset, parts)[0] if draws else None
        train = get_dataloader(config, "train")(
            config, parts[0], sampler, shuffle=config["shuffle"]
        )
    return train, SimpleNamespace(_dataset=parts[1]), SimpleNamespace(_dataset=parts[2])


class CaseLoader:
    """The training cases of our models; `LLMTrainer` orders and batches them by length."""

    def __init__(self, dataset: TextDataset, seed: int):
        self._dataset = dataset
        self.generator = torch.Generator()
        self.generator.manual_seed(seed)
