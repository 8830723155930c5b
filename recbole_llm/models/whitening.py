"""Parametric whitening of text vectors by a mixture of experts (UniSRec, section 2.1)."""

import torch
import torch.nn.functional as F
from torch import nn


class WhiteningExperts(nn.Module):
    """Turns text vectors into item vectors (equations 1 to 3).

    A vector x becomes sum_k g_k (x - b_k) W_k, with gates g from a noisy softmax.

    Parameters
    ----------
    width : int
        Width of text vectors.
    size : int
        Width of item vectors.
    experts : int
        Number of experts.
    dropout : float
        Dropout of text vectors.
    """

    def __init__(self, width: int, size: int, experts: int, dropout: float):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(experts, width))
        self.weight = nn.Parameter(torch.randn(experts, size, width) * 0.02)
        self.gate = nn.Parameter(torch.zeros(width, experts))
        self.noise = nn.Parameter(torch.zeros(width, experts))
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Whiten vectors.

        Parameters
        ----------
        vectors : Tensor of float [n, width]
            Text vectors.

        Returns
        -------
        Tensor of float [n, size]
            Item vectors.
        """
        logits = vectors @ self.gate
        if self.training:
            logits = logits + torch.randn_like(logits) * (F.softplus(vectors @ self.noise) + 0.01)
        outputs = F.linear(self.dropout(vectors), self.weight.flatten(0, 1))
        outputs = outputs.view(len(vectors), *self.weight.shape[:2])
        outputs = outputs - torch.einsum("ehw,ew->eh", self.weight, self.shift)
        return torch.einsum("ne,neh->nh", logits.softmax(dim=1).to(outputs.dtype), outputs)
