"""Processes that are killed at random moments, ten times each, resume from what they left.

They end with the result of an uninterrupted process.
"""

import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter

import numpy as np
import pytest
from shops import ROOT, only, process, rows_of, write_shop

from recbole_llm.evaluation.ranks import RankTable

pytestmark = pytest.mark.slow
KILLS = 10


def started(folder, *args, **env):
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **env,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "recbole_llm", *args],
        cwd=folder,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_once_it_moves(running, sign, wait: float) -> bool:
    """Kill a process some time after the first sign of progress, a value that changes.

    Return False if the process ended before.
    """
    before, end = sign(), time.monotonic() + 120
    while sign() == before and running.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(wait)
    ended = running.poll() is not None
    running.kill()
    running.wait()
    return not ended


def test_summaries(tmp_path):
    """The file has the same bytes, and only requests that were pending are sent twice."""
    pytest.importorskip("openai")
    from test_server import Server

    rng = random.Random(0)
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        write_shop(folder)
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        args = [
            "summarize",
            "--dataset=tiny",
            f"--summarizer={server.url}",
            "--summarizer_model=tiny",
            "--summarizer_parallel=3",
        ]
        args += ["--block_size=2", "--fan_in=2", "--show_progress=false"]
        env = {"NO_PROXY": "127.0.0.1"}
        assert process(folders[0], *args, **env).returncode == 0
        asked = [body["messages"][0]["content"] for body in server.bodies]
        assert len(asked) == len(set(asked)) > 100
        server.bodies.clear()
        killed = 0
        while killed < KILLS:
            killed += kill_once_it_moves(
                started(folders[1], *args, **env), lambda: len(server.bodies), rng.uniform(0, 0.3)
            )
        done = process(folders[1], *args, **env)
        assert done.returncode == 0, done.stderr
        again = Counter(body["messages"][0]["content"] for body in server.bodies)
        server.shutdown()
    assert set(again) == set(asked) and sum(again.values()) - len(again) <= 3 * KILLS
    whole, resumed = (list((folder / "saved" / "summaries").iterdir()) for folder in folders)
    assert [path.name for path in whole] == [path.name for path in resumed] and whole[
        0
    ].read_bytes() == resumed[0].read_bytes()


def test_training(tmp_path):
    """Metrics and the rank of every case are the same."""
    rng = random.Random(1)
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        write_shop(folder)
    args = [
        "--model=LLMTRSR",
        "--dataset=tiny",
        "--epochs=12",
        "--eval_args.mode=uni10",
        "--scratch_vocabulary=600",
        "--targets=one",
        "--max_length=700",
    ]
    args += ["--beside=[]", "--show_progress=false"]
    assert process(folders[0], *args).returncode == 0
    saved, killed = folders[1] / "saved", 0
    while killed < KILLS and not (saved / "results.jsonl").is_file():

        def states():
            return {path: path.stat().st_mtime_ns for path in saved.glob("LLMTRSR-*/state.pt")}

        killed += kill_once_it_moves(started(folders[1], *args), states, rng.uniform(0, 1.5))
    done = process(folders[1], *args)
    assert done.returncode == 0, done.stderr
    rows = [rows_of(folder)[-1] for folder in folders]
    assert (
        killed == KILLS
        and rows[0]["test"] == rows[1]["test"]
        and rows[0]["valid"] == rows[1]["valid"]
        and rows[0]["best_epoch"] == rows[1]["best_epoch"]
    )
    tables = [RankTable.load(only(folder, "LLMTRSR-") / "test.ranks.npz") for folder in folders]
    assert np.array_equal(tables[0].above, tables[1].above) and np.array_equal(
        tables[0].user, tables[1].user
    )
