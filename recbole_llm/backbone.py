"""Language models and their tokenizers: from the hub, a folder, another run, or from scratch."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from . import adapters, scratch, store
from .errors import UserError

FOLDER = "backbone"  # of a run


@dataclass
class Backbone:
    """A causal LM with its tokenizer."""

    model: torch.nn.Module
    tokenizer: object

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float [..., vocabulary] from last hidden states."""
        logits = self.model.get_output_embeddings()(hidden)
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)  # Gemma 2
        return torch.tanh(logits / cap) * cap if cap else logits

    def merged(self) -> "Backbone":
        """With LoRA added into the weights, all of which can be trained."""
        if getattr(self.model, "_hf_peft_config_loaded", False):
            adapters.merge(self.model)
        self.model.requires_grad_(True)
        return self

    def save(self, folder: Path) -> None:
        """Write ordinary transformers files; a reader never sees half of them."""
        _quiet()
        temporary, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
        for path in (temporary, old):
            shutil.rmtree(path, ignore_errors=True)
        self.model.save_pretrained(temporary)
        self.tokenizer.save_pretrained(temporary)
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)


def load_causal(name: str, texts: Iterable[str], *, saved: Path, max_length: int, vocabulary: int = 4096) -> Backbone:
    """A causal LM.

    Parameters
    ----------
    name : a hub id or folder; `run:<id>` for the backbone another run trained; `scratch:tiny|small|base` for
        random weights and a tokenizer trained on `texts`, see scratch.train_tokenizer.
    vocabulary : most tokens of a scratch tokenizer.
    """
    check_name(name, saved)
    kind, _, rest = name.partition(":")
    if kind == "scratch":
        tokenizer = scratch.train_tokenizer(texts, vocabulary)
        return Backbone(scratch.causal_model(rest, tokenizer, max_length), tokenizer)
    return load_folder(str(store.find_run(rest, saved) / FOLDER) if kind == "run" else name).merged()


def check_name(name: str, saved: Path) -> None:
    """Raise UserError for a backbone that cannot be, as far as that can be seen without the network."""
    kind, _, rest = name.partition(":")
    if kind == "scratch" and rest not in scratch.SIZES:
        raise UserError(f"backbone: expected scratch:{' or scratch:'.join(scratch.SIZES)}, found {name!r}")
    if kind == "run":
        store.finished_run(store.find_run(rest, saved))
        name = str(store.find_run(rest, saved) / FOLDER)
    if name.startswith(("/", ".", "~", os.sep)) or Path(name).exists():
        if not any((Path(name).expanduser() / file).is_file() for file in ("config.json", adapters.CONFIG)):
            raise UserError(f"backbone {name!r} is not a model folder: expected config.json in it")


def load_folder(name: str) -> Backbone:
    """A pretrained causal LM by hub id or folder; LoRA in a folder is live, over the weights it was trained on."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _quiet()
    folder = Path(name).expanduser()
    if base := adapters.base_of(folder):
        kind, _, run = base.partition(":")
        loaded = load_folder(str(folder.absolute().parents[1] / run / FOLDER) if kind == "run" else base).merged()  # runs stand beside each other
        loaded.model.load_adapter(str(folder))
        return loaded
    name = str(folder) if folder.is_dir() else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UserError(f"backbone {name!r} cannot be loaded: {' '.join(str(error).split())[:200]}") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"backbone {name!r}: its tokenizer has no end token, which closes every item")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Backbone(model, tokenizer)


def _quiet() -> None:
    """transformers draws a bar for every file that it reads or writes."""
    from transformers.utils import logging

    logging.disable_progress_bar()
