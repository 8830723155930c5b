"""Summaries by a causal LM on this machine: prompts of a level are read and continued together."""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from ..backbones.precision import KINDS, autocast
from ..backbones.sources import Backbone
from ..decoding.sampling import sample, stream_key
from ..prompts.chat import TurnTokens, tokenize_turn
from ..prompts.instructions import Instructions
from ..tokens.batches import PieceTokenizer, by_length
from .prompt import LAYOUT, prompt_parts
from .schedules import Request, WrittenText
from .writing import AGAIN


class LocalEngine:
    """A transformers model, in batches.

    Parameters
    ----------
    load : gives the model, when the first text is to be written. weights : their name. seed : of what is drawn; a greedy one's second attempts have their own.
    max_length, max_new : tokens of a prompt and its summary together, and of the summary.
    temperature : 0 is greedy. rows : prompts that are continued at once.
    """

    paid = True

    def __init__(self, load: Callable[[], Backbone], weights: str, instructions: Instructions, *, max_length: int, max_new: int, temperature: float, seed: int, rows: int,
                 precision: str, quantize: str):  # fmt: skip
        self.load, self.instructions, self.weights = load, instructions, weights
        self.max_length, self.max_new, self.temperature, self.rows, self.precision = (
            max_length,
            max_new,
            temperature,
            rows,
            precision,
        )
        self.seed = seed if temperature else 0
        self.whole = quantize == "none"
        self.name = repr(
            (
                LAYOUT,
                weights,
                instructions.summaries,
                max_length,
                max_new,
                temperature,
                self.seed,
                precision,
                quantize,
            )
        )

    @cached_property
    def bundle(self) -> Backbone:
        bundle = self.load()
        if self.whole:
            bundle.model.to(
                KINDS[self.precision]
            )  # nothing is learned: the weights themselves may be short
        return bundle

    @cached_property
    def frame(self) -> TurnTokens:
        """The turn that the model is to answer."""
        return tokenize_turn(self.bundle.tokenizer)

    @cached_property
    def pieces(self) -> PieceTokenizer:
        return PieceTokenizer(self.bundle.tokenizer, self.max_length)

    def prompt(self, request: Request) -> np.ndarray:
        """int64, at most max_length - max_new tokens."""
        opening, space, closing, _ = self.frame
        room = self.max_length - self.max_new - len(opening) - len(closing)
        said = prompt_parts(
            request, self.instructions, self.pieces.piece, room, self.max_new, space
        )
        return np.concatenate([opening, *said, closing])

    def size(self, request: Request) -> int:
        """Tokens of a request's prompt."""
        return len(self.prompt(request))

    def write(
        self,
        requests: Sequence[Request],
        take: Callable[[int, WrittenText], None],
        again: bool = False,
    ) -> None:
        prompts = [self.prompt(request) for request in requests]
        keys = np.array(
            [stream_key(self.seed + again, repr(request)) for request in requests], dtype=np.uint64
        )
        temperature = max(AGAIN, self.temperature) if again else self.temperature
        device = next(self.bundle.model.parameters()).device
        for chosen in by_length(
            [len(prompt) for prompt in prompts], self.rows * self.max_length, self.rows
        ):
            with autocast(device, self.precision):
                written = sample(
                    self.bundle,
                    [prompts[row] for row in chosen],
                    keys[chosen],
                    samples=1,
                    temperature=temperature,
                    max_new=self.max_new,
                    ends=self.bundle.ends,
                )
            for row, one in zip(chosen, written, strict=True):
                text = self.bundle.tokenizer.decode(one.ids[0], skip_special_tokens=True)
                take(
                    int(row),
                    WrittenText(text, bool(one.ended[0]), (len(prompts[row]), len(one.ids[0]))),
                )
