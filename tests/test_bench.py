"""Every benchmark runs alone, and its last line says what it measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from suites import fast_only

BENCH = Path(__file__).resolve().parents[1] / "bench"
SCRIPTS = sorted(path.name for path in BENCH.glob("*.py") if path.name != "common.py")
QUICK = "bm25.py"  # the one that is run by the fast suite
# what the rows of a bench hold beside the ratio of times
MEASURED = {
    "evaluate.py": ("stock_s", "ours_s", "final_s", "final_ratio", "final_mib"),
    "load.py": ("stock_seconds", "ours_seconds", "ours_peak_mib"),
}
UNCOMPARED = ("finetune.py", "memory.py", "stream.py")  # they have no other side


def small_run(script, folder):
    """Return the last line of a small run of a benchmark in a folder."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(BENCH / script), "--small"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("script", fast_only([QUICK], SCRIPTS))
def test_a_bench_ends_with_its_figures(script, tmp_path):
    last = small_run(script, tmp_path)
    assert last["bench"] == script.removesuffix(".py")
    assert last["machine"]["threads"] == 1 and last["rows"]
    ratio = () if script in UNCOMPARED else ("ratio",)
    assert not ratio or last["ratio"] > 0
    for row in last["rows"]:
        assert all(row[name] > 0 for name in (*MEASURED.get(script, ()), *ratio))
        assert row.get("largest_difference", 0) < 1e-9  # both sides measure the same
        assert row.get("resumed_equal", True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a process's peak")
def test_a_peak_is_of_the_process_itself():
    """The peak is not that of the parent process, which held 400 MiB."""
    held = np.ones(50 * 2**20)
    script = "from recbole_llm.storage.run_folders import peak_memory; print(peak_memory())"
    child = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert 5 < float(child.stdout) < held.nbytes / 2**20 / 2
