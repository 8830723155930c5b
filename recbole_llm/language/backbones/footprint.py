"""The memory of a training pass, from a trace that allocates and computes nothing.

A pass through a model of a few layers is run on fake tensors, which have shapes and no content, and
the bytes that are alive at a time are counted. Layers are alike, so that the memory of any number
of them follows from that of two and of three.
"""

import json
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import lora
from .attention import attention_by, empty_mask
from .encoder_decoder import FusionBackbone
from .precision import WeightFormat, autocast
from .shallow import layer_count, shallow_config
from .shapes import model_of_shapes
from .sources import Backbone, SentenceBackbone


@dataclass(frozen=True)
class Pass:
    """What a training pass computes.

    Attributes
    ----------
    rows : int
        Texts of a pass.
    length : int
        Tokens of each.
    learned : int
        Tokens of the pass that are learned.
    """

    rows: int
    length: int
    learned: int = 0


@dataclass(frozen=True)
class Training:
    """How a language model is trained, as far as it decides the memory.

    Attributes
    ----------
    kind : type of Backbone
        What the model is.
    weight_format : WeightFormat
        How the weights are held that are not trained, or all of them.
    precision : str
        `fp32`, `bf16` or `fp16`.
    rank : int
        Rank of the adapters; 0 where all weights are trained.
    dropout : float
        Of the adapters.
    recomputes : bool
        Whether activations are computed again in the backward pass.
    """

    kind: type[Backbone]
    weight_format: WeightFormat
    precision: str = "fp32"
    rank: int = 0
    dropout: float = 0.0
    recomputes: bool = False


