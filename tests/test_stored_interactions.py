"""A large dataset is read in pieces into mapped files, and is the one that is read as a whole."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from suites import fast_only
from worlds import prepared, settings_for, write_cycle

from recbole_llm.contracts.stored_tokens import StoredTokens
from recbole_llm.data.cases import splits
from recbole_llm.data.reading import interactions as whole
from recbole_llm.data.reading import stored
from recbole_llm.data.reading.atomic import NotInPiecesError
from recbole_llm.data.reading.interactions import Source, load
from recbole_llm.data.recbole import datasets
from recbole_llm.errors import UserError
from recbole_llm.runs.commands import run_settings


def write(folder, rng, rows=120, name="some", header=None, items=True, numbers=False):
    """A file of random events with ties, repetitions and ids of all kinds."""
    users = ["ü1", "u 2", "NA", "", "null", "7", '"q"', "x" * 30][: 3 + rng.integers(5)]
    users = [user for user in users if user]
    kinds = ["i1", "i2", "ñ", "nan", "5", "long item " * 3, "z"][: 2 + rng.integers(6)]
    folder.mkdir(parents=True, exist_ok=True)
    lines = [header or "user_id:token\titem_id:token\ttimestamp:float\trating:float\treview:token"]
    for _ in range(rows):
        rating = "" if rng.random() < 0.1 else str(rng.integers(1, 6))
        cells = [rng.choice(users), rng.choice(kinds), str(rng.integers(9)), rating]
        last = ["1.5", "-2", ""] if numbers else ["good", "bad", ""]
        lines.append("\t".join([*cells, rng.choice(last)]))
    (folder / f"{name}.inter").write_text("\n".join(lines) + "\n" * int(rng.integers(3)))
    if items:
        rows = [f"{item}\ttitle of {item}" for item in kinds[: 1 + rng.integers(len(kinds))]]
        (folder / f"{name}.item").write_text("\n".join(["item_id:token\ttitle:token", *rows]))
    return Source(folder, name)


def compare(one, other):
    """All attributes of two datasets are equal."""
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name == "folder":
            continue
        if isinstance(a, pd.DataFrame):
            pd.testing.assert_frame_equal(a, b)
        elif isinstance(a, dict):
            assert list(a) == list(b)
            for name in a:
                np.testing.assert_array_equal(a[name], b[name])
        elif isinstance(a, np.ndarray):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=field.name)
            assert field.name in ("users", "items") or a.dtype == b.dtype, field.name
        else:
            assert a == b, field.name
    np.testing.assert_array_equal(one.user, other.user)
    assert one.user.dtype == other.user.dtype and one.fingerprint == other.fingerprint


OPTIONS = [
    {},
    {"inter_columns": None},
    {"dedup": "consecutive", "inter_columns": frozenset({"rating"})},
    {"dedup": "consecutive_item"},
    {"dedup": "none", "inter_columns": frozenset({"review", "rating"})},
    {"remove_repeats": "first"},
    {"remove_repeats": "last", "dedup": "none"},
    {"catalogue": "all"},
    {"user_sample": 0.5, "sample_seed": 3},
    {"user_sample": 2},
    {"user_interval": "[4,inf)", "item_interval": "(3,30]", "dedup": "none"},
    {"value_intervals": (("rating", "[2,4]"), ("timestamp", "(1,inf)"))},
    {"need_item_row": True, "item_interval": "[2,inf)"},
    {"time_field": "when"},
    {"dedup": "never"},
    {"user_sample": -1},
    {"value_intervals": (("price", "[2,4]"),)},
    {"value_intervals": (("review", "[2,4]"),), "inter_columns": None},
    {"item_interval": "many"},
]


@pytest.mark.parametrize("own", OPTIONS, ids=range(len(OPTIONS)))
def test_a_dataset_read_in_pieces_is_the_one_read_as_a_whole(own, tmp_path, monkeypatch):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        monkeypatch.setattr(stored, "PIECE", int(rng.integers(30, 3000)))
        monkeypatch.setattr(stored, "BLOCK", int(rng.integers(1, 200)))
        source = replace(write(tmp_path / str(seed), rng), **own)
        try:
            expected = load(source)
        except UserError as error:
            with pytest.raises(UserError) as found:
                stored.load_stored(source, tmp_path / "store")
            assert str(found.value) == str(error)
            continue
        for _ in range(2):  # made, and found again
            compare(expected, stored.load_stored(source, tmp_path / "store"))
    assert not list((tmp_path / "store").glob(".*.tmp"))


FAULTS = {
    "an empty id": ("u1\t\t3\t1\tx", "item_id is empty"),
    "an infinite time": (
        "u1\ti1\tinf\t1\tx",
        "expected a finite number in column timestamp, found 'inf'",
    ),
    "no time": ("u1\ti1\t\t1\tx", "expected a finite number in column timestamp, found ''"),
    "no number": ("u1\ti1\t3\tone\tx", "expected a number or an empty cell in column rating"),
    "a tab too many": ("u1\ti1\t3\t1\tx\ty", "expected 5 cells, found 6"),
    "a blank line": ("", "expected 5 cells, found 1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_the_same_line(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "PIECE", 100)
    monkeypatch.setattr(whole, "STORED_BYTES", 0)
    line, said = FAULTS[fault]
    source = replace(write(tmp_path, np.random.default_rng(1)), inter_columns=None)
    path = source.path("inter")
    lines = path.read_text().rstrip("\n").split("\n")
    lines.insert(70, line)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError) as expected:
        load(source)
    assert said in str(expected.value) and "line 71" in str(expected.value)
    with pytest.raises(UserError) as found:
        load(replace(source, cache=tmp_path / "store"))
    assert str(found.value).replace(" in a part of the file", "") == str(expected.value)
    assert not list((tmp_path / "store").glob("[!.]*"))


def test_bytes_that_are_no_text_are_the_same_line(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "PIECE", 100)
    source = write(tmp_path, np.random.default_rng(1))
    data = source.path("inter").read_bytes().split(b"\n")
    data[50] = b"\xff" + data[50][1:]
    source.path("inter").write_bytes(b"\n".join(data))
    with pytest.raises(UserError, match="line 51: the bytes are not UTF-8") as expected:
        load(source)
    with pytest.raises(UserError) as found:
        stored.load_stored(source, tmp_path / "store")
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("ends", ["\r\n", "\n"])
def test_other_ends_of_lines_and_separators(ends, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "PIECE", 64)
    source = write(tmp_path, np.random.default_rng(5), items=False)
    text = source.path("inter").read_text().replace("long item", "long_item").replace("u 2", "u2")
    text = text.replace("\t", ",").replace("\n", ends)
    source.path("inter").write_bytes(b"\xef\xbb\xbf" + text.encode())
    source = replace(source, separator=",")
    compare(load(source), stored.load_stored(source, tmp_path / "store"))


def test_quoted_cells_with_separators_are_read_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "PIECE", 64)
    monkeypatch.setattr(whole, "STORED_BYTES", 0)
    source = write(tmp_path, np.random.default_rng(5))
    with open(source.path("inter"), "a") as file:
        file.write('\n"a\tuser"\ti1\t3\t1\tx\n'.lstrip("\n"))
    compare(load(source), load(replace(source, cache=tmp_path / "store")))
    assert not list((tmp_path / "store").glob("[!.]*"))


def test_a_store_is_made_once_and_again_where_something_changed(tmp_path, monkeypatch):
    built, inner = [], stored._Builder.run

    def watched(builder):
        built.append(builder.folder.name.split(".")[1])
        inner(builder)

    monkeypatch.setattr(stored._Builder, "run", watched)
    monkeypatch.setattr(whole, "STORED_BYTES", 0)
    source = replace(write(tmp_path, np.random.default_rng(2)), cache=tmp_path / "store")
    load(source), load(source)
    assert len(built) == 1
    load(replace(source, dedup="none"))
    assert len(set(built)) == 2
    (tmp_path / "store" / built[0] / "item.npy").write_bytes(b"cut")
    load(source)
    assert built[2] == built[0]
    with open(source.path("inter"), "a") as file:
        file.write("another\ti1\t3\t1\tx\n")
    assert "another" in load(source).users.tolist() and len(built) == 4
    assert load(replace(source, cache=None)).folder is None and len(built) == 4


@pytest.mark.parametrize("name", ["item", "time", "user", "file_order", "start", "#row"])
@pytest.mark.parametrize("kind", ["float", "token"])
def test_a_column_may_have_the_name_of_an_array(name, kind, tmp_path):
    header = f"user_id:token\titem_id:token\ttimestamp:float\trating:float\t{name}:{kind}"
    source = write(tmp_path, np.random.default_rng(3), header=header, numbers=kind == "float")
    source = replace(source, inter_columns=None)
    compare(load(source), stored.load_stored(source, tmp_path / "store"))


def test_what_killed_processes_leave_is_removed(tmp_path):
    source, store = write(tmp_path, np.random.default_rng(3)), tmp_path / "store"
    for left in (".abc.999999.tmp", ".def.999999.tmp"):
        (store / left).mkdir(parents=True)
        (store / left / "raw-events").write_text("x")
    with FileLock(store / ".def.lock"):  # of a process that lives
        stored.load_stored(source, store)
    assert [path.name for path in store.glob(".*.tmp")] == [".def.999999.tmp"]


def test_events_take_at_most_24_bytes(tmp_path):
    source = write(tmp_path, np.random.default_rng(2), rows=500)
    made = stored.load_stored(source, tmp_path / "store")
    arrays = [made.item, made.time, made.file_order, made.user]
    assert all(isinstance(array, np.memmap) for array in arrays)
    assert sum(array.dtype.itemsize for array in arrays) <= 24
    summary = json.loads((made.folder / stored.SUMMARY).read_text())
    assert not [name for name in summary["sizes"] if name.startswith("raw")]


def test_two_ids_of_one_hash_are_never_taken_for_one(tmp_path, monkeypatch):
    source = write(tmp_path, np.random.default_rng(2))
    inner = pd.util.hash_array

    def same_first(tokens, hash_key, **own):
        hashes = inner(tokens, hash_key=hash_key, **own)
        return hashes * 0 if hash_key.startswith("0") else hashes

    monkeypatch.setattr(pd.util, "hash_array", same_first)
    with pytest.raises(NotInPiecesError, match="two ids have the same hash"):
        stored.load_stored(source, tmp_path / "store")
    monkeypatch.setattr(whole, "STORED_BYTES", 0)
    compare(load(source), load(replace(source, cache=tmp_path / "store")))


def test_stored_tokens_are_an_array_to_who_reads_them(tmp_path):
    tokens = np.array(["a", "", "ünï", "b" * 40, "猫"], dtype=object)
    encoded = [token.encode() for token in tokens]
    (tmp_path / "t.txt").write_bytes(b"".join(encoded))
    lazy = StoredTokens(tmp_path / "t.txt", np.cumsum([0, *map(len, encoded)]))
    assert len(lazy) == 5 and lazy.shape == (5,) and lazy[2] == "ünï" and lazy[-1] == "猫"
    for index in (
        slice(1, 4),
        slice(None, None, -2),
        np.array([-1, 0]),
        np.array([3, 0, 3]),
        [1, 2],
        np.array([True, False] * 2 + [True]),
    ):
        np.testing.assert_array_equal(lazy[index], tokens[index])
    assert lazy[[]].tolist() == [] and (lazy != "a").tolist() == (tokens != "a").tolist()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(lazy))[:], tokens)
    for beyond in (5, -6, np.array([5]), np.array([-6]), np.array([True])):
        with pytest.raises(IndexError):
            lazy[beyond]
    assert list(lazy) == lazy.tolist() == tokens.tolist()
    np.testing.assert_array_equal(lazy == "b" * 40, tokens == "b" * 40)
    np.testing.assert_array_equal(np.append(lazy, "x"), np.append(tokens, "x"))
    np.testing.assert_array_equal(lazy.astype(str), tokens.astype(str))
    np.testing.assert_array_equal(pd.Series(lazy[:]), pd.Series(tokens))


SPLITS = {
    "leave one out": {"split": {"LS": "valid_and_test"}},
    "ratios": {"split": {"RS": [5, 2, 3]}},
    "temporal": {"split": {"temporal": [0.4, 0.3, 0.3]}, "part": "both"},
    "times": {"split": {"timestamp": [3, 6]}},
}


@pytest.mark.parametrize("name", SPLITS)
def test_cases_are_the_same_in_files(name, tmp_path, monkeypatch):
    source = replace(write(tmp_path, np.random.default_rng(7), rows=400), dedup="none")
    args = SPLITS[name]
    in_memory = splits.make_split(load(source), args["split"], args.get("part", "pretrain"))
    every = splits.every_case(load(source))
    for together in (1, 7, 10**6):
        monkeypatch.setattr(splits, "EVENTS_AT_ONCE", together)
        made = stored.load_stored(source, tmp_path / "store")
        in_files = splits.make_split(made, args["split"], args.get("part", "pretrain"))
        np.testing.assert_array_equal(in_memory.train_events, in_files.train_events)
        pairs = [(getattr(in_memory, part), getattr(in_files, part)) for part in PARTS]
        for one, other in [*pairs, (every, splits.every_case(made))]:
            for key in ("user", "begin", "end"):
                a, b = getattr(one, key), getattr(other, key)
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype and (isinstance(b, np.memmap) or not len(b))
    names = {path.name for path in made.folder.iterdir()}
    assert names == {
        "fingerprint",
        stored.SUMMARY,
        *json.loads((made.folder / stored.SUMMARY).read_text())["sizes"],
    }


PARTS = ("train", "valid", "test")


RUNS = ["CALRec", "SASRec", "TALLRec", "TASTELoRA"]


@pytest.mark.parametrize("model", fast_only(["SASRec", "TALLRec"], RUNS))
def test_a_run_on_a_stored_dataset_is_the_same(model, tmp_path, monkeypatch):
    write_cycle(tmp_path)
    rows = []
    for size in (2**40, 0):
        monkeypatch.setattr(whole, "STORED_BYTES", size)
        datasets._load.cache_clear()
        own = {"checkpoint_dir": str(tmp_path / f"saved{size}"), "eval_args.mode": "uni3"}
        rows.append(run_settings(settings_for(model, tmp_path, **own)).row)
    assert prepared(model, tmp_path)[0].interactions.folder
    assert rows[0]["test"] == rows[1]["test"] and rows[0]["hash"] == rows[1]["hash"]
    datasets._load.cache_clear()


def test_another_process_finds_the_store(tmp_path):
    """Sets of columns have another order in each process."""
    source = replace(
        write(tmp_path, np.random.default_rng(2)), inter_columns=frozenset({"rating", "review"})
    )
    stored.load_stored(source, tmp_path / "store")
    script = (
        "from pathlib import Path\n"
        "from recbole_llm.data.reading.interactions import Source\n"
        "from recbole_llm.data.reading.stored import _key\n"
        f"folder, columns = Path({str(tmp_path)!r}), frozenset(['rating', 'review'])\n"
        "source = Source(folder, 'some', inter_columns=columns)\n"
        "print(_key(source))"
    )
    for seed in (1, 3):  # which give both orders
        env = {**os.environ, "PYTHONHASHSEED": str(seed)}
        key = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
        ).stdout.strip()
        assert (tmp_path / "store" / key).is_dir()
