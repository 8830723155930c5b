"""Readers of files that are damaged on disk return what is intact, and overwrite nothing."""

import gzip
import json
import random
from itertools import chain, product

import numpy as np
import pytest
from test_summaries import Scripted, plans, summaries

from recbole_llm.evaluation import resumable as kept_module
from recbole_llm.evaluation.ranks import RankTable
from recbole_llm.evaluation.resumable import Kept, Piece
from recbole_llm.language.decoding.answer_log import Answer, AnswerLog
from recbole_llm.storage import content_cache
from recbole_llm.storage.content_cache import Entries, Lines, members, name_of, sealed
from recbole_llm.studies import tune

FEW, MANY = 80, 5000  # single bytes that are changed, in the fast suite and in the slow one
SIZES = [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)]
RNG = np.random.default_rng(0)


class TextStore:
    """The store of summaries is a file of JSON lines."""

    name = "texts.jsonl.gz"
    entries = {f"n{number}": f"text {number} ñ " + "x" * number for number in range(12)}

    def write(self, path):
        Lines(path).append({"name": name, "text": text} for name, text in self.entries.items())

    def read(self, path):
        return dict(Lines(path).read(lambda line: (line["name"], line["text"])))


class OldTextStore(TextStore):
    """Older versions wrote several lines into one gzip member, with the time in its header."""

    def write(self, path):
        items = list(self.entries.items())
        with open(path, "wb") as file:
            for begin in range(0, len(items), 3):
                rows = [{"name": name, "text": text} for name, text in items[begin : begin + 3]]
                lines = "".join(json.dumps(row) + "\n" for row in rows)
                file.write(gzip.compress(lines.encode()))


class AnswerStore:
    """The store holds texts that a model has generated."""

    name = "test.0.texts.jsonl.gz"
    entries = {
        (f"u{number}", 0, 3 + number): Answer(["Title: a ñ."], [-0.5 - number], [2], 1, [number])
        for number in range(12)
    }

    def write(self, path):
        for name, answer in self.entries.items():
            AnswerLog(path).add({name: answer})

    def read(self, path):
        return AnswerLog(path).known


class VectorStore:
    """The store holds vectors of texts, and computes damaged ones again, as zeros here."""

    name = "part.vectors.gz"
    entries = {name_of(bytes([number])): RNG.normal(size=5).astype("f4") for number in range(12)}

    def write(self, path):
        names = list(self.entries)
        content_cache._write_vectors(
            path.parent, names, np.stack([self.entries[name] for name in names])
        )
        next(path.parent.glob("*.vectors.gz")).rename(path)

    def read(self, path):
        names = list(self.entries)
        found = content_cache.vectors(path.parent, names, lambda rows: np.zeros((len(rows), 5)))
        for other in set(path.parent.glob("*.vectors.gz")) - {path}:
            other.unlink()
        return {name: row.tobytes() for name, row in zip(names, found, strict=True) if row.any()}


class OldVectorStore(VectorStore):
    """Older versions wrote one archive of numpy's."""

    name = "part.npz"

    def write(self, path):
        names = np.frombuffer(b"".join(self.entries), dtype=np.uint8).reshape(12, -1)
        np.savez(path, names=names, vectors=np.stack(list(self.entries.values())))


class RankStore:
    """The store holds a ranking that is resumed."""

    name = "test.code.kept.gz"
    entries = {number: [number % 5, 2, number] for number in range(4)}

    def table(self, number):
        above, tied, position = self.entries[number]
        return RankTable([f"u{number}"], [f"i{number}"], [position], [above], [tied], [20], [False])

    def kept(self, path):
        found = Kept(path.parent, "test", None)
        found.path, found.entries = path, Entries(path, level=0)
        return found

    def write(self, path):
        kept = self.kept(path)
        for number in self.entries:
            lists = np.full((1, 3), number, "i4"), np.full((1, 3), number, "f4")
            kept.saved = -1e9  # it is time to write
            kept.add(Piece(number, self.table(number), lists))

    def read(self, path):
        found = {}
        for piece, _, _ in Entries(path).read(kept_module._unpacked):
            table, (items, scores) = piece.table, piece.lists
            assert (items == piece.begin).all() and (scores == piece.begin).all()
            found[piece.begin] = [int(table.above[0]), int(table.tied[0]), int(table.position[0])]
        return found


