"""Which texts are condensed into which: hierarchical and recurrent summaries of a history (LLM-TRSR, section 3.2), for many users in step."""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Item = tuple[tuple[str, str], ...]
SummaryPlan = Generator[list["Request"], list[str], str]


@dataclass(frozen=True)
class Request:
    """One text to be written.

    kind : "block" condenses items, "layer" summaries of earlier parts, "update" a summary and the items since.
    previous : the summaries it starts from, oldest first. items : names and values of their attributes, oldest first.
    """

    kind: str
    previous: tuple[str, ...] = ()
    items: tuple[Item, ...] = ()


class WrittenText(NamedTuple):
    """What an engine wrote.

    Attributes
    ----------
    whole : it ended by itself.
    tokens : how many were read and written.
    requests : how often it was asked for.
    fault : "refused" or "failed" where an engine gives no text, and `why`, in its own words.
    """

    text: str
    whole: bool = True
    tokens: tuple[int, int] = (0, 0)
    requests: int = 1
    fault: str | None = None
    why: str = ""


def blocks(items: Sequence[Item], size: int) -> list[tuple[Item, ...]]:
    """Items in blocks of `size`; the last may be shorter."""
    return [tuple(items[begin : begin + size]) for begin in range(0, len(items), size)]


def hierarchical(items: Sequence[Item], size: int, fan_in: int) -> SummaryPlan:
    """Every block is summarised, then every `fan_in` summaries are, until one is left. Yields rounds of requests, is sent their texts, returns the last."""
    texts = (
        (yield [Request("block", items=block) for block in blocks(items, size)]) if items else [""]
    )
    while len(texts) > 1:
        groups = [tuple(texts[begin : begin + fan_in]) for begin in range(0, len(texts), fan_in)]
        alone = len(groups[-1]) == 1  # a summary without others goes up as it is
        written = yield [
            Request("layer", previous=group) for group in (groups[:-1] if alone else groups)
        ]
        texts = [*written, *(groups[-1] if alone else ())]
    return texts[0]


def recurrent(items: Sequence[Item], size: int) -> SummaryPlan:
    """The first block is summarised, and the summary written anew with each further block."""
    text = ""
    for number, block in enumerate(blocks(items, size)):
        (text,) = yield [
            Request("update", previous=(text,), items=block)
            if number
            else Request("block", items=block)
        ]
    return text


class Summary(NamedTuple):
    """Of one history; levels : what was written for it on the way, the text itself at the end; none for no items, and no text.

    replaced : one of them is an extract in place of what the engine wrote.
    """

    text: str
    levels: list[list[str]]
    replaced: bool = False


def run_plans(
    rounds: Iterable[SummaryPlan], write: Callable[[list[Request], int], list[tuple[str, bool]]]
) -> list[Summary]:
    """The summary of each user.

    write : (requests, level) -> (text, replaced) of each. All users' requests of a level come together, level 0 being the first.
    """
    plans = list(rounds)
    found = [Summary("", []) for _ in plans]
    answered: dict[int, list[str] | None] = dict.fromkeys(range(len(plans)))  # None starts a plan
    level = 0
    while answered:
        waiting = {}
        for number, own in answered.items():
            try:
                waiting[number] = plans[number].send(own)
            except StopIteration as end:
                found[number] = found[number]._replace(text=end.value)
        written = iter(
            write([request for asked in waiting.values() for request in asked], level)
            if waiting
            else ()
        )
        answered = {}
        for number, asked in waiting.items():
            texts, replaced = zip(*(next(written) for _ in asked), strict=True)
            found[number].levels.append(list(texts))
            found[number] = found[number]._replace(replaced=found[number].replaced or any(replaced))
            answered[number] = list(texts)
        level += 1
    return found
