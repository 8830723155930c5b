"""Optimizers of our models: AdamW, and Muon for what is learned from nothing."""

import math
from itertools import chain

import torch

from .errors import UserError

BETAS = (0.9, 0.95)  # of AdamW


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


def check(learner: str) -> None:
    """Raise UserError where torch does not have the optimizer."""
    if learner == "muon" and not hasattr(torch.optim, "Muon"):
        raise UserError(
            f"learner: muon needs torch 2.9 or later, found {torch.__version__}; update torch, or take learner: adam"
        )


def build(model: torch.nn.Module, learner: str, learning_rate: float, weight_decay: float):
    """The optimizer of the parameters that are trained.

    `adam` is AdamW. `muon` moves every matrix but embeddings by orthogonalised momentum (Jordan et al. 2024), scaled so
    that learning rates and decays of AdamW hold (Liu et al. 2025), and the rest by AdamW.
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
    muon = torch.optim.Muon(
        matrices or [torch.zeros(1, 1)],
        lr=learning_rate,
        weight_decay=weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return Together(muon, torch.optim.AdamW(others or [torch.zeros(1)], **adam))
