"""Train many LoRA adapters on one frozen model at once.

The rows of each layer come adapter by adapter, and one batched product serves all adapters.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .loading import as_user_errors
from .lora import CONFIG
from .precision import KINDS

WEIGHTS = "adapter_model.safetensors"


class StackedLoRA(torch.autograd.Function):
    """Computes x [rows, ..., in] -> W x + bias + scale B_k A_k (keep * x), in the type of W.

    The update is added in place, and no activation is stored twice for backward.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, a, b, scale, keep):
        """Compute the layer's outputs [rows, ..., out].

        Parameters
        ----------
        x : Tensor [rows, ..., in]
            Inputs, adapter by adapter.
        weight, bias : Tensor [out, in], Tensor [out] or None
            The frozen layer.
        a, b : Tensor [K, rank, in], Tensor [K, out, rank]
            The adapters.
        scale : float
            Factor of the updates.
        keep : Tensor like x, or None
            Dropout mask of the adapters' inputs.
        """
        ctx.kinds, ctx.scale, kind = (x.dtype, a.dtype), scale, weight.dtype
        x, a, b = x.to(kind), a.to(kind), b.to(kind)
        y = F.linear(x, weight, bias)
        inputs = (x if keep is None else x * keep).reshape(len(a), -1, x.shape[-1])
        low = inputs @ a.transpose(1, 2)
        y.view(len(a), -1, y.shape[-1]).baddbmm_(low, b.transpose(1, 2), alpha=scale)
        ctx.save_for_backward(inputs, low, weight, a, b, keep)
        return y

    @staticmethod
    def backward(ctx, dy):
        """Compute the gradients of x, a and b from that of the outputs, [rows, ..., out]."""
        inputs, low, weight, a, b, keep = ctx.saved_tensors
        input_kind, adapter_kind = ctx.kinds
        dy = dy.to(weight.dtype)
        rows = dy.reshape(len(a), -1, dy.shape[-1])
        up = (rows @ b).mul_(ctx.scale)
        da, db = up.transpose(1, 2) @ inputs, (rows.transpose(1, 2) @ low).mul_(ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dy @ weight
            if keep is None:
                dx.view(inputs.shape).baddbmm_(up, a)
            else:
                dx.addcmul_((up @ a).view(dx.shape), keep)
            dx = dx.to(input_kind)
        return dx, None, None, da.to(adapter_kind), db.to(adapter_kind), None, None


class SharedDropoutMask:
    """The dropout masks of one step: windows, at random places, of numbers that are drawn once.

    A mask drawn for each layer would cost as much as the products of the layer.

    Parameters
    ----------
    share : float
        Probability with which an element is dropped.
    """

    def __init__(self, share: float):
        self.share = share
        self.drawn: torch.Tensor | None = None

    def mask(self, like: torch.Tensor, kind: torch.dtype) -> torch.Tensor | None:
        """Return a mask for a tensor.

        Parameters
        ----------
        like : Tensor
            A tensor of the shape and on the device of the mask.
        kind : torch.dtype
            Type of the mask.

        Returns
        -------
        Tensor or None
            0 for a `share` of the elements, at random, and 1 / (1 - share) for the others; None if
            nothing is dropped.
        """
        if not self.share:
            return None
        needed = like.numel()
        drawn = self.drawn
        if drawn is None or len(drawn) < needed + needed // 8:
            kept = torch.rand(needed + needed // 8 + 1, device=like.device) >= self.share
            drawn = self.drawn = kept.to(kind).div_(1 - self.share)
        begin = int(torch.randint(len(drawn) - needed + 1, ()))
        return drawn[begin : begin + needed].view(like.shape)


class StackedLinear(nn.Module):
    """A frozen linear layer with K adapters.

    It computes y = W x + scale B_k A_k dropout(x) for the k-th of K equal shares of the rows.

    Parameters
    ----------
    base : nn.Linear
        The frozen layer.
    a : nn.Parameter [K, rank, in]
        Down projections.
    b : nn.Parameter [K, out, rank]
        Up projections.
    scale : float
        Factor of the updates.
    noise : SharedDropoutMask
        The dropout masks.
    kind : torch.dtype
        Type in which it computes.
    """

    def __init__(
        self,
        base: nn.Linear,
        a: nn.Parameter,
        b: nn.Parameter,
        scale: float,
        noise: SharedDropoutMask,
        kind: torch.dtype,
    ):
        super().__init__()
        self.base, self.a, self.b = base, a, b
        self.scale, self.noise, self.kind = scale, noise, kind
        self.short = base.weight.detach().to(kind)
        self.bias = None if base.bias is None else base.bias.detach().to(kind)

    @property
    def weight(self) -> torch.Tensor:
        """The frozen weights, whose type T5 asks for."""
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the outputs.

        Parameters
        ----------
        x : Tensor [rows, ..., in]
            Inputs, adapter by adapter.

        Returns
        -------
        Tensor [rows, ..., out]
            Outputs.
        """
        keep = self.noise.mask(x, self.kind) if self.training else None
        return StackedLoRA.apply(x, self.short, self.bias, self.a, self.b, self.scale, keep)


class AdapterStack:
    """K adapters of one rank over every linear layer of a model.

    Parameters
    ----------
    rank : int
        Rank of the updates.
    alpha : float
        The updates are multiplied by alpha / rank.
    dropout : float
        Probability with which an input of an adapter is dropped.
    a : dict of str to Tensor [K, rank, in]
        Down projections by the name of the layer.
    b : dict of str to Tensor [K, out, rank]
        Up projections by the name of the layer.

    Attributes
    ----------
    a, b : dict of str to nn.Parameter
        The same as parameters.
    """

    def __init__(
        self,
        rank: int,
        alpha: float,
        dropout: float,
        a: dict[str, torch.Tensor],
        b: dict[str, torch.Tensor],
    ):
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.a = {name: nn.Parameter(value) for name, value in a.items()}
        self.b = {name: nn.Parameter(value) for name, value in b.items()}

    @classmethod
    def initialized(
        cls,
        model: Any,
        seeds: Sequence[Sequence[int]],
        *,
        rank: int,
        alpha: float,
        dropout: float,
    ) -> "AdapterStack":
        """Make one adapter for each seed, initialized as by PEFT.

        A is uniform within 1 / sqrt(in), and B is zero. An adapter does not depend on the others.

        Parameters
        ----------
        model : PreTrainedModel
            The frozen model.
        seeds : sequence of sequence of int
            The seed of each adapter.
        rank, alpha, dropout : int, float, float
            See the class.

        Returns
        -------
        AdapterStack
            The adapters.
        """
        layers = linear_layers(model)
        a, b = _empty_weights(layers, len(seeds), rank)
        for number, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(hash_of(seed))
            for name, layer in layers.items():
                bound = layer.in_features**-0.5
                a[name][number].uniform_(-bound, bound, generator=generator)
        return cls(rank, alpha, dropout, _moved(a, model), _moved(b, model))

    @classmethod
    def load(cls, model: Any, folders: Sequence[Path | None]) -> "AdapterStack":
        """Read adapters of any ranks from PEFT's files; their scales are taken into B.

        Parameters
        ----------
        model : PreTrainedModel
            The frozen model.
        folders : sequence of Path or None
            The folder of each adapter; None for one that adds nothing.

        Returns
        -------
        AdapterStack
            The adapters, with the largest of the ranks.

        Raises
        ------
        UserError
            For files that are missing, damaged or of another model; it names the folder.
        """
        layers = linear_layers(model)
        adapters = [None if folder is None else _read(folder, layers) for folder in folders]
        rank = max([adapter[0] for adapter in adapters if adapter], default=1)
        a, b = _empty_weights(layers, len(folders), rank)
        for number, adapter in enumerate(adapters):
            if adapter is None:
                continue
            adapter_rank, down, up = adapter
            for name in layers:
                a[name][number, :adapter_rank] = down[name]
                b[name][number, :, :adapter_rank] = up[name]
        return cls(rank, rank, 0.0, _moved(a, model), _moved(b, model))

    def __len__(self) -> int:
        return len(next(iter(self.a.values())))

    def parameters(self) -> list[nn.Parameter]:
        """List the weights of all adapters.

        Returns
        -------
        list of nn.Parameter
            All A, followed by all B.
        """
        return [*self.a.values(), *self.b.values()]

    def __getitem__(self, which: Any) -> "AdapterStack":
        """Copy some of the adapters, given by a slice or by indices."""
        a = {name: value.detach()[which].clone() for name, value in self.a.items()}
        b = {name: value.detach()[which].clone() for name, value in self.b.items()}
        return AdapterStack(self.rank, self.alpha, self.dropout, a, b)

    def replace(
        self, number: int | np.integer, other: "AdapterStack", place: int | np.integer
    ) -> None:
        """Overwrite one adapter by one of another stack.

        Parameters
        ----------
        number : int
            Index of the adapter here.
        other : AdapterStack
            A stack of the same model and rank.
        place : int
            Index of the adapter there.
        """
        with torch.no_grad():
            for ours, theirs in zip(self.parameters(), other.parameters(), strict=True):
                ours[number] = theirs[place]

    @contextmanager
    def installed_on(self, model: nn.Module, precision: str = "fp32") -> Iterator[None]:
        """Let the rows of a model pass through these adapters, within this context.

        Parameters
        ----------
        model : nn.Module
            The frozen model.
        precision : str
            `fp32` computes in the type of the model's weights, `bf16` and `fp16` in these.
        """
        layers, noise = linear_layers(model), SharedDropoutMask(self.dropout)
        scale = self.alpha / self.rank
        for name, layer in layers.items():
            kind = layer.weight.dtype if precision == "fp32" else KINDS[precision]
            stacked = StackedLinear(layer, self.a[name], self.b[name], scale, noise, kind)
            _replace_layer(model, name, stacked.train(model.training))
        try:
            yield
        finally:
            for name, layer in layers.items():
                _replace_layer(model, name, layer)

    def save(self, number: int, folder: Path, base: str) -> None:
        """Write one adapter as PEFT's ordinary files.

        Parameters
        ----------
        number : int
            Index of the adapter.
        folder : Path
            Where to; it is made.
        base : str
            How the frozen weights are found, see `lora.add_lora`.
        """
        from peft import LoraConfig
        from safetensors.torch import save_file

        options: dict[str, Any] = {"lora_alpha": self.alpha, "lora_dropout": self.dropout}
        config = LoraConfig(
            r=self.rank,
            target_modules=sorted({name.rpartition(".")[2] for name in self.a}),
            **options,
        )
        config.base_model_name_or_path, config.inference_mode = base, True
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for kind, weights in (("lora_A", self.a), ("lora_B", self.b)):
            for name, value in weights.items():
                key = f"base_model.model.{name}.{kind}.weight"
                tensors[key] = value.detach()[number].cpu().contiguous()
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(str(folder))
        path = folder / CONFIG
        content = json.loads(path.read_text(encoding="utf-8"))
        # PEFT has a set, in another order in each process
        content["target_modules"] = sorted(content["target_modules"])
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _empty_weights(
    layers: dict[str, nn.Linear], count: int, rank: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Make zeros for A, [count, rank, in], and B, [count, out, rank], of every layer."""
    a = {name: torch.zeros(count, rank, layer.in_features) for name, layer in layers.items()}
    b = {name: torch.zeros(count, layer.out_features, rank) for name, layer in layers.items()}
    return a, b


def _moved(weights: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """Bring weights to the device and type of a model."""
    return {name: value.to(model.device, model.dtype) for name, value in weights.items()}


def _read(
    folder: Path, layers: dict[str, nn.Linear]
) -> tuple[int, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Read an adapter from PEFT's files: its rank, and A and B of each layer, B times the scale."""
    from safetensors.torch import load_file

    with as_user_errors(str(folder), str(folder)):
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
        rank, scale = content["r"], content["lora_alpha"] / content["r"]
        down = {name: tensors[f"base_model.model.{name}.lora_A.weight"] for name in layers}
        up = {name: tensors[f"base_model.model.{name}.lora_B.weight"] for name in layers}
        for name, layer in layers.items():
            shapes = tuple(down[name].shape), tuple(up[name].shape)
            if shapes != ((rank, layer.in_features), (layer.out_features, rank)):
                raise ValueError(f"{name} is of another shape")
        return rank, down, {name: value * scale for name, value in up.items()}


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Find the linear layers of a model.

    Parameters
    ----------
    model : nn.Module
        The model.

    Returns
    -------
    dict of str to nn.Linear
        The layers by their names.
    """
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def hash_of(seed: Sequence[int]) -> int:
    """Make one seed from several numbers.

    Parameters
    ----------
    seed : sequence of int
        The numbers.

    Returns
    -------
    int
        63 bits.
    """
    return int(np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, layer)
