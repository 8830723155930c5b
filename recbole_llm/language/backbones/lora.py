"""LoRA on a backbone: low-rank updates of its linear layers (Hu et al., ICLR 2022).

Adapters are stored in PEFT's own files.
"""

import json
from pathlib import Path
from typing import Any

import torch

from ...errors import UserError
from .loading import as_user_errors, without_loading_table

CONFIG = "adapter_config.json"
ADAPTER = "default"  # PEFT's name of the only adapter of a model
# What PEFT may train beside low-rank updates, and `merge` would lose
BESIDE_LORA = ("modules_to_save", "trainable_token_indices", "bias", "target_parameters")


def add_lora(model: Any, core: Any, base: str, *, rank: int, alpha: float, dropout: float) -> None:
    """Put fresh adapters on a model and freeze everything else.

    Parameters
    ----------
    model : torch.nn.Module
        The model to freeze, which holds `core`.
    core : PreTrainedModel
        The model whose linear layers get adapters, all but the output's.
    base : str
        How `sources.load` finds the frozen weights again: a hub id, a folder or `run:<id>`.
    rank : int
        Rank of the updates.
    alpha : float
        The updates are multiplied by alpha / rank.
    dropout : float
        Probability with which an input of an adapter is dropped.

    Raises
    ------
    UserError
        For a scratch backbone: its weights are random, and adapters would be all that is learned.
    """
    from peft import LoraConfig

    if base.startswith("scratch:"):
        refuse_scratch(base)
    options: dict[str, Any] = {"lora_alpha": alpha, "lora_dropout": dropout}
    core.add_adapter(LoraConfig(r=rank, target_modules="all-linear", **options))
    # transformers puts the path there that the model was read from
    core.peft_config[ADAPTER].base_model_name_or_path = base
    in_float32(core)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def in_float32(core: Any) -> bool:
    """Hold the adapters of a model in float32, and let them compute in the type of autocast.

    Their inputs are of the type of the products already, or autocast casts them once; PEFT would
    cast each to float32, and keep it for the backward pass.

    Parameters
    ----------
    core : PreTrainedModel
        A model with adapters.

    Returns
    -------
    bool
        Whether they were of another type.
    """
    from peft.tuners.lora import LoraLayer

    for module in core.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False
    short = [
        parameter
        for name, parameter in core.named_parameters()
        if "lora_" in name and parameter.dtype != torch.float32
    ]
    for parameter in short:
        parameter.data = parameter.data.float()
    return bool(short)


def refuse_scratch(base: str) -> None:
    """Refuse LoRA on a scratch backbone.

    Parameters
    ----------
    base : str
        How the user named the backbone.

    Raises
    ------
    UserError
        Always.
    """
    raise UserError(
        f"adapter: lora needs trained weights, found backbone {base}; give --init_from=RUN or a "
        "pretrained backbone, or set adapter: none"
    )


def adapter_base(folder: Path) -> str | None:
    """Read what the adapters in a folder were trained on.

    Parameters
    ----------
    folder : Path
        A model's folder.

    Returns
    -------
    str or None
        The name of the base; None if the folder holds whole weights.

    Raises
    ------
    UserError
        If the file that names the base cannot be read, or is of another method than LoRA.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    with as_user_errors(str(folder), str(folder)):
        content = json.loads(path.read_text(encoding="utf-8"))
        base, method = content["base_model_name_or_path"], content["peft_type"]
    if not isinstance(base, str) or not base:
        raise UserError(
            f"backbone {str(folder)!r}: {CONFIG} names no base_model_name_or_path, which its "
            "adapters were trained on"
        )
    beside = [key for key in BESIDE_LORA if content.get(key) not in (None, [], {}, "none")]
    if method != "LORA" or beside:
        other = f"{', '.join(beside)}" if method == "LORA" else f"peft_type {method}"
        raise UserError(
            f"backbone {str(folder)!r}: expected adapters of LoRA and nothing else, found "
            f"{other}; merge them into the weights by PEFT's merge_and_unload, and give that "
            "folder"
        )
    return base


def load_adapters(core: Any, folder: Path) -> None:
    """Load the adapters of a folder onto a model.

    Parameters
    ----------
    core : PreTrainedModel
        The model.
    folder : Path
        The folder of the adapters.

    Raises
    ------
    UserError
        If they are another model's, damaged or incomplete.
    """
    # load_adapter replaces how the files of the base name its weights by how the adapters' files
    # name them; what is stored later, merged, is a file like the base's
    conversions = getattr(core, "_weight_conversions", None)
    with as_user_errors(str(folder), str(folder)), without_loading_table():
        report = core.load_adapter(str(folder))
        if in_float32(core):  # they were read in the type of the weights, which has rounded them
            core.load_adapter(str(folder), adapter_name=ADAPTER, hotswap=True)
    core._weight_conversions = conversions
    missing = {key for key in report.missing_keys if "lora_" in key}
    wrong = sorted(missing | set(report.unexpected_keys))
    if wrong:
        raise UserError(
            f"backbone {str(folder)!r}: its adapters do not fit the model that they name as their "
            f"base: {len(wrong)} weights are missing or have no place, the first is {wrong[0]}"
        )


def merge(model: Any) -> Any:
    """Add the adapters of a model into its weights, and remove them.

    Parameters
    ----------
    model : PreTrainedModel
        A model with adapters, which is changed.

    Returns
    -------
    PreTrainedModel
        The same model.
    """
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, module.get_base_layer())
    del model.peft_config
    model._hf_peft_config_loaded = False
    return model
