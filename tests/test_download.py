"""Downloads survive a server that disconnects, fails, changes its file or misreports it."""

import gzip
import hashlib
import http.server
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from contextlib import contextmanager

import pytest

pytest.importorskip("requests")

from recbole_llm.data.prepare.files import download
from recbole_llm.data.prepare.files.archives import unpack
from recbole_llm.data.prepare.files.raw import Net, Remote, fetch
from recbole_llm.errors import UserError

DATA = gzip.compress(b"some line\n" * 50_000, compresslevel=0)
QUIET = Net(show_progress=False)


class Server:
    """One file on a local server, and what was asked of it.

    ranges : whether the server sends parts.
    cuts : after how many bytes of each answer the connection breaks, one entry an answer.
    faults : status codes that the first answers have instead.
    """

    def __init__(self):
        self.data, self.version, self.ranges, self.length, self.shift = DATA, '"1"', True, True, 0
        self.cuts, self.faults, self.asked = [], [], []

    def answer(self, request):
        self.asked.append(request.headers.get("Range"))
        if self.faults:
            request.send_error(self.faults.pop(0))
            return
        begin = 0
        wanted = request.headers.get("Range")
        if wanted and self.ranges and request.headers.get("If-Range") in (None, self.version):
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            if begin >= len(self.data):
                request.send_error(416)
                return
            request.send_response(206)
            request.send_header(
                "Content-Range", f"bytes {begin + self.shift}-{len(self.data) - 1}/{len(self.data)}"
            )
        else:
            request.send_response(200)
        body = self.data[begin:]
        if self.version:
            request.send_header("ETag", self.version)
        if self.length:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)


@contextmanager
def served(server):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.answer(self)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/raw"
        running.shutdown()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "WAIT", 0.01)
    monkeypatch.setattr(download, "BLOCK", 1000)
    return Server()


def get(url, folder, **own):
    return fetch(
        [Remote("file.json.gz", (url,), **own)],
        folder / "raw",
        folder / "work",
        "https://a.page",
        QUIET,
    )["file.json.gz"]


def clean(folder):
    """Return the names of all files; hidden ones are locks."""
    return sorted(path.name for path in (folder / "raw").iterdir() if not path.name.startswith("."))


def test_a_cut_download_goes_on_where_it_was(server, tmp_path):
    server.cuts = [100_000, 200_000]
    with served(server) as url:
        path = get(url, tmp_path, size=len(DATA), sha256=hashlib.sha256(DATA).hexdigest())
    assert path.read_bytes() == DATA and clean(tmp_path) == ["file.json.gz"]
    assert server.asked == [None, "bytes=100000-", "bytes=300000-"]


