"""Functions of all benchmarks: arguments, measurements, child processes, and the last line."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def arguments(description: str, **defaults: Any) -> argparse.Namespace:
    """Parse the command line: --small, and one option for each default."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--small", action="store_true", help="small sizes, to check that the benchmark runs"
    )
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """Describe the processor, the threads and the GPU."""
    import torch

    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    } | gpu


def device() -> str:
    """Name of the device that models run on."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def resident() -> float:
    """Memory that this process uses now, in MiB."""
    import psutil

    return psutil.Process().memory_info().rss / 2**20


def peak() -> float:
    """Peak of the memory that this process has used, in MiB."""
    from recbole_llm.storage.run_folders import peak_memory

    return peak_memory()


def known(what: str, name: str, names: Iterable[str]) -> str:
    """The name, or the end of the process where it is not one of some."""
    if name not in names:
        raise SystemExit(f"--{what}: expected one of {', '.join(names)}, found {name!r}")
    return name


def in_child(script: str, **options: Any) -> dict[str, Any]:
    """Run a script in a process of its own, so that one measurement cannot influence another.

    Returns the JSON object in its last line.
    """
    command = [sys.executable, script, *(f"--{name}={value}" for name, value in options.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def timed(function: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """Call a function; returns its seconds, work on a GPU included, and its result."""
    # a process that has not imported torch has no work on a GPU
    torch = sys.modules.get("torch")
    wait = torch.cuda.synchronize if torch and torch.cuda.is_available() else lambda: None
    wait()
    started = time.perf_counter()
    result = function(*args)
    wait()
    return time.perf_counter() - started, result


def median(values: Sequence[float]) -> float:
    """The middle value, or the greater one of the two in the middle."""
    return sorted(values)[len(values) // 2]


def median_seconds(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of functions, which take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            seconds[name].append(timed(side)[0])
    return {name: median(values) for name, values in seconds.items()}


def finish(**result: Any) -> None:
    """Print the last line: one JSON object."""
    print(json.dumps(result | {"machine": machine()}))


def random_events(folder: Path, users: int, items: int, length: int, name: str = "random") -> Path:
    """Write an atomic .inter file of random interactions in which every item occurs."""
    import numpy as np

    rng = np.random.default_rng(0)
    further = rng.integers(0, items, size=max(0, users * length - items))
    sample = np.concatenate([rng.permutation(items), further])[: users * length]
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    with open(target / f"{name}.inter", "w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        rows = zip(
            np.repeat(np.arange(users), length).tolist(),
            rng.permutation(sample).tolist(),
            range(users * length),
            strict=True,
        )
        file.writelines(f"u{user}\ti{item}\t{time}\n" for user, item, time in rows)
    return folder


def number_tokenizer(numbers: int, repeats: int, vocabulary: int) -> Any:
    """Train a tokenizer on pairs of numbers, each of which occurs `repeats` times."""
    import numpy as np

    from recbole_llm.language.backbones.scratch import train_tokenizer

    texts = np.repeat([f"{number} {number * 7919}" for number in range(numbers)], repeats)
    return train_tokenizer(texts.tolist(), vocabulary)
