"""Training on texts: the size of a forward pass is its number of tokens."""

from collections.abc import Sequence

import torch

from ...contracts.models import Trainable
from ...errors import UserError
from ...language.tokens.batches import Batch, Tokens, pad


class TokenTrainable(Trainable):
    """A trainable model whose examples are tuples of :class:`Tokens`, texts that belong together.

    Attributes
    ----------
    pad_id : int
        Id of the padding token.
    device : torch.device
        Where the model computes.
    """

    pad_id: int
    device: torch.device
    cost_unit = "tokens"

    def pieces(self, example: tuple[Tokens, ...]) -> tuple[Tokens, ...]:
        """Return the texts of an example."""
        if not (isinstance(example, tuple) and all(isinstance(one, Tokens) for one in example)):
            raise UserError(
                f"{type(self).__name__}.examples: expected a tuple of Tokens for each example, "
                f"found {type(example).__name__}; see docs/extending.md"
            )
        return example

    def cost(self, piece: Tokens) -> int:
        """Return the number of tokens of a text."""
        return len(piece)

    def targets(self, piece: Tokens) -> int:
        """Return the number of items of a text that are learned."""
        return piece.items

    def batch_cost(self, batch: Batch) -> int:
        """Return the number of tokens of a batch, the padding included."""
        return batch.input_ids.numel()

    def collate(self, pieces: Sequence[Tokens]) -> Batch:
        """Pad texts to a batch on the model's device."""
        return pad(list(pieces), pad_id=self.pad_id).to(self.device)