@dataclass(frozen=True)
class Footprint:
    """Bytes of memory that training takes.

    Attributes
    ----------
    weights : int
        Of the weights.
    gradients : int
        Of the gradients of the trained ones.
    optimizer : int
        Of the two moments of AdamW.
    activations : int
        At the peak of a pass without logits, beside weights, gradients and optimizer.
    logits : int
        What the logits of learned tokens add to that peak.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


@dataclass(frozen=True)
class Trace:
    """Bytes of a traced pass.

    Attributes
    ----------
    weights : int
        Of the weights.
    trained : int
        Of the weights that are trained.
    early : int
        The peak until the gradients of the last layer are there, when the activations of all other
        layers are alive: a line in the number of layers.
    peak : int
        The peak of the whole pass. At the end of a backward pass few activations are left, but the
        gradients of embeddings may be larger than those of many layers.
    """

    weights: int
    trained: int
    early: int
    peak: int


class StorageCounter(TorchDispatchMode):
    """Counts the bytes of tensors that are alive.

    Attributes
    ----------
    now : int
        Bytes that are alive.
    peak : int
        The most that were alive at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, Any] = {}

    def add(self, tensor: torch.Tensor) -> None:
        """Count the storage of a tensor until it is freed.

        Parameters
        ----------
        tensor : Tensor
            A tensor; of those that share a storage, the first is counted.
        """
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive[key] = weakref.ref(storage, lambda _: self._forget(key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> None:
        self._alive.pop(key, None)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation, and count what it returns."""
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self.add(value)
        return result


def footprint(config: Any, training: Training, work: Pass) -> Footprint:
    """Compute the memory that the training of a language model takes.

    Parameters
    ----------
    config : PretrainedConfig
        The configuration of the model.
    training : Training
        How it is trained.
    work : Pass
        The largest pass.

    Returns
    -------
    Footprint
        Its parts. Gradients are counted in full, since a step has several passes.
    """
    whole = _trace_of_all(config, training, work)
    without = _trace_of_all(config, training, replace(work, learned=0)).peak
    return Footprint(whole.weights, whole.trained, 2 * whole.trained, without, whole.peak - without)


def pass_peak(config: Any, training: Training, work: Pass) -> int:
    """Compute what a pass takes beside weights, gradients and the optimizer, at its peak.

    Parameters
    ----------
    config : PretrainedConfig
        The configuration of the model.
    training : Training
        How it is trained.
    work : Pass
        The pass.

    Returns
    -------
    int
        Bytes of activations and of logits.
    """
    return _trace_of_all(config, training, work).peak


def _trace_of_all(config: Any, training: Training, work: Pass) -> Trace:
    """Extrapolate the trace of all layers from those of two and of three.

    Of one layer alone, the first would be the last.
    """
    layers = layer_count(config)
    described = _Config(json.dumps(config.to_dict(), sort_keys=True, default=str), config)
    if layers <= 3:
        return _traced(described, training, work, layers)
    two, three = (_traced(described, training, work, few) for few in (2, 3))

    def line(name: str) -> int:
        first, second = getattr(two, name), getattr(three, name)
        return first + (layers - 2) * (second - first)

    early = line("early")
    return Trace(line("weights"), line("trained"), early, max(early, line("peak")))


class _Config:
    """A configuration that equals others of the same content, for a cache."""

    def __init__(self, text: str, config: Any):
        self.text, self.config = text, config

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Config) and self.text == other.text


@lru_cache(maxsize=256)
def _traced(described: _Config, training: Training, work: Pass, layers: int) -> Trace:
    """Trace a pass through the first layers of a model."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    bundle = _shapes(shallow_config(described.config, layers), training)
    device = torch.device(training.weight_format.device)
    if device.type == "meta":  # whose kernels are not those of any device
        device = torch.device("cpu")
    with FakeTensorMode(), StorageCounter() as counter:
        _fake(bundle.core, device)
        if training.recomputes:
            bundle.recompute()
        weights = counter.now
        trained = 0
        for parameter in bundle.core.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
                trained += parameter.nbytes
        begin = counter.peak = counter.now
        early: list[int] = []
        _watch_layers(bundle.core, lambda: early.append(counter.peak))
        with autocast(device, training.precision, keeps_casts=not training.recomputes):
            loss = pass_loss(bundle, work, device)
        loss.backward()
        first = early[0] if early else counter.peak
        return Trace(weights, trained, first - begin, counter.peak - begin)


def _watch_layers(model: torch.nn.Module, reached: Callable[[], object]) -> None:
    """Call a function whenever the backward pass has gone through a layer."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    def before(module: torch.nn.Module, inputs: tuple, named: dict) -> None:
        for value in (*inputs[:1], named.get("hidden_states")):
            if torch.is_tensor(value) and value.requires_grad and torch.is_grad_enabled():
                value.register_hook(lambda gradient: reached() and None)
                return

    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.register_forward_pre_hook(before, with_kwargs=True)


def _shapes(config: Any, training: Training) -> Backbone:
    """Make a model whose tensors have shapes and types, and neither memory nor content."""
    from transformers import AutoModel, AutoModelForCausalLM

    has_head = not issubclass(training.kind, SentenceBackbone | FusionBackbone)
    auto: Any = AutoModelForCausalLM if has_head else AutoModel
    attention = config._attn_implementation
    model = model_of_shapes(
        auto, config, training.weight_format, attn_implementation=attention or None
    )
    if training.rank:
        rank, dropout = training.rank, training.dropout
        with torch.device("meta"):
            lora.add_lora(model, model, "", rank=rank, alpha=1, dropout=dropout)
    model.train()
    return Backbone(model, None)  # type: ignore[arg-type]  # it needs no tokenizer


def _fake(model: torch.nn.Module, device: torch.device) -> None:
    """Replace the tensors of a model by fake ones on a device; tied weights stay tied."""
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # with the old, whose id stays taken
    for module in model.modules():
        groups: list[dict[str, Any]] = [module._parameters, module._buffers]
        for tensors in groups:
            for name, value in tensors.items():
                if value is None:
                    continue
                if id(value) not in made:
                    new = torch.empty(value.shape, dtype=value.dtype, device=device)
                    if isinstance(value, torch.nn.Parameter):
                        new = torch.nn.Parameter(new, requires_grad=value.requires_grad)
                    made[id(value)] = value, new
                tensors[name] = made[id(value)][1]


def pass_loss(bundle: Backbone, work: Pass, device: torch.device) -> torch.Tensor:
    """Run the forward pass that is traced.

    Parameters
    ----------
    bundle : Backbone
        A model of any kind; its tokenizer is not used.
    work : Pass
        The shape of the pass.
    device : torch.device
        Where the model is.

    Returns
    -------
    Tensor of float []
        A loss, which depends on all weights that are trained.
    """
    model = bundle.core
    ids = torch.zeros(work.rows, work.length, dtype=torch.int64, device=device)
    if model.config.is_encoder_decoder:
        states = model.get_encoder()(
            input_ids=ids, attention_mask=torch.ones_like(ids)
        ).last_hidden_state
        output = model.get_decoder()(
            input_ids=ids[:, :1],
            encoder_hidden_states=states,
            encoder_attention_mask=torch.ones_like(ids),
            use_cache=False,
        )
        return output.last_hidden_state.float().sum()
    if model.get_output_embeddings() is None:
        states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return states.float().mean(dim=1).sum()
    # a mask would be built in a trace, which is not built in a training
    is_fused = model.config._attn_implementation != "eager"
    mask = {"attention_mask": empty_mask(device)} if is_fused else {}
    with attention_by(model, _FusedAttention()) if is_fused else nullcontext():
        states = model.base_model(input_ids=ids, use_cache=False, **mask).last_hidden_state
    if not work.learned:
        return states.float().sum()
    chosen = states.flatten(0, 1)[: work.learned]
    return bundle.token_losses(chosen, ids.flatten()[: work.learned]).sum()


class _FusedAttention:
    """Causal attention by a kernel that keeps no matrix of weights (an AttentionRule)."""

    def attend(self, module, query, keys, values, scaling, softcap, window, dropout):
        """Compute the attention of a layer, see AttentionRule."""
        output = F.scaled_dot_product_attention(
            query,
            keys,
            values,
            is_causal=True,
            scale=scaling,
            dropout_p=dropout,
            enable_gqa=query.shape[1] != keys.shape[1],
        )
        return output.transpose(1, 2).contiguous()
