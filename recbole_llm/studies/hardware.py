"""How long language models compute on a device, by its rates."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from ..language.backbones.precision import KINDS
from ..models.base.training_memory import GIB

# Share of a rate which training and reading reach, and of the bandwidth which writing reaches.
REACHED = 0.4


@dataclass(frozen=True)
class Hardware:
    """A device.

    Attributes
    ----------
    name : str
    memory : float
        GiB.
    rates : mapping of str to float
        Products in each precision that it computes, in 10^12 operations a second.
    bandwidth : float
        10^9 bytes a second of its memory.
    """

    name: str
    memory: float
    rates: Mapping[str, float]
    bandwidth: float

    def rate(self, precision: str) -> float:
        """Look up the rate of a precision.

        Parameters
        ----------
        precision : str
            `fp32`, `bf16` or `fp16`.

        Returns
        -------
        float
            In 10^12 operations a second.

        Raises
        ------
        UserError
            If the device does not compute it.
        """
        if precision not in self.rates:
            raise UserError(
                f"hardware: {self.name} computes no {precision}; expected a precision of "
                f"{', '.join(self.rates)}"
            )
        return self.rates[precision]


def _gpu(name: str, memory: float, half: float, single: float, bandwidth: float) -> Hardware:
    """A GPU by its data sheet."""
    rates = {"fp32": single, "bf16": half, "fp16": half}
    if name == "t4":
        del rates["bf16"]
    return Hardware(name, memory, rates, bandwidth)


# From NVIDIA's data sheets: dense products of 16 bits with float32 sums, and products in float32
# without TF32, which torch leaves off.
GPUS = {
    one.name: one
    for one in (
        _gpu("t4", 15.0, 65, 8.1, 320),
        _gpu("l4", 22.5, 121, 30.3, 300),
        _gpu("rtx-3090", 23.7, 71, 35.6, 936),
        _gpu("rtx-4090", 23.6, 165, 82.6, 1008),
        _gpu("a100-40gb", 39.4, 312, 19.5, 1555),
        _gpu("a100-80gb", 79.1, 312, 19.5, 2039),
        _gpu("h100", 79.1, 989, 67, 3350),
        _gpu("h200", 139.8, 989, 67, 4800),
    )
}


def find_hardware(name: str | None, precision: str) -> Hardware:
    """Find a device by its name.

    Parameters
    ----------
    name : str or None
        One of `GPUS`; None is the device of this machine.
    precision : str
        The precision whose rate is measured on this machine.

    Returns
    -------
    Hardware
        The device.

    Raises
    ------
    UserError
        If the name is unknown.
    """
    if name is not None and name.lower() not in GPUS:
        raise UserError(f"hardware: expected one of {', '.join(GPUS)}, found {name!r}")
    if name is not None:
        return GPUS[name.lower()]
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / GIB
        rates = {precision: _measured("cuda", precision)}
        return Hardware(torch.cuda.get_device_name(), memory, rates, 1000)
    import psutil

    memory = psutil.virtual_memory().total / GIB
    return Hardware("this CPU", memory, {precision: _measured("cpu", precision)}, 20)


def _measured(device: str, precision: str) -> float:
    """The rate of a product of matrices on a device, in 10^12 operations a second."""
    size = 8192 if device == "cuda" else 1024
    one = torch.randn(size, size, device=device, dtype=KINDS[precision])
    best = float("inf")
    for _ in range(10):  # other processes disturb some of them
        started = time.perf_counter()
        result = one @ one
        result[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / 1e12


class Work:
    """Operations and bytes of a language model.

    Parameters
    ----------
    core : PreTrainedModel
        The model, whose weights may be shapes alone.

    Attributes
    ----------
    matrices : int
        Numbers that each token is multiplied with, the output layer's aside.
    head : int
        Numbers of the output layer.
    weight_bytes : int
        Bytes of all weights.
    step_bytes : int
        Bytes that a step of writing moves for the weights. Those of quantised ones are read,
        unpacked into two bytes a number, and these are read again.
    """

    def __init__(self, core: Any):
        self.config = core.config.get_text_config()
        self.matrices = _matrices(core)
        head = core.get_output_embeddings()
        self.head = 0 if head is None else head.weight.numel()
        self.weight_bytes = sum(value.nbytes for value in core.parameters())
        packed = sum(layer.whole.numel() for layer in core.modules() if hasattr(layer, "whole"))
        self.step_bytes = self.weight_bytes + 4 * packed

    def reading(self, lengths: np.ndarray) -> float:
        """Count the operations of reading one token, without logits.

        Parameters
        ----------
        lengths : ndarray of int [texts]
            Tokens of the texts.

        Returns
        -------
        float
            The mean over all tokens.
        """
        length = float((lengths.astype(float) ** 2).sum() / lengths.sum())  # that a token is in
        config = self.config
        return 2 * self.matrices + 2 * config.num_hidden_layers * config.hidden_size * length

    def cache_bytes(self, dtype: torch.dtype) -> int:
        """Count the bytes of the keys and values of one token.

        Parameters
        ----------
        dtype : dtype
            Their type.

        Returns
        -------
        int
            Bytes in all layers.
        """
        config = self.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None)
        width = width or config.hidden_size // config.num_attention_heads
        return 2 * config.num_hidden_layers * heads * width * dtype.itemsize

    def writing(
        self, tokens: float, at_once: int, cached: float, precision: str, hardware: Hardware
    ) -> float:
        """Reckon the seconds of writing, step by step.

        Parameters
        ----------
        tokens : float
            Tokens that are written.
        at_once : int
            Texts that are written together, a token each a step.
        cached : float
            Bytes of keys and values that each text reads in a step.
        precision : str
            `fp32`, `bf16` or `fp16`.
        hardware : Hardware
            The device.

        Returns
        -------
        float
            The longer of the time of the products and that of reading weights and cache.
        """
        operations = tokens * 2 * (self.matrices + self.head)
        moved = tokens * (self.step_bytes / at_once + cached)
        computing = operations / (hardware.rate(precision) * 1e12)
        return max(computing, moved / (hardware.bandwidth * 1e9)) / REACHED


def _matrices(core: Any) -> int:
    """Count the numbers that each token is multiplied with."""
    total, head = 0, core.get_output_embeddings()
    for module in core.modules():
        if module is head or isinstance(module, torch.nn.Embedding):
            continue
        if next(module.children(), None) is not None:
            continue
        weight = getattr(module, "weight", None)
        if torch.is_tensor(weight):
            # of a quantised layer, those that its bytes stand for
            shape = getattr(module, "whole", weight.shape)
            total += shape.numel() if len(shape) > 1 else 0
    return total
