"""Read texts that begin alike once.

A row is a prefix and its suffixes, none of which sees another, and what all rows begin with is read
only once. Each token stands at the position that it would have in its prefix with its own suffix
alone, so that a pass gives it the hidden state that it has in a text of its own. This works for
every causal LM of transformers that takes its attention from `ALL_ATTENTION_FUNCTIONS`, and
gradients flow.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..backbones.attention import attention_by, empty_mask
from ..tokens.batches import padded_size


def read(
    model: Any, input_ids: torch.Tensor, part: torch.Tensor, position: torch.Tensor
) -> torch.Tensor:
    """Compute last hidden states, each as in a text of the token's prefix and suffix alone.

    Parameters
    ----------
    model : PreTrainedModel
        A causal LM.
    input_ids : Tensor of int64 [rows, length]
        Token ids.
    part : Tensor of int64 [rows, length]
        0 for padding, 1 for the prefix, 2, 3, … for suffixes, each in one piece and in this
        order.
    position : Tensor of int64 [rows, length]
        Positions, which go on from the prefix in each suffix.

    Returns
    -------
    Tensor [rows, length, width]
        Hidden states; anything at padding.
    """
    same = ((input_ids == input_ids[:1]) & (part == 1)).all(dim=0)
    common = int(same.cumprod(dim=0).sum())  # tokens that all rows begin with, read in the first
    kept = part > 0
    kept[1:, :common] = False
    sizes = [np.bincount(row)[1:].tolist() for row in part.cpu().numpy()]
    layout = PrefixSuffixAttention(sizes, common, input_ids.device)
    with attention_by(model, layout):
        padding = 0, int(padded_size(layout.size)) - layout.size
        states = model.base_model(
            input_ids=F.pad(input_ids[kept], padding)[None],
            position_ids=F.pad(position[kept], padding)[None],
            attention_mask=empty_mask(input_ids.device),
            use_cache=False,
        ).last_hidden_state[0]
    place = kept.flatten().cumsum(dim=0).view(kept.shape) - 1
    place[:, :common] = place[:1, :common]
    return states[place]


class PrefixSuffixAttention:
    """Attention among prefixes and suffixes that stand in one sequence (an AttentionRule).

    The sequence holds the tokens that all rows begin with, the rest of each row, and padding, which
    sees nothing.

    Parameters
    ----------
    parts : list of list of int
        For every row the length of its prefix, followed by those of its suffixes.
    common : int
        Number of tokens that all rows begin with; they are part of every prefix.
    device : torch.device
        Where the model computes.

    Attributes
    ----------
    size : int
        Number of tokens without the padding.
    """

    def __init__(self, parts: list[list[int]], common: int, device: torch.device):
        self.pieces, self.grids = [common], []
        for prefix, *suffixes in parts:
            sizes = torch.tensor(suffixes, dtype=torch.int64, device=device)
            place = torch.arange(max(suffixes, default=0), device=device)
            inside = place < sizes[:, None]
            self.pieces += [prefix - common, sum(suffixes)]
            begins = (sizes.cumsum(0) - sizes)[:, None]
            # [suffixes, longest] places among the row's suffixes
            grid = torch.where(inside, begins + place, 0)
            self.grids.append((grid, inside))
        self.size = sum(self.pieces)

    def attend(self, module, query, keys, values, scaling, softcap, window, dropout):
        """Compute the attention of one layer, see AttentionRule.

        The tensors of the sequence are [1, H, N, d]. They are cut all at once, since each slice of
        its own would have a gradient as long as the sequence.
        """
        options = scaling, softcap, window, dropout
        padding = query.shape[2] - self.size
        common, *rows, _ = zip(
            *(whole.split([*self.pieces, padding], dim=2) for whole in (query, keys, values)),
            strict=True,
        )
        outputs = []
        if self.pieces[0]:
            outputs.append(_attend_causally(common[0], common[1], common[2], *options))
        for prefix, suffixes, (grid, inside) in zip(rows[::2], rows[1::2], self.grids, strict=True):
            row_keys = torch.cat([common[1], prefix[1]], dim=2)
            row_values = torch.cat([common[2], prefix[2]], dim=2)
            if prefix[0].shape[2]:
                outputs.append(_attend_causally(prefix[0], row_keys, row_values, *options))
            if len(grid):
                # [suffixes, H, longest, d]
                q, k, v = (_to_grid(part, grid) for part in suffixes)
                k = torch.cat([row_keys.expand(len(grid), -1, -1, -1), k], dim=2)
                v = torch.cat([row_values.expand(len(grid), -1, -1, -1), v], dim=2)
                output = _attend_causally(q, k, v, *options)
                outputs.append(output.transpose(0, 1)[None, :, inside])
        outputs.append(values.new_zeros(1, query.shape[1], padding, values.shape[3]))
        return torch.cat(outputs, dim=2).transpose(1, 2)


def _to_grid(part: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Arrange the suffixes of a row, [1, H, tokens, d], as [suffixes, H, longest, d]."""
    return part[0, :, grid.flatten()].unflatten(1, grid.shape).transpose(0, 1)


def _attend_causally(query, keys, values, scaling, softcap, window, dropout) -> torch.Tensor:
    """Compute causal attention of the last tokens [n, H, L, d] over all [n, H', P + L, d]."""
    if query.requires_grad and query.device.type == "cpu" and values.dtype != torch.float32:
        # gradients in short types are slower than in float32 on a CPU
        with torch.autocast("cpu", enabled=False):
            tensors = query.float(), keys.float(), values.float()
            output = _attend_causally(*tensors, scaling, softcap, window, dropout)
            return output.to(values.dtype)
    length, total = query.shape[2], keys.shape[2]
    fused = {
        "scale": scaling,
        "dropout_p": dropout,
        "enable_gqa": query.shape[1] != keys.shape[1],
    }
    if not softcap and length == total and (window is None or window >= total):
        return F.scaled_dot_product_attention(query, keys, values, is_causal=True, **fused)
    at = torch.arange(total - length, total, device=query.device)[:, None]
    other = torch.arange(total, device=query.device)
    mask = other <= at
    if window is not None:
        mask = mask & (other > at - window)
    if not softcap:
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, **fused)
    keys, values = (
        part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (keys, values)
    )
    weight = torch.tanh(query @ keys.transpose(-1, -2) * scaling / softcap) * softcap
    weight = weight.float().masked_fill(~mask, -torch.inf).softmax(dim=-1).to(values.dtype)
    return F.dropout(weight, dropout) @ values


def logit_deviation(backbone: Any) -> float:
    """Measure how far shared reading deviates from the model's own forward pass.

    It serves `compatibility.check_backbone` as a measure.

    Parameters
    ----------
    backbone : Backbone
        A causal LM.

    Returns
    -------
    float
        The largest difference between logits, as a share of the largest logit.
    """
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
    logits = backbone.logits(read(model, token, part, position))
    ours, theirs = [], []
    for suffix in (2, 3):
        text = (part == 1) | (part == suffix)
        for row in range(len(token)):
            ours.append(logits[row, text[row]])
            theirs.append(model(input_ids=token[row : row + 1, text[row]]).logits[0])
    expected = torch.cat(theirs)
    return ((torch.cat(ours) - expected).abs().max() / expected.abs().max()).item()
