"""Optimizers of our models: AdamW, and Muon for weight matrices with random initial values."""

import math
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch

BETAS = (0.9, 0.95)  # of AdamW
MOMENTUM = 0.95  # of Muon
# a x + b x^3 + c x^5 drives singular values below 1 to about 1 in five steps (Jordan et al. 2024)
QUINTIC, QUINTIC_STEPS = (3.4445, -4.7750, 2.0315), 5


def rate(done: float, warmup: float, schedule: str = "cosine") -> float:
    """Compute the learning-rate schedule behind a linear warm-up.

    Parameters
    ----------
    done : float
        Share of all steps that have been made, 0 to 1.
    warmup : float
        Share of the steps that warm up.
    schedule : {"cosine", "linear", "constant"}
        A cosine down to a tenth, a line down to zero, or no change.

    Returns
    -------
    float
        Share of the learning rate.
    """
    if done < warmup:
        return done / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return (1 - done) / (1 - warmup)
    return 0.55 + 0.45 * math.cos(math.pi * (done - warmup) / (1 - warmup))


class Together:
    """Several optimizers behind the interface of one, as trainers and gradient scalers use it.

    Parameters
    ----------
    *parts : Optimizer
        The optimizers, each with its own parameters.
    """

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts

    @property
    def param_groups(self) -> list[dict]:
        """The parameter groups of all parts."""
        return list(chain.from_iterable(part.param_groups for part in self.parts))

    def zero_grad(self) -> None:
        """Clear all gradients."""
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        """Make one step of each part."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        """Return the states of all parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        for part, part_state in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(part_state)


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters of a model that require gradients."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def orthogonal(matrix: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Move all singular values of a matrix near 1, by Newton-Schulz iterations.

    Parameters
    ----------
    matrix : Tensor [rows, columns]
        The matrix.
    dtype : dtype
        The type of the products. A CPU without bfloat16 units computes them tens of times slower in
        bfloat16 than in float32.

    Returns
    -------
    Tensor of `dtype` [rows, columns]
        The matrix with the same singular vectors, and singular values between about 0.7 and 1.2.
    """
    a, b, c = QUINTIC
    tall = matrix.size(0) > matrix.size(1)
    result = matrix.to(dtype)
    result = result.T if tall else result
    result = result / result.norm().clamp(min=1e-7)
    for _ in range(QUINTIC_STEPS):
        gram = result @ result.T
        result = torch.addmm(result, torch.addmm(gram, gram, gram, beta=b, alpha=c), result, beta=a)
    return result.T if tall else result


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is made orthogonal (Jordan et al. 2024), for matrices.

    Its step has the size of AdamW's, so that AdamW's learning rates and decays hold (Liu et al.
    2025, equation 4). `torch.optim.Muon`, which came with torch 2.9, computes the same but always
    in bfloat16.

    Parameters
    ----------
    matrices : iterable of Parameter
        Parameters of two dimensions.
    lr : float
        Learning rate.
    weight_decay : float
        Decay, as AdamW's.
    dtype : dtype
        The type that `orthogonal` computes in.
    """

    def __init__(
        self,
        matrices: Iterable[torch.Tensor],
        lr: float,
        weight_decay: float,
        dtype: torch.dtype,
    ):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make one step by the gradients that are there.

        Parameters
        ----------
        closure : None
            Not supported.
        """
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, group["lr"], group["weight_decay"])

    def _move(
        self, weight: torch.Tensor, gradient: torch.Tensor, lr: float, weight_decay: float
    ) -> None:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"]
        momentum.lerp_(gradient, 1 - MOMENTUM)
        direction = orthogonal(gradient.lerp(momentum, MOMENTUM), self.dtype)
        weight.mul_(1 - lr * weight_decay)
        weight.add_(direction, alpha=-lr * 0.2 * math.sqrt(max(weight.shape)))


def build(
    model: torch.nn.Module,
    learner: str,
    learning_rate: float,
    weight_decay: float,
    precision: str = "fp32",
) -> torch.optim.Optimizer | Together:
    """Make the optimizer of the parameters that require gradients.

    Parameters
    ----------
    model : Module
        The model.
    learner : {"adam", "muon"}
        `adam` is AdamW. `muon` is Muon for every matrix except embeddings and output layers, and
        AdamW for the other parameters.
    learning_rate : float
        Highest learning rate.
    weight_decay : float
        Weight decay of both optimizers.
    precision : str
        Muon computes in bfloat16 where it is "bf16", and in float32 otherwise.

    Returns
    -------
    Optimizer or Together
        The optimizer. It has one parameter that no gradient reaches where there are none to train.
    """
    parameters = trained(model)
    if learner == "adam":
        return _adamw(parameters, learning_rate, weight_decay)
    tables = _embedding_ids(model)
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for parameter in parameters:
        if parameter.ndim == 2 and id(parameter) not in tables:
            matrices.append(parameter)
        else:
            others.append(parameter)
    muon = Muon(
        matrices or [torch.zeros(1, 1)],
        learning_rate,
        weight_decay,
        torch.bfloat16 if precision == "bf16" else torch.float32,
    )
    return Together(muon, _adamw(others, learning_rate, weight_decay))


def _adamw(
    parameters: list[torch.nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameters or [torch.zeros(1)], lr=learning_rate, weight_decay=weight_decay, betas=BETAS
    )


def _embedding_ids(model: torch.nn.Module) -> set[int]:
    """The `id` of each weight that has one row per token or item: embeddings and output layers."""
    tables = set()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            tables.add(id(module.weight))
        find_head: Any = getattr(module, "get_output_embeddings", None)
        head = None if find_head is None else find_head()
        if head is not None:
            tables.add(id(head.weight))
    return tables
