"""Ray: one on this machine that ends with the work, or a cluster that runs already."""

import logging
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

ATTEMPTS = 3  # of a piece of work, before it is left and reported
# Lost processes are no fault of the work: until Ray knows that a machine is gone, it may hand a
# piece of work to the machine's dead processes several times.
DEATHS = 6
PROBE_SECONDS, CONNECT_SECONDS = 3, 60  # a server that is there answers; Ray connects to it
LOCAL = (None, "", "local")  # addresses that stand for a Ray on this machine
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
DATA, HEADERS, SETTINGS = 0, 1, 4  # types of HTTP/2 frames; a server answers a preface by SETTINGS
REFUSALS = range(0x89, 0x8F)  # the first byte of headers with a status such as 404, and not 200


@dataclass(frozen=True)
class Cluster:
    """Where work is done in parallel.

    address : of a running Ray cluster; None starts one on this machine. cpus, gpus : of one piece of work; gpus may be a fraction, and is by default 1
    where there are any. dashboard : Ray's, on this machine alone. keys : the settings that cpus and gpus come from.
    """

    address: str | None = None
    cpus: float = 1
    gpus: float | None = None
    dashboard: bool = False
    keys: tuple[str, str] = ("unit_cpus", "unit_gpus")


def has_ray() -> bool:
    from importlib.util import find_spec

    return find_spec("ray") is not None and find_spec("ray.tune") is not None


def need_ray(key: str) -> None:
    """Raise UserError, naming the setting that asks for it, where there is no Ray."""
    if not has_ray():
        raise UserError(f'{key}: ray is not installed: pip install "recbole_llm[ray]"')


def check(cluster: Cluster) -> None:
    """Raise UserError, within seconds, for what Ray cannot give; called before anything is trained.

    Raises
    ------
    UserError : for an address where no Ray answers, and for work that asks for more than any machine has.
    """
    if cluster.address in LOCAL and not _running():
        import torch

        machine = {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}
        _check_resources(cluster, [machine])
        return
    with connected(cluster):
        pass


def _running() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _check_resources(cluster: Cluster, machines: Sequence[dict[str, float]]) -> float:
    """The GPUs of one piece of work. Raises UserError where no machine has what it asks for."""
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
        f"found {there}; "
        f"lower {' or '.join(f'--{key}' for key in cluster.keys)}"
    )


