"""Decide which texts are condensed into which, for many users in step.

Summaries of a history are hierarchical or recurrent (LLM-TRSR, section 3.2).
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Item = tuple[tuple[str, str], ...]  # names and values of an item's attributes
# Yields rounds of requests, is sent their texts, and returns the last text.
SummaryPlan = Generator[list["Request"], Any, str]


@dataclass(frozen=True)
class Request:
    """One text to be written.

    Stored summaries are named by the names and values of these fields.

    Parameters
    ----------
    kind : str
        `block` condenses items, `layer` summaries of earlier parts, and `update` a summary and the
        items since.
    previous : tuple of str
        The summaries that it starts from, oldest first.
    items : tuple of Item
        The items, oldest first.
    """

    kind: str
    previous: tuple[str, ...] = ()
    items: tuple[Item, ...] = ()


class WrittenText(NamedTuple):
    """What an engine has written.

    Attributes
    ----------
    text : str
        The text.
    whole : bool
        Whether it ended by itself.
    tokens : tuple of (int, int)
        Numbers of tokens that were read and written.
    requests : int
        How often it was asked for.
    fault : str, optional
        `refused` or `failed` where an engine gives no text.
    why : str
        The reason of the fault in the engine's own words.
    """

    text: str
    whole: bool = True
    tokens: tuple[int, int] = (0, 0)
    requests: int = 1
    fault: str | None = None
    why: str = ""


class Summary(NamedTuple):
    """The summary of one history.

    Attributes
    ----------
    text : str
        The summary; empty for no items.
    levels : list of list of str
        Everything that was written for it, round by round, the summary itself at the end.
    replaced : bool
        Whether one of these texts is an extract in place of what the engine wrote.
    """

    text: str
    levels: list[list[str]]
    replaced: bool = False


def blocks(items: Sequence[Item], size: int) -> list[tuple[Item, ...]]:
    """Split items into blocks.

    Parameters
    ----------
    items : sequence of Item
        The items.
    size : int
        Items of a block; the last may be shorter.

    Returns
    -------
    list of tuple of Item
        The blocks.
    """
    return [tuple(items[begin : begin + size]) for begin in range(0, len(items), size)]


def hierarchical(items: Sequence[Item], size: int, fan_in: int) -> SummaryPlan:
    """Summarise every block, then every `fan_in` summaries, until one is left.

    Parameters
    ----------
    items : sequence of Item
        The items of a history, oldest first.
    size : int
        Items of a block.
    fan_in : int
        Summaries that are condensed into one.

    Yields
    ------
    list of Request
        A round of requests, in answer to which their texts are sent.

    Returns
    -------
    str
        The summary.
    """
    texts = [""]
    if items:
        texts = yield [Request("block", items=block) for block in blocks(items, size)]
    while len(texts) > 1:
        groups = [tuple(texts[begin : begin + fan_in]) for begin in range(0, len(texts), fan_in)]
        # a summary without others goes up as it is
        alone = groups.pop() if len(groups[-1]) == 1 else ()
        written = yield [Request("layer", previous=group) for group in groups]
        texts = [*written, *alone]
    return texts[0]


def recurrent(items: Sequence[Item], size: int) -> SummaryPlan:
    """Summarise the first block, and write the summary anew with each further block.

    Parameters
    ----------
    items : sequence of Item
        The items of a history, oldest first.
    size : int
        Items of a block.

    Yields
    ------
    list of Request
        A round of one request, in answer to which its text is sent.

    Returns
    -------
    str
        The summary.
    """
    text = ""
    for number, block in enumerate(blocks(items, size)):
        request = Request("block", items=block)
        if number > 0:
            request = Request("update", previous=(text,), items=block)
        (text,) = yield [request]
    return text


def run_plans(
    plans: Iterable[SummaryPlan],
    write: Callable[[list[Request], int], list[tuple[str, bool]]],
) -> list[Summary]:
    """Carry out the plans of many users in step.

    Parameters
    ----------
    plans : iterable of SummaryPlan
        The plan of each user.
    write : callable
        Takes the requests of all users in a round and the number of the round, from 0 on; returns
        the text of each, and whether it is replaced by an extract.

    Returns
    -------
    list of Summary
        The summary of each user.
    """
    running = list(plans)
    summaries = [Summary("", []) for _ in running]
    # what each plan is to be sent; None starts it
    answers: dict[int, list[str] | None] = dict.fromkeys(range(len(running)))
    level = 0
    while answers:
        waiting: dict[int, list[Request]] = {}
        for number, answer in answers.items():
            try:
                waiting[number] = running[number].send(answer)
            except StopIteration as end:
                summaries[number] = summaries[number]._replace(text=end.value)
        requests: list[Request] = []
        for own_requests in waiting.values():
            requests += own_requests
        written = iter(write(requests, level) if waiting else ())
        answers = {}
        for number, own_requests in waiting.items():
            results = [next(written) for _ in own_requests]
            texts = [text for text, _ in results]
            summaries[number].levels.append(texts)
            replaced = summaries[number].replaced or any(flag for _, flag in results)
            summaries[number] = summaries[number]._replace(replaced=replaced)
            answers[number] = texts
        level += 1
    return summaries
