"""Weights in 8 or 4 bits by bitsandbytes: LLM.int8 and QLoRA (Dettmers et al., 2022 and 2023)."""

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import torch

from ...errors import UserError
from .precision import WeightFormat


def quantization(weight_format: WeightFormat) -> dict[str, Any]:
    """Make the argument of `from_pretrained` for quantised weights.

    Four bits are those of QLoRA: NormalFloat, with the scales quantised too.

    Parameters
    ----------
    weight_format : WeightFormat
        The format of the weights.

    Returns
    -------
    dict
        The argument `quantization_config`; nothing for weights that are not quantised.

    Raises
    ------
    UserError
        If bitsandbytes is not installed.
    """
    if weight_format.quantize == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"quantize: {weight_format.quantize} is computed by the package bitsandbytes, which is "
            'not installed: pip install "recbole_llm[quantize]"'
        )
    from transformers import BitsAndBytesConfig

    # it warns of every product in float32
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    options: dict[str, Any] = {"load_in_8bit": True}
    if weight_format.quantize == "4bit":
        options = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": weight_format.compute,
        }
    return {"quantization_config": BitsAndBytesConfig(**options)}


def refuse_quantization(weight_format: WeightFormat, kind: str) -> None:
    """Refuse quantised weights of a model that is no causal LM.

    Parameters
    ----------
    weight_format : WeightFormat
        The format of the weights.
    kind : str
        What the model is.

    Raises
    ------
    UserError
        If they are quantised.
    """
    if weight_format.quantize != "none":
        raise UserError(f"quantize: expected none for a {kind}, found {weight_format.quantize}")


def check_unquantized(folder: Path, quantize: str) -> None:
    """Refuse to quantise weights that their files hold quantised already.

    Parameters
    ----------
    folder : Path
        The folder of a model.
    quantize : str
        `none`, `8bit` or `4bit`.

    Raises
    ------
    UserError
        If they do.
    """
    if quantize == "none":
        return
    method = None
    config = folder / "config.json"
    if config.is_file():
        described = json.loads(config.read_text(encoding="utf-8")).get("quantization_config")
        if described:
            method = str(described.get("quant_method", "another method"))
    elif any(folder.glob("*.gguf")):
        method = "GGUF"
    if method:
        raise UserError(
            f"backbone {str(folder)!r} holds weights that are quantised already ({method}); leave "
            f"{quantize} out, or give the model in whole weights"
        )


def quantize_weights(model: Any, weight_format: WeightFormat) -> None:
    """Quantise the weights of a model as reading it would have done.

    Parameters
    ----------
    model : PreTrainedModel
        A causal LM without adapters, whose linear layers but the output's are replaced.
    weight_format : WeightFormat
        The format.
    """
    from transformers.quantizers import AutoHfQuantizer

    config = quantization(weight_format)["quantization_config"]
    quantizer: Any = AutoHfQuantizer.from_config(config, pre_quantized=False)
    whole = dict(model.named_parameters())
    device_map = {"": weight_format.device}
    quantizer.preprocess_model(model=model, device_map=device_map, dtype=model.dtype)
    quantize = quantizer.get_quantize_ops()
    for name, place in list(model.named_parameters()):
        if place is whole[name]:
            continue
        module = model.get_submodule(name.rpartition(".")[0])
        value = whole[name].detach()
        if quantizer.param_needs_quantization(model, name):
            module.weight = quantize.convert(
                {name: value}, model=model, full_layer_name=name, missing_keys=set()
            )[name]
        else:
            module.bias = torch.nn.Parameter(value, requires_grad=False)
    quantizer.postprocess_model(model)


def dequantize_weights(model: Any, dtype: torch.dtype) -> None:
    """Replace quantised weights by the numbers that they stand for.

    Parameters
    ----------
    model : PreTrainedModel
        A quantised causal LM without adapters.
    dtype : dtype
        Type of the weights.
    """
    from transformers.utils import logging as lines

    before = lines.get_verbosity()
    lines.set_verbosity_error()  # it warns of the type
    try:
        model.dequantize(dtype)
    finally:
        lines.set_verbosity(before)
    model.to(dtype)


def keep_gradients(model: Any) -> None:
    """Keep bitsandbytes from packing 4-bit weights of a CPU for answering alone.

    It packs them in a forward pass without gradients, and passes no gradient through packed
    weights: training would stand still after the first validation.

    Parameters
    ----------
    model : Module
        The model.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
