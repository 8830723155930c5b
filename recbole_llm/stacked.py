"""Many LoRA adapters on one frozen model at once: each layer's rows come adapter by adapter, and one batched product serves them all."""

import json
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .adapters import CONFIG


class StackedLinear(nn.Module):
    """A frozen linear layer with K adapters: y = W x + scale B_k A_k dropout(x), for the k-th of K equal shares of the rows.

    a, b : [K, rank, in] and [K, out, rank].
    """

    def __init__(self, base: nn.Linear, a: nn.Parameter, b: nn.Parameter, scale: float, dropout: float):
        super().__init__()
        self.base, self.a, self.b, self.scale, self.dropout = base, a, b, scale, dropout

    @property
    def weight(self) -> torch.Tensor:
        """The frozen one, whose kind T5 asks for."""
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, count = self.base(x), len(self.a)
        low = F.dropout(x, self.dropout, self.training).reshape(count, -1, x.shape[-1]) @ self.a.transpose(1, 2)
        return torch.baddbmm(y.view(count, -1, y.shape[-1]), low, self.b.transpose(1, 2), alpha=self.scale).view(y.shape)


class Stack:
    """K adapters of one rank over every linear layer of a model.

    Attributes
    ----------
    a, b : layer -> Parameter [K, rank, in] and [K, out, rank].
    """

    def __init__(self, rank: int, alpha: float, dropout: float, a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]):
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.a, self.b = ({name: nn.Parameter(value) for name, value in part.items()} for part in (a, b))

    @classmethod
    def fresh(cls, model: nn.Module, seeds: Sequence[Sequence[int]], *, rank: int, alpha: float, dropout: float) -> "Stack":
        """One adapter for each seed, as PEFT begins: A uniform within 1 / sqrt(in), B zero. What one begins with does not depend on the others."""
        layers = linear_layers(model)
        device, dtype = model.device, model.dtype
        a = {name: torch.empty(len(seeds), rank, layer.in_features) for name, layer in layers.items()}
        for number, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(hash_of(seed))
            for name, layer in layers.items():
                a[name][number].uniform_(-(layer.in_features**-0.5), layer.in_features**-0.5, generator=generator)
        b = {name: torch.zeros(len(seeds), layer.out_features, rank) for name, layer in layers.items()}
        return cls(rank, alpha, dropout, *({name: value.to(device, dtype) for name, value in part.items()} for part in (a, b)))

    def __len__(self) -> int:
        return len(next(iter(self.a.values())))

    def parameters(self) -> list[nn.Parameter]:
        return [*self.a.values(), *self.b.values()]

    def __getitem__(self, which) -> "Stack":
        """Copies of some of them: a slice or indices."""
        return Stack(self.rank, self.alpha, self.dropout, *({name: value.detach()[which].clone() for name, value in part.items()} for part in (self.a, self.b)))

    def put(self, number: int, other: "Stack", place: int) -> None:
        """Overwrite one adapter by one of another stack."""
        with torch.no_grad():
            for own, theirs in zip(self.parameters(), other.parameters(), strict=True):
                own[number] = theirs[place]

    @contextmanager
    def on(self, model: nn.Module):
        """Within it, the model's rows pass through these adapters."""
        layers = linear_layers(model)
        for name, layer in layers.items():
            _put(model, name, StackedLinear(layer, self.a[name], self.b[name], self.alpha / self.rank, self.dropout).train(model.training))
        try:
            yield
        finally:
            for name, layer in layers.items():
                _put(model, name, layer)

    def save(self, number: int, folder: Path, base: str) -> None:
        """Write one adapter as PEFT's ordinary files. base : how the frozen weights are found, see adapters.add_lora."""
        from peft import LoraConfig
        from safetensors.torch import save_file

        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=sorted({name.rpartition(".")[2] for name in self.a}))
        config.base_model_name_or_path, config.inference_mode = base, True
        folder.mkdir(parents=True, exist_ok=True)
        kinds = {"lora_A": self.a, "lora_B": self.b}
        tensors = {f"base_model.model.{name}.{kind}.weight": part[name].detach()[number].cpu().contiguous() for kind, part in kinds.items() for name in part}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(folder)
        path = folder / CONFIG
        written = json.loads(path.read_text(encoding="utf-8"))
        written["target_modules"] = sorted(written["target_modules"])  # PEFT has a set, in another order in each process
        path.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def hash_of(seed: Sequence[int]) -> int:
    """One 63-bit seed from several numbers."""
    import numpy as np

    return int(np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)
