"""Histories in segments: an encoder reads each on its own, and a decoder all of them from one start token (fusion in decoder; TASTE, CIKM '23)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ...errors import UserError
from ..prompts.templates import ITEM_SEPARATOR, TASTE_PROMPT
from ..tokens.batches import PieceTokenizer, Tokens, padded_size
from . import scratch
from .loading import as_user_errors, check_complete, check_size, loading_reports
from .sources import Backbone, check_tokens


@dataclass
class SegmentEncoder(PieceTokenizer):
    """Encodes items and histories. The roles of a token are the number of its segment, from 1 on, and its place in it; 0 and 0 in the padding.

    Parameters
    ----------
    max_length : most tokens of a segment. item_length : of an item. segments : of a history.
    """

    item_length: int = 32
    segments: int = 2

    @cached_property
    def frame(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """int64: what opens a history, stands between two items, and closes the newest segment."""
        opening, closing = TASTE_PROMPT
        return (
            self.piece(self.spelling.split_space(opening)[0], opens=True),
            self.piece(self.spelling.split_space(ITEM_SEPARATOR)[0]),
            self.piece(closing),
        )

    @property
    def min_length(self) -> int:
        """Tokens of a first segment that holds one item of any length."""
        opening, _, closing = self.frame
        return self.item_length + sum(map(len, [*self.special_affixes, opening, closing]))

    def item(self, text: str) -> Tokens:
        """An item alone, cut at its end if it is too long."""
        return self._whole([[self._item(text)]], 0)

    def history(self, texts: Sequence[str]) -> Tokens:
        """Items, oldest first, as segments of whole items, the newest first; the oldest are left out where there is no room for them."""
        opening, between, closing = self.frame
        lead, gap = (
            self.spelling.split_space(before)[1] for before in (TASTE_PROMPT[0], ITEM_SEPARATOR)
        )
        # texts[:left] are not read yet; of a long history most never are
        segments, left = [], len(texts)
        while left and len(segments) < self.segments:
            left -= 1
            space = "" if segments else lead
            parts = [self._item(texts[left], space, opens=bool(segments))]
            room = (
                self.max_length
                - len(self.special_affixes[0])
                - len(self.special_affixes[1])
                - len(parts[0])
            )
            room -= 0 if segments else len(opening) + len(closing)
            while left:
                item = self._item(texts[left - 1], gap, opens=False)
                if len(between) + len(item) > room:
                    break
                parts += [between, item]
                room -= len(between) + len(item)
                left -= 1
            segments.append(parts if segments else [opening, *parts, closing])
        return self._whole(segments, left)

    def _item(self, text: str, space: str = "", opens: bool = True) -> np.ndarray:
        """Tokens of an item behind that space, or of one that opens a text."""
        return self.piece(space + text, opens=opens)[: self.item_length]

    def _whole(self, segments: Sequence[Sequence[np.ndarray]], cut: int) -> Tokens:
        found = [
            np.concatenate([self.special_affixes[0], *parts, self.special_affixes[1]])
            for parts in segments
        ]
        ids, sizes = np.concatenate(found), [len(one) for one in found]
        roles = np.stack(
            [
                np.repeat(np.arange(1, len(sizes) + 1), sizes),
                np.concatenate([np.arange(size) for size in sizes]),
            ]
        )
        return Tokens(ids, np.zeros(len(ids), dtype=bool), len(ids), 0, cut, roles=roles)


class FusionBackbone(Backbone):
    """An encoder-decoder such as T5, without a head: the decoder's last state at its start token is the vector of a text."""

    kind = "encoder-decoder"

    @classmethod
    def from_scratch(cls, size, tokenizer, max_length):
        return cls(scratch.fusion_model(size, tokenizer), tokenizer).with_plain_attention()

    @classmethod
    def read(cls, name, trust_remote_code=False):
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        trust = {"trust_remote_code": trust_remote_code}
        with as_user_errors(name, name), loading_reports() as reports:
            if not AutoConfig.from_pretrained(name, **trust).is_encoder_decoder:
                raise UserError(
                    f"backbone {name!r} has no decoder beside an encoder: give T5 or another encoder-decoder"
                )
            check_size(name, trust_remote_code)
            tokenizer = AutoTokenizer.from_pretrained(name, **trust)
            model = AutoModel.from_pretrained(name, dtype=torch.float32, **trust)
        check_complete(name, cls.kind, reports)
        check_tokens(name, model, tokenizer)
        return cls(model, tokenizer).with_plain_attention()

    def with_plain_attention(self) -> "FusionBackbone":
        """Products and a softmax: of short segments with T5's bias, the gradient of torch's fused attention is the dearest of all on a CPU."""
        self.model.set_attn_implementation("eager")
        return self

    def vectors(self, batch, shares: int = 1) -> torch.Tensor:
        """[rows, width] of a collate.Batch whose roles are a SegmentEncoder's.

        shares : equal shares of the rows, of which each is to have as many segments as any other in the encoder (stacked adapters).
        """
        segment, place = batch.roles.unbind(dim=1)  # [rows, length]
        inside = segment > 0
        counts = segment.amax(dim=1).view(shares, -1)
        most = int(counts.sum(dim=1).max())
        first = (
            counts.cumsum(dim=1)
            - counts
            + most * torch.arange(shares, device=counts.device)[:, None]
        ).view(-1, 1)
        where = ((first + segment - 1)[inside], place[inside])
        ids = batch.input_ids.new_full(
            (shares * most, int(padded_size(int(place.max()) + 1))), self.tokenizer.pad_token_id
        )
        read = torch.zeros_like(ids)
        read[:, 0] = 1  # what fills up a share has a token to look at
        ids[where], read[where] = batch.input_ids[inside], 1
        states = self.model.get_encoder()(input_ids=ids, attention_mask=read).last_hidden_state
        fused = states.new_zeros(*segment.shape, states.shape[-1])
        fused[inside] = states[where]
        start = batch.input_ids.new_full(
            (len(segment), 1), self.model.config.decoder_start_token_id
        )
        decoder = self.model.get_decoder()
        found = decoder(
            input_ids=start,
            encoder_hidden_states=fused,
            encoder_attention_mask=inside.long(),
            use_cache=False,
        )
        return found.last_hidden_state[:, 0]