STORES = [TextStore, OldTextStore, AnswerStore, VectorStore, RankStore]


def plain(entries):
    return {
        name: value.tobytes() if isinstance(value, np.ndarray) else value
        for name, value in entries.items()
    }


def parts_of(store, path, whole):
    """Return (begin, end, names) of each part of a file that any damage destroys as a whole."""
    if store.name.endswith(".npz"):
        return [(0, len(whole), list(store.entries))]
    bounds = [(begin, end) for begin, end, _ in members(whole)]
    names, each = list(store.entries), len(store.entries) // len(bounds)
    return [
        (begin, end, names[number * each : (number + 1) * each])
        for number, (begin, end) in enumerate(bounds)
    ]


def names_in(parts):
    return list(chain.from_iterable(names for _, _, names in parts))


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("kind", [*STORES, OldVectorStore], ids=lambda kind: kind.__name__)
def test_a_damaged_byte_costs_the_entry_that_it_hits(tmp_path, kind, count, caplog):
    store, rng = kind(), random.Random(1)
    path = tmp_path / store.name
    store.write(path)
    whole, expected = path.read_bytes(), plain(store.entries)
    assert store.read(path) == expected and not list(tmp_path.glob("*.damaged*"))
    parts, lost = parts_of(store, path, whole), 0
    assert len(parts) == {OldVectorStore: 1, OldTextStore: 4}.get(kind, len(store.entries))
    for _ in range(count):
        at = rng.randrange(len(whole))
        changed = bytes([whole[at] ^ rng.randint(1, 255)])
        path.write_bytes(whole[:at] + changed + whole[at + 1 :])
        found = store.read(path)
        assert found.items() <= expected.items(), "a value that nobody wrote"
        for begin, end, names in parts:
            if not begin <= at < end:
                assert found.keys() >= set(names), "an entry is lost that was whole"
        asides = list(tmp_path.glob("*.damaged*"))
        assert bool(asides) == (found != expected)
        for aside in asides:
            assert aside.read_bytes() == whole[:at] + changed + whole[at + 1 :]
            aside.unlink()
        lost += found != expected
        if path.is_file() and found != expected:  # it is mended
            caplog.clear()
            assert store.read(path) == found and not caplog.records
        path.unlink(missing_ok=True)
    assert lost > count / 2