KILLED = """
import os, signal, sys
from pathlib import Path
from recbole_llm.data.prepare.files import download
from recbole_llm.data.prepare.files.raw import Net, Remote, fetch
download.BLOCK, download.time.sleep = 1000, lambda seconds: os.kill(os.getpid(), signal.SIGKILL)
files, folder = [Remote("file.json.gz", (sys.argv[1],))], Path(sys.argv[2])
fetch(files, folder / "raw", folder, "page", Net(show_progress=False))
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_killed_download_goes_on_in_the_next_process(server, tmp_path):
    server.cuts = [100_000]
    with served(server) as url:
        child = subprocess.run(
            [sys.executable, "-c", KILLED, url, str(tmp_path)], capture_output=True, text=True
        )
        assert child.returncode == -signal.SIGKILL, child.stderr
        assert "file.json.gz" not in clean(tmp_path), "what is partial is not taken for whole"
        path = get(url, tmp_path)
    assert (
        path.read_bytes() == DATA
        and server.asked == [None, "bytes=100000-"]
        and clean(tmp_path) == ["file.json.gz"]
    )


def test_another_version_is_begun_anew(server, tmp_path, monkeypatch):
    server.cuts = [100_000]
    server.data = b"\x1f\x8b" + b"a" * 300_000
    with served(server) as url:
        monkeypatch.setattr(
            download.time,
            "sleep",
            lambda seconds: (setattr(server, "version", '"2"'), setattr(server, "data", DATA)),
        )
        assert get(url, tmp_path).read_bytes() == DATA


@pytest.mark.parametrize("own", [{"ranges": False}, {"version": None}, {"version": 'W/"1"'}])
def test_a_server_that_gives_no_parts(server, tmp_path, own):
    vars(server).update(own)
    server.cuts = [100_000]
    with served(server) as url:
        assert get(url, tmp_path).read_bytes() == DATA


def test_another_part_than_was_asked_for_is_not_appended(server, tmp_path):
    server.cuts, server.shift = [100_000], -1000
    with served(server) as url:
        assert get(url, tmp_path).read_bytes() == DATA
    assert server.asked == [None, "bytes=100000-", None]


def test_notes_that_a_killed_process_left_unfinished(server, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "file.json.gz.part").write_bytes(b"\x1f\x8b something")
    (tmp_path / "raw" / "file.json.gz.part.json").write_text("")
    with served(server) as url:
        assert get(url, tmp_path).read_bytes() == DATA


def test_failures_of_a_server_are_waited_out_and_refusals_are_not(server, tmp_path):
    server.faults = [503, 429, 500]
    with served(server) as url:
        assert get(url, tmp_path).read_bytes() == DATA
        server.faults, server.asked = [404] * 9, []
        with pytest.raises(
            UserError,
            match="127.0.0.1:.*: HTTP 404.*download what is missing yourself, "
            "put it into .*other/raw and run again.*--raw=FOLDER",
        ):
            get(url, tmp_path / "other")
    assert len(server.asked) == 1


def test_the_next_address_is_asked(server, tmp_path):
    with served(server) as url:
        remote = Remote("file.json.gz", ("http://127.0.0.1:9/nobody", url))
        assert (
            fetch([remote], tmp_path / "raw", tmp_path, "p", QUIET)["file.json.gz"].read_bytes()
            == DATA
        )
        mirrored = Remote("file.json.gz", ("http://127.0.0.1:9/nobody",))
        net = Net(mirror=f"{url}/", show_progress=False)
        assert (
            fetch([mirrored], tmp_path / "mirrored", tmp_path, "p", net)[
                "file.json.gz"
            ].read_bytes()
            == DATA
        )


def test_a_proxy_is_asked_instead(server, tmp_path):
    with served(server) as url:
        remote = Remote("file.json.gz", ("http://nowhere.invalid",))
        proxied = Net(proxy=url.removesuffix("/raw"), show_progress=False)
        assert (
            fetch([remote], tmp_path / "raw", tmp_path, "p", proxied)["file.json.gz"].read_bytes()
            == DATA
        )


@pytest.mark.parametrize(
    ("data", "own", "message"),
    [
        (b"<html>please log in</html>", {}, "expected a .gz file, found something else"),
        (DATA, {"sha256": "0" * 64}, "expected the sha256 000"),
        (DATA, {"md5": "0" * 32}, "expected the md5 000"),
        (DATA[:-5], {"size": len(DATA)}, f"expected {len(DATA)} bytes, found {len(DATA) - 5}"),
    ],
)
def test_another_file_than_was_promised(server, tmp_path, data, own, message):
    server.data = data
    with served(server) as url, pytest.raises(UserError, match=message):
        get(url, tmp_path, **own)
    assert clean(tmp_path) == []


def test_a_short_file_of_a_server_that_tells_no_length(server, tmp_path):
    """Only reading the file reveals its length, which is checked where it is known."""
    server.length, server.cuts = False, [100_000]
    message = f"expected {len(DATA)} bytes, found 100000"
    with served(server) as url, pytest.raises(UserError, match=message):
        get(url, tmp_path, size=len(DATA))


def test_files_that_were_fetched_by_hand(tmp_path):
    folder = tmp_path / "raw" / "deep"
    folder.mkdir(parents=True)
    (folder / "other.json").write_bytes(b"{}")
    remote = Remote("file.json.gz", ("http://127.0.0.1:9",), also=("other.json",))
    assert fetch([remote], tmp_path / "raw", tmp_path, "p", QUIET) == {
        "file.json.gz": folder / "other.json"
    }
    (folder / "file.json.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="file.json.gz: expected a .gz file"):
        fetch([remote], tmp_path / "raw", tmp_path, "p", QUIET)


def test_no_network_names_every_file_and_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "WAIT", 0.01)
    files = [Remote(name, ("http://127.0.0.1:9",)) for name in ("one.gz", "two.gz")]
    message = (
        "^http://127.0.0.1:9/one.gz and http://127.0.0.1:9/two.gz cannot be downloaded "
        r"\(127.0.0.1:9: no connection\): .* into .*raw and run again"
    )
    with pytest.raises(UserError, match=message):
        fetch(files, tmp_path / "raw", tmp_path, "p", QUIET)
    with pytest.raises(
        UserError, match="by.hand.json can only be downloaded by hand, at https://a.page: download"
    ):
        fetch([Remote("by.hand.json")], tmp_path / "raw", tmp_path, "https://a.page", QUIET)


def zipped(path, **members):
    with zipfile.ZipFile(path, "w") as holder:
        for name, data in members.items():
            holder.writestr(name if name.startswith("__MACOSX/") else name.replace("__", "/"), data)


def tarred(**members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as holder:
        for name, data in members.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            holder.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_archives_are_told_by_their_content(tmp_path):
    members = {"review": ("short_review",), "place": ()}
    (tmp_path / "plain.tar").write_bytes(
        tarred(review=b"r", place=b"p", more=b"m")
    )  # gzip, whatever its name
    zipped(
        tmp_path / "nested.zip",
        Yelp__JSON__data=b"x",
        Yelp__short_review=b"r",
        **{"__MACOSX/._inner.tar": b"no tar", "inner.tar": tarred(place=b"p")},
    )
    for name in ("plain.tar", "nested.zip"):
        found = unpack(tmp_path / name, members, tmp_path / f"out {name}")
        assert {key: path.read_bytes() for key, path in found.items()} == {
            "review": b"r",
            "place": b"p",
        }
        assert len(list((tmp_path / f"out {name}").iterdir())) == 2
    zipped(tmp_path / "poor.zip", review=b"r")
    with pytest.raises(UserError, match="expected it to hold place"):
        unpack(tmp_path / "poor.zip", members, tmp_path / "a")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "plain.tar").read_bytes()[:60])
    with pytest.raises(UserError, match="expected a zip or tar archive"):
        unpack(tmp_path / "cut.zip", members, tmp_path / "b")


def test_members_that_were_unpacked_by_hand_need_no_archive(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "short_review").write_bytes(b"r")
    remote = Remote("archive.zip", members={"review": ("short_review",)})
    assert fetch([remote], tmp_path / "raw", tmp_path / "work", "p", QUIET) == {
        "review": tmp_path / "raw" / "short_review"
    }
