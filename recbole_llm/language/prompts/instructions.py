"""What the judge and the summariser are told, by domain; and their prompts, in which what users and items say is data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import yaml

from ...errors import UserError
from ...settings import files
from ..tokens.tokenizing import TextTokenizer
from .marks import neutralize_marks

DAY = "26 Jul 2024"  # for chat templates that say which day it is: a prompt is to be the same on all days
LEAST = 16  # tokens or characters of a text that a prompt has room for
USER, ASSISTANT = (
    "### User:\n",
    "\n\n### Assistant:\n",
)  # around a turn, where a tokenizer has no chat template


@dataclass(frozen=True)
class Instructions:
    """Instructions and the heads of the sections that follow them, see properties/domain/."""

    block: str
    block_head: str
    layer: str
    layer_head: str
    update: str
    update_heads: tuple[str, str]
    brief: str
    judge: str
    judge_heads: tuple[str, str, str]
    judge_history: str

    @property
    def summaries(self) -> tuple:
        """All of it that a summariser is told."""
        return (
            self.block,
            self.block_head,
            self.layer,
            self.layer_head,
            self.update,
            self.update_heads,
            self.brief,
        )

    @classmethod
    def of_domain(cls, domain: str) -> "Instructions":
        """Raises UserError for a domain without a file."""
        folder = files.properties() / "domain"
        path = folder / f"{domain}.yaml"
        if not path.is_file():
            raise UserError(
                f"domain: expected one of {', '.join(sorted(file.stem for file in folder.glob('*.yaml')))}, found {domain!r}"
            )
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
        return cls(
            **{
                field.name: tuple(value) if isinstance(value := read[field.name], list) else value
                for field in fields(cls)
            }
        )


Cut = Callable[[str], Sequence]


def common_limit(sizes: Sequence[int], room: int) -> int:
    """The largest size to which all can be cut so that they are `room` together: what is shorter stays whole."""
    left = sorted(sizes)
    for number, size in enumerate(left):
        if size * (len(left) - number) > room:
            return max(1, room // (len(left) - number))
        room -= size
    return max(left, default=0)


def compose_prompt(
    instruction: str, sections: Sequence[tuple[str, Sequence[str]]], encode: Cut, room: int
) -> list[Sequence]:
    """The parts of a turn: an instruction, then heads with numbered texts, of which the longest are cut at their ends until all fit.

    encode : the tokens of a piece with the white space before it, or the piece itself where tokens are not known. room : for all of it, in those units.

    Raises
    ------
    UserError : where less than LEAST of a text would be left, of one that has as much.
    """
    parts, data = [encode(instruction)], []
    for head, texts in sections:
        parts.append(encode(f"\n\n{head}"))
        for number, text in enumerate(texts, 1):
            line, space = (f"\n{number}.", " ") if len(texts) > 1 else ("", "\n")
            parts.append(encode(line))
            data.append(len(parts))
            parts.append(encode(space + neutralize_marks(text)))
    sizes = [len(parts[at]) for at in data]
    fixed = sum(map(len, parts)) - sum(sizes)
    if room - fixed < sum(min(size, LEAST) for size in sizes):
        raise UserError(
            f"summarizer_length: what a prompt always says takes {fixed} of the {room} tokens or characters that summary_tokens leaves, "
            f"too many for {len(data)} texts; set --summarizer_length to more"
        )
    cap = common_limit(sizes, room - fixed)
    for at in data:
        parts[at] = parts[at][:cap]
    return parts


def turn_markup(tokenizer) -> tuple[str, str]:
    """What stands before and behind what a user says: by the tokenizer's chat template where it has one, on no day of its own and without thoughts."""
    if not tokenizer.chat_template:
        return (tokenizer.bos_token or "") * adds_begin_token(tokenizer) + USER, ASSISTANT
    before, _, after = _chat(tokenizer).partition(PLACE)
    return before, after


def answer_markup(tokenizer, answer: str) -> str:
    """What stands behind what a user says, up to the end of an assistant's answer, as the chat template writes it."""
    _, after = turn_markup(tokenizer)
    if tokenizer.chat_template:
        said = _chat(tokenizer, answer).partition(PLACE)[2]
        begin = said.find(answer, len(after))
        if said.startswith(after) and begin >= 0:
            return said[: begin + len(answer)]
    return after + answer


PLACE = "WHAT THE USER SAYS"


def _chat(tokenizer, answer: str | None = None) -> str:
    """A chat of a user, and of an assistant whose turn is opened, or whose answer is given."""
    template = f"{{% macro strftime_now(format) %}}{DAY}{{% endmacro %}}{tokenizer.get_chat_template()}"  # in place of the clock's
    fixed = {"chat_template": template, "date_string": DAY, "enable_thinking": False}
    said = [{"role": "user", "content": PLACE}]
    if answer is not None:
        said.append({"role": "assistant", "content": answer})
    return tokenizer.apply_chat_template(
        said, tokenize=False, add_generation_prompt=answer is None, **fixed
    )


class TurnTokens(NamedTuple):
    """What opens and closes a user's turn: int64 tokens, and the white space that what the user says begins with.

    opens : whether what the user says is tokenised like the beginning of a text.
    """

    opening: np.ndarray
    space: str
    closing: np.ndarray
    opens: bool = False


def tokenize_turn(tokenizer) -> TurnTokens:
    """The turn that an assistant is to answer."""
    spelling = TextTokenizer(tokenizer)
    before, after = turn_markup(tokenizer)
    before, space = spelling.split_space(before)
    begin = tokenizer.bos_token or ""
    if not tokenizer.chat_template and begin and before.startswith(begin):
        opening = spelling.encode(before.removeprefix(begin), opens=True)
        opening = np.append(tokenizer.bos_token_id, opening)
    else:
        opening = spelling.encode(before, opens=True, special=True)
    anew = (
        len(opening)
        and opening[-1] in tokenizer.all_special_ids
        and spelling.adds_space_after_special
    )
    opens = not space and bool(not len(opening) or anew)
    return TurnTokens(opening, space, spelling.encode(after, special=True), opens)


def adds_begin_token(tokenizer) -> bool:
    """Whether the tokenizer puts its begin token before any text."""
    return tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [
        tokenizer.bos_token_id
    ]
