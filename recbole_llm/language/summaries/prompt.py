"""What an engine is asked for one summary: an instruction, then the items and the earlier summaries under their heads."""

from collections.abc import Sequence

from ..prompts.instructions import Instructions, compose_prompt
from ..prompts.templates import item_line
from .schedules import Request

LAYOUT = 3  # raised with every change of the prompts: texts are stored under it, and what is paid for is not written again


WORDS = 0.6  # that a token is taken to be: fewer than in English, so that the text ends in time


def prompt_parts(
    request: Request, instructions: Instructions, encode, room: int, tokens: int, space: str = ""
) -> list[Sequence]:
    """Tokens, or texts, of a request in at most `room` of them; see instructions.laid_out. tokens : most of what is to be written. space : before all of it."""
    items = [item_line(item) for item in request.items]
    sections = {
        "block": lambda: [(instructions.block_head, items)],
        "layer": lambda: [(instructions.layer_head, request.previous)],
        "update": lambda: [
            (instructions.update_heads[0], request.previous),
            (instructions.update_heads[1], items),
        ],
    }[request.kind]()
    instruction = f"{space}{getattr(instructions, request.kind)} {instructions.brief.format(words=int(WORDS * tokens))}"
    return compose_prompt(instruction, sections, encode, room)
