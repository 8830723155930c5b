"""Summaries by a server that speaks OpenAI's protocol for chats.

Such are vLLM, Ollama, llama.cpp, a proxy, and OpenAI's own server.
"""

import json
import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from typing import Any

from ...errors import UserError
from ..prompts.instructions import Instructions
from .prompt import LAYOUT, prompt_parts
from .schedules import Request, WrittenText
from .writing import AGAIN, PATIENCE

CHARACTERS = 3  # that a token is taken to be: fewer than in English, so that prompts fit
# Statuses, besides those from 500 on, of a server that may answer later
BUSY = (408, 409, 425, 429)
CONNECT = 30.0  # seconds in which a server takes a connection
REACH = 10.0  # seconds in which a server lists its models
MOST_TOKENS = 2**40  # that a server may count for one text
FIRST_PAUSE = 0.5  # seconds, which double with every further request
LONGEST_PAUSE = 60.0  # seconds between two requests for one text, whatever the server asks for
# Reasons that servers give for a text's own end
ENDED = ("stop", "eos_token", "end_turn", "stop_sequence", "", None)
# Errors of the client's transport before a request was sent
UNSENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")
LIMITS = ("max_tokens", "max_completion_tokens")  # names of the most tokens of an answer
# A message about a field of the request, rather than about the text, names the field and contains
# one of these words.
REFUSAL = re.compile(
    r"support|recogni[sz]|permit|allow|unknown|unexpected|extra|only|must|invalid|deprecated", re.I
)
# How messages name a field; "seed" is a word of item texts too, which a server may quote
NAMED = {
    "seed": re.compile(
        r"['\"`]seed['\"`]|\b(?:argument|parameter|field)s?\b[^.]{0,30}\bseed\b", re.I
    ),
    "temperature": re.compile(r"\btemperature\b", re.I),
}


class _NoAnswerError(Exception):
    """What came is no answer to a request."""


class _LateAnswerError(_NoAnswerError):
    """No answer began in time."""


