"""Ray, for work in parallel: started on this machine for one command, or a running cluster."""

import logging
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ..errors import UserError

ATTEMPTS = 3  # attempts at a task before it is reported as failed
# A lost process is not the task's fault. Until Ray knows that a machine is gone, it may give a task
# to dead processes of that machine several times.
DEATHS = 6
PROBE_SECONDS = 3  # within which a server must answer
CONNECT_SECONDS = 60  # within which Ray must connect to a cluster
LOCAL = (None, "", "local")  # addresses of a Ray that is started on this machine
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
DATA, HEADERS, SETTINGS = 0, 1, 4  # types of HTTP/2 frames; a server answers a preface by SETTINGS
REFUSALS = range(0x89, 0x8F)  # first bytes of headers with a status such as 404 instead of 200
# variables that Ray reads; a user's values take precedence
ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a task without GPUs sees none
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command instead of single trials
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output ignores `verbose`
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of settings keep their meaning
}

T = TypeVar("T")


@dataclass(frozen=True)
class Cluster:
    """Where tasks run in parallel, and what each of them needs.

    Attributes
    ----------
    address : str or None
        Address of a running Ray cluster. None starts Ray on this machine.
    cpus : float
        CPU cores of one task.
    gpus : float or None
        GPUs of one task, possibly a fraction. None means 1 where there are any GPUs.
    dashboard : bool
        Whether a Ray that is started here serves its dashboard, to this machine only.
    keys : tuple of (str, str)
        Names of the settings that `cpus` and `gpus` come from, for error messages.
    """

    address: str | None = None
    cpus: float = 1
    gpus: float | None = None
    dashboard: bool = False
    keys: tuple[str, str] = ("unit_cpus", "unit_gpus")


def has_ray() -> bool:
    """Whether Ray and Ray Tune are installed."""
    from importlib.util import find_spec

    return find_spec("ray") is not None and find_spec("ray.tune") is not None


def need_ray(key: str) -> None:
    """Refuse to go on without Ray.

    Parameters
    ----------
    key : str
        The setting or command that needs it.

    Raises
    ------
    UserError
        If Ray is not installed.
    """
    if not has_ray():
        raise UserError(f'{key}: ray is not installed: pip install "recbole_llm[ray]"')


def check(cluster: Cluster) -> None:
    """Fail fast, before anything is trained, if Ray cannot run the tasks.

    Parameters
    ----------
    cluster : Cluster
        Where the tasks are to run.

    Raises
    ------
    UserError
        If no Ray answers at the address, or no machine has the resources of one task.
    """
    if cluster.address in LOCAL and not _running():
        import torch

        machine = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
        _check_resources(cluster, [machine])
        return
    with connected(cluster):
        pass


