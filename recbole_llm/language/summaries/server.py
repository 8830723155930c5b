"""Summaries by a server that speaks OpenAI's protocol for chats: vLLM, Ollama, llama.cpp, a proxy, or OpenAI's own."""

import json
import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from ...errors import UserError
from ..prompts.instructions import Wording
from .prompt import LAYOUT, parts
from .schedules import Request, Text
from .writing import AGAIN, PATIENCE

CHARACTERS = 3  # that a token is taken to be: fewer than in English, so that prompts fit
BUSY = (
    408,
    409,
    425,
    429,
)  # statuses, besides those from 500 on, of a server that may answer later
CONNECT = 30.0  # seconds in which a server takes a connection
REACH = 10.0  # seconds in which a server lists its models
MOST_TOKENS = 2**40  # that a server may count for one text
LONGEST_PAUSE = 60.0  # seconds between two requests for one text, whatever the server asks for
ENDED = ("stop", "eos_token", "end_turn", "stop_sequence", "", None)  # reasons of a text's own end
UNSENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")  # of the client's transport
LIMITS = ("max_tokens", "max_completion_tokens")  # names of the most tokens of an answer
# What is said of a field of the request, rather than of the text, names the field and one of these.
REFUSAL = re.compile(
    r"support|recogni[sz]|permit|allow|unknown|unexpected|extra|only|must|invalid|deprecated", re.I
)
NAMED = {  # "seed" is a word of item texts too, which a server may quote
    "seed": re.compile(
        r"['\"`]seed['\"`]|\b(?:argument|parameter|field)s?\b[^.]{0,30}\bseed\b", re.I
    ),
    "temperature": re.compile(r"\btemperature\b", re.I),
}


class _NoAnswer(Exception):
    """What came is no answer to a request."""


class _Silent(_NoAnswer):
    """No answer began in time."""


