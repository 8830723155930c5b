"""Ray: one on this machine that ends with the work, or a cluster that runs already."""

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from .errors import UserError

ATTEMPTS = 3  # of a piece of work, before it is left and reported


@dataclass(frozen=True)
class Cluster:
    """Where work is done in parallel.

    address : of a running Ray cluster; None starts one on this machine. cpus, gpus : of one piece of work; gpus may be a fraction, and is by default 1
    where there are any. dashboard : Ray's, on this machine alone.
    """

    address: str | None = None
    cpus: float = 1
    gpus: float | None = None
    dashboard: bool = False


def has_ray() -> bool:
    from importlib.util import find_spec

    return find_spec("ray") is not None and find_spec("ray.tune") is not None


def need_ray(key: str) -> None:
    """Raise UserError, naming the setting that asks for it, where there is no Ray."""
    if not has_ray():
        raise UserError(f"{key}: ray is not installed; pip install 'ray[tune]'")


@contextmanager
def connected(cluster: Cluster):
    """Within it there is a Ray, the caller's own if it has one. Gives the resources of one piece of work.

    Raises
    ------
    UserError : if no cluster answers, or none of its machines has what one piece of work asks for.
    """
    if (cluster.address or "").startswith("ray://"):
        raise UserError(
            f"ray_address: expected HOST:PORT of a cluster that this machine belongs to, found {cluster.address}; start this command on its head"
        )
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
    import ray

    logging.getLogger("ray.tune").setLevel(
        logging.CRITICAL
    )  # it would print the whole trace of every attempt
    own = not ray.is_initialized()
    if own:
        try:
            ray.init(
                address=cluster.address or "local", include_dashboard=cluster.dashboard if cluster.address is None else None, dashboard_host="127.0.0.1",
                log_to_driver=False, logging_level=logging.ERROR,
            )  # fmt: skip
        except (ConnectionError, ValueError) as error:
            raise UserError(
                f"ray_address: no Ray cluster answers at {cluster.address}: {in_line(error)}"
            ) from None
    try:
        gpus = float("GPU" in ray.cluster_resources()) if cluster.gpus is None else cluster.gpus
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(
            machine.get("CPU", 0) >= cluster.cpus and machine.get("GPU", 0) >= gpus
            for machine in machines
        ):
            there = "; ".join(
                f"{machine.get('CPU', 0):g} cores and {machine.get('GPU', 0):g} GPUs"
                for machine in machines
            )
            raise UserError(
                f"expected a machine with {cluster.cpus:g} cores and {gpus:g} GPUs for each piece of work, found {there}; ask for less"
            )
        yield {"cpu": cluster.cpus, "gpu": gpus}
    finally:
        if own:
            ray.shutdown()


def trials(trainable, name: str, values: Sequence, callback, **how):
    """Ray Tune's results of one trial for each value, which the trainable finds as the only entry of its config. A trial that fails is tried again.

    callback : a tune.Callback. how : more of tune.TuneConfig.
    """
    from ray import tune

    with tempfile.TemporaryDirectory() as scratch:
        tuner = tune.Tuner(
            trainable, param_space={name: tune.grid_search(list(values))}, tune_config=tune.TuneConfig(**how),
            run_config=tune.RunConfig(
                name=name, storage_path=scratch, failure_config=tune.FailureConfig(max_failures=ATTEMPTS - 1), verbose=0, callbacks=[callback],
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
