"""A faulty server costs one text and not the job; its cost is counted as the server counts it."""

import json
import logging
import re
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from shops import rows_of, write_shop
from suites import fast_only
from test_summaries import plans, summaries

from recbole_llm import cli
from recbole_llm.errors import UserError
from recbole_llm.language.summaries.schedules import hierarchical
from recbole_llm.language.summaries.writing import PATIENCE, SummaryStore

pytest.importorskip("openai")
from test_server import engine  # noqa: E402

from recbole_llm.language.summaries import server as client  # noqa: E402
from recbole_llm.language.summaries.server import ServerEngine  # noqa: E402

LINGER = struct.pack("ii", 1, 0)  # a socket that is closed sends a reset


class Server(ThreadingHTTPServer):
    """A server that answers with the number of words of a prompt.

    `fault` of (prompt, body) names the kind of fault, or is None.
    """

    daemon_threads, request_queue_size = True, 128

    def __init__(self):
        self.fault, self.spent, self.bodies = lambda prompt, body: None, Counter(), []
        self.lock = threading.Lock()
        self.models, self.usage, self.trickled = "well", None, []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        """Clients that go away are none."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.spent["lists"] += 1
        if self.server.models == "trickle":
            self.trickle(200)
        elif self.server.models == "loop":
            self.reply(302, b"", Location=self.path)
        else:
            self.reply(200, json.dumps({"object": "list", "data": []}).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.spent["requests"] += 1
            kind = self.server.fault(prompt, body)
        getattr(self, f"answer_{kind or 'well'}")(body, prompt)

    def reply(self, status, data, kind="application/json", length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status, message, **more):
        self.reply(status, json.dumps({"error": {"message": message} | more}).encode())

    def chat(self, prompt, text, reason="stop"):
        used = {"prompt_tokens": len(prompt) // 4, "completion_tokens": max(1, len(text) // 4)}
        with self.server.lock:
            self.server.spent.update(read=used["prompt_tokens"], written=used["completion_tokens"])
        message = {"role": "assistant", "content": text}
        answer = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "tiny",
            "usage": used,
        }
        choice = {"index": 0, "finish_reason": reason, "message": message}
        if self.server.usage is not None:
            answer["usage"] = "USAGE"
            data = json.dumps(answer | {"choices": [choice]})
            return data.replace('"USAGE"', self.server.usage).encode()
        return json.dumps(answer | {"choices": [choice]}).encode()

    def answer_well(self, body, prompt):
        # the characters stand for the prompt, so that no two texts are equal
        self.reply(200, self.chat(prompt, f"{len(prompt.split())} words {hash(prompt)}"))

    def answer_context(self, body, prompt):
        self.refuse(400, "This model's maximum context length is 64 tokens")

    def answer_filter(self, body, prompt):
        self.refuse(400, "The response was filtered", code="content_filter")

    def answer_unprocessable(self, body, prompt):
        self.reply(422, b'{"detail": [{"loc": ["body", "messages"], "msg": "too odd"}]}')

    def answer_filtered(self, body, prompt):
        self.reply(200, self.chat(prompt, "half of", "content_filter"))

    def answer_empty(self, body, prompt):
        self.reply(200, self.chat(prompt, " "))

    def answer_long(self, body, prompt):
        self.reply(200, self.chat(prompt, "on and on", "length"))

    def answer_thought(self, body, prompt):
        self.reply(200, self.chat(prompt, "<think> who may that be", "length"))

    def answer_cut(self, body, prompt):
        self.reply(200, self.chat(prompt, "text " * 20)[:60])

    def answer_half(self, body, prompt):
        data = self.chat(prompt, "text " * 20)
        self.reply(200, data[:60], length=len(data))

    def answer_page(self, body, prompt):
        self.reply(200, b"<html><b>Welcome</b> to nginx</html>", "text/html")

    def answer_error(self, body, prompt):
        self.reply(200, b'{"error": {"message": "out of luck"}}')

    def answer_surrogate(self, body, prompt):
        self.reply(200, self.chat(prompt, "half a \ud83d pair"))

    def answer_reset(self, body, prompt):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        self.connection.close()

    def answer_gateway(self, body, prompt):
        self.reply(502, b"<html><h1>502 Bad Gateway</h1></html>", "text/html")

    def answer_busy(self, body, prompt):
        self.reply(429, b'{"error": {"message": "slow down"}}', Retry_After="0.05")

    def answer_drip(self, body, prompt):
        data = self.chat(prompt, "text " * 20)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for byte in data:
            self.wfile.write(bytes([byte]))
            time.sleep(0.05)

    def trickle(self, status):
        """A body of 20 s, a byte at a time, and a note whether the client has taken all of it."""
        self.send_response(status)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for _ in range(200):
                self.wfile.write(b"1\r\n \r\n")
                time.sleep(0.1)
            self.wfile.write(b"0\r\n\r\n")
            self.server.trickled.append("whole")
        except OSError:
            self.server.trickled.append("cut")
            self.close_connection = True

    def answer_trickle(self, body, prompt):
        self.trickle(500)

    def answer_head(self, body, prompt):
        """A header that never ends: what comes is within any limit on a single read."""
        for byte in b"HTTP/1.1 200 OK\r\nX-Pad: " + b"x" * 200:
            self.wfile.write(bytes([byte]))
            time.sleep(0.1)

    def answer_deep(self, body, prompt):
        self.reply(200, b"[" * 200_000)

    def answer_deep_error(self, body, prompt):
        self.reply(400, b"[" * 200_000)

    def answer_loop(self, body, prompt):
        self.reply(307, b"", Location=self.path)

    def answer_scheme(self, body, prompt):
        self.reply(307, b"", Location="ftp://elsewhere/file")

    def answer_port(self, body, prompt):
        self.reply(307, b"", Location="http://127.0.0.1:99999/")

    def answer_closed(self, body, prompt):
        self.reply(307, b"", Location="http://127.0.0.1:1/")

    def answer_key(self, body, prompt):
        self.refuse(401, "Incorrect API key provided")

    def answer_forbidden(self, body, prompt):
        self.refuse(403, "Country not supported")

    def answer_model(self, body, prompt):
        self.refuse(404, "The model `tiny` does not exist", code="model_not_found")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.05)
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def again(folder, engine):
    from recbole_llm.language.summaries.extractive import Extractive

    return SummaryStore(engine, Extractive(), folder, retry=True)


def one_in_ten(kind):
    return lambda prompt, body: kind if "thing 700 " in prompt else None


TEXTS = 10
# kind of answer -> how it is counted, and the requests of one attempt, of which there are two
KINDS = {
    "context": ("refused", 1),
    "filter": ("refused", 1),
    "unprocessable": ("refused", 1),
    "filtered": ("refused", 1),
    "empty": ("empty", 1),
    "long": ("too_long", 1),
    "thought": ("empty", 1),
    "cut": ("failed", 1),
    "half": ("failed", 1),
    "page": ("failed", 1),
    "error": ("failed", 1),
    "deep": ("failed", 1),
    "deep_error": ("refused", 1),
    "drip": ("failed", 1),
    "reset": ("failed", 3),
    "gateway": ("failed", 3),
    "busy": ("failed", 3),
}


# each way in which an answer is bad, and each of the counts; the others are slow tests
FAST = ["filter", "empty", "long", "cut", "page", "deep", "drip", "busy", "gateway"]


@pytest.mark.parametrize("kind", fast_only(FAST, KINDS))
def test_what_is_wrong_with_one_text_costs_that_text(server, tmp_path, kind, caplog):
    counted, requests = KINDS[kind]
    own = {"timeout": 1.0} if kind == "drip" else {}
    server.fault = one_in_ten(kind)
    asked = summaries(tmp_path, engine(server, **own))
    found = asked.of(plans(*[1] * TEXTS))
    assert [one.replaced for one in found] == [number == 7 for number in range(TEXTS)]
    assert found[7].text == "thing 700 of wood.\nbrand1." and asked.counts[counted] == 2
    assert server.spent["requests"] == TEXTS - 1 + 2 * requests == asked.counts["requests"]
    if kind not in ("cut", "half", "drip"):  # of which the client has not seen the bill
        assert {key: asked.counts[key] for key in ("read", "written")} == {
            key: server.spent[key] for key in ("read", "written")
        }
    assert "--summaries=retry asks for again" in asked.describe()
    server.spent.clear()
    stored = summaries(tmp_path, engine(server, **own))
    assert stored.of(plans(*[1] * TEXTS)) == found and not server.spent
    server.fault = lambda prompt, body: None
    well = again(tmp_path, engine(server, **own))
    healed = well.of(plans(*[1] * TEXTS))
    assert not any(one.replaced for one in healed) and server.spent["requests"] == 1
    assert [one for one in healed if one != healed[7]] == [one for one in found if one != found[7]]
    server.spent.clear()
    assert summaries(tmp_path, engine(server, **own)).of(plans(*[1] * TEXTS)) == healed
    assert again(tmp_path, engine(server, **own)).of(plans(*[1] * TEXTS)) == healed
    assert not server.spent


@pytest.mark.parametrize("kind", ["trickle", "head"])
def test_an_answer_that_trickles_ends_with_the_timeout(server, tmp_path, kind, caplog):
    """Whatever its status, and its body as much as its head: each single read is in time."""
    server.fault = one_in_ten(kind)
    asked = summaries(tmp_path, engine(server, timeout=0.5, retries=0))
    found = asked.of(plans(*[1] * TEXTS))
    assert [one.replaced for one in found] == [number == 7 for number in range(TEXTS)]
    assert asked.counts["failed"] == 2 and "no answer within summarizer_timeout" in caplog.text
    assert kind == "head" or server.trickled and set(server.trickled) <= {"cut"}


def test_a_list_of_models_that_does_not_come_is_waited_for_once(
    server, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("recbole_llm.language.summaries.server.REACH", 0.3)
    server.models = "trickle"
    asked = summaries(tmp_path, engine(server))
    found = asked.of(plans(*[12] * 2)) + asked.of(plans(*[1] * TEXTS))  # several rounds
    assert not any(one.replaced for one in found) and server.spent["lists"] == 1
    lines = [line for line in caplog.messages if "/models gave no answer within 0.3 s" in line]
    assert len(lines) == 1 and "texts are asked for nevertheless" in lines[0]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("loop", r"no answer: Exceeded maximum allowed redirects\.; http://.*/v1/chat/completions"),
        ("scheme", r"no answer: .*unsupported protocol.*ftp://elsewhere/file"),
        ("port", r"no answer: .*port"),
        ("closed", r"no answer: .*Connect.*; http://127\.0\.0\.1:1/"),
    ],
)
def test_why_no_connection_answers_is_said(server, tmp_path, kind, said, caplog):
    server.fault = one_in_ten(kind)
    summaries(tmp_path, engine(server, retries=0)).of(plans(*[1] * TEXTS))
    assert re.search(said, caplog.text) and "Connection error" not in caplog.text


def test_a_server_that_redirects_in_a_circle_is_one_line(server, tmp_path):
    server.models = "loop"
    with pytest.raises(
        UserError, match=r"gives no answer \(Exceeded maximum .*; http://.*/models\)"
    ):
        summaries(tmp_path, engine(server)).of(plans(1))


@pytest.mark.parametrize(
    "count", ["1e300", "1e999", "NaN", "-5", "true", '"7"', "[7]", "2.5", str(2**40 + 1), "null"]
)
def test_a_count_of_tokens_that_cannot_be_is_none(server, tmp_path, count):
    server.usage = f'{{"prompt_tokens": {count}, "completion_tokens": 3}}'
    asked = summaries(tmp_path, engine(server))
    assert not any(one.replaced for one in asked.of(plans(*[1] * TEXTS)))
    assert (asked.counts["read"], asked.counts["written"]) == (0, 3 * TEXTS)


@pytest.mark.parametrize("usage", ["[7]", '"none"', "7", "null"])
def test_a_text_does_not_need_a_bill(server, tmp_path, usage):
    server.usage = usage
    asked = summaries(tmp_path, engine(server))
    assert not any(one.replaced for one in asked.of(plans(1))) and asked.counts["read"] == 0


def test_an_answer_may_begin_with_a_mark_of_its_encoding(server, tmp_path, monkeypatch):
    def marked(self, body, prompt):
        self.reply(200, b"\xef\xbb\xbf" + self.chat(prompt, "Buys bowls."))

    monkeypatch.setattr(Handler, "answer_marked", marked, raising=False)
    server.fault = lambda prompt, body: "marked"
    (found,) = summaries(tmp_path, engine(server)).of(plans(1))
    assert (found.text, found.replaced) == ("Buys bowls.", False)


def test_thoughts_whose_beginning_is_in_the_prompt_are_none_of_the_text(
    server, tmp_path, monkeypatch
):
    def thought(self, body, prompt):
        self.reply(200, self.chat(prompt, "hmm, the user</think>\n\nBuys bowls."))

    monkeypatch.setattr(Handler, "answer_opened", thought, raising=False)
    server.fault = lambda prompt, body: "opened"
    (found,) = summaries(tmp_path, engine(server)).of(plans(1))
    assert (found.text, found.replaced) == ("Buys bowls.", False)


def test_a_text_that_is_refused_again_is_asked_for_once_by_each_process(server, tmp_path):
    server.fault = one_in_ten("filter")
    summaries(tmp_path, engine(server)).of(plans(*[1] * TEXTS))
    server.spent.clear()
    asked = again(tmp_path, engine(server))
    for _ in range(3):
        assert sum(one.replaced for one in asked.of(plans(*[1] * TEXTS))) == 1
    assert server.spent["requests"] == 2  # both attempts


def test_a_request_is_sent_again_while_the_server_is_busy(server, tmp_path):
    kinds = ["busy", "reset", "gateway"]
    server.fault = lambda prompt, body: kinds.pop() if kinds else None
    asked = summaries(tmp_path, engine(server, parallel=1, retries=3))
    assert not any(one.replaced for one in asked.of(plans(*[1] * TEXTS)))
    assert server.spent["requests"] == TEXTS + 3 == asked.counts["requests"]


def test_a_text_that_no_file_can_hold_is_kept_without_what_is_not_text(server, tmp_path):
    server.fault = lambda prompt, body: "surrogate"
    (found,) = summaries(tmp_path, engine(server)).of(plans(1))
    assert re.fullmatch(r"half a .+ pair", found.text) and not found.replaced


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("key", r"refuses the key \(401: Incorrect API key provided\); set OPENAI_API_KEY"),
        ("forbidden", r"refuses the key \(403: Country not supported\)"),
        ("model", r"knows no model tiny.*\(404: The model `tiny` does not exist\); set --summ"),
    ],
)
def test_what_no_text_can_pass_stops_the_work(server, tmp_path, kind, said):
    server.fault = lambda prompt, body: kind if len(server.bodies) > 5 else None
    with pytest.raises(UserError, match=said) as error:
        summaries(tmp_path, engine(server, parallel=1)).of(plans(*[1] * TEXTS))
    assert server.spent["requests"] == 6 and "gives no answer" not in str(error.value)
    server.fault = lambda prompt, body: None
    server.spent.clear()
    found = summaries(tmp_path, engine(server)).of(plans(*[1] * TEXTS))
    assert server.spent["requests"] == TEXTS - 5 and not any(one.replaced for one in found)


@pytest.mark.parametrize("kind", ["context", "page", "gateway"])
def test_texts_in_a_row_without_an_answer_stop_the_work(server, tmp_path, kind):
    server.fault = lambda prompt, body: kind if len(server.bodies) > 5 else None
    words = {
        "context": "400: This model's maximum",
        "page": "Welcome to nginx",
        "gateway": "502: 502 Bad Gateway",
    }
    with pytest.raises(UserError, match=rf"{PATIENCE} texts in a row, .*{words[kind]}"):
        summaries(tmp_path, engine(server, parallel=1, retries=0)).of(plans(*[1] * 60))
    assert server.spent["requests"] == 5 + PATIENCE
    server.fault = lambda prompt, body: None
    server.spent.clear()
    found = summaries(tmp_path, engine(server)).of(plans(*[1] * 60))
    assert server.spent["requests"] == 55 and not any(one.replaced for one in found)


def test_many_refused_texts_among_good_ones_do_not_stop_the_work(server, tmp_path):
    """Not even when they are asked again, all in a row."""
    server.fault = lambda prompt, body: (
        "filter" if re.search(r"thing \d*[13579]00 ", prompt) else None
    )
    found = summaries(tmp_path, engine(server, parallel=1)).of(plans(*[1] * 60))
    assert sum(one.replaced for one in found) == 30 and server.spent["requests"] == 90


@pytest.mark.parametrize(
    ("kind", "texts", "said"),
    [
        ("thought", 30, f"of the first {PATIENCE} texts none is any good.*enable_thinking"),
        ("long", 30, f"of the first {PATIENCE} texts none is any good.*--summary_tokens"),
        ("empty", 4, "of the first 4 texts none is any good"),
        ("filter", 4, "of the first 4 texts none is any good"),
    ],
)
def test_when_no_text_is_any_good_that_is_said_loudly_and_once(
    server, tmp_path, kind, texts, said, caplog
):
    server.fault = lambda prompt, body: kind
    summaries(tmp_path, engine(server)).of(plans(*[1] * texts))
    loud = [record.getMessage() for record in caplog.records if "!!!" in record.getMessage()]
    assert len(loud) == 1 and re.search(said, loud[0])


def test_a_fault_of_ours_in_one_request_keeps_the_others(server, tmp_path, monkeypatch):
    inner = ServerEngine._read

    def read(self, data, requests):
        if len(seen) == 4 and not failed:
            failed.append(True)
            raise RuntimeError("a fault of ours")
        seen.append(True)
        time.sleep(0.2)  # the others are under way
        return inner(self, data, requests)

    seen, failed = [], []
    monkeypatch.setattr(ServerEngine, "_read", read)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        summaries(tmp_path, engine(server)).of(plans(*[1] * 30))
    asked = server.spent["requests"]
    server.spent.clear()
    summaries(tmp_path, engine(server)).of(plans(*[1] * 30))
    assert server.spent["requests"] == 30 - (asked - 1)


def refuses(field, message, **more):
    def fault(prompt, body):
        return "named" if field in body else None

    def named(self, body, prompt):
        self.refuse(400, message, **more)

    return fault, named


@pytest.mark.parametrize(
    ("field", "message", "more"),
    [
        ("seed", "Unrecognized request argument supplied: seed", {}),
        ("seed", "Unsupported parameter", {"param": "seed"}),
        (
            "temperature",
            (
                "Unsupported value: 'temperature' does not support 0 "
                "with this model. Only the default (1) value is supported."
            ),
            {},
        ),
        (
            "max_tokens",
            "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
            {},
        ),
    ],
)
def test_a_field_that_the_server_does_not_take_is_left_out(
    server, tmp_path, field, message, more, caplog, monkeypatch
):
    server.fault, answer = refuses(field, message, **more)
    monkeypatch.setattr(Handler, "answer_named", answer, raising=False)
    asked = summaries(tmp_path, engine(server, parallel=1))
    assert not any(one.replaced for one in asked.of(plans(*[1] * TEXTS)))
    assert server.spent["requests"] == TEXTS + 1 == asked.counts["requests"]
    assert all(field not in body for body in server.bodies[1:])
    assert field == "max_tokens" or f"does not take {field}" in caplog.text


def test_a_word_of_a_text_is_no_field(server, tmp_path, monkeypatch):
    server.fault, answer = refuses("seed", "The text 'bird seed for sale' is not allowed")
    monkeypatch.setattr(Handler, "answer_named", answer, raising=False)
    with pytest.raises(UserError, match="bird seed for sale"):
        summaries(tmp_path, engine(server, parallel=1)).of(plans(*[1] * 30))
    assert all("seed" in body for body in server.bodies)


def test_a_prompt_that_is_refused_is_asked_again_shorter(server, tmp_path):
    """A token may be a single character; a model that reads 400 of them refuses more."""
    server.fault = lambda prompt, body: "context" if len(prompt) > 560 else None
    long = [(("Title", "wort" * 100 + f" {number}"),) for number in range(5)]
    (found,) = summaries(tmp_path, engine(server)).of([hierarchical(long, 5, 5)])
    assert not found.replaced and server.spent["requests"] == 2


def test_extra_fields_reach_the_server_and_null_leaves_one_out(server, tmp_path):
    extra = {
        "chat_template_kwargs": {"enable_thinking": False},
        "seed": None,
        "temperature": 1,
        "max_tokens": None,
        "max_completion_tokens": 9,
    }
    made = engine(server, extra=extra)
    summaries(tmp_path, made).of(plans(1))
    assert set(server.bodies[0]) == {
        "model",
        "messages",
        "chat_template_kwargs",
        "temperature",
        "max_completion_tokens",
    }
    assert server.bodies[0]["temperature"] == 1
    assert server.bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert made.name != engine(server).name == engine(server, extra=None, timeout=3.0).name


def test_the_client_says_nothing_of_single_requests(server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    summaries(tmp_path, engine(server)).of(plans(*[1] * TEXTS))
    assert "HTTP" not in caplog.text


# --- the commands ---------------------------------------------------------------------------------

SMALL = [
    "--dataset=tiny",
    "--summarizer_model=tiny",
    "--summarizer_retries=1",
    "--block_size=2",
    "--fan_in=2",
    "--targets=one",
    "--summary_tokens=16",
    "--show_progress=false",
]
RUN = [
    "--model=LLMTRSR",
    "--beside=[]",
    "--epochs=1",
    "--eval_args.mode=uni4",
    "--max_length=500",
    "--scratch_vocabulary=400",
    "--backbone=scratch:nano",
]


@pytest.fixture
def shop(tmp_path, monkeypatch):
    write_shop(tmp_path, users=8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def records(folder: Path):
    from recbole_llm.storage.content_cache import Lines

    (path,) = (folder / "saved" / "cache" / "summaries").glob("*.jsonl.gz")
    return {line["name"]: line for line in Lines(path).read()}.values()


def test_the_same_command_ends_without_an_extract_when_the_server_is_well(server, shop):
    kinds = sorted(KINDS.keys() - {"drip"})

    def fault(prompt, body):  # every fifth text misbehaves, each in its own way, again and again
        number = sum(map(ord, prompt)) % (5 * len(kinds))
        return kinds[number // 5] if number % 5 == 0 else None

    server.fault = fault
    command = ["summarize", f"--summarizer={server.url}", *SMALL]
    assert cli.main(command) == 0
    bad = [line for line in records(shop) if line["replaced"]]
    assert (
        len(bad) > 4
    )  # 13 on average: prompts with earlier answers differ by the order of requests
    server.fault, server.spent = lambda prompt, body: None, Counter()
    assert cli.main(command) == 0 and not server.spent
    assert cli.main([*command, "--summaries=retry"]) == 0
    texts, asked = len(records(shop)), server.spent["requests"]
    assert asked >= len(bad)  # and texts of texts that are others now
    server.spent.clear()
    assert cli.main([*command, "--summaries=retry"]) == 0 and not server.spent
    rows = (next((shop / "saved" / "summaries").iterdir())).read_text()
    assert len(records(shop)) == texts and "words" in rows
    reached = {line["text"] for line in rows_of_table(rows)}
    assert all("words" in text for text in reached), "an extract is left"


def rows_of_table(text):
    head, *rows = text.splitlines()
    return [dict(zip(head.split("\t"), row.split("\t"), strict=True)) for row in rows]


def test_what_is_forecast_and_billed_is_what_the_server_saw(server, shop, caplog):
    """The forecast before training covers all parts, instructions, earlier texts and retries."""
    caplog.set_level(logging.INFO)
    assert cli.main([*RUN, f"--summarizer={server.url}", *SMALL]) == 0
    (row,) = rows_of(shop)
    kinds = {"requests": "requests", "prompt_tokens": "read", "answer_tokens": "written"}
    for name, spent in kinds.items():
        assert sum(bill[name] for bill in row["summaries"]["bill"].values()) == server.spent[spent]
        assert row["summaries"]["bill"].keys() == {"train", "valid", "test"}
        expected = {part: costs[name] for part, costs in row["summaries"]["forecast"].items()}
        found = {part: costs[name] for part, costs in row["summaries"]["bill"].items()}
        assert (
            expected == found
            if name == "requests"
            else all(expected[part] >= found[part] > 0 for part in expected)
        )
    read = sum(costs["prompt_tokens"] for costs in row["summaries"]["forecast"].values())
    assert read < 2 * server.spent["read"], "a forecast of that kind is none"
    order = [record.getMessage() for record in caplog.records]
    places = []
    for begin in ("forecast: at most", "bill: train", "epoch 0"):
        places.append(next(at for at, line in enumerate(order) if line.startswith(begin)))
    assert places == sorted(places) and sum(line.startswith("bill: ") for line in order) == 1


def test_the_file_of_summaries_is_printable(server, shop, monkeypatch):
    def steering(self, body, prompt):
        self.reply(200, self.chat(prompt, "\x1b[31mred\x1b[0m\tand\nnothing \x00 \u202eback\x9b2J"))

    monkeypatch.setattr(Handler, "answer_steering", steering, raising=False)
    server.fault = lambda prompt, body: "steering"
    assert cli.main(["summarize", f"--summarizer={server.url}", *SMALL]) == 0
    (path,) = (shop / "saved" / "summaries").iterdir()
    text = path.read_text(encoding="utf-8")
    assert all(char.isprintable() for char in text.replace("\t", "").replace("\n", ""))
    texts = {row["text"] for row in rows_of_table(text)}
    assert texts == {r"\x1b[31mred\x1b[0m and nothing \x00 \u202eback\x9b2J"}


@pytest.mark.slow
def test_second_attempts_are_billed_too(server, shop):
    server.fault = lambda prompt, body: "long" if sum(map(ord, prompt)) % 3 == 0 else None
    assert cli.main([*RUN, f"--summarizer={server.url}", *SMALL]) == 0
    (row,) = rows_of(shop)
    bill, forecast = row["summaries"]["bill"], row["summaries"]["forecast"]
    assert sum(part["requests"] for part in bill.values()) == server.spent["requests"]
    assert sum(part["answer_tokens"] for part in bill.values()) == server.spent["written"]
    assert server.spent["requests"] > sum(part["requests"] for part in forecast.values())


def test_what_a_failed_command_has_paid_is_in_the_bill_of_the_next(server, shop):
    """A command that ends because the server fails keeps the record of what it has spent."""
    good = []

    def fault(prompt, body):
        good.append(1)
        return None if len(good) < 5 else "error"

    server.fault = fault
    assert cli.main([*RUN, f"--summarizer={server.url}", *SMALL]) == 2
    assert not (shop / "saved" / "results.jsonl").exists()
    server.fault = lambda prompt, body: None
    assert cli.main([*RUN, f"--summarizer={server.url}", *SMALL]) == 0
    (row,) = rows_of(shop)
    bill = row["summaries"]["bill"].values()
    assert sum(part["requests"] for part in bill) == server.spent["requests"]
    assert sum(part["answer_tokens"] for part in bill) == server.spent["written"]


def test_extra_fields_that_cannot_be_are_one_line(shop, capsys):
    for setting, said in (
        ("--summarizer_extra=fast", "summarizer_extra: expected a group"),
        ("--summarizer_extra={n: 2}", "summarizer_extra: n cannot be set here"),
        ("--summarizer_extra={day: 2020-01-01}", "summarizer_extra: expected what JSON can say"),
        ("--summaries=again", "summaries: expected stored or retry"),
        ("--summarizer_timeout=0", "summarizer_timeout: expected a number above 0"),
    ):
        assert cli.main([*RUN, "--summarizer=http://127.0.0.1:1/v1", *SMALL, setting]) == 2
        assert said in capsys.readouterr().err
    assert cli.main([*RUN, *SMALL, "--summarizer_extra={a: 1}"]) == 2
    assert "fields of requests to a server" in capsys.readouterr().err