@pytest.mark.parametrize("count", SIZES)
def test_a_damaged_trial_of_a_search_is_done_again(tmp_path, count, caplog):
    """Plain-text lines have a checksum each."""
    search, rng = object.__new__(tune.Search), random.Random(2)
    search.folder = tmp_path
    records = [
        {
            "point": {"learning_rate": number / 8},
            "status": "finished",
            "score": 0.25 + number,
            "epochs": 3,
            "run": f"r{number}",
            "error": None,
        }
        for number in range(6)
    ]
    path = tmp_path / tune.TRIALS
    for seal in (json.dumps, sealed):  # older files have no checksums
        path.write_text("\n".join(map(seal, records)) + "\n")
        assert list(search._ended().values()) == records
    whole = path.read_bytes()
    ends = [at for at, byte in enumerate(whole) if byte == 10]
    for _ in range(count):
        at = rng.randrange(len(whole))
        changed = bytes([whole[at] ^ rng.randint(1, 255)])
        path.write_bytes(whole[:at] + changed + whole[at + 1 :])
        found = list(search._ended().values())
        hit = sum(end < at for end in ends)
        assert all(one in records for one in found)
        others = [one for number, one in enumerate(records) if number not in (hit, hit + 1)]
        assert all(one in found for one in others)
        for aside in tmp_path.glob("*.damaged*"):
            aside.unlink()


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("kind", STORES, ids=lambda kind: kind.__name__)
def test_a_file_that_is_cut_gives_what_is_whole(tmp_path, kind, count):
    """The file is truncated at the bounds of its entries, beside them, and at random."""
    store, rng = kind(), random.Random(3)
    path = tmp_path / store.name
    store.write(path)
    whole = path.read_bytes()
    parts = parts_of(store, path, whole)
    bounds = [0, *(end for _, end, _ in parts)]
    cuts = {bound + step for bound, step in product(bounds, (-1, 0, 1))} & set(range(len(whole)))
    cuts |= set(rng.sample(range(len(whole)), min(count // 4, len(whole))))
    for size in sorted(cuts):
        path.write_bytes(whole[:size])
        names = names_in(part for part in parts if part[1] <= size)
        assert store.read(path) == {name: plain(store.entries)[name] for name in names}


def test_what_is_no_file_of_ours_is_kept_aside(tmp_path, caplog):
    path = tmp_path / "texts.jsonl.gz"
    archives = [gzip.compress(content) for content in (b"[1, 2]\n", b"\xff\xfe", b"{")]
    for content in (b"no archive", *archives, b"\x1f\x8b\x08"):
        path.write_bytes(content)
        lines = Lines(path)
        assert lines.read(lambda line: line["name"]) == []
        lines.append([{"name": "a"}])
        assert lines.read(lambda line: line["name"]) == ["a"]
    asides = sorted(tmp_path.glob("*.damaged*"))
    assert [path.name.partition(".damaged")[2] for path in asides] == ["", "-2", "-3", "-4", "-5"]
    assert (
        caplog.text.count("is damaged") == 5 and "kept as texts.jsonl.gz.damaged-2" in caplog.text
    )


def test_a_file_is_read_by_zcat(tmp_path):
    """A line of any characters stays one line."""
    path = tmp_path / "texts.jsonl.gz"
    texts = ["a", "line\u2028separator", "b\nc", "\x85"]
    Lines(path).append({"text": text} for text in texts)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        assert [json.loads(line)["text"] for line in file] == texts
    assert Lines(path).read(lambda line: line["text"]) == texts


def test_a_magic_number_within_an_entry_is_none(tmp_path):
    path = tmp_path / "entries.gz"
    contents = [b"\x1f\x8b\x08" * 5 + bytes([number]) for number in range(4)]
    Entries(path, level=0).append(contents)  # stored as they are
    assert Entries(path).read(bytes) == contents
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        found = Entries(path).read(bytes)
        assert len(found) >= 3 and set(found) <= set(contents)


def test_many_entries_are_read_in_time(tmp_path):
    """Each entry is copied once, however many there are."""
    path = tmp_path / "entries.gz"
    Entries(path).append(str(number).encode() for number in range(20000))
    assert Entries(path).read(int) == list(range(20000))


@pytest.mark.parametrize("where", ["acquire", "copyfile"])
def test_a_folder_that_cannot_be_written_is_read(tmp_path, caplog, monkeypatch, where):
    path = tmp_path / "texts.jsonl.gz"
    TextStore().write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])

    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    holder = content_cache.FileLock if where == "acquire" else content_cache.shutil
    monkeypatch.setattr(holder, where, refuse)
    assert len(TextStore().read(path)) == 11
    assert "cannot be mended (Read-only file system)" in caplog.text
    assert path.read_bytes() == whole[:-3]


def test_only_the_text_that_is_damaged_is_asked_for_again(tmp_path):
    summaries(tmp_path, Scripted()).of(plans(*[1] * 30))
    (path,) = tmp_path.glob("*.jsonl.gz")
    whole = bytearray(path.read_bytes())
    whole[400] ^= 1
    path.write_bytes(whole)
    engine = Scripted()
    found = summaries(tmp_path, engine).of(plans(*[1] * 30))
    assert len(engine.calls) == 1 and found == summaries(tmp_path, Scripted()).of(plans(*[1] * 30))


def test_a_ranking_with_a_hole_ranks_what_is_missing_alone(tmp_path):
    def piece(begin, count):
        users = [f"u{number}" for number in range(begin, begin + count)]
        zeros = [0] * count
        table = RankTable(users, ["i"] * count, zeros, zeros, zeros, [5] * count, [False] * count)
        return Piece(begin, table, (np.full((count, 2), begin), np.full((count, 2), begin)))

    pieces = [piece(10, 5), piece(0, 4)]
    assert list(kept_module.missing(pieces, 20, 3)) == [(4, 7), (7, 10), (15, 18), (18, 20)]
    assert list(kept_module.missing([], 4, 3)) == [(0, 3), (3, 4)]
    assert list(kept_module.missing([piece(0, 4)], 4, 3)) == []
    whole = kept_module.joined([*pieces, piece(4, 6), piece(15, 5)])
    assert whole.table.user.tolist() == [f"u{number}" for number in range(20)]
    assert whole.lists[0][:, 0].tolist() == [0] * 4 + [4] * 6 + [10] * 5 + [15] * 5
