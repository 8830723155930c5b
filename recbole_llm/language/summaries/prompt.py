"""The prompt of a summary: an instruction, then items and earlier summaries under their heads."""

from collections.abc import Sequence
from typing import Any

from ..prompts.instructions import Encode, Instructions, compose_prompt
from ..prompts.templates import item_line
from .schedules import Request

# Raised with every change of the prompts: texts are stored under it, and what is paid for is not
# written again.
LAYOUT = 3

# Words that a token is taken to be: fewer than in English, so that the text ends in time
WORDS = 0.6


def prompt_parts(
    request: Request,
    instructions: Instructions,
    encode: Encode,
    room: int,
    tokens: int,
    space: str = "",
) -> list[Any]:
    """Compose the prompt of a request.

    Parameters
    ----------
    request : Request
        The text to be written.
    instructions : Instructions
        The instructions of the domain.
    encode : callable
        See `instructions.compose_prompt`.
    room : int
        Most length of the prompt, in units of what `encode` gives.
    tokens : int
        Most tokens of what is to be written.
    space : str
        White space before the prompt.

    Returns
    -------
    list of ndarray or str
        The pieces of the prompt, as `encode` gives them.
    """
    items = [item_line(item) for item in request.items]
    previous = request.previous
    sections: list[tuple[str, Sequence[str]]]
    if request.kind == "block":
        instruction = instructions.block
        sections = [(instructions.block_head, items)]
    elif request.kind == "layer":
        instruction = instructions.layer
        sections = [(instructions.layer_head, previous)]
    else:
        instruction = instructions.update
        previous_head, items_head = instructions.update_heads
        sections = [(previous_head, previous), (items_head, items)]
    limit = instructions.brief.format(words=int(WORDS * tokens))
    return compose_prompt(f"{space}{instruction} {limit}", sections, encode, room)
