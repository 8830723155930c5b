"""The setting `precision`: what computes in how many bits."""

import torch

KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device, precision: str) -> torch.autocast:
    """Within it, bf16 and fp16 compute in that type, with weights in float32."""
    return torch.autocast(
        torch.device(device).type, dtype=KINDS[precision], enabled=precision != "fp32"
    )
