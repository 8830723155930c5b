"""What every bench shares: its arguments, a measuring child process, and the last line."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path


def arguments(text: str, **defaults):
    """--small and one option per default."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument(
        "--small", action="store_true", help="small sizes, for a check that the bench runs"
    )
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    return parser.parse_args()


def machine() -> dict:
    import torch

    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    } | gpu


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def resident() -> float:
    """MiB now held by this process."""
    import psutil

    return psutil.Process().memory_info().rss / 2**20


def peak() -> float:
    """MiB this process has held at most."""
    from recbole_llm.storage.run_folders import peak_memory

    return peak_memory()


def in_child(script: str, **given) -> dict:
    """Run this script again for one measurement, so that nothing one side leaves behind helps or hurts the other."""
    command = [sys.executable, script, *(f"--{name}={value}" for name, value in given.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def timed(function, *args):
    """(seconds, result), of work on a GPU as well."""
    torch = sys.modules.get("torch")  # who has not imported it has nothing on a GPU
    wait = torch.cuda.synchronize if torch and torch.cuda.is_available() else lambda: None
    wait()
    started = time.perf_counter()
    result = function(*args)
    wait()
    return time.perf_counter() - started, result


def finish(**result) -> None:
    """The last line: one JSON object."""
    print(json.dumps(result | {"machine": machine()}))


def random_events(folder: Path, users: int, items: int, length: int, name: str = "random") -> Path:
    """An atomic .inter file in which every item occurs, and no more than that."""
    import numpy as np

    rng = np.random.default_rng(0)
    drawn = np.concatenate(
        [rng.permutation(items), rng.integers(0, items, size=max(0, users * length - items))]
    )[: users * length]
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    with open(target / f"{name}.inter", "w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        rows = zip(
            np.repeat(np.arange(users), length).tolist(),
            rng.permutation(drawn).tolist(),
            range(users * length),
            strict=True,
        )
        file.writelines(f"u{user}\ti{item}\t{time}\n" for user, item, time in rows)
    return folder
