"""How long a language model takes on a device: operations and bytes against its rates."""

import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from ..language.backbones.precision import KINDS
from ..models.base.training_memory import GIB, USABLE, free_memory

# Share of a rate which training and reading reach, and of the bandwidth which writing reaches.
REACHED = 0.4
# Keys and values of the text that the decoder of T5 or BART looks at.
CROSS_ATTENTION = re.compile(r"(EncDecAttention|encoder_attn)\.(k|v)(_proj)?(\.|$)")


@dataclass(frozen=True)
class Hardware:
    """A device.

    Attributes
    ----------
    name : str
        What it is called in lines.
    memory : float
        GiB that a run finds free.
    rates : mapping of str to float
        Products in each precision that it computes, in 10^12 operations a second.
    bandwidth : float
        10^9 bytes a second of its memory.
    usable : float
        Share of the memory that a run plans with.
    """

    name: str
    memory: float
    rates: Mapping[str, float]
    bandwidth: float
    usable: float = USABLE["cuda"]

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


def _gpu(
    name: str, memory: float, half: float, single: float, bandwidth: float, has_bf16: bool = True
) -> Hardware:
    """A GPU by its data sheet."""
    rates = {"fp32": single, "fp16": half} | ({"bf16": half} if has_bf16 else {})
    return Hardware(name, memory, rates, bandwidth)


# From NVIDIA's data sheets (A100 80 GB, H100 and H200: SXM): dense products of 16 bits with float32
# sums, and products in float32 without TF32, which torch leaves off.
GPUS = {
    one.name: one
    for one in (
        _gpu("t4", 15.0, 65, 8.1, 320, has_bf16=False),
        _gpu("l4", 22.5, 121, 30.3, 300),
        _gpu("rtx-3090", 23.7, 71, 35.6, 936),
        _gpu("rtx-4090", 23.6, 165, 82.6, 1008),
        _gpu("a100-40gb", 39.4, 312, 19.5, 1555),
        _gpu("a100-80gb", 79.1, 312, 19.5, 2039),
        _gpu("h100", 79.1, 989, 67, 3350),
        _gpu("h200", 139.8, 989, 67, 4800),
    )
}


def find_gpu(name: str) -> Hardware:
    """Find a GPU by its name.

    Parameters
    ----------
    name : str
        One of `GPUS`.

    Returns
    -------
    Hardware
        The GPU.

    Raises
    ------
    UserError
        If the name is unknown.
    """
    if name.lower() not in GPUS:
        raise UserError(f"hardware: expected one of {', '.join(GPUS)}, found {name!r}")
    return GPUS[name.lower()]


