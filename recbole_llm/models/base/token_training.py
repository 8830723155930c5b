"""Training examples made of texts: their tokens are what a forward pass is filled by."""

from collections.abc import Sequence

from ...contracts.models import Trainable
from ...language.tokens.batches import Batch, Tokens, pad


class TokenTrainable(Trainable):
    """A trainable model whose examples are tuples of :class:`Tokens`, texts that belong together.

    Attributes
    ----------
    pad_id : int
        Token behind the end of a short text.
    """

    pad_id: int
    cost_unit = "tokens"

    def pieces(self, example: tuple[Tokens, ...]) -> tuple[Tokens, ...]:
        return example

    def cost(self, piece: Tokens) -> int:
        return len(piece)

    def targets(self, piece: Tokens) -> int:
        return piece.items

    def batch_cost(self, batch: Batch) -> int:
        return batch.input_ids.numel()

    def collate(self, pieces: Sequence[Tokens]) -> Batch:
        return pad(list(pieces), pad_id=self.pad_id).to(self.device)
