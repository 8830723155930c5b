"""The markup of a chat: what a tokenizer's chat template writes around what a user says."""

from typing import Any, NamedTuple

import numpy as np

from ..tokens.tokenizing import TextTokenizer, Tokenizer

DAY = "26 Jul 2024"  # for chat templates that name the day: a prompt is to be the same on all days
# What stands around a user's turn where a tokenizer has no chat template
USER = "### User:\n"
ASSISTANT = "\n\n### Assistant:\n"
PLACE = "WHAT THE USER SAYS"  # marks the place of the user's text in a template


def turn_markup(tokenizer: Tokenizer) -> tuple[str, str]:
    """Return what stands before and behind the text of a user's turn.

    It is what the tokenizer's chat template writes, with a fixed day and with thinking switched
    off; without a chat template, USER and ASSISTANT.

    Parameters
    ----------
    tokenizer : Tokenizer
        The tokenizer of the language model.

    Returns
    -------
    tuple of (str, str)
        What stands before and behind the text; the assistant is to answer next.
    """
    if not tokenizer.chat_template:
        begin = tokenizer.bos_token or ""
        return (begin if adds_begin_token(tokenizer) else "") + USER, ASSISTANT
    before, _, behind = _render(tokenizer).partition(PLACE)
    return before, behind


def answer_markup(tokenizer: Tokenizer, answer: str) -> str:
    """Return what stands behind the text of a user's turn, up to the end of the answer.

    Parameters
    ----------
    tokenizer : Tokenizer
        The tokenizer of the language model.
    answer : str
        The assistant's answer.

    Returns
    -------
    str
        The markup and the answer, as the chat template writes them.
    """
    _, behind = turn_markup(tokenizer)
    if tokenizer.chat_template:
        answered = _render(tokenizer, answer).partition(PLACE)[2]
        begin = answered.find(answer, len(behind))
        if answered.startswith(behind) and begin >= 0:
            return answered[: begin + len(answer)]
    return behind + answer


def _render(tokenizer: Tokenizer, answer: str | None = None) -> str:
    """Render a chat in which the assistant's turn is opened, or in which it has answered."""
    # the macro stands in place of a function of transformers that tells today's date
    macro = f"{{% macro strftime_now(format) %}}{DAY}{{% endmacro %}}"
    fixed: dict[str, Any] = {
        "chat_template": f"{macro}{tokenizer.get_chat_template()}",
        "date_string": DAY,
        "enable_thinking": False,
    }
    messages = [{"role": "user", "content": PLACE}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=answer is None, **fixed
    )


class TurnTokens(NamedTuple):
    """What opens and closes a user's turn.

    Attributes
    ----------
    opening : ndarray of int64 [length]
        Tokens before the user's text.
    space : str
        White space that the user's text begins with.
    closing : ndarray of int64 [length]
        Tokens behind the user's text.
    opens : bool
        Whether the user's text is tokenised like the beginning of a text.
    """

    opening: np.ndarray
    space: str
    closing: np.ndarray
    opens: bool = False


def tokenize_turn(tokenizer: Tokenizer) -> TurnTokens:
    """Tokenise what opens and closes the turn that an assistant is to answer.

    Parameters
    ----------
    tokenizer : Tokenizer
        The tokenizer of the language model.

    Returns
    -------
    TurnTokens
        The tokens.
    """
    spelling = TextTokenizer(tokenizer)
    before, behind = turn_markup(tokenizer)
    before, space = spelling.split_space(before)
    begin = tokenizer.bos_token or ""
    if not tokenizer.chat_template and begin and before.startswith(begin):
        opening = spelling.encode(before.removeprefix(begin), opens=True)
        opening = np.concatenate([[tokenizer.bos_token_id], opening])
    else:
        opening = spelling.encode(before, opens=True, special=True)
    ends_special = len(opening) > 0 and opening[-1] in tokenizer.all_special_ids
    starts_anew = len(opening) == 0 or (ends_special and spelling.adds_space_after_special)
    closing = spelling.encode(behind, special=True)
    return TurnTokens(opening, space, closing, opens=not space and starts_anew)


def adds_begin_token(tokenizer: Tokenizer) -> bool:
    """Say whether the tokenizer puts its begin token before any text.

    Parameters
    ----------
    tokenizer : Tokenizer
        The tokenizer of the language model.

    Returns
    -------
    bool
        Whether it does.
    """
    begin = tokenizer.bos_token_id
    return begin is not None and tokenizer("")["input_ids"][:1] == [begin]