class ServerEngine:
    """Requests in parallel through OpenAI's client.

    A text that the server refuses, or to which no usable answer comes, costs that text alone. A key
    or model that the server does not know, and PATIENCE texts in a row without an answer, end the
    work by a UserError with the server's own words.

    The key is read from the environment (OPENAI_API_KEY) and stored nowhere.

    Parameters
    ----------
    url : str
        Address of the server, such as `http://localhost:8000/v1`.
    model : str
        Name of the model there.
    instructions : Instructions
        The instructions of the domain.
    max_length : int
        Most tokens of a prompt and its text together.
    max_new : int
        Most tokens of a text.
    temperature : float
        0 is greedy.
    seed : int
        Sent with every request.
    parallel : int
        Requests at once.
    retries : int
        Most further requests for a text while the server is busy or fails.
    timeout : float
        Seconds for one whole answer, from the connection to its last byte, however slowly the
        server sends it.
    extra : dict, optional
        Fields of the request's body; None leaves a field out.

    Attributes
    ----------
    name : str
        Everything that decides the texts beside their requests.
    """

    paid = True

    def __init__(
        self,
        url: str,
        model: str,
        instructions: Instructions,
        *,
        max_length: int,
        max_new: int,
        temperature: float,
        seed: int,
        parallel: int,
        retries: int = 8,
        timeout: float = 600.0,
        extra: dict | None = None,
    ):
        try:
            import openai  # noqa: F401
        except ImportError:
            raise UserError(
                "summarizer: a server is asked through the package openai, which is not installed: "
                'pip install "recbole_llm[openai]"'
            ) from None
        for chatty in ("httpx", "httpx2", "openai"):  # a line for every request
            logging.getLogger(chatty).setLevel(logging.WARNING)
        self.model, self.instructions, self.url, self.parallel = model, instructions, url, parallel
        self.max_length, self.max_new = max_length, max_new
        self.temperature, self.seed = temperature, seed if temperature else 0
        self.retries, self.timeout, self.extra = retries, timeout, extra or {}
        self.limit = LIMITS[0]
        self.left_out: set[str] = set()  # fields that the server does not take
        self.refused: set[Request] = set()
        self.unanswered = 0  # texts in a row
        self.stop = threading.Event()
        self.portal: Any = None  # `write` opens and closes the portal and the client
        self.client: Any = None
        self.lists_models = True  # until the server lets a request for its models wait
        self.name = repr(
            (
                LAYOUT,
                "server",
                model,
                instructions.summaries,
                max_length,
                max_new,
                temperature,
                self.seed,
                *([json.dumps(extra, sort_keys=True)] if extra else []),
            )
        )

    def size(self, request: Request) -> int:
        """Estimate the tokens of the prompt of a request, rather too many.

        Parameters
        ----------
        request : Request
            The text to be written.

        Returns
        -------
        int
            Number of tokens.
        """
        return -(-len(self._prompt(request)) // CHARACTERS)

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

        Raises
        ------
        UserError
            If the server does not know the key or the model, or gives no answers.
        """
        from anyio.from_thread import start_blocking_portal

        self.stop.clear()
        lock, abandoned = threading.Lock(), threading.Event()

        def keep(number: int, text: WrittenText) -> None:
            with lock:
                if abandoned.is_set():
                    return
                take(number, text)  # before anything else: it is paid for
                if not again:  # texts that were refused once are likely to be refused in a row
                    self._count(text)

        # The threads wait, and the requests themselves run in the event loop of the portal: a
        # request can be cancelled there at any moment, whatever the server sends or does not send.
        with (
            ThreadPoolExecutor(self.parallel) as pool,
            start_blocking_portal() as self.portal,
            self.portal.wrap_async_context_manager(self._client()) as self.client,
        ):
            if self.lists_models:
                self._reach()
            waiting = [
                pool.submit(self._answer_one, number, request, again, keep)
                for number, request in enumerate(requests)
            ]
            try:
                for done in as_completed(waiting):
                    done.result()
            except Exception:
                pool.shutdown(cancel_futures=True)  # waits for the answers that are under way
                raise
            except BaseException:
                self.stop.set()
                with lock:
                    abandoned.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise  # the portal cancels the requests that are under way

    def _answer_one(
        self,
        number: int,
        request: Request,
        again: bool,
        keep: Callable[[int, WrittenText], None],
    ) -> None:
        """Write one text, in a thread of its own, unless the work has ended."""
        if self.stop.is_set():
            return
        try:
            keep(number, self._ask(request, again))
        except BaseException:
            self.stop.set()  # at once: this thread would begin with the next text
            raise

    def _client(self) -> Any:
        from openai import AsyncOpenAI, Timeout

        return AsyncOpenAI(
            base_url=self.url,
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            max_retries=0,  # `_send` tries again itself, so that every request is counted
            timeout=Timeout(self.timeout, connect=min(self.timeout, CONNECT)),
        )

    def _count(self, text: WrittenText) -> None:
        self.unanswered = self.unanswered + 1 if text.fault else 0
        if self.unanswered >= PATIENCE:
            raise UserError(
                f"summarizer: {self.url} has refused or failed {PATIENCE} texts in a row, the last "
                f"with: {text.why}; what is written is kept: mend the server, summarizer_model, "
                "summarizer_length, summary_tokens or summarizer_extra, and run again"
            )

    def _reach(self) -> None:
        """Raise UserError where nothing listens, before many requests wait for it at once."""
        import openai

        try:
            self.portal.call(self._list_models)
        except (TimeoutError, openai.APITimeoutError):
            first, self.lists_models = self.lists_models, False
            if first:
                logging.getLogger().warning(
                    f"summarizer: {self.url}/models gave no answer within {REACH:g} s; texts are "
                    f"asked for nevertheless, each with a limit of {self.timeout:g} s "
                    "(summarizer_timeout)"
                )
        except openai.APIConnectionError as error:
            raise UserError(
                f"summarizer: {self.url} gives no answer ({_reason(error)}); what is written is "
                "kept, run again"
            ) from None
        except Exception:
            # some servers that answer list no models, or have a page for browsers there, which the
            # client trips over
            pass

    async def _list_models(self) -> None:
        from anyio import fail_after

        with fail_after(REACH):
            await self.client.with_options(max_retries=1, timeout=REACH).models.list()

    def _prompt(self, request: Request) -> str:
        # A refused prompt may have been too long for the model: some languages have a token for
        # each character.
        characters = 1 if request in self.refused else CHARACTERS
        room = characters * (self.max_length - self.max_new)
        return "".join(prompt_parts(request, self.instructions, str, room, self.max_new))

    def _body(self, again: bool) -> dict:
        """Make the fields of a request beside its model and messages."""
        body: dict[str, Any] = {
            "seed": self.seed + again,
            "temperature": max(AGAIN, self.temperature) if again else self.temperature,
        }
        if not any(name in self.extra for name in LIMITS):
            body[self.limit] = self.max_new
        body = {name: value for name, value in body.items() if name not in self.left_out}
        return {name: value for name, value in (body | self.extra).items() if value is not None}

    def _ask(self, request: Request, again: bool) -> WrittenText:
        """Ask for a text until there is an answer to it, or a reason why there is none."""
        import openai

        content, spent = self._prompt(request), Counter[str]()

        def without_text(fault: str, why: str) -> WrittenText:
            return WrittenText("", requests=spent["requests"], fault=fault, why=why)

        while True:
            body = self._body(again)
            try:
                return self._read(self._send(content, body, spent), spent["requests"])
            except _NoAnswerError as error:
                return without_text("failed", _in_line(error))
            except openai.APIConnectionError as error:
                if not isinstance(error, openai.APITimeoutError) and not self.stop.is_set():
                    self._reach()
                return without_text("failed", f"no answer: {_reason(error)}")
            except openai.APIStatusError as error:
                self._raise_for_settings(error)
                if error.status_code in BUSY or error.status_code >= 500:
                    return without_text("failed", _words(error))
                if not self._leave_out(error, body):
                    self.refused.add(request)
                    return without_text("refused", _words(error))

    def _raise_for_settings(self, error: Any) -> None:
        """Raise UserError for a status that every other request would get too."""
        status, why = error.status_code, _words(error)
        if status in (401, 403):
            raise UserError(
                f"summarizer: {self.url} refuses the key ({why}); set OPENAI_API_KEY to one that "
                f"may use {self.model}; what is written is kept"
            ) from None
        if status == 404:
            raise UserError(
                f"summarizer: {self.url} knows no model {self.model}, or not this address ({why}); "
                f"set --summarizer_model to a name that {self.url}/models lists, or --summarizer "
                "to the address that ends in /v1; what is written is kept"
            ) from None

    def _send(self, content: str, body: dict, spent: Counter) -> bytes:
        """Return the body of the answer to a request, which is sent again while the server is busy.

        `spent` counts the requests.
        """
        import openai

        attempt = 0
        while True:
            spent["requests"] += 1
            try:
                return self.portal.call(self._answer, content, body)
            except (openai.APIConnectionError, openai.APIStatusError, _LateAnswerError) as error:
                if type(error.__cause__).__name__ in UNSENT:
                    spent["requests"] -= 1
                status = getattr(error, "status_code", 500)
                last = attempt == self.retries or (status < 500 and status not in BUSY)
                if last or self.stop.wait(_pause(error, attempt)):
                    raise
            attempt += 1

    async def _answer(self, content: str, body: dict) -> bytes:
        """Return the body of the answer to a request; the connection is closed after `timeout`."""
        from anyio import fail_after
        from openai import OpenAIError

        begun = False
        try:
            with fail_after(self.timeout):
                async with self.client.chat.completions.with_streaming_response.create(
                    model=self.model,
                    messages=[{"role": "user", "content": content}],
                    extra_body=body,
                ) as answer:
                    begun = True
                    return await answer.read()
        except TimeoutError:
            if begun:
                raise _NoAnswerError("the answer takes longer than summarizer_timeout") from None
            raise _LateAnswerError("no answer within summarizer_timeout") from None
        except OpenAIError:
            raise
        except Exception as error:  # of the transport, which the client does not always wrap
            failed = "the answer breaks off" if begun else "no answer"
            raise _NoAnswerError(f"{failed}: {_reason(error)}") from None

    def _read(self, data: bytes, requests: int) -> WrittenText:
        """Read the text of an answer's body."""
        answer = _parsed(data)
        try:
            choice, used = answer["choices"][0], answer.get("usage")
            message, reason = choice["message"], choice.get("finish_reason")
            content = message.get("content") or ""
            if isinstance(content, list):
                content = "".join(part.get("text") or "" for part in content)
            if not content and (message.get("reasoning_content") or message.get("reasoning")):
                content = "<think>"  # which some servers put apart
            content = content.encode(errors="replace").decode()  # without halves of surrogate pairs
        except (AttributeError, LookupError, TypeError, ValueError):
            raise _NoAnswerError(f"no chat completion: {_plain(_error_in(data))}") from None
        tokens = _token_count(used, "prompt_tokens"), _token_count(used, "completion_tokens")
        if reason == "content_filter":
            return WrittenText(
                "", False, tokens, requests, "refused", "finish_reason: content_filter"
            )
        return WrittenText(content, reason in ENDED, tokens, requests)

    def _leave_out(self, error: Any, body: dict) -> bool:
        """Find the field of a request that the server refuses, if there is one.

        From now on the field has another name, or is left out.
        """
        message, param = f"{error.body or ''} {error.message}", getattr(error, "param", None)
        if LIMITS[0] in body and LIMITS[1] in message and LIMITS[0] not in self.extra:
            self.limit = LIMITS[1]  # as OpenAI's newer models have it
            return True
        for name, pattern in NAMED.items():
            if name not in body or name in self.extra:
                continue
            if param == name or (pattern.search(message) and REFUSAL.search(message)):
                if name not in self.left_out:
                    logging.getLogger().warning(
                        f"summarizer: {self.url} does not take {name} {body[name]} "
                        f"({_words(error)}): it is left out; --summarizer_extra.{name}=VALUE sends "
                        "another"
                    )
                self.left_out.add(name)
                return True
        return False


def _token_count(used: object, name: str) -> int:
    """Return a count of an answer's `usage`; 0 where there is none, or none that can be."""
    count = used.get(name) if isinstance(used, dict) else None
    return count if type(count) is int and 0 <= count <= MOST_TOKENS else 0


def _pause(error: BaseException, attempt: int) -> float:
    """Return seconds until the next request: what the server asks for, else longer each time."""
    response: Any = getattr(error, "response", None)
    try:
        seconds = float(response.headers["retry-after"])
    except (AttributeError, LookupError, ValueError):
        seconds = min(8.0, FIRST_PAUSE * 2**attempt)
    return min(max(seconds, 0.0), LONGEST_PAUSE)


def _words(error: Any) -> str:
    """Return what a server says with a status, in a line."""
    return f"{error.status_code}: {_plain(_message(error.body or error.message))}"


def _message(body: object) -> str:
    """Find the message in a body that reports an error, however deep it lies."""
    while isinstance(body, dict):
        values = (body[name] for name in ("message", "error", "detail") if body.get(name))
        body = next(values, None) or _as_text(body)
    return _as_text(body)


def _as_text(body: object) -> str:
    try:
        return str(body)
    except RecursionError:
        return "lists within lists, too deep to show"


def _parsed(data: bytes) -> Any:
    """Parse JSON in any encoding that JSON may have; None where it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):  # RecursionError: nested too deep
        return None


def _error_in(data: bytes) -> str:
    """Find the message in a body that is no answer."""
    answer = _parsed(data)
    return _message(data.decode(errors="replace") if answer is None else answer)


def _reason(error: BaseException) -> str:
    """Say in a line at what a connection failed: in the system's words, else the transport's.

    The address follows. The client's own error says `Connection error.` of them all.
    """
    words, address = "", ""
    cause: Any = error.__cause__ or error
    kind = type(cause).__name__
    while cause is not None:
        attempts = getattr(cause, "exceptions", None)  # made at the same time
        if attempts:
            cause = attempts[0]
            continue
        if str(cause) and (not words or isinstance(cause, OSError)):
            words = str(cause)
        # RuntimeError: an error of the transport that has no request
        with suppress(AttributeError, RuntimeError):
            address = address or f"; {cause.request.url}"
        cause = cause.__cause__ or cause.__context__
    return _in_line(f"{words or kind}{address}")


def _plain(text: str) -> str:
    """Return a message, or a page for browsers without its markup, in a line."""
    if text.lstrip().startswith("<"):
        text = re.sub(r"<[^>]*>", " ", text)
    return _in_line(text) or "nothing"


def _in_line(text: object) -> str:
    return " ".join(str(text).split())[:200]
