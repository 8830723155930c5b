"""LoRA on a backbone: low-rank updates of its linear layers, saved in PEFT's own files (Hu et al., ICLR 2022)."""

import json
from pathlib import Path

from .errors import UserError

CONFIG = "adapter_config.json"


def add_lora(model, core, base: str, *, rank: int, alpha: float, dropout: float) -> None:
    """Put fresh adapters on every linear layer of `core` but the output's and freeze all else of `model`, which holds it.

    Parameters
    ----------
    base : how `backbone.load` finds the frozen weights again: a hub id, a folder or `run:<id>`.

    Raises
    ------
    UserError : for a scratch backbone: its weights are random, and adapters would be all that is ever learned.
    """
    from peft import LoraConfig

    if base.startswith("scratch:"):
        refuse_scratch(base)
    core.add_adapter(
        LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear")
    )
    core.peft_config[
        "default"
    ].base_model_name_or_path = base  # transformers puts the path the model was read from
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def refuse_scratch(base: str) -> None:
    raise UserError(
        f"adapter: lora needs trained weights, found backbone {base}; give --init_from=RUN or a pretrained backbone, or set adapter: none"
    )


def base_of(folder: Path) -> str | None:
    """What the adapters in a folder were trained on; None if the folder holds whole weights."""
    path = folder / CONFIG
    return (
        json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
        if path.is_file()
        else None
    )


def merge(model):
    """The model with its adapters added into the weights, and without them."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    del model.peft_config
    model._hf_peft_config_loaded = False
    return model