class ServerEngine:
    """Requests in parallel through OpenAI's client.

    A text that the server refuses, or to which no usable answer comes, costs that text alone. A key
    or model that the server does not know, and PATIENCE texts in a row without an answer, end the
    work by a UserError with the server's own words.

    The key is read from the environment (OPENAI_API_KEY) and stored nowhere.

    Parameters
    ----------
    url : of the server, `http://localhost:8000/v1`.
    model : its name there.
    max_length, max_new : tokens of a prompt and its text together, and of the text.
    temperature : 0 is greedy.
    seed : sent with every request.
    parallel : requests at once.
    retries : most further requests for a text while the server is busy or fails.
    timeout : seconds for one whole answer, from the connection to its last byte, however slowly
        the server sends it.
    extra : fields of the request's body; None leaves a field out.
    """

    paid = True

    def __init__(
        self,
        url: str,
        model: str,
        wording: Wording,
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
        self.model, self.wording, self.url, self.parallel = model, wording, url, parallel
        self.max_length, self.max_new, self.temperature, self.seed = (
            max_length,
            max_new,
            temperature,
            seed if temperature else 0,
        )
        self.retries, self.timeout, self.extra = retries, timeout, extra or {}
        self.limit = LIMITS[0]
        self.left_out: set[str] = set()  # fields that the server does not take
        self.refused: set[Request] = set()
        self.unanswered = 0  # texts in a row
        self.stop = threading.Event()
        self.portal = self.client = None  # which `write` opens and closes
        self.lists_models = True  # until the server lets a request for its models wait
        self.name = repr(
            (
                LAYOUT,
                "server",
                model,
                wording.summaries,
                max_length,
                max_new,
                temperature,
                self.seed,
                *([json.dumps(extra, sort_keys=True)] if extra else []),
            )
        )

    def size(self, request: Request) -> int:
        """Tokens of a prompt, taken to be longer than they are in English."""
        return -(-len(self._prompt(request)) // CHARACTERS)

    def write(
        self, requests: Sequence[Request], take: Callable[[int, Text], None], again: bool = False
    ) -> None:
        from anyio.from_thread import start_blocking_portal

        self.stop.clear()
        lock, abandoned = threading.Lock(), False

        def answer(number: int) -> None:
            if self.stop.is_set():
                return
            try:
                text = self._ask(requests[number], again)
                with lock:
                    if abandoned:
                        return
                    take(number, text)  # before anything else: it is paid for
                    if not again:  # texts that were refused once are likely to be refused in a row
                        self._count(text)
            except BaseException:
                self.stop.set()  # at once: this thread would begin with the next text
                raise

        # The threads wait, and the requests themselves run in the event loop of the portal: a request
        # can be cancelled there at any moment, whatever the server sends or does not send.
        with (
            ThreadPoolExecutor(self.parallel) as pool,
            start_blocking_portal() as self.portal,
            self.portal.wrap_async_context_manager(self._client()) as self.client,
        ):
            if self.lists_models:
                self._reach()
            waiting = [pool.submit(answer, number) for number in range(len(requests))]
            try:
                for done in as_completed(waiting):
                    done.result()
            except Exception:
                pool.shutdown(cancel_futures=True)  # waits for the answers that are under way
                raise
            except BaseException:
                self.stop.set()
                with lock:
                    abandoned = True
                pool.shutdown(wait=False, cancel_futures=True)
                raise  # the portal cancels the requests that are under way

    def _client(self):
        from openai import AsyncOpenAI, Timeout

        return AsyncOpenAI(
            base_url=self.url,
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            max_retries=0,  # `_send` tries again itself, so that every request is counted
            timeout=Timeout(self.timeout, connect=min(self.timeout, CONNECT)),
        )

    def _count(self, text: Text) -> None:
        self.unanswered = self.unanswered + 1 if text.fault else 0
        if self.unanswered >= PATIENCE:
            raise UserError(
                f"summarizer: {self.url} has refused or failed {PATIENCE} texts in a row, the last with: {text.why}; what is written is kept: "
                "mend the server, summarizer_model, summarizer_length, summary_tokens or summarizer_extra, and run again"
            )

    def _reach(self) -> None:
        """Raise UserError at once where nothing listens, before many requests wait for it at the same time."""
        import openai

        try:
            self.portal.call(self._list_models)
        except (TimeoutError, openai.APITimeoutError):
            first, self.lists_models = self.lists_models, False
            if first:
                logging.getLogger().warning(
                    f"summarizer: {self.url}/models gave no answer within {REACH:g} s; texts are asked for "
                    f"nevertheless, each with a limit of {self.timeout:g} s (summarizer_timeout)"
                )
        except openai.APIConnectionError as error:
            raise UserError(
                f"summarizer: {self.url} gives no answer ({_reason(error)}); what is written is kept, run again"
            ) from None
        except Exception:  # some that answer list no models, or have a page for browsers there, which the client trips over
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
        return "".join(parts(request, self.wording, str, room, self.max_new))

    def _body(self, again: bool) -> dict:
        """The fields of a request beside its model and messages."""
        body = {
            "seed": self.seed + again,
            "temperature": max(AGAIN, self.temperature) if again else self.temperature,
        }
        if not any(name in self.extra for name in LIMITS):
            body[self.limit] = self.max_new
        body = {name: value for name, value in body.items() if name not in self.left_out}
        return {name: value for name, value in (body | self.extra).items() if value is not None}

    def _ask(self, request: Request, again: bool) -> Text:
        import openai

        content, spent = self._prompt(request), Counter()
        while True:
            body = self._body(again)
            try:
                return self._read(self._send(content, body, spent), spent["requests"])
            except _NoAnswer as error:
                return Text("", requests=spent["requests"], fault="failed", why=_in_line(error))
            except openai.APIConnectionError as error:
                if not isinstance(error, openai.APITimeoutError) and not self.stop.is_set():
                    self._reach()
                why = f"no answer: {_reason(error)}"
                return Text("", requests=spent["requests"], fault="failed", why=why)
            except openai.APIStatusError as error:
                status, why = error.status_code, _words(error)
                if status in (401, 403):
                    raise UserError(
                        f"summarizer: {self.url} refuses the key ({why}); set OPENAI_API_KEY to one that may use {self.model}; what is written is kept"
                    ) from None
                if status == 404:
                    raise UserError(
                        f"summarizer: {self.url} knows no model {self.model}, or not this address ({why}); set --summarizer_model to a name that {self.url}/models lists, "
                        "or --summarizer to the address that ends in /v1; what is written is kept"
                    ) from None
                if status in BUSY or status >= 500:
                    return Text("", requests=spent["requests"], fault="failed", why=why)
                if not self._leave_out(error, body):
                    self.refused.add(request)
                    return Text("", requests=spent["requests"], fault="refused", why=why)

    def _send(self, content: str, body: dict, spent: Counter) -> bytes:
        """The body of the answer to one request, which is sent again while the server is busy.

        spent : counts the requests.
        """
        import openai

        attempt = 0
        while True:
            spent["requests"] += 1
            try:
                return self.portal.call(self._answer, content, body)
            except (openai.APIConnectionError, openai.APIStatusError, _Silent) as error:
                if type(error.__cause__).__name__ in UNSENT:
                    spent["requests"] -= 1
                status = getattr(error, "status_code", 500)
                last = attempt == self.retries or status < 500 and status not in BUSY
                if last or self.stop.wait(_pause(error, attempt)):
                    raise
            attempt += 1

    async def _answer(self, content: str, body: dict) -> bytes:
        """The body of the answer to one request, whose connection is closed after `timeout`."""
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
                raise _NoAnswer("the answer takes longer than summarizer_timeout") from None
            raise _Silent("no answer within summarizer_timeout") from None
        except OpenAIError:
            raise
        except Exception as error:  # of the transport, which the client does not always wrap
            failed = "the answer breaks off" if begun else "no answer"
            raise _NoAnswer(f"{failed}: {_reason(error)}") from None

    def _read(self, data: bytes, requests: int) -> Text:
        """The text of an answer's body."""
        answer = _parsed(data)
        try:
            choice, used = answer["choices"][0], answer.get("usage")
            message, reason = choice["message"], choice.get("finish_reason")
            said = message.get("content") or ""
            if isinstance(said, list):
                said = "".join(part.get("text") or "" for part in said)
            if not said and (message.get("reasoning_content") or message.get("reasoning")):
                said = "<think>"  # which some servers put apart
            said = said.encode(errors="replace").decode()  # without halves of surrogate pairs
        except (AttributeError, LookupError, TypeError, ValueError):
            raise _NoAnswer(f"no chat completion: {_plain(_error_in(data))}") from None
        tokens = _token_count(used, "prompt_tokens"), _token_count(used, "completion_tokens")
        if reason == "content_filter":
            return Text("", False, tokens, requests, "refused", "finish_reason: content_filter")
        return Text(said, reason in ENDED, tokens, requests)

    def _leave_out(self, error, body: dict) -> bool:
        """Whether the server refuses a field of a request, which is named otherwise or left out from now on."""
        said, param = f"{error.body or ''} {error.message}", getattr(error, "param", None)
        if LIMITS[0] in body and LIMITS[1] in said and LIMITS[0] not in self.extra:
            self.limit = LIMITS[1]  # as OpenAI's newer models have it
            return True
        for name, named in NAMED.items():
            if name not in body or name in self.extra:
                continue
            if param == name or named.search(said) and REFUSAL.search(said):
                if name not in self.left_out:
                    logging.getLogger().warning(
                        f"summarizer: {self.url} does not take {name} {body[name]} ({_words(error)}): it is left out; --summarizer_extra.{name}=VALUE sends another"
                    )
                self.left_out.add(name)
                return True
        return False


def _token_count(used: object, name: str) -> int:
    """A count of an answer's `usage`; 0 where the server tells none, or none that can be."""
    count = used.get(name) if isinstance(used, dict) else None
    return count if type(count) is int and 0 <= count <= MOST_TOKENS else 0


def _pause(error, attempt: int) -> float:
    """Seconds until the next request: what the server asks for, else twice as long each time."""
    response = getattr(error, "response", None)
    try:
        seconds = float(response.headers["retry-after"])
    except (AttributeError, LookupError, ValueError):
        seconds = min(8.0, 0.5 * 2**attempt)
    return min(max(seconds, 0.0), LONGEST_PAUSE)


def _words(error) -> str:
    """What a server says with a status, in a line."""
    return f"{error.status_code}: {_plain(_message(error.body or error.message))}"


def _message(body: object) -> str:
    """The words in a body that tells of an error, however deep they lie."""
    while isinstance(body, dict):
        named = (body[name] for name in ("message", "error", "detail") if body.get(name))
        body = next(named, None) or _as_text(body)
    return _as_text(body)


def _as_text(body: object) -> str:
    try:
        return str(body)
    except RecursionError:
        return "lists within lists, too deep to show"


def _parsed(data: bytes):
    """What some JSON says, in any encoding that JSON may have; None where it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):  # RecursionError: nested too deep
        return None


def _error_in(data: bytes) -> str:
    """What a body that is no answer says."""
    answer = _parsed(data)
    return _message(data.decode(errors="replace") if answer is None else answer)


def _reason(error: BaseException) -> str:
    """What a connection failed at, in a line: the system's words, else the transport's; and the address.

    The client's own error says `Connection error.` of them all.
    """
    words, address = "", ""
    cause: BaseException | None = error.__cause__ or error
    kind = type(cause).__name__
    while cause is not None:
        if attempts := getattr(cause, "exceptions", None):  # made at the same time
            cause = attempts[0]
            continue
        if str(cause) and (not words or isinstance(cause, OSError)):
            words = str(cause)
        try:
            address = address or f"; {cause.request.url}"
        except (AttributeError, RuntimeError):  # RuntimeError: of a transport's error without one
            pass
        cause = cause.__cause__ or cause.__context__
    return _in_line(f"{words or kind}{address}")


def _plain(text: str) -> str:
    """A page for browsers without its marks, in a line."""
    if text.lstrip().startswith("<"):
        text = re.sub(r"<[^>]*>", " ", text)
    return _in_line(text) or "nothing"


def _in_line(text: object) -> str:
    return " ".join(str(text).split())[:200]
