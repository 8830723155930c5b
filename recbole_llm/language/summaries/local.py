"""Summaries by a causal LM on this machine.

Many prompts are continued together, and a text that ends makes room for the next.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from ..backbones.precision import autocast
from ..backbones.sources import Backbone
from ..decoding.continuous import continue_each
from ..decoding.sampling import stream_key
from ..prompts.chat import TurnTokens, tokenize_turn
from ..prompts.instructions import Instructions
from ..tokens.batches import PieceTokenizer
from .prompt import LAYOUT, prompt_parts
from .schedules import Request, WrittenText
from .writing import AGAIN


class LocalEngine:
    """A causal LM of transformers that writes in batches.

    Parameters
    ----------
    load : callable
        Gives the model, when the first text is to be written.
    weights : str
        The name of its weights.
    instructions : Instructions
        The instructions of the domain.
    max_length : int
        Most tokens of a prompt and its summary together.
    max_new : int
        Most tokens of a summary.
    temperature : float
        0 is greedy.
    seed : int
        Seed of the sampling. The second attempts of greedy decoding have a seed of their own.
    rows : int
        Prompts that are continued at once.
    precision : str
        `fp32`, `bf16` or `fp16`.
    quantize : str
        `none`, `8bit` or `4bit`; part of the name of the texts.

    Attributes
    ----------
    name : str
        Everything that decides the texts beside their requests.
    """

    paid = True

    def __init__(
        self,
        load: Callable[[], Backbone],
        weights: str,
        instructions: Instructions,
        *,
        max_length: int,
        max_new: int,
        temperature: float,
        seed: int,
        rows: int,
        precision: str,
        quantize: str,
    ):
        self.load, self.instructions, self.weights = load, instructions, weights
        self.max_length, self.max_new = max_length, max_new
        self.temperature, self.rows, self.precision = temperature, rows, precision
        self.seed = seed if temperature else 0
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
        """The model and its tokenizer."""
        return self.load()

    @cached_property
    def frame(self) -> TurnTokens:
        """What opens and closes the turn that the model is to answer."""
        return tokenize_turn(self.bundle.tokenizer)

    @cached_property
    def pieces(self) -> PieceTokenizer:
        """The tokenizer of the parts of prompts."""
        return PieceTokenizer(self.bundle.tokenizer, self.max_length)

    def prompt(self, request: Request) -> np.ndarray:
        """Encode the prompt of a request.

        Parameters
        ----------
        request : Request
            The text to be written.

        Returns
        -------
        ndarray of int64 [length]
            At most `max_length - max_new` tokens.
        """
        opening, space, closing, _ = self.frame
        room = self.max_length - self.max_new - len(opening) - len(closing)
        content = prompt_parts(
            request, self.instructions, self.pieces.piece, room, self.max_new, space
        )
        return np.concatenate([opening, *content, closing])

    def size(self, request: Request) -> int:
        """Count the tokens of the prompt of a request.

        Parameters
        ----------
        request : Request
            The text to be written.

        Returns
        -------
        int
            Number of tokens.
        """
        return len(self.prompt(request))

    def write(
        self,
        requests: Sequence[Request],
        take: Callable[[int, WrittenText], None],
        again: bool = False,
    ) -> None:
        """Write the text of each request, see `writing.Engine`.

        Parameters
        ----------
        requests : sequence of Request
            The texts to be written.
        take : callable
            Takes the number of a request and its text, as soon as it is written.
        again : bool
            Whether this is a second attempt.
        """
        prompts = [self.prompt(request) for request in requests]
        keys = [stream_key(self.seed + again, repr(request)) for request in requests]

        def taken(number: int, ids: np.ndarray, ended: bool) -> None:
            text = self.bundle.tokenizer.decode(ids, skip_special_tokens=True)
            tokens = (len(prompts[number]), len(ids))
            take(number, WrittenText(text, whole=ended, tokens=tokens))

        with autocast(next(self.bundle.model.parameters()).device, self.precision):
            continue_each(
                self.bundle,
                prompts,
                np.array(keys, dtype=np.uint64),
                taken,
                slots=self.rows,
                temperature=max(AGAIN, self.temperature) if again else self.temperature,
                max_new=self.max_new,
                ends=self.bundle.end_tokens,
            )
