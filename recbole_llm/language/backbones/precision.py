"""The setting `precision`: what computes in how many bits."""

import torch

KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device, precision: str) -> torch.autocast:
    """Within it, bf16 and fp16 compute in that type, with weights in float32."""
    return torch.autocast(
        torch.device(device).type, dtype=KINDS[precision], enabled=precision != "fp32"
    )


def in_software(device, precision: str) -> bool:
    """Whether the device is an x86 CPU known to have no instructions for this precision.

    Products then take several to a hundred times as long as in float32.
    """
    has = getattr(torch.cpu, "get_capabilities", dict)()
    if torch.device(device).type != "cpu" or has.get("architecture") != "x86_64":
        return False
    units = {"bf16": ("avx512_bf16", "amx_bf16"), "fp16": ("avx512_fp16", "amx_fp16")}
    return precision in units and not any(has.get(unit) for unit in units[precision])
