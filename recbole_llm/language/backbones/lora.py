"""LoRA on a backbone: low-rank updates of its linear layers, saved in PEFT's own files (Hu et al., ICLR 2022)."""

import json
from pathlib import Path

from ...errors import UserError
from .loading import as_user_errors, without_loading_table

CONFIG = "adapter_config.json"
# what PEFT may train beside low-rank updates, and `merge` would lose
BESIDE_LORA = ("modules_to_save", "trainable_token_indices", "bias", "target_parameters")


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


def adapter_base(folder: Path) -> str | None:
    """What the adapters in a folder were trained on; None if the folder holds whole weights.

    Raises
    ------
    UserError : if the file that says so cannot be read, or is of another method than LoRA.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    with as_user_errors(str(folder), str(folder)):
        written = json.loads(path.read_text(encoding="utf-8"))
        base, method = written["base_model_name_or_path"], written["peft_type"]
    if not isinstance(base, str) or not base:
        raise UserError(
            f"backbone {str(folder)!r}: {CONFIG} names no base_model_name_or_path, which its "
            "adapters were trained on"
        )
    beside = [key for key in BESIDE_LORA if written.get(key) not in (None, [], {}, "none")]
    if method != "LORA" or beside:
        has = f"{', '.join(beside)}" if method == "LORA" else f"peft_type {method}"
        raise UserError(
            f"backbone {str(folder)!r}: expected adapters of LoRA and nothing else, found {has}; "
            "merge them into the weights by PEFT's merge_and_unload, and give that folder"
        )
    return base


def load_adapters(core, folder: Path) -> None:
    """Let the adapters of a folder work on a transformers model.

    Raises
    ------
    UserError : if they are another model's, damaged or incomplete.
    """
    # how the files of the base name its weights, which load_adapter replaces by how the adapters'
    # do; whatever is stored later, merged, is the base's kind of file
    conversions = getattr(core, "_weight_conversions", None)
    with as_user_errors(str(folder), str(folder)), without_loading_table():
        report = core.load_adapter(str(folder))
    core._weight_conversions = conversions
    own = [key for key in report.missing_keys if "lora_" in key]
    if wrong := sorted({*own, *report.unexpected_keys}):
        raise UserError(
            f"backbone {str(folder)!r}: its adapters do not fit the model that they name as their "
            f"base: {len(wrong)} weights are missing or have no place, the first is {wrong[0]}"
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
