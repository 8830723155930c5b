"""Small relatives of a language model: of its widths, with few of its layers."""

import copy
from typing import Any

import torch

# how configurations name their numbers of layers
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer", "n_layers")


def shallow_config(config: Any, layers: int) -> Any:
    """Copy a configuration, with fewer layers.

    Parameters
    ----------
    config : PretrainedConfig
        The configuration of a model.
    layers : int
        Number of layers of the copy, at most.

    Returns
    -------
    PretrainedConfig
        The copy, of a model whose weights are not quantised.
    """
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    text = config.get_text_config()
    for name in LAYER_COUNTS:
        # under an alias of the model's family, such as n_layer of GPT-2, the same number
        name = text.attribute_map.get(name, name)
        if isinstance(getattr(text, name, None), int):
            setattr(text, name, min(layers, getattr(text, name)))
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and name in ("layer_types", "attention_window"):
            setattr(text, name, value[:layers])
    return config


def layer_count(config: Any) -> int:
    """Return the number of layers of a model, those of an encoder where it has a decoder too.

    Parameters
    ----------
    config : PretrainedConfig
        The configuration of a model.

    Returns
    -------
    int
        The number.
    """
    return config.get_text_config().num_hidden_layers


def is_float32(model: torch.nn.Module) -> bool:
    """Say whether all weights of a model are float32.

    Parameters
    ----------
    model : Module
        The model.

    Returns
    -------
    bool
        Whether they are; a quantised model has others.
    """
    return all(parameter.dtype == torch.float32 for parameter in model.parameters())


def shallow_copy(model: Any, layers: int) -> Any:
    """Copy the first layers of a model, what stands before and behind them, in float32.

    Parameters
    ----------
    model : PreTrainedModel
        A model in any type of weights, or quantised. Adapters are not copied.
    layers : int
        Number of layers of the copy.

    Returns
    -------
    PreTrainedModel
        A model of the same class on the same device.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        small = type(model)(shallow_config(model.config, layers))
    wanted = dict(small.named_parameters(remove_duplicate=False))
    weights = {}
    for prefix, module in model.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            name = f"{prefix}.{kind}".replace(".base_layer.", ".").lstrip(".")
            if name in wanted:
                value = _whole(module, parameter)
                # bitsandbytes holds the transposed matrix of GPT-2's layers
                weights[name] = value if value.shape == wanted[name].shape else value.T.contiguous()
    small.load_state_dict(weights, strict=False, assign=True)
    small.tie_weights()
    return small.to(model.device).eval()


def _whole(module: Any, parameter: torch.nn.Parameter) -> torch.Tensor:
    """The numbers that a weight stands for, as a float32 tensor of its own."""
    if type(parameter).__name__ in ("Params4bit", "Int8Params"):
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        weight: Any = parameter
        return dequantize_bnb_weight(weight, getattr(module, "state", None)).float()
    return parameter.detach().float()
