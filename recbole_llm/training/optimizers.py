"""Optimizers of our models: AdamW, and Muon for what is learned from nothing."""

import math
from itertools import chain

import torch

BETAS = (0.9, 0.95)  # of AdamW
MOMENTUM = 0.95  # of Muon
# a x + b x^3 + c x^5 drives singular values below 1 to about 1 in five steps (Jordan et al. 2024)
QUINTIC, QUINTIC_STEPS = (3.4445, -4.7750, 2.0315), 5


def rate(done: float, warmup: float) -> float:
    """Share of the learning rate after a share `done` of all steps: linear warm-up, then a cosine to a tenth."""
    return (
        done / warmup
        if done < warmup
        else 0.55 + 0.45 * math.cos(math.pi * (done - warmup) / (1 - warmup))
    )


class Together:
    """Several optimizers as one: what a trainer and a gradient scaler ask of an optimizer."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts

    @property
    def param_groups(self) -> list[dict]:
        return list(chain.from_iterable(part.param_groups for part in self.parts))

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict) -> None:
        for part, own in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(own)


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def orthogonal(matrix: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The matrix with all its singular values moved near 1, by Newton-Schulz iterations.

    Parameters
    ----------
    matrix : [rows, columns].
    dtype : The type of the products. A CPU without bfloat16 units computes them tens of times
        slower in bfloat16 than in float32.

    Returns
    -------
    [rows, columns] of `dtype`, with singular values between about 0.7 and 1.2.
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
    matrices : Parameters of two dimensions.
    lr : Learning rate.
    weight_decay : Decay, as AdamW's.
    dtype : The type that `orthogonal` computes in.
    """

    def __init__(self, matrices, lr: float, weight_decay: float, dtype: torch.dtype):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, group["lr"], group["weight_decay"])

    def _move(self, weight: torch.Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight.grad)
        momentum = state["momentum_buffer"]
        momentum.lerp_(weight.grad, 1 - MOMENTUM)
        direction = orthogonal(weight.grad.lerp(momentum, MOMENTUM), self.dtype)
        weight.mul_(1 - lr * weight_decay)
        weight.add_(direction, alpha=-lr * 0.2 * math.sqrt(max(weight.shape)))


def build(
    model: torch.nn.Module,
    learner: str,
    learning_rate: float,
    weight_decay: float,
    precision: str = "fp32",
):
    """The optimizer of the parameters that are trained.

    `adam` is AdamW. `muon` moves every matrix but embeddings by Muon, and the rest by AdamW. Muon
    computes in bfloat16 where `precision` is bf16, and in float32 otherwise.
    """
    parameters = trained(model)
    adam = {"lr": learning_rate, "weight_decay": weight_decay, "betas": BETAS}
    if learner == "adam":
        return torch.optim.AdamW(parameters or [torch.zeros(1)], **adam)
    tables = {
        id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)
    }
    heads = (
        module.get_output_embeddings()
        for module in model.modules()
        if hasattr(module, "get_output_embeddings")
    )
    tables |= {id(head.weight) for head in heads if head is not None}
    matrices = [
        parameter for parameter in parameters if parameter.ndim == 2 and id(parameter) not in tables
    ]
    others = [
        parameter for parameter in parameters if parameter.ndim != 2 or id(parameter) in tables
    ]
    muon = Muon(
        matrices or [torch.zeros(1, 1)],
        learning_rate,
        weight_decay,
        torch.bfloat16 if precision == "bf16" else torch.float32,
    )
    return Together(muon, torch.optim.AdamW(others or [torch.zeros(1)], **adam))
