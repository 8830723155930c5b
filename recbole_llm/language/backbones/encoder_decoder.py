"""Read histories in segments by an encoder-decoder (fusion in decoder; TASTE, CIKM 2023).

The encoder reads each segment on its own, and the decoder reads all of them from one start token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ...errors import UserError
from ..prompts.templates import ITEM_SEPARATOR, TASTE_PROMPT
from ..tokens.batches import Batch, PieceTokenizer, Tokens, padded_size
from . import scratch
from .loading import as_user_errors, check_complete, check_size, loading_reports
from .precision import WeightFormat
from .quantizing import refuse_quantization
from .shapes import model_of_shapes
from .sources import WHOLE, Backbone, check_tokens, straight_to


@dataclass
class SegmentEncoder(PieceTokenizer):
    """Encodes items and histories.

    The roles of a token are the number of its segment, from 1 on, and its place in the segment; 0
    and 0 in the padding. `max_length` is the most tokens of a segment.

    Parameters
    ----------
    item_length : int
        Most tokens of an item.
    segments : int
        Most segments of a history.
    """

    item_length: int = 32
    segments: int = 2

    @cached_property
    def frame(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The fixed parts of a history, int64 each.

        They open the history, separate two items, and close the newest segment.
        """
        opening, closing = TASTE_PROMPT
        return (
            self.piece(self.spelling.split_space(opening)[0], opens=True),
            self.piece(self.spelling.split_space(ITEM_SEPARATOR)[0]),
            self.piece(closing),
        )

    @property
    def item_forms(self):
        """See `PieceTokenizer.item_forms`."""
        spaces = [self.spelling.split_space(text)[1] for text in (TASTE_PROMPT[0], ITEM_SEPARATOR)]
        return [("", True), *((space, False) for space in spaces)]

    @property
    def min_length(self) -> int:
        """Tokens of a first segment that holds one item of any length."""
        opening, _, closing = self.frame
        return self.item_length + sum(map(len, [*self.special_affixes, opening, closing]))

    def item(self, text: str) -> Tokens:
        """Encode an item alone.

        Parameters
        ----------
        text : str
            The item, which is cut at its end if it is too long.

        Returns
        -------
        Tokens
            One segment.
        """
        return self._assemble([[self._item(text)]], 0)

    def history(self, texts: Sequence[str]) -> Tokens:
        """Encode a history as segments of whole items, the newest segment first.

        The oldest items are left out where there is no room for them.

        Parameters
        ----------
        texts : sequence of str
            The items, oldest first.

        Returns
        -------
        Tokens
            The segments, with roles.
        """
        opening, separator, closing = self.frame
        first_space = self.spelling.split_space(TASTE_PROMPT[0])[1]
        item_space = self.spelling.split_space(ITEM_SEPARATOR)[1]
        segments: list[list[np.ndarray]] = []
        unread = len(texts)  # texts[:unread] are not read yet; of a long history most never are
        while unread and len(segments) < self.segments:
            unread -= 1
            space = "" if segments else first_space
            parts = [self._item(texts[unread], space, opens=bool(segments))]
            before, behind = self.special_affixes
            room = self.max_length - len(before) - len(behind) - len(parts[0])
            if not segments:
                room -= len(opening) + len(closing)
            while unread:
                item = self._item(texts[unread - 1], item_space, opens=False)
                if len(separator) + len(item) > room:
                    break
                parts += [separator, item]
                room -= len(separator) + len(item)
                unread -= 1
            segments.append(parts if segments else [opening, *parts, closing])
        return self._assemble(segments, cut=unread)

    def _item(self, text: str, space: str = "", opens: bool = True) -> np.ndarray:
        """Tokenise an item behind some space, or one that opens a text."""
        return self.piece(space + text, opens=opens)[: self.item_length]

    def _assemble(self, segments: Sequence[Sequence[np.ndarray]], cut: int) -> Tokens:
        before, behind = self.special_affixes
        framed = [np.concatenate([before, *parts, behind]) for parts in segments]
        ids, sizes = np.concatenate(framed), [len(segment) for segment in framed]
        numbers = np.repeat(np.arange(1, len(sizes) + 1), sizes)
        places = np.concatenate([np.arange(size) for size in sizes])
        return Tokens(
            ids,
            np.zeros(len(ids), dtype=bool),
            target=len(ids),
            items=0,
            cut=cut,
            roles=np.stack([numbers, places]),
        )


