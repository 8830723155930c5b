"""Texts that begin alike, read once: a row is a prefix and its suffixes, none of which sees another, and what all rows begin with stands but once.

Each token stands at the position that it would have in its prefix with its own suffix alone, so that a pass gives it the hidden state that it has
in a text of its own. Works for every transformers causal LM that takes its attention from `ALL_ATTENTION_FUNCTIONS`, and gradients flow.
"""

import numpy as np
import torch
import torch.nn.functional as F

from ..tokens.batches import padded_size
from .attention import attention_by, empty_mask


def read(
    model, input_ids: torch.Tensor, part: torch.Tensor, position: torch.Tensor
) -> torch.Tensor:
    """Last hidden states [rows, length, width], each token's as in a text of its prefix and its own suffix alone; anything at padding.

    input_ids, part, position : int64 [rows, length]; parts are 0 for padding, 1 for the prefix, 2, 3, … for suffixes, each in one piece and in that order;
        positions count on from the prefix in each suffix.
    """
    alike = ((input_ids == input_ids[:1]) & (part == 1)).all(dim=0)
    common = int(
        alike.cumprod(dim=0).sum()
    )  # tokens that all rows begin with, read in the first row
    kept = part > 0
    kept[1:, :common] = False
    layout = PrefixSuffixAttention(
        [np.bincount(row)[1:].tolist() for row in part.cpu().numpy()], common, input_ids.device
    )
    with attention_by(model, layout):
        behind = 0, int(padded_size(layout.size)) - layout.size
        inputs = {
            "input_ids": F.pad(input_ids[kept], behind)[None],
            "position_ids": F.pad(position[kept], behind)[None],
        }
        states = model.base_model(
            **inputs, attention_mask=empty_mask(input_ids.device), use_cache=False
        ).last_hidden_state[0]
    place = kept.flatten().cumsum(dim=0).view(kept.shape) - 1
    place[:, :common] = place[:1, :common]
    return states[place]


class PrefixSuffixAttention:
    """Where the parts of rows stand in one sequence: the tokens that all rows begin with, the rest of each row, and padding, which sees nothing.

    parts : for every row the lengths of its prefix, of which the first `common` tokens are those that all rows begin with, and of its suffixes.
    size : tokens without the padding.
    """

    def __init__(self, parts: list[list[int]], common: int, device):
        self.pieces, self.grids = [common], []
        for prefix, *suffixes in parts:
            sizes = torch.tensor(suffixes, dtype=torch.int64, device=device)
            place = torch.arange(max(suffixes, default=0), device=device)
            inside = place < sizes[:, None]
            self.pieces += [prefix - common, sum(suffixes)]
            grid = torch.where(
                inside, (sizes.cumsum(0) - sizes)[:, None] + place, 0
            )  # [suffixes, longest] places among the row's suffixes
            self.grids.append((grid, inside))
        self.size = sum(self.pieces)

    def attend(self, module, query, keys, values, scaling, softcap, window, dropout):
        """As attention.Rule, of one sequence: [1, N, H, d]. It is cut in one go, since each slice of its own would have a gradient as long as the sequence."""
        rule = scaling, softcap, window, dropout
        behind = query.shape[2] - self.size
        common, *rows, _ = zip(
            *(whole.split([*self.pieces, behind], dim=2) for whole in (query, keys, values)),
            strict=True,
        )
        found = [_weigh(*common, *rule)] if self.pieces[0] else []
        for prefix, suffixes, (grid, inside) in zip(rows[::2], rows[1::2], self.grids, strict=True):
            k, v = (torch.cat(both, dim=2) for both in zip(common[1:], prefix[1:], strict=True))
            if prefix[0].shape[2]:
                found.append(_weigh(prefix[0], k, v, *rule))
            if len(grid):
                q, *own = (
                    part[0, :, grid.flatten()].unflatten(1, grid.shape).transpose(0, 1)
                    for part in suffixes
                )  # [suffixes, H, longest, d]
                k, v = (
                    torch.cat([first.expand(len(grid), -1, -1, -1), mine], dim=2)
                    for first, mine in zip((k, v), own, strict=True)
                )
                found.append(_weigh(q, k, v, *rule).transpose(0, 1)[None, :, inside])
        found.append(values.new_zeros(1, query.shape[1], behind, values.shape[3]))
        return torch.cat(found, dim=2).transpose(1, 2)


def _weigh(query, keys, values, scaling, softcap, window, dropout) -> torch.Tensor:
    """Causal attention of the last tokens [n, H, L, d] over all [n, H', P + L, d]."""
    if (
        query.requires_grad and query.device.type == "cpu" and values.dtype != torch.float32
    ):  # whose gradients are slower there in short types
        with torch.autocast("cpu", enabled=False):
            return _weigh(
                query.float(), keys.float(), values.float(), scaling, softcap, window, dropout
            ).to(values.dtype)
    length, total = query.shape[2], keys.shape[2]
    grouped = query.shape[1] != keys.shape[1]
    if not softcap and length == total and (window is None or window >= total):
        return F.scaled_dot_product_attention(
            query,
            keys,
            values,
            is_causal=True,
            scale=scaling,
            dropout_p=dropout,
            enable_gqa=grouped,
        )
    at, seen = (
        torch.arange(total - length, total, device=query.device)[:, None],
        torch.arange(total, device=query.device),
    )
    mask = seen <= at
    if window is not None:
        mask = mask & (seen > at - window)
    if not softcap:
        return F.scaled_dot_product_attention(
            query,
            keys,
            values,
            attn_mask=mask,
            scale=scaling,
            dropout_p=dropout,
            enable_gqa=grouped,
        )
    keys, values = (
        part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (keys, values)
    )
    weight = torch.tanh(query @ keys.transpose(-1, -2) * scaling / softcap) * softcap
    weight = weight.float().masked_fill(~mask, -torch.inf).softmax(dim=-1).to(values.dtype)
    return F.dropout(weight, dropout) @ values


def logit_deviation(backbone) -> float:
    """For `generation.probe.check`: by how much logits of texts whose beginnings are read once differ from the model's own, as a share of the largest."""
    model = backbone.model
    device = next(model.parameters()).device
    token, part, position = torch.tensor(
        [
            [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [1, 2, 3, 11, 12, 13, 14, 0, 0, 0]],
            [[1, 1, 1, 1, 1, 2, 2, 3, 3, 3], [1, 1, 1, 1, 2, 2, 2, 0, 0, 0]],
            [[0, 1, 2, 3, 4, 5, 6, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 0, 0, 0]],
        ],
        device=device,
    )
    token = token * 37 % model.get_input_embeddings().num_embeddings
    found = backbone.logits(read(model, token, part, position))
    texts = [(part == 1) | (part == number) for number in (2, 3)]
    pairs = [
        (found[row, text[row]], model(input_ids=token[row : row + 1, text[row]]).logits[0])
        for text in texts
        for row in range(len(token))
    ]
    ours, theirs = map(torch.cat, zip(*pairs, strict=True))
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
