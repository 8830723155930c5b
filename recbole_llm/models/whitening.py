"""From frozen text vectors to item vectors: parametric whitening under a mixture of experts (UniSRec, section 2.1)."""

import torch
import torch.nn.functional as F
from torch import nn


class WhiteningExperts(nn.Module):
    """Parametric whitening and mixture of experts (equations 1 to 3): sum_k g_k (x - b_k) W_k, with gates g from a noisy softmax."""

    def __init__(self, width: int, size: int, experts: int, dropout: float):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(experts, width))
        self.weight = nn.Parameter(torch.randn(experts, size, width) * 0.02)
        self.gate, self.noise = (
            nn.Parameter(torch.zeros(width, experts)),
            nn.Parameter(torch.zeros(width, experts)),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """[n, width] -> [n, size]."""
        logits = vectors @ self.gate
        if self.training:
            logits = logits + torch.randn_like(logits) * (F.softplus(vectors @ self.noise) + 0.01)
        outputs = F.linear(self.dropout(vectors), self.weight.flatten(0, 1)).view(
            len(vectors), *self.weight.shape[:2]
        )
        outputs = outputs - torch.einsum("ehw,ew->eh", self.weight, self.shift)
        return torch.einsum("ne,neh->nh", logits.softmax(dim=1).to(outputs.dtype), outputs)