class FusionBackbone(Backbone):
    """An encoder-decoder such as T5, without a head.

    The vector of a text is the decoder's last state at its start token.
    """

    kind = "encoder-decoder"

    @classmethod
    def from_scratch(cls, size: str, tokenizer: Any, max_length: int) -> "FusionBackbone":
        """Make a model with random weights, see `Backbone.from_scratch`."""
        return cls(scratch.fusion_model(size, tokenizer), tokenizer).with_plain_attention()

    @classmethod
    def read(
        cls, name: str, weight_format: WeightFormat = WHOLE, trust_remote_code: bool = False
    ) -> "FusionBackbone":
        """Read whole weights, see `Backbone.read`."""
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        refuse_quantization(weight_format, cls.kind)
        trust = {"trust_remote_code": trust_remote_code}
        with as_user_errors(name, name), loading_reports() as reports:
            if not AutoConfig.from_pretrained(name, **trust).is_encoder_decoder:
                raise UserError(
                    f"backbone {name!r} has no decoder beside an encoder: give T5 or another "
                    "encoder-decoder"
                )
            check_size(name, trust_remote_code)
            tokenizer: Any = AutoTokenizer.from_pretrained(name, **trust)
            if torch.device(weight_format.device).type == "meta":
                config = AutoConfig.from_pretrained(name, **trust)
                model = model_of_shapes(AutoModel, config, weight_format, **trust)
            else:
                place = {"dtype": weight_format.dtype} | straight_to(weight_format.device)
                model = AutoModel.from_pretrained(name, **place, **trust)
        check_complete(name, cls.kind, reports)
        check_tokens(name, model, tokenizer)
        return cls(model, tokenizer).with_plain_attention()

    def with_plain_attention(self) -> "FusionBackbone":
        """Compute attention by products and a softmax.

        For short segments with T5's bias, the gradient of torch's fused attention is the most
        expensive of all on a CPU.

        Returns
        -------
        FusionBackbone
            This backbone.
        """
        self.model.set_attn_implementation("eager")
        return self

    def vectors(self, batch: Batch, shares: int = 1) -> torch.Tensor:
        """Compute the vectors of texts.

        Parameters
        ----------
        batch : Batch
            Texts with the roles of a SegmentEncoder.
        shares : int
            Number of equal shares of the rows. The encoder reads equally many segments of each
            share, since each share has an adapter of its own (stacked adapters).

        Returns
        -------
        Tensor [rows, width]
            Vectors.
        """
        assert batch.roles is not None
        segment, place = batch.roles.unbind(dim=1)  # [rows, length]
        inside = segment > 0
        counts = segment.amax(dim=1).view(shares, -1)
        most = int(counts.sum(dim=1).max())  # segments of a share
        share_begins = most * torch.arange(shares, device=counts.device)[:, None]
        first = (counts.cumsum(dim=1) - counts + share_begins).view(-1, 1)
        where = ((first + segment - 1)[inside], place[inside])
        length = int(padded_size(int(place.max()) + 1))
        ids = batch.input_ids.new_full((shares * most, length), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        mask[:, 0] = 1  # a segment that only fills up a share has a token to attend to
        ids[where], mask[where] = batch.input_ids[inside], 1
        states = self.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        fused = states.new_zeros(*segment.shape, states.shape[-1])
        fused[inside] = states[where]
        start_id = self.model.config.decoder_start_token_id
        output = self.model.get_decoder()(
            input_ids=batch.input_ids.new_full((len(segment), 1), start_id),
            encoder_hidden_states=fused,
            encoder_attention_mask=inside.long(),
            use_cache=False,
        )
        return output.last_hidden_state[:, 0]