def _running() -> bool:
    """Whether this process is connected to a Ray already."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _check_resources(cluster: Cluster, machines: Sequence[dict[str, float]]) -> float:
    """The number of GPUs of one task. Raises UserError if no machine has its resources."""
    gpus = cluster.gpus
    if gpus is None:
        gpus = float(any(machine.get("GPU", 0) for machine in machines))
    for machine in machines:
        if machine.get("CPU", 0) >= cluster.cpus and machine.get("GPU", 0) >= gpus:
            return gpus
    there = "; ".join(
        f"{machine.get('CPU', 0):g} cores and {machine.get('GPU', 0):g} GPUs"
        for machine in machines
    )
    raise UserError(
        f"expected a machine with {cluster.cpus:g} cores and {gpus:g} GPUs for each piece of work, "
        f"found {there}; lower {' or '.join(f'--{key}' for key in cluster.keys)}"
    )


def endpoint(address: str) -> tuple[str, int] | None:
    """Parse the address of a cluster.

    Parameters
    ----------
    address : str
        HOST:PORT, or "auto" for the cluster that was started on this machine.

    Returns
    -------
    tuple of (str, int), or None
        Host and port. None means that Ray itself looks for a cluster on this machine.

    Raises
    ------
    UserError
        If it is not an address.
    """
    expected = (
        "ray_address: expected HOST:PORT of a cluster that this machine belongs to, such as "
        f"127.0.0.1:6379 or [::1]:6379, or auto, found {address}"
    )
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")
        known = (
            Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray/ray_current_cluster"
        )
        if address == "auto" and known.is_file():
            address = known.read_text(encoding="utf-8").strip()
        if address in ("auto", *LOCAL):
            return None
    if "://" in address:
        raise UserError(f"{expected}; start this command on the cluster's head")
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(expected)
    return host, int(port)


def _probe(address: str) -> None:
    """Raise UserError within a few seconds if no server like Ray's listens at an address.

    Ray itself would try for minutes.
    """
    server = endpoint(address)
    if server is None:
        return

    def greet() -> bytes:
        with socket.create_connection(server, timeout=PROBE_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return bytes([0, 0, 0, SETTINGS])
            connection.sendall(PREFACE + _grpc_call(address))
            with connection.makefile("rb") as stream:
                return _answer(stream)

    try:
        # the limit is for the lookup of the host's name, which has no timeout
        answer = _within(2 * PROBE_SECONDS, greet)
    except (OSError, Late) as error:
        reason = in_line(error) or f"no answer in {PROBE_SECONDS} seconds"
        raise UserError(
            f"ray_address: no Ray cluster answers at {address}: {reason}; "
            "start one by ray start --head, or leave ray_address out"
        ) from None
    if answer[3:4] != bytes([SETTINGS]):
        raise UserError(f"ray_address: what answers at {address} is no Ray cluster")


def _grpc_call(authority: str) -> bytes:
    """The frames of a gRPC call without a message. A server need not know the method."""

    def text(words: str) -> bytes:
        return bytes([len(words[:126])]) + words[:126].encode("ascii", errors="replace")

    # HPACK (RFC 7541): two indexed fields, two literals with indexed names, one with a literal name
    fields = b"\x83\x86\x04" + text("/ray.rpc.NodeInfoGcsService/GetClusterId")
    fields += b"\x01" + text(authority) + b"\x0f\x10" + text("application/grpc")
    fields += b"\x00" + text("te") + text("trailers")
    return _frame(HEADERS, 0x4, fields) + _frame(DATA, 0x1, bytes(5))


def _frame(kind: int, flags: int, content: bytes) -> bytes:
    """An HTTP/2 frame of the first stream."""
    return len(content).to_bytes(3, "big") + bytes([kind, flags, 0, 0, 0, 1]) + content


def _answer(stream: BinaryIO) -> bytes:
    """The head of a server's first frame; empty if the server does not speak gRPC.

    A gRPC server answers every call with status 200, and reports errors in later frames. An answer
    that is unreadable or late is accepted here; Ray then decides.
    """
    first = head = stream.read(9)
    if head[3:4] != bytes([SETTINGS]):
        return first
    try:
        while len(head) == 9 and head[3] != HEADERS:
            stream.read(int.from_bytes(head[:3], "big"))
            head = stream.read(9)
        status = stream.read(1) if len(head) == 9 and not head[4] & 0x28 else b""
    except OSError:
        return first
    return b"" if status and status[0] in REFUSALS else first


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Return or raise what a call does.

    Raises `Late` when the time is over; the call then goes on in its thread.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future.result(seconds)


def _connect(cluster: Cluster) -> None:
    """Start Ray on this machine, or connect to a cluster.

    Raises UserError if the cluster does not answer.
    """
    import ray

    if cluster.address in LOCAL:
        # not in another thread: Ray's processes end with the thread that started them
        ray.init(
            address="local",
            include_dashboard=cluster.dashboard,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        return

    def connect() -> None:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)

    try:
        _within(CONNECT_SECONDS, connect)
    except (ConnectionError, RuntimeError, ValueError, Late) as error:
        reason = in_line(error) or f"no connection in {CONNECT_SECONDS} seconds"
        raise UserError(
            f"ray_address: no Ray cluster answers at {cluster.address}: {reason}"
        ) from None


@contextmanager
def connected(cluster: Cluster) -> Iterator[dict[str, float]]:
    """Connect to Ray for the length of a block, unless the caller is connected already.

    Parameters
    ----------
    cluster : Cluster
        Where the tasks run.

    Yields
    ------
    dict of str to float
        The resources of one task, `cpu` and `gpu`.

    Raises
    ------
    UserError
        If no cluster answers, or no machine has the resources of one task.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if cluster.address not in LOCAL and not _running():
        # before Ray is imported, which takes seconds
        _probe(cluster.address)
    import ray

    # it would print a whole traceback for each attempt
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    connects = not ray.is_initialized()
    if connects:
        _connect(cluster)
    try:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield {"cpu": cluster.cpus, "gpu": _check_resources(cluster, machines)}
    finally:
        if connects:
            ray.shutdown()


