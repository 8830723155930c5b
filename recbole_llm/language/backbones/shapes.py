"""Models whose tensors have shapes and types, and neither memory nor content."""

import math
from typing import Any

import torch

from .precision import WeightFormat

# Bytes a parameter of quantised weights with their scales: a scale for each row of 8-bit weights,
# and for each 64 of 4-bit weights one in 8 bits, and a scale of these for each 256 of them.
QUANTIZED_BYTES = {"8bit": 1.001, "4bit": 0.5 + 1 / 64 + 4 / 64 / 256}


def model_of_shapes(auto: Any, config: Any, weight_format: WeightFormat, **options: Any) -> Any:
    """Make a model on the device `meta`.

    Parameters
    ----------
    auto : type
        A class of transformers such as AutoModelForCausalLM.
    config : PretrainedConfig
        The configuration of the model.
    weight_format : WeightFormat
        How its weights would be held.
    **options
        Arguments of `from_config`.

    Returns
    -------
    PreTrainedModel
        The model.
    """
    with torch.device("meta"):
        model = auto.from_config(config, dtype=weight_format.dtype, **options)
        if weight_format.quantize != "none":
            _quantize_shapes(model, weight_format)
    return model


class _QuantizedProduct(torch.autograd.Function):
    """A product with a weight that is unpacked for the product, in both passes."""

    @staticmethod
    def forward(ctx, inputs, packed, shape, dtype):
        ctx.shape, ctx.dtype = shape, dtype
        return inputs.to(dtype) @ packed.new_empty(shape, dtype=dtype).T

    @staticmethod
    def backward(ctx, gradient):
        whole = gradient.new_empty(ctx.shape, dtype=ctx.dtype)
        return gradient.to(ctx.dtype) @ whole, None, None, None


class _QuantizedLinear(torch.nn.Linear):
    """A linear layer with the bytes of a quantised weight, and the work of its products."""

    def __init__(self, layer: torch.nn.Linear, weight_format: WeightFormat):
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        self.whole = layer.weight.shape
        self.compute = weight_format.compute
        size = math.ceil(layer.weight.numel() * QUANTIZED_BYTES[weight_format.quantize])
        packed = torch.empty(size, dtype=torch.uint8)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)

    def forward(self, inputs):
        """Compute a product that takes the memory of bitsandbytes'."""
        result: Any = _QuantizedProduct.apply(inputs, self.weight, self.whole, self.compute)
        return result if self.bias is None else result + self.bias


def _quantize_shapes(model: Any, weight_format: WeightFormat) -> None:
    """Replace the linear layers of a causal LM, but the output's, by quantised ones."""
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and module is not head:
            model.set_submodule(name, _QuantizedLinear(module, weight_format))
