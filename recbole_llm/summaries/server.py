"""Summaries by a server that speaks OpenAI's protocol for chats: vLLM, Ollama, llama.cpp, a proxy, or OpenAI's own."""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from ..errors import UserError
from ..wording import Wording
from .plan import Request, Text
from .prompt import LAYOUT, parts
from .writing import AGAIN

CHARACTERS = 3  # that a token is taken to be: fewer than in English, so that prompts fit


class ServerEngine:
    """Requests in parallel through OpenAI's client, which waits and tries again where the server is busy, limits its rate or fails.

    The key is read from the environment (OPENAI_API_KEY) and stored nowhere.

    Parameters
    ----------
    url : of the server, `http://localhost:8000/v1`. model : its name there. parallel : requests at once.
    """

    paid = True

    def __init__(self, url: str, model: str, wording: Wording, *, max_length: int, max_new: int, temperature: float, seed: int, parallel: int,
                 retries: int = 8):  # fmt: skip
        try:
            from openai import OpenAI
        except ImportError:
            raise UserError(
                'summarizer: a server is asked through the package openai, which is not installed: pip install "recbole_llm[openai]"'
            ) from None
        for chatty in ("httpx", "openai"):  # a line for every text, and for every attempt at it
            logging.getLogger(chatty).setLevel(logging.WARNING)
        self.client = OpenAI(
            base_url=url, api_key=os.environ.get("OPENAI_API_KEY") or "none", max_retries=retries
        )
        self.model, self.wording, self.url, self.parallel = model, wording, url, parallel
        self.max_length, self.max_new, self.temperature, self.seed = (
            max_length,
            max_new,
            temperature,
            seed if temperature else 0,
        )
        self.limit = "max_tokens"
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
            )
        )

    def write(
        self, requests: Sequence[Request], take: Callable[[int, Text], None], again: bool = False
    ) -> None:
        self._reach()
        with ThreadPoolExecutor(self.parallel) as pool:
            waiting = {
                pool.submit(self._ask, request, again): number
                for number, request in enumerate(requests)
            }
            left = dict(waiting)
            try:
                for done in as_completed(waiting):
                    take(left.pop(done), done.result())
            except UserError:
                pool.shutdown(cancel_futures=True)  # what is under way is paid for
                for done, number in left.items():
                    if not done.cancelled() and not done.exception():
                        take(number, done.result())
                raise
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.client.close()  # whose threads would else go on asking
                raise

    def _reach(self) -> None:
        """Raise UserError at once where nothing listens, before many requests wait for it at the same time."""
        import openai

        try:
            self.client.with_options(max_retries=1).models.list()
        except openai.APIConnectionError as error:
            raise self._silent(error) from None
        except Exception:  # some that answer list no models, or have a page for browsers there, which the client trips over
            pass

    def _silent(self, why) -> UserError:
        return UserError(
            f"summarizer: {self.url} gives no answer ({' '.join(str(why).split())[:160]}); what is written is kept, run again"
        )

    def _ask(self, request: Request, again: bool) -> Text:
        import openai

        limit = self.limit
        content = "".join(
            parts(
                request,
                self.wording,
                str,
                CHARACTERS * (self.max_length - self.max_new),
                self.max_new,
            )
        )
        try:
            answer = self.client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": content}], seed=self.seed + again,
                temperature=max(AGAIN, self.temperature) if again else self.temperature, **{limit: self.max_new},
            )  # fmt: skip
        except openai.BadRequestError as error:
            if limit == "max_completion_tokens" or "max_completion_tokens" not in str(error):
                raise self._silent(error) from None
            self.limit = "max_completion_tokens"  # as OpenAI's newer models have it
            return self._ask(request, again)
        except openai.OpenAIError as error:
            raise self._silent(error) from None
        if not getattr(answer, "choices", None):
            raise self._silent(f"no chat completion: {getattr(answer, 'error', None) or answer}")
        choice, used = answer.choices[0], answer.usage
        return Text(
            choice.message.content or "",
            choice.finish_reason in ("stop", None),
            (used.prompt_tokens, used.completion_tokens) if used else (0, 0),
        )
