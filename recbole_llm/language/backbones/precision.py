"""The setting `precision`: in how many bits a model computes."""

from typing import Any

import torch

KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device | str, precision: str) -> torch.autocast:
    """Make a context in which bf16 and fp16 compute in that type, with weights in float32.

    Parameters
    ----------
    device : torch.device or str
        Where the model computes.
    precision : str
        `fp32`, `bf16` or `fp16`.

    Returns
    -------
    torch.autocast
        The context.
    """
    return torch.autocast(
        torch.device(device).type, dtype=KINDS[precision], enabled=precision != "fp32"
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