def measure_device(device: torch.device, precisions: Collection[str]) -> Hardware:
    """Measure a device of this machine.

    Parameters
    ----------
    device : torch.device
        The device.
    precisions : collection of str
        The precisions whose rates are measured.

    Returns
    -------
    Hardware
        The device.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
    memory = free_memory(device)
    rates = {precision: product_rate(device, precision) / 1e12 for precision in precisions}
    most = 2**30 if device.type == "cuda" else 2**27
    bandwidth = _copy_rate(device, min(most, memory // 4)) / 1e9
    return Hardware(name, memory / GIB, rates, bandwidth, USABLE[device.type])


def product_rate(device: torch.device, precision: str) -> float:
    """Measure one large product of matrices on a device.

    Parameters
    ----------
    device : torch.device
        The device.
    precision : str
        `fp32`, `bf16` or `fp16`.

    Returns
    -------
    float
        Operations a second.
    """
    size = 8192 if device.type == "cuda" else 1024
    one = torch.randn(size, size, device=device).to(KINDS[precision])
    return 2 * size**3 / _least_seconds(lambda: one @ one)


def _copy_rate(device: torch.device, size: int) -> float:
    """Bytes a second that a copy of a tensor of some bytes reads and writes."""
    one = torch.zeros(size, dtype=torch.uint8, device=device)
    other = torch.zeros_like(one)
    return 2 * size / _least_seconds(lambda: other.copy_(one))


def _least_seconds(compute: Callable[[], torch.Tensor]) -> float:
    """The seconds of a computation that nothing disturbs."""
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        compute().flatten()[0].item()  # a GPU has computed when a number is there
        best = min(best, time.perf_counter() - started)
    return best


class ModelCost:
    """Operations and bytes of a language model.

    Parameters
    ----------
    core : PreTrainedModel
        The model, whose weights may be shapes alone.

    Attributes
    ----------
    matrices : int
        Numbers that each token of a text is multiplied with, the output layer's aside. Of an
        encoder-decoder, the decoder's own are left out, since it reads one token of each text.
    head : int
        Numbers of the output layer.
    weight_bytes : int
        Bytes of all weights.
    packed : int
        Numbers in weights of 4 bits, which are unpacked for a product.
    """

    def __init__(self, core: Any):
        self.config = core.config.get_text_config()
        self.matrices, self.packed = _matrices(core)
        head = core.get_output_embeddings()
        self.head = 0 if head is None else head.weight.numel()
        self.weight_bytes = sum(value.nbytes for value in core.parameters())
        width, heads = self.config.hidden_size, getattr(self.config, "num_attention_heads", 1)
        self.head_width = getattr(self.config, "head_dim", None) or width // heads
        reader = core.get_encoder() if core.config.is_encoder_decoder else core
        is_causal = head is not None
        is_causal |= any(getattr(module, "is_causal", False) for module in reader.modules())
        # two products of queries with keys, and of weights with values; causal: half of each square
        size = self.config.num_hidden_layers * heads * self.head_width
        self.attention = (2 if is_causal else 4) * size

    def reading(self, lengths: np.ndarray) -> float:
        """Count the operations of reading a token, without logits.

        Windows of attention are not taken into account.

        Parameters
        ----------
        lengths : ndarray of int [texts]
            Tokens of the texts.

        Returns
        -------
        float
            Operations a token, the mean over all tokens.
        """
        return 2 * self.matrices + self.attention * _length_of_token(lengths)

    def training(
        self, lengths: np.ndarray, *, adapts: bool, recomputes: bool, learned: float
    ) -> float:
        """Count the operations of training on a token.

        Parameters
        ----------
        lengths : ndarray of int [texts]
            Tokens of the texts.
        adapts : bool
            Whether all weights but adapters' are frozen: they have no gradients.
        recomputes : bool
            Whether activations and logits are computed again in the backward pass.
        learned : float
            Share of the tokens whose logits are computed.

        Returns
        -------
        float
            Operations a token, the mean over all tokens.
        """
        # forward, gradients of inputs, and gradients of the weights that are not frozen
        passes = (2 if adapts else 3) + recomputes
        # both factors of the products in attention have gradients
        attention = self.attention * _length_of_token(lengths) * (3 + recomputes)
        return 2 * passes * (self.matrices + learned * self.head) + attention

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
        is_new = getattr(config, "new_decoder_architecture", False)
        if getattr(config, "multi_query", False) and not is_new:  # Falcon
            heads = 1
        return 2 * config.num_hidden_layers * heads * self.head_width * dtype.itemsize

    def writing_seconds(
        self, tokens: float, at_once: int, cached: float, precision: str, hardware: Hardware
    ) -> float:
        """Reckon the time of writing, step by step.

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
            Seconds: the longer of the time of the products and that of moving weights and cache.
            Weights of 4 bits are read, unpacked in memory, and read again in each step.
        """
        operations = tokens * 2 * (self.matrices + self.head)
        unpacked = 2 * KINDS[precision].itemsize * self.packed
        moved = tokens * ((self.weight_bytes + unpacked) / at_once + cached)
        computing = operations / (hardware.rate(precision) * 1e12)
        return max(computing, moved / (hardware.bandwidth * 1e9)) / REACHED


def _length_of_token(lengths: np.ndarray) -> float:
    """The length of the text that a token is in, the mean over all tokens."""
    return float((lengths.astype(float) ** 2).sum() / lengths.sum())


def _matrices(core: Any) -> tuple[int, int]:
    """Count the numbers that a token is multiplied with, and those of them in 4 bits."""
    modules = list(core.named_modules())
    if core.config.is_encoder_decoder:
        crossing = [one for one in modules if CROSS_ATTENTION.search(one[0])]
        modules = [*core.get_encoder().named_modules(), *crossing]
    total, packed, head = 0, 0, core.get_output_embeddings()
    for _, module in modules:
        # an adapter around a layer shows the layer's weight as its own
        if (
            module is head
            or isinstance(module, torch.nn.Embedding)
            or hasattr(module, "base_layer")
        ):
            continue
        weight = getattr(module, "weight", None)
        if not torch.is_tensor(weight):
            total += _active_experts(core.config, module)
            continue
        # of a quantised layer, those that its bytes stand for
        shape = getattr(module, "whole", weight.shape)
        total += shape.numel() if len(shape) > 1 else 0
        packed += shape.numel() if weight.numel() < shape.numel() else 0
    shared = getattr(core.config, "num_hidden_groups", None)  # ALBERT's layers share weights
    return total * (core.config.num_hidden_layers // shared if shared else 1), packed


def _active_experts(config: Any, module: torch.nn.Module) -> int:
    """Count the numbers of the experts that one token is sent to, [experts, out, in] each."""
    chosen = getattr(config.get_text_config(), "num_experts_per_tok", 0)
    total = 0
    for weight in module.parameters(recurse=False):
        if weight.dim() == 3:
            total += weight.numel() // len(weight) * chosen
    return total
