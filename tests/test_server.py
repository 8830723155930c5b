"""Summaries by a server that speaks OpenAI's protocol: the real client asks a real HTTP server."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from test_summaries import REQUESTS, SHOPPING, plans, summaries, written

from recbole_llm.errors import UserError
from recbole_llm.language.prompts.instructions import Instructions

pytest.importorskip("openai")
from recbole_llm.language.summaries import server as client  # noqa: E402
from recbole_llm.language.summaries.server import CHARACTERS, ServerEngine  # noqa: E402


class Server(ThreadingHTTPServer):
    """Answers with the number of words that it was asked; `faults` come first, by status."""

    def __init__(self):
        self.faults, self.finish, self.bodies, self.keys, self.at_once, self.most = (
            [],
            "stop",
            [],
            [],
            0,
            0,
        )
        self.more, self.why, self.page = {}, "no", None
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        if not self.server.page:
            self.send_error(404)  # as those that list no models
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(self.server.page)))
        self.end_headers()
        self.wfile.write(self.server.page)

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.keys.append(self.headers.get("Authorization"))
            server.at_once += 1
            server.most = max(server.most, server.at_once)
            fault = server.faults.pop(0) if server.faults else None
        time.sleep(0.05)
        with server.lock:
            server.at_once -= 1
        content = body["messages"][0]["content"]
        answer = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
            "choices": [
                {
                    "index": 0,
                    "finish_reason": server.finish,
                    "message": {"role": "assistant", "content": f"{len(content.split())} words"},
                }
            ],
        }
        answer |= server.more
        data = json.dumps({"error": {"message": server.why}} if fault else answer).encode()
        data = self.server.page or data
        self.send_response(fault or 200)
        if fault == 429:
            self.send_header("Retry-After", "0.1")
        self.send_header("Content-Type", "text/html" if server.page else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.05)
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


LIMITS = {
    "max_length": 600,
    "max_new": 40,
    "temperature": 0.0,
    "seed": 5,
    "parallel": 3,
    "retries": 2,
}


def engine(server, **own):
    limits = LIMITS | own
    return ServerEngine(server.url, "tiny", SHOPPING, **limits)


def test_texts_come_by_their_requests(server):
    found = written(engine(server), REQUESTS)
    contents = sorted(body["messages"][0]["content"] for body in server.bodies)
    assert sorted(f"{len(content.split())} words" for content in contents) == sorted(
        text.text for text in found
    )
    assert [text.tokens for text in found] == [(7, 3)] * len(REQUESTS) and all(
        text.whole for text in found
    )
    assert {
        (body["model"], body["max_tokens"], body["temperature"], body["seed"])
        for body in server.bodies
    } == {("tiny", 40, 0.0, 0)}
    assert max(map(len, contents)) <= CHARACTERS * (600 - 40)  # the request with 3,000 words
    written(engine(server), REQUESTS[:1], again=True)
    assert (server.bodies[-1]["seed"], server.bodies[-1]["temperature"]) == (
        1,
        0.7,
    )  # a greedy one would be the same text
    written(engine(server, temperature=0.9), REQUESTS[:1], again=True)
    assert (server.bodies[-1]["seed"], server.bodies[-1]["temperature"]) == (6, 0.9)


def test_requests_go_in_parallel_but_no_more_than_asked(server):
    written(engine(server), REQUESTS * 3)
    assert server.most == 3


def test_a_busy_or_failing_server_is_asked_again(server):
    server.faults = [429, 500, 503]
    assert [text.text for text in written(engine(server), REQUESTS)] == [
        text.text for text in written(engine(server), REQUESTS)
    ]
    assert len(server.bodies) == 2 * len(REQUESTS) + 3


def test_a_server_that_keeps_failing_is_one_line_and_what_came_is_kept(server, tmp_path):
    server.faults = [None] * 3 + [401] * 99
    told = summaries(tmp_path, engine(server, parallel=1))
    with pytest.raises(
        UserError,
        match=(
            r"summarizer: http://.*/v1 refuses the key \(401: "
            r"no\); set OPENAI_API_KEY .*; what is written is kept"
        ),
    ):
        told.of(plans(*[1] * 6))
    server.faults, before = [], len(server.bodies)
    summaries(tmp_path, engine(server, parallel=1)).of(plans(*[1] * 6))
    assert len(server.bodies) - before == 3


def test_what_is_under_way_when_one_request_fails_is_kept(server, tmp_path):
    server.faults = [401]
    with pytest.raises(UserError, match="refuses the key"):
        summaries(tmp_path, engine(server)).of(plans(*[1] * 60))
    asked = len(server.bodies)
    assert (
        3 <= asked < 60
    )  # three are sent at once, and it takes a moment until the failure is seen
    summaries(tmp_path, engine(server)).of(plans(*[1] * 60))
    assert len(server.bodies) == asked + 60 - (asked - 1)


def test_nobody_at_the_address_is_one_line_and_soon(server):
    """Whatever the patience with a server that is busy: no text waits for it."""
    server.shutdown()
    server.server_close()
    asked = engine(server, retries=99)
    with pytest.raises(UserError, match="gives no answer"):
        written(asked, REQUESTS)
    assert asked.retries == 99


@pytest.mark.parametrize(
    "answer",
    [
        {"page": b"<html>Welcome to nginx</html>"},
        {"more": {"choices": None, "error": {"message": "Welcome to nginx"}}},
        {"more": {"choices": []}},
    ],
)
def test_what_is_no_chat_completion_is_no_answer(server, answer):
    """A page for browsers, as without /v1; and what proxies say with status 200."""
    for name, value in answer.items():
        setattr(server, name, value)
    (text,) = written(engine(server), REQUESTS[:1])
    assert text.fault == "failed" and text.why.startswith("no chat completion")
    assert answer.get("more") == {"choices": []} or "Welcome to nginx" in text.why


def test_a_model_that_names_the_limit_otherwise(server):
    server.faults, server.why = (
        [400],
        "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
    )
    assert written(engine(server, parallel=1), REQUESTS[:2])[1].text
    assert ["max_tokens" in body for body in server.bodies] == [
        True,
        False,
        False,
    ] and server.bodies[-1]["max_completion_tokens"] == 40
    server.faults = [400] * 3  # to all three that were asked before any answer came
    assert all(text.text for text in written(engine(server), REQUESTS[:3]))
    server.faults, server.why = [400], "no such model"
    (text,) = written(engine(server), REQUESTS[:1])
    assert (text.fault, text.why) == ("refused", "400: no such model")


def test_texts_are_stored_by_what_decides_them(server):
    """Not by where the model is served, nor, where nothing is drawn, by the seed."""
    name = engine(server).name
    other = ServerEngine(
        "http://localhost:1/v1",
        "tiny",
        SHOPPING,
        max_length=600,
        max_new=40,
        temperature=0.0,
        seed=6,
        parallel=9,
    )
    assert other.name == name
    drawn = [engine(server, temperature=0.5, seed=seed).name for seed in (1, 2)]
    others = [
        engine(server, max_length=500).name,
        engine(server, max_new=30).name,
        ServerEngine("http://x/v1", "large", SHOPPING, **LIMITS).name,
    ]
    others += [ServerEngine("http://x/v1", "tiny", Instructions.of_domain("news"), **LIMITS).name]
    assert len({name, *drawn, *others}) == 7


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_a_text_that_was_cut_off_is_not_whole(server, reason):
    server.finish = reason
    assert not written(engine(server), REQUESTS[:1])[0].whole


def test_the_key_comes_from_the_environment_and_is_stored_nowhere(server, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-7")
    made = engine(server)
    summaries(tmp_path, made).of(plans(2))
    assert set(server.keys) == {"Bearer secret-7"} and "secret" not in made.name
    import gzip

    for path in tmp_path.rglob("*"):
        assert "secret" not in path.name and b"secret" not in (
            gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        )


def test_an_empty_key_is_none(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "")
    assert written(engine(server), REQUESTS[:1])[0].text and set(server.keys) == {"Bearer none"}


def test_a_server_needs_its_package(monkeypatch, server):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(UserError, match=r'pip install "recbole_llm\[openai\]"'):
        engine(server)


def test_every_request_is_asked_once(server, tmp_path):
    told = summaries(tmp_path, engine(server))
    told.of(plans(12, 7, 12))
    contents = Counter(body["messages"][0]["content"] for body in server.bodies)
    assert set(contents.values()) == {1} and told.counts["written"] == 3 * len(server.bodies)
