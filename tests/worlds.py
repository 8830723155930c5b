"""Small worlds with known answers, and the shortest way to a model on them."""

from pathlib import Path

import torch

from recbole_llm.testing import WORDS as FRUIT  # noqa: F401
from recbole_llm.testing import write_small_world

# settings that make any model quick
TINY = {
    "show_progress": False,
    "beside": [],
    "backbone": "scratch:nano",
    "epochs": 1,
    "scratch_vocabulary": 300,
    "samples": 4,
    "valid_samples": 2,
    "max_new_tokens": 8,
    "topk": [1, 5, 10],
    "train_batch_size": 64,
    "eval_step": 1,
    "max_length": 256,
    "MAX_ITEM_LIST_LENGTH": 10,
}


def write_cycle(folder: Path, users: int = 16, **world) -> Path:
    """Write `write_small_world` with few users: training on it takes a second."""
    return write_small_world(folder, users=users, **world)


def settings_for(model: str, folder: Path, dataset: str = "cycle", **own) -> dict:
    """Resolved settings with TINY's where the model has them."""
    from recbole_llm.settings import layers as config

    known = config.resolve(
        model, dataset, [], {key: value for key, value in own.items() if key in config.FEATURES}
    )
    tiny = {key: value for key, value in TINY.items() if key in known} | {
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
    }
    return config.resolve(model, dataset, [], tiny | own)


def prepared(model: str, folder: Path, dataset: str = "cycle", **own):
    """(RunSpec, model, trainer, loaders)."""
    from recbole_llm.runs.runner import Runner
    from recbole_llm.runs.spec import describe

    ready = describe(settings_for(model, folder, dataset, **own))
    return ready, *Runner(ready).build()


def loaders_of(config):
    """Loaders of training, validation and testing of RecBole's Config."""
    from recbole_llm.contracts.model_inputs import ModelInputs
    from recbole_llm.data.recbole.datasets import load_interactions, split_of
    from recbole_llm.data.recbole.loaders import make_loaders
    from recbole_llm.settings import registry

    interactions = load_interactions(config)
    inputs = ModelInputs(
        settings={}, interactions=interactions, split=split_of(config, interactions)
    )
    return make_loaders(config, registry.find(config["model"]), inputs)


def scores_of(model, dataset, cases) -> torch.Tensor:
    """float32 [cases, items]."""
    from recbole_llm.evaluation.loop import catalogue_scores

    with torch.no_grad():
        model.eval()
        return catalogue_scores(model, dataset, cases).float()


def t5(folder: Path, texts: list[str], layers: int = 1) -> Path:
    """A folder of transformers with a narrow T5 of random weights; its tokenizer knows `texts`."""
    from transformers import T5Config, T5Model

    from recbole_llm.language.backbones.scratch import train_tokenizer

    tokenizer = train_tokenizer(texts * 4, 320)
    tokens = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    sizes = {
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": layers,
        "num_heads": 2,
        "dropout_rate": 0.0,
    }
    T5Model(T5Config(vocab_size=len(tokenizer), **sizes, **tokens)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
