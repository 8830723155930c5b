"""Raw files are read to their end, and what is damaged or cut is never taken for whole."""

import gzip
import hashlib
import io
import json
import random
import tarfile
import zlib

import pytest

pytest.importorskip("duckdb")

from recbole_llm.data.prepare.engine import Engine, delimited
from recbole_llm.data.prepare.files import reading
from recbole_llm.data.prepare.files.archives import unpack
from recbole_llm.data.prepare.files.reading import Reader
from recbole_llm.errors import UserError

ROWS = b"".join(
    json.dumps({"number": number, "text": "word " * (number % 40)}).encode() + b"\n"
    for number in range(3000)
)


@pytest.fixture(params=["isal", "zlib"])
def reader(tmp_path, request, monkeypatch):
    if request.param == "zlib":
        monkeypatch.setattr(reading, "decompressobj", zlib.decompressobj)
    else:
        pytest.importorskip("isal")
    reader = Reader(tmp_path / "pieces", said := [])
    reader.log, reader.said = said.append, said
    yield reader
    reader.close()


def content(reader, path):
    return [piece.read_bytes() for piece in reader.pieces(path)]


@pytest.mark.parametrize("size", [1, 700, 5000, 10**7])
def test_pieces_are_whole_lines_in_their_order(reader, tmp_path, size, monkeypatch):
    monkeypatch.setattr(reading, "PIECE", size)
    monkeypatch.setattr(reading, "BLOCK", 1 + size // 3)
    path = tmp_path / "rows.json.gz"
    rows = ROWS if size > 1 else ROWS[:20_000]  # a piece for every line of them
    for data in (rows, rows[:-1], ROWS[:300], b"", b"\n\n"):
        packed = gzip.compress(data)
        path.write_bytes(packed)
        pieces = content(reader, path)
        assert (
            b"".join(pieces) == data
            and all(piece.endswith(b"\n") for piece in pieces[:-1])
            and len(pieces) >= 1
        )
        assert size > 1000 or len(data) < 1000 or len(pieces) > 50
        assert reader.size_and_sha256(path) == (len(packed), hashlib.sha256(packed).hexdigest())
    assert not list((tmp_path / "pieces" / path.name).iterdir())


def test_several_members_and_padding_are_one_file(reader, tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(ROWS[:500]) + gzip.compress(ROWS[500:]) + bytes(600))
    assert b"".join(content(reader, path)) == ROWS


@pytest.mark.parametrize("name", ["rows.json.gz", "rows.csv.gz"])
def test_every_flipped_bit_and_every_cut_is_found(reader, tmp_path, name):
    """Of the header only the bits that gzip gives a meaning: name, time and system are nobody's."""
    path, whole = tmp_path / name, gzip.compress(ROWS)
    rng = random.Random(0)
    for place in [*rng.sample(range(10, len(whole) - 8), 40), *range(len(whole) - 8, len(whole))]:
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :]
        )
        with pytest.raises(UserError, match=f"{name}: cannot be read to its end"):
            content(reader, path), reader.size_and_sha256(path)
        path.write_bytes(whole[:place])
        with pytest.raises(UserError, match=f"{name}: cannot be read to its end"):
            content(reader, path), reader.size_and_sha256(path)


def test_plain_files_that_end_in_the_middle(reader, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", 100)  # the last line lies in several blocks
    path = tmp_path / "rows.json"
    for end in (ROWS, ROWS[:-1], b""):
        path.write_bytes(end)
        assert content(reader, path) == [end] and reader.size_and_sha256(path)[0] == len(end)
    path.write_bytes(ROWS[:-9])
    with pytest.raises(
        UserError, match="rows.json: cannot be read to its end .its last line ends in the middle"
    ):
        content(reader, path), reader.size_and_sha256(path)
    table = tmp_path / "rows.csv"
    table.write_bytes(b"a,b\n1,2")
    assert (
        content(reader, table) == [b"a,b\n1,2"]
        and reader.size_and_sha256(table)
        and "rows.csv: its last line has no end" in reader.said[0]
    )


def test_a_conversion_that_fails_leaves_no_thread_and_no_piece_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PIECE", 5000)
    (tmp_path / "rows.json.gz").write_bytes(gzip.compress(ROWS))
    reader = Reader(tmp_path / "pieces", print)
    with pytest.raises(KeyError):
        for piece in reader.pieces(tmp_path / "rows.json.gz"):
            raise KeyError(piece)
    reader.close()
    with pytest.raises(RuntimeError):
        reader.size_and_sha256(tmp_path / "rows.json.gz")


def test_a_damaged_archive(tmp_path):
    """Behind the last member, too, which tarfile alone would not read."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as holder:
        info = tarfile.TarInfo("rows.json")
        info.size = len(ROWS)
        holder.addfile(info, io.BytesIO(ROWS))
    whole = buffer.getvalue()
    members = {"rows.json": ()}
    (tmp_path / "a.tar").write_bytes(whole)
    assert unpack(tmp_path / "a.tar", members, tmp_path / "out")["rows.json"].read_bytes() == ROWS
    for bad in (whole[:-4], whole[:-6] + b"\x01" + whole[-5:], whole[: len(whole) // 2]):
        (tmp_path / "a.tar").write_bytes(bad)
        with pytest.raises(
            UserError, match="a.tar: expected a zip or tar archive .*may be cut short: remove it"
        ):
            unpack(tmp_path / "a.tar", members, tmp_path / "out")


def test_columns_are_those_that_the_file_names(tmp_path):
    path = tmp_path / "r.csv"
    engine = Engine(tmp_path / "tables")
    path.write_text("\ufeffa,b\n1,2\n")
    assert engine.run(
        f"SELECT b FROM {delimited(path, ',', 'a', 'b', header=True)}"
    ).fetchall() == [("2",)]
    for head in ("b,a\n1,2\n", "a;b\n", "", "1,2\n"):
        path.write_text(head)
        with pytest.raises(
            UserError, match="r.csv: expected the columns a, b, found .*; get the right file"
        ):
            delimited(path, ",", "a", "b", header=True)
    (tmp_path / "r.csv.gz").write_bytes(gzip.compress(b"a,b\n")[:9])
    with pytest.raises(UserError, match="r.csv.gz: cannot be read to its end"):
        delimited(tmp_path / "r.csv.gz", ",", "a", "b", header=True)
    engine.close()


def test_a_line_that_is_longer_than_any(reader, tmp_path, monkeypatch):
    """A list in one line is not held whole to find its end."""
    monkeypatch.setattr(reading, "LINE", 10_000)
    monkeypatch.setattr(reading, "BLOCK", 5_000)
    path = tmp_path / "rows.json"
    path.write_bytes(b'{"a": "' + b"x" * 10**6 + b'"}')
    with pytest.raises(UserError, match="its last line ends in the middle"):
        content(reader, path), reader.size_and_sha256(path)
    path.write_bytes(ROWS + b"   \n  ")
    assert content(reader, path) and reader.size_and_sha256(path)
    for start in (b"[", b"\xef\xbb\xbf[", b" \n["):
        path.write_bytes(start + ROWS)
        with pytest.raises(UserError, match="expected JSON lines, one object a line, found a list"):
            content(reader, path)


def test_reading_stops_where_a_conversion_has_failed(reader, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", 10)
    (tmp_path / "rows.csv").write_bytes(ROWS * 100)
    next(reader.pieces(tmp_path / "rows.csv"))
    reader.close()
    assert reader.sums[tmp_path / "rows.csv"].result()[0] < len(ROWS) * 100
