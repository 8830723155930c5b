"""The instructions of a domain, and prompts that consist of an instruction and sections of texts.

What users and items say is data: marks in it are neutralised.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import yaml

from ...errors import UserError
from ...settings import files
from .marks import neutralize_marks

LEAST = 16  # tokens or characters of each text that a prompt must have room for


@dataclass(frozen=True)
class Instructions:
    """Instructions of a domain and the heads of the sections behind them (properties/domain/).

    Attributes
    ----------
    block, layer, update : str
        Instructions to summarise items, to merge summaries, and to update a summary.
    block_head, layer_head, update_heads : str, or tuple of str
        The heads of their sections.
    brief : str
        The sentence that limits a summary to `{words}` words.
    judge, judge_history : str
        Instructions to judge a candidate, with and without a summary of the history.
    judge_heads : tuple of str
        The heads of the summary, the items and the candidate.
    """

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
        """Everything that a summariser is told; it is part of the names of stored summaries."""
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
        """Read the instructions of a domain.

        Parameters
        ----------
        domain : str
            Name of a file in properties/domain/, without its suffix.

        Returns
        -------
        Instructions
            The instructions.

        Raises
        ------
        UserError
            If there is no such file.
        """
        folder = files.properties() / "domain"
        path = folder / f"{domain}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
            raise UserError(f"domain: expected one of {known}, found {domain!r}")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        values = {field.name: content[field.name] for field in fields(cls)}
        for name, value in values.items():
            if isinstance(value, list):
                values[name] = tuple(value)
        return cls(**values)


Encode = Callable[[str], Any]  # a piece of text -> its tokens, int64, or the piece itself


def common_limit(sizes: Sequence[int], room: int) -> int:
    """Find the largest limit to which texts can be cut so that all of them fit.

    Texts shorter than the limit stay whole, and leave their room to the others.

    Parameters
    ----------
    sizes : sequence of int
        Length of each text.
    room : int
        Most length of all texts together.

    Returns
    -------
    int
        The limit, at least 1; 0 for no texts.
    """
    ascending = sorted(sizes)
    for number, size in enumerate(ascending):
        longer = len(ascending) - number
        if size * longer > room:
            return max(1, room // longer)
        room -= size
    return max(ascending, default=0)


def compose_prompt(
    instruction: str, sections: Sequence[tuple[str, Sequence[str]]], encode: Encode, room: int
) -> list[Any]:
    """Put a prompt together from an instruction and sections, whose texts are cut until all fit.

    The longest texts are cut first, at their ends. Several texts of a section are numbered.

    Parameters
    ----------
    instruction : str
        The instruction.
    sections : sequence of (str, sequence of str)
        The head and the texts of each section.
    encode : callable
        Gives the tokens of a piece with the white space before it, or the piece itself where the
        tokens are not known.
    room : int
        Most length of the prompt, in units of what `encode` gives.

    Returns
    -------
    list of ndarray or str
        The pieces of the prompt, as `encode` gives them.

    Raises
    ------
    UserError
        If a text that has LEAST units would be cut to fewer.
    """
    parts, text_places = [encode(instruction)], []
    for head, texts in sections:
        parts.append(encode(f"\n\n{head}"))
        for number, text in enumerate(texts, 1):
            line, space = (f"\n{number}.", " ") if len(texts) > 1 else ("", "\n")
            parts.append(encode(line))
            text_places.append(len(parts))
            parts.append(encode(space + neutralize_marks(text)))
    sizes = [len(parts[place]) for place in text_places]
    fixed = sum(map(len, parts)) - sum(sizes)
    if room - fixed < sum(min(size, LEAST) for size in sizes):
        raise UserError(
            f"summarizer_length: the fixed text of a prompt takes {fixed} of the {room} tokens or "
            f"characters that summary_tokens leaves, too many for {len(text_places)} texts; set "
            "--summarizer_length to more"
        )
    limit = common_limit(sizes, room - fixed)
    for place in text_places:
        parts[place] = parts[place][:limit]
    return parts