def endpoint(address: str) -> tuple[str, int] | None:
    """Host and port of a cluster's address; None where Ray itself looks for the cluster on this machine.

    Raises
    ------
    UserError : for what is no address.
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
    """Raise UserError, in about PROBE_SECONDS, where no server of Ray's kind listens: Ray would try for minutes."""
    found = endpoint(address)
    if found is None:
        return

    def greet() -> bytes:
        with socket.create_connection(found, timeout=PROBE_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return bytes([0, 0, 0, SETTINGS])
            connection.sendall(PREFACE + _grpc_call(address))
            with connection.makefile("rb") as stream:
                return _answer(stream)

    try:
        answer = _within(2 * PROBE_SECONDS, greet)  # the name's lookup has no timeout of its own
    except (OSError, Late) as error:
        reason = in_line(error) or f"no answer in {PROBE_SECONDS} seconds"
        raise UserError(
            f"ray_address: no Ray cluster answers at {address}: {reason}; "
            "start one by ray start --head, or leave ray_address out"
        ) from None
    if answer[3:4] != bytes([SETTINGS]):
        raise UserError(f"ray_address: what answers at {address} is no Ray cluster")


def _grpc_call(authority: str) -> bytes:
    """The frames of a gRPC call without a message, of a method that no server has to have."""

    def text(words: str) -> bytes:
        return bytes([len(words[:126])]) + words[:126].encode("ascii", errors="replace")

    # HPACK (RFC 7541): two indexed fields, then literals by the index of their name, or with one
    fields = b"\x83\x86\x04" + text("/ray.rpc.NodeInfoGcsService/GetClusterId")
    fields += b"\x01" + text(authority) + b"\x0f\x10" + text("application/grpc")
    fields += b"\x00" + text("te") + text("trailers")
    return _frame(HEADERS, 0x4, fields) + _frame(DATA, 0x1, bytes(5))


def _frame(kind: int, flags: int, content: bytes) -> bytes:
    """An HTTP/2 frame of the first stream."""
    return len(content).to_bytes(3, "big") + bytes([kind, flags, 0, 0, 0, 1]) + content


def _answer(stream) -> bytes:
    """The head of a server's first frame; empty if its answer to the call says that it is no gRPC.

    A gRPC server answers any call with status 200, and tells of errors behind it. What cannot be
    read, or does not come in time, is left to Ray.
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


def _within(seconds: float, call: Callable):
    """What a call returns or raises. Raises `Late` after so many seconds, and leaves the call to itself."""
    future: Future = Future()

    def work():
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future.result(seconds)


def _connect(cluster: Cluster) -> None:
    """Start Ray on this machine, or connect to a running cluster. Raises UserError if that does not answer."""
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if cluster.address in LOCAL:
        # not in a thread of its own: Ray's processes end with the thread that has started them
        ray.init(
            address="local",
            include_dashboard=cluster.dashboard,
            dashboard_host="127.0.0.1",
            **quiet,
        )
        return
    try:
        _within(CONNECT_SECONDS, lambda: ray.init(address=cluster.address, **quiet))
    except (ConnectionError, RuntimeError, ValueError, Late) as error:
        reason = in_line(error) or f"no connection in {CONNECT_SECONDS} seconds"
        raise UserError(
            f"ray_address: no Ray cluster answers at {cluster.address}: {reason}"
        ) from None


@contextmanager
def connected(cluster: Cluster):
    """Within it there is a Ray, the caller's own if it has one. Gives the resources of one piece of work.

    Raises
    ------
    UserError : if no cluster answers, or none of its machines has what one piece of work asks for.
    """
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1"
    )  # work that asks for no GPU sees none
    os.environ.setdefault(
        "TUNE_DISABLE_SIGINT_HANDLER", "1"
    )  # Ctrl-C ends the command, and not its trials one by one
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one talks whatever `verbose` says
    os.environ.setdefault(
        "RAY_CHDIR_TO_TRIAL_DIR", "0"
    )  # relative paths of settings mean what they mean here
    if cluster.address not in LOCAL and not _running():
        _probe(cluster.address)  # before Ray is imported, which takes seconds
    import ray

    logging.getLogger("ray.tune").setLevel(
        logging.CRITICAL
    )  # it would print the whole trace of every attempt
    own = not ray.is_initialized()
    if own:
        _connect(cluster)
    try:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield {"cpu": cluster.cpus, "gpu": _check_resources(cluster, machines)}
    finally:
        if own:
            ray.shutdown()


def trials(trainable, name: str, values: Sequence, callback, failures=ATTEMPTS - 1, **how):
    """Run one trial of Ray Tune for each value.

    Parameters
    ----------
    trainable : Finds its value as the only entry of its config.
    name : Name of that entry.
    values : A value for each trial.
    callback : A tune.Callback.
    failures : How many times a trial may fail and is tried again.
    how : More of tune.TuneConfig.

    Returns
    -------
    Ray Tune's results.
    """
    from ray import tune

    with tempfile.TemporaryDirectory() as scratch:
        tuner = tune.Tuner(
            trainable, param_space={name: tune.grid_search(list(values))}, tune_config=tune.TuneConfig(**how),
            run_config=tune.RunConfig(
                name=name, storage_path=scratch, failure_config=tune.FailureConfig(max_failures=failures), verbose=0, callbacks=[callback],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False if isinstance(trainable, type) else None),
            ),
        )  # fmt: skip
        return tuner.fit()


def asked(space: dict):
    """The value that a trial is about."""
    (value,) = space.values()
    return value


def teller(
    ended: Callable[[object, dict | None, str | None], None],
    again: Callable[[object, str], None] = lambda value, error: None,
):
    """A tune.Callback that tells of each trial that has come to its end: its value, and its last result or its error.

    again : told of each trial that failed and is tried again: its value and the error.
    """
    from ray import tune

    class Teller(tune.Callback):
        def __init__(self, ended=None, again=None):
            self.ended, self.again = ended, again

        def __getstate__(self):
            return {}  # Ray stores callbacks, and this one holds what cannot be stored

        def on_trial_complete(self, iteration, trials, trial, **info):
            self.ended(asked(trial.config), trial.last_result, None)

        def on_trial_recover(self, iteration, trials, trial, **info):
            self.again(asked(trial.config), in_line(trial.get_error() or "its process died"))

        def on_trial_error(self, iteration, trials, trial, **info):
            self.ended(asked(trial.config), None, in_line(trial.get_error() or "its process died"))

    return Teller(ended, again)


def in_line(error: object) -> str:
    return " ".join(str(error).split())[-300:]
