"""The settings `precision` and `weights`: in how many bits a model computes, and is held."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import UserError

KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class WeightFormat:
    """How the weights of a language model are held.

    Attributes
    ----------
    dtype : dtype
        Type of the weights that are not quantised.
    quantize : str
        `none`, or `8bit` or `4bit` by bitsandbytes, for weights that are not trained.
    compute : dtype
        Type of the products with 4-bit weights.
    device : torch.device or str
        Where the weights are read to.
    """

    dtype: torch.dtype = torch.float32
    quantize: str = "none"
    compute: torch.dtype = torch.float32
    device: torch.device | str = "cpu"


def autocast(
    device: torch.device | str, precision: str, keeps_casts: bool = True
) -> torch.autocast:
    """Make a context in which bf16 and fp16 compute in that type, with weights in float32.

    Parameters
    ----------
    device : torch.device or str
        Where the model computes.
    precision : str
        `fp32`, `bf16` or `fp16`.
    keeps_casts : bool
        Whether the copy of a trained weight in that type is kept until the context ends. A model
        that recomputes its activations would hold copies of all weights for it.

    Returns
    -------
    torch.autocast
        The context.
    """
    kind = torch.device(device).type
    return torch.autocast(
        "cpu" if kind == "meta" else kind,  # shapes alone have no device to compute on
        dtype=KINDS[precision],
        enabled=precision != "fp32",
        cache_enabled=keeps_casts,
    )


def in_software(device: torch.device | str, precision: str) -> bool:
    """Say whether a device is an x86 CPU without instructions for this precision.

    Products then take several to a hundred times as long as in float32.

    Parameters
    ----------
    device : torch.device or str
        Where the model computes.
    precision : str
        `fp32`, `bf16` or `fp16`.

    Returns
    -------
    bool
        Whether the CPU is known to have no such instructions.
    """
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if torch.device(device).type != "cpu" or capabilities.get("architecture") != "x86_64":
        return False
    units = {"bf16": ("avx512_bf16", "amx_bf16"), "fp16": ("avx512_fp16", "amx_fp16")}
    return precision in units and not any(capabilities.get(unit) for unit in units[precision])


def check_precision(config: Mapping[str, Any]) -> None:
    """Refuse a precision that the device does not have, and weights of another one.

    Parameters
    ----------
    config : mapping
        The settings `precision`, `device`, and, of a model with adapters, `weights` and `adapter`.

    Raises
    ------
    UserError
        If a GPU has no bf16, or `weights` contradicts `precision` or `adapter`.
    """
    device, precision = torch.device(config["device"]), config["precision"]
    if precision == "bf16" and device.type == "cuda" and not gpu_has_bf16(device):
        raise UserError(
            f"precision: {torch.cuda.get_device_name(device)} computes no bf16; set "
            "--precision=fp16 or fp32"
        )
    if config["weights"] != "bfloat16":
        return
    if config["adapter"] != "lora":
        raise UserError(
            "weights: bfloat16 is for frozen weights, and adapter: none trains all of them, in "
            "float32; set --adapter=lora, or leave weights out"
        )
    if precision != "bf16":
        raise UserError(
            f"weights: bfloat16 has no products with the float32 of precision: {precision}; set "
            "--precision=bf16, or leave weights out"
        )


def gpu_has_bf16(device: torch.device) -> bool:
    """Say whether a GPU multiplies bf16 itself: NVIDIA's do from compute capability 8.0 on.

    Parameters
    ----------
    device : torch.device
        A CUDA device; one of AMD's is taken to have it.

    Returns
    -------
    bool
        Whether it does. Others emulate it, slower than float32.
    """
    return bool(torch.version.hip) or torch.cuda.get_device_capability(device)[0] >= 8


def weight_format(config: Mapping[str, Any]) -> WeightFormat:
    """Read from the settings how the weights of the backbone are held.

    Weights that are trained are float32. Frozen weights are bfloat16 where the products are and the
    device computes them, so that no pass casts, and keeps, a copy of each.

    Parameters
    ----------
    config : mapping
        The settings `precision` and `device`, and, of a model with adapters, `adapter`, `weights`
        and `quantize`.

    Returns
    -------
    WeightFormat
        The format.
    """
    precision, device = config["precision"], config["device"]
    dtype = torch.float32
    if config["adapter"] == "lora" and precision == "bf16":
        fits = config["weights"] == "auto" and not in_software(device, precision)
        if fits or config["weights"] == "bfloat16":
            dtype = torch.bfloat16
    return WeightFormat(dtype, config["quantize"] or "none", KINDS[precision], device)
