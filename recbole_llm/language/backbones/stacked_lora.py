"""Many LoRA adapters on one frozen model at once: each layer's rows come adapter by adapter, and one batched product serves them all."""

import json
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .loading import as_user_errors
from .lora import CONFIG
from .precision import KINDS

WEIGHTS = "adapter_model.safetensors"


class StackedLoRA(torch.autograd.Function):
    """x [rows, ..., in] -> W x + bias + scale B_k A_k (keep x), in the type of W. The update is added in place, and nothing is kept twice for the way back."""

    @staticmethod
    def forward(ctx, x, weight, bias, a, b, scale, keep):
        ctx.kinds, ctx.scale, kind = (x.dtype, a.dtype), scale, weight.dtype
        x, a, b = x.to(kind), a.to(kind), b.to(kind)
        y = F.linear(x, weight, bias)
        seen = (x if keep is None else x * keep).reshape(len(a), -1, x.shape[-1])
        low = seen @ a.transpose(1, 2)
        y.view(len(a), -1, y.shape[-1]).baddbmm_(low, b.transpose(1, 2), alpha=scale)
        ctx.save_for_backward(seen, low, weight, a, b, keep)
        return y

    @staticmethod
    def backward(ctx, dy):
        seen, low, weight, a, b, keep = ctx.saved_tensors
        outer, own = ctx.kinds
        dy = dy.to(weight.dtype)
        rows = dy.reshape(len(a), -1, dy.shape[-1])
        up = (rows @ b).mul_(ctx.scale)
        da, db = up.transpose(1, 2) @ seen, (rows.transpose(1, 2) @ low).mul_(ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dy @ weight
            if keep is None:
                dx.view(seen.shape).baddbmm_(up, a)
            else:
                dx.addcmul_((up @ a).view(dx.shape), keep)
            dx = dx.to(outer)
        return dx, None, None, da.to(own), db.to(own), None, None


class SharedDropoutMask:
    """Dropout's masks of one step: windows, at random places, of numbers that are drawn once. A mask for each layer would cost as much as its products."""

    def __init__(self, share: float):
        self.share, self.drawn = share, None

    def mask(self, like: torch.Tensor, kind: torch.dtype) -> torch.Tensor | None:
        """0 for a `share` of a tensor's elements, at random, and 1 / (1 - share) for the others; None if none is to be 0."""
        if not self.share:
            return None
        need = like.numel()
        if self.drawn is None or len(self.drawn) < need + need // 8:
            self.drawn = (
                (torch.rand(need + need // 8 + 1, device=like.device) >= self.share)
                .to(kind)
                .div_(1 - self.share)
            )
        begin = int(torch.randint(len(self.drawn) - need + 1, ()))
        return self.drawn[begin : begin + need].view(like.shape)


class StackedLinear(nn.Module):
    """A frozen linear layer with K adapters: y = W x + scale B_k A_k dropout(x), for the k-th of K equal shares of the rows.

    a, b : [K, rank, in] and [K, out, rank]. kind : what it computes in.
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
        self.base, self.a, self.b, self.scale, self.noise, self.kind = (
            base,
            a,
            b,
            scale,
            noise,
            kind,
        )
        self.short, self.bias = (
            base.weight.detach().to(kind),
            None if base.bias is None else base.bias.detach().to(kind),
        )

    @property
    def weight(self) -> torch.Tensor:
        """The frozen one, whose kind T5 asks for."""
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        keep = self.noise.mask(x, self.kind) if self.training else None
        return StackedLoRA.apply(x, self.short, self.bias, self.a, self.b, self.scale, keep)


class AdapterStack:
    """K adapters of one rank over every linear layer of a model.

    Attributes
    ----------
    a, b : layer -> Parameter [K, rank, in] and [K, out, rank].
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
        self.a, self.b = (
            {name: nn.Parameter(value) for name, value in part.items()} for part in (a, b)
        )

    @classmethod
    def initialized(
        cls,
        model: nn.Module,
        seeds: Sequence[Sequence[int]],
        *,
        rank: int,
        alpha: float,
        dropout: float,
    ) -> "AdapterStack":
        """One adapter for each seed, as PEFT begins: A uniform within 1 / sqrt(in), B zero. What one begins with does not depend on the others."""
        layers = linear_layers(model)
        device, dtype = model.device, model.dtype
        a = {
            name: torch.empty(len(seeds), rank, layer.in_features) for name, layer in layers.items()
        }
        for number, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(hash_of(seed))
            for name, layer in layers.items():
                a[name][number].uniform_(
                    -(layer.in_features**-0.5), layer.in_features**-0.5, generator=generator
                )
        b = {
            name: torch.zeros(len(seeds), layer.out_features, rank)
            for name, layer in layers.items()
        }
        return cls(
            rank,
            alpha,
            dropout,
            *({name: value.to(device, dtype) for name, value in part.items()} for part in (a, b)),
        )

    @classmethod
    def load(cls, model: nn.Module, folders: Sequence[Path | None]) -> "AdapterStack":
        """Adapters of any ranks by the folders of PEFT's files; None for one that adds nothing. Their scales are taken into B.

        Raises UserError, naming the folder, for files that are missing, damaged or of another model.
        """
        layers, device, dtype = linear_layers(model), model.device, model.dtype
        read = [folder and _read(folder, layers) for folder in folders]
        rank = max([one[0] for one in read if one], default=1)
        a = {
            name: torch.zeros(len(folders), rank, layer.in_features)
            for name, layer in layers.items()
        }
        b = {
            name: torch.zeros(len(folders), layer.out_features, rank)
            for name, layer in layers.items()
        }
        for number, one in enumerate(read):
            if one is None:
                continue
            own, down, up = one
            for name in layers:
                a[name][number, :own] = down[name]
                b[name][number, :, :own] = up[name]
        return cls(
            rank,
            rank,
            0.0,
            *({name: value.to(device, dtype) for name, value in part.items()} for part in (a, b)),
        )

    def __len__(self) -> int:
        return len(next(iter(self.a.values())))

    def parameters(self) -> list[nn.Parameter]:
        return [*self.a.values(), *self.b.values()]

    def __getitem__(self, which) -> "AdapterStack":
        """Copies of some of them: a slice or indices."""
        return AdapterStack(
            self.rank,
            self.alpha,
            self.dropout,
            *(
                {name: value.detach()[which].clone() for name, value in part.items()}
                for part in (self.a, self.b)
            ),
        )

    def replace(self, number: int, other: "AdapterStack", place: int) -> None:
        """Overwrite one adapter by one of another stack."""
        with torch.no_grad():
            for own, theirs in zip(self.parameters(), other.parameters(), strict=True):
                own[number] = theirs[place]

    @contextmanager
    def installed_on(self, model: nn.Module, precision: str = "fp32"):
        """Within it, the model's rows pass through these adapters, by precision fp32 in the type of their weights."""
        layers, noise, scale = (
            linear_layers(model),
            SharedDropoutMask(self.dropout),
            self.alpha / self.rank,
        )
        for name, layer in layers.items():
            kind = layer.weight.dtype if precision == "fp32" else KINDS[precision]
            _put(
                model,
                name,
                StackedLinear(layer, self.a[name], self.b[name], scale, noise, kind).train(
                    model.training
                ),
            )
        try:
            yield
        finally:
            for name, layer in layers.items():
                _put(model, name, layer)

    def save(self, number: int, folder: Path, base: str) -> None:
        """Write one adapter as PEFT's ordinary files. base : how the frozen weights are found, see adapters.add_lora."""
        from peft import LoraConfig
        from safetensors.torch import save_file

        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=sorted({name.rpartition(".")[2] for name in self.a}),
        )
        config.base_model_name_or_path, config.inference_mode = base, True
        folder.mkdir(parents=True, exist_ok=True)
        kinds = {"lora_A": self.a, "lora_B": self.b}
        tensors = {
            f"base_model.model.{name}.{kind}.weight": part[name].detach()[number].cpu().contiguous()
            for kind, part in kinds.items()
            for name in part
        }
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(folder)
        path = folder / CONFIG
        written = json.loads(path.read_text(encoding="utf-8"))
        written["target_modules"] = sorted(
            written["target_modules"]
        )  # PEFT has a set, in another order in each process
        path.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def _read(
    folder: Path, layers: dict[str, nn.Linear]
) -> tuple[int, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """An adapter in PEFT's files: its rank, and A and B of each layer, B with the scale in it."""
    from safetensors.torch import load_file

    with as_user_errors(str(folder), str(folder)):
        said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
        rank, scale = said["r"], said["lora_alpha"] / said["r"]
        down, up = (
            {name: tensors[f"base_model.model.{name}.lora_{part}.weight"] for name in layers}
            for part in "AB"
        )
        for name, layer in layers.items():
            found = tuple(down[name].shape), tuple(up[name].shape)
            if found != ((rank, layer.in_features), (layer.out_features, rank)):
                raise ValueError(f"{name} is of another shape")
        return rank, down, {name: value * scale for name, value in up.items()}


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def hash_of(seed: Sequence[int]) -> int:
    """One 63-bit seed from several numbers."""
    import numpy as np

    return int(np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)