def trials(
    trainable: Any,
    name: str,
    values: Sequence,
    callback: Any,
    failures: int = ATTEMPTS - 1,
    **options: Any,
) -> Any:
    """Run one trial of Ray Tune for each value.

    Parameters
    ----------
    trainable : callable or type
        A trainable of Ray Tune. It finds its value as the only entry of its config.
    name : str
        Name of that entry.
    values : sequence
        The values.
    callback : ray.tune.Callback
        As `reporter` makes it.
    failures : int
        Number of failures after which a trial is not tried again.
    **options
        Further arguments of ray.tune.TuneConfig.

    Returns
    -------
    ray.tune.ResultGrid
        The results of all trials.
    """
    from ray import tune

    # only a class takes this option
    checkpoint_at_end = False if isinstance(trainable, type) else None
    with tempfile.TemporaryDirectory() as scratch:
        tuner = tune.Tuner(
            trainable,
            param_space={name: tune.grid_search(list(values))},
            tune_config=tune.TuneConfig(**options),
            run_config=tune.RunConfig(
                name=name,
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=failures),
                verbose=0,
                callbacks=[callback],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=checkpoint_at_end),
            ),
        )
        return tuner.fit()


def trial_value(space: dict) -> Any:
    """Return the value that a trial was started for, the only entry of its config."""
    (value,) = space.values()
    return value


def reporter(
    ended: Callable[[Any, dict | None, str | None], None],
    again: Callable[[Any, str], None] = lambda value, error: None,
) -> Any:
    """Make a callback of Ray Tune that reports trials as they end.

    Parameters
    ----------
    ended : callable
        Called for each trial that has ended, with its value, its last result and its error. One of
        result and error is None.
    again : callable
        Called for each trial that failed and is tried again, with its value and the error.

    Returns
    -------
    ray.tune.Callback
        The callback.
    """
    from ray import tune

    def error_of(trial: Any) -> str:
        return in_line(trial.get_error() or "its process died")

    class Reporter(tune.Callback):
        def __init__(self, ended: Any = None, again: Any = None):
            self.ended, self.again = ended, again

        def __getstate__(self) -> dict:
            # Ray stores callbacks, and the functions of this one cannot be stored
            return {}

        def on_trial_complete(self, iteration, trials, trial, **info):
            self.ended(trial_value(trial.config), trial.last_result, None)

        def on_trial_recover(self, iteration, trials, trial, **info):
            self.again(trial_value(trial.config), error_of(trial))

        def on_trial_error(self, iteration, trials, trial, **info):
            self.ended(trial_value(trial.config), None, error_of(trial))

    return Reporter(ended, again)


def in_line(error: object) -> str:
    """Put the end of an error's message on one line."""
    return " ".join(str(error).split())[-300:]
