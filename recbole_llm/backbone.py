"""Language models and their tokenizers: from the hub, a folder, another run, or from scratch."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from . import adapters, scratch, store
from .errors import UserError


@dataclass
class Backbone:
    """A causal LM with its tokenizer."""

    model: torch.nn.Module
    tokenizer: object

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float [..., vocabulary] from last hidden states."""
        config = self.model.config.get_text_config()
        logits = self.model.get_output_embeddings()(hidden)
        scale = (getattr(config, "logit_scale", None) or 1) / (getattr(config, "logits_scaling", None) or 1)  # Cohere, Granite
        logits = logits * scale if scale != 1 else logits
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
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
    run = store.backbone_run(name, saved)
    return load_folder(str(run / store.BACKBONE) if run else name).merged()


def check_name(name: str, saved: Path) -> None:
    """Raise UserError for a backbone that cannot be, as far as that can be seen without the network."""
    kind, _, rest = name.partition(":")
    if kind == "scratch" and rest not in scratch.SIZES:
        raise UserError(f"backbone: expected scratch:{' or scratch:'.join(scratch.SIZES)}, found {name!r}")
    if run := store.backbone_run(name, saved):
        store.finished_run(run)
        name = str(run / store.BACKBONE)
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
        loaded = load_folder(str(folder.absolute().parents[1] / run / store.BACKBONE) if kind == "run" else base).merged()  # runs stand beside each other
        loaded.model.load_adapter(str(folder))
        return loaded
    name = str(folder) if folder.is_dir() else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model, found = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"backbone {name!r} cannot be loaded: {' '.join(str(error).split())[:200]}") from None
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"backbone {name!r} is no whole causal LM: {len(missing)} of its weights are missing, the first is {missing[0]}")
    if tokenizer.eos_token_id is None:
        raise UserError(f"backbone {name!r}: its tokenizer has no end token, which closes every item")
    tokens, size = max(tokenizer.vocab_size, tokenizer.eos_token_id + 1), model.get_input_embeddings().num_embeddings
    if tokens > size:
        raise UserError(f"backbone {name!r}: its tokenizer has {tokens} tokens, more than the {size} that it has embeddings for")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= size:
        tokenizer.pad_token = tokenizer.eos_token
    return Backbone(model, tokenizer)


def _quiet() -> None:
    """transformers draws a bar for every file that it reads or writes."""
    from transformers.utils import logging

    logging.disable_progress_bar()
