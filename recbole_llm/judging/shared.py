"""Texts that begin alike, read once: a row is a prefix and its suffixes, none of which sees another.

Each suffix stands at the positions that it would have behind the prefix alone, so that a pass over the row gives every token the hidden state it
has in a text of its own. Works for every transformers causal LM that takes its attention from `ALL_ATTENTION_FUNCTIONS`, and gradients flow.
"""

import torch
import torch.nn.functional as F

from ..attention import attending, unmasked


class Layout:
    """Where the parts of a padded batch stand. parts : for every row the lengths of its prefix and of its suffixes."""

    def __init__(self, parts: list[list[int]], device):
        self.rows = []
        for prefix, *suffixes in parts:
            longest = max(suffixes, default=0)
            begins = torch.tensor([prefix + sum(suffixes[:number]) for number in range(len(suffixes))], dtype=torch.int64, device=device)
            place = torch.arange(longest, device=device)
            inside = place < torch.tensor(suffixes, dtype=torch.int64, device=device)[:, None]
            grid = torch.where(inside, begins[:, None] + place, prefix if suffixes else 0)  # [suffixes, longest] places in the row
            self.rows.append((prefix, sum(suffixes), grid, inside))

    def attend(self, module, query, keys, values, scaling, softcap, window, dropout):
        """As attention.Rule; padding gets zeros."""
        found = []
        for row, (prefix, rest, grid, inside) in enumerate(self.rows):
            q, k, v = query[row], keys[row], values[row]
            parts = [_weigh(q[None, :, :prefix], k[None, :, :prefix], v[None, :, :prefix], scaling, softcap, window, dropout)[0]]
            if rest:
                size = grid.shape
                own = [part[:, grid.flatten()].unflatten(1, size).transpose(0, 1) for part in (q, k, v)]  # [suffixes, heads, longest, d]
                k, v = (torch.cat([part[None, :, :prefix].expand(size[0], -1, -1, -1), mine], dim=2) for part, mine in ((k, own[1]), (v, own[2])))
                mixed = _weigh(own[0], k, v, scaling, softcap, window, dropout)
                parts.append(mixed.transpose(0, 1)[:, inside])
            parts.append(q.new_zeros(q.shape[0], q.shape[1] - prefix - rest, values.shape[3]))
            found.append(torch.cat(parts, dim=1))
        return torch.stack(found).transpose(1, 2)


def _weigh(query, keys, values, scaling, softcap, window, dropout) -> torch.Tensor:
    """Causal attention of the last tokens [n, H, L, d] over all [n, H', P + L, d]."""
    length, total = query.shape[2], keys.shape[2]
    grouped = query.shape[1] != keys.shape[1]
    if not softcap and length == total and (window is None or window >= total):
        return F.scaled_dot_product_attention(query, keys, values, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=grouped)
    at, seen = torch.arange(total - length, total, device=query.device)[:, None], torch.arange(total, device=query.device)
    mask = seen <= at
    if window is not None:
        mask = mask & (seen > at - window)
    if not softcap:
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling, dropout_p=dropout, enable_gqa=grouped)
    keys, values = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (keys, values))
    weight = torch.tanh(query @ keys.transpose(-1, -2) * scaling / softcap) * softcap
    weight = weight.float().masked_fill(~mask, -torch.inf).softmax(dim=-1).to(values.dtype)
    return F.dropout(weight, dropout) @ values


def error(backbone) -> float:
    """For `generation.probe.check`: by how much logits of suffixes behind a prefix that is read once differ from the model's own, as a share of the largest."""
    model = backbone.model
    device = next(model.parameters()).device
    token = torch.arange(1, 13, device=device) * 37 % model.get_input_embeddings().num_embeddings
    prefix, *suffixes = token.split([5, 3, 4])
    place = torch.cat([torch.arange(5), torch.arange(5, 8), torch.arange(5, 9)]).to(device)
    with attending(model, Layout([[5, 3, 4]], device)):
        states = model.base_model(input_ids=token[None], position_ids=place[None], attention_mask=unmasked(device), use_cache=False).last_hidden_state[0]
    own = [model(input_ids=torch.cat([prefix, suffix])[None]).logits[0, 5:] for suffix in suffixes]
    ours, theirs = backbone.logits(states[5:]), torch.cat(own)
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()

