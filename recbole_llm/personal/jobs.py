"""Units done one after another in this process, or in parallel by Ray Tune on this machine or a cluster: the same function, the same files."""

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .training import Frozen
from .units import Unit, done, keep, work

ATTEMPTS = 3  # of a unit, before it is left and reported


@dataclass(frozen=True)
class Cluster:
    """Where units are done in parallel.

    address : of a running Ray cluster; None starts one on this machine, which ends with the work. cpus, gpus : of one unit; gpus may be a fraction.
    dashboard : Ray's, on this machine alone.
    """

    address: str | None = None
    cpus: float = 1
    gpus: float = 0
    dashboard: bool = False


def run(frozen: Frozen, units: Sequence[Unit], folder: Path, cluster: Cluster | None, told: Callable[[str], None] = print) -> dict[str, str]:
    """Do what is not there yet, and write each unit's files as soon as it is done, so that a killed run goes on with the others.

    Parameters
    ----------
    cluster : None does them here, one after another.

    Returns
    -------
    name -> error of units that failed in three attempts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [unit for unit in units if not done(folder, unit.name)]
    if missing and len(missing) < len(units):
        told(f"units: {len(units) - len(missing)} of {len(units)} are there already")
    if not missing:
        return {}
    return _here(frozen, missing, folder, told) if cluster is None else _on_ray(frozen, missing, folder, cluster, told)


def _here(frozen: Frozen, units: Sequence[Unit], folder: Path, told: Callable[[str], None]) -> dict[str, str]:
    failed = {}
    for number, unit in enumerate(units, start=1):
        for attempt in range(ATTEMPTS):
            try:
                keep(folder, unit.name, work(frozen, unit))
                told(f"unit {unit.name} is done ({number} of {len(units)})")
                break
            except Exception as error:  # whatever it is, the others go on
                if attempt + 1 == ATTEMPTS:
                    failed[unit.name] = _in_line(error)
                    told(f"unit {unit.name} failed in {ATTEMPTS} attempts: {failed[unit.name]}")
    return failed


def _on_ray(frozen: Frozen, units: Sequence[Unit], folder: Path, cluster: Cluster, told: Callable[[str], None]) -> dict[str, str]:
    """One trial for each unit. What all of them read is put into the object store once; an actor on this machine writes what they send."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a unit without a GPU sees none, as Ray is going to have it
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one talks whatever `verbose` says
    import ray
    from ray import tune
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it would print the whole trace of every attempt
    own = not ray.is_initialized()
    if own:
        _connect(cluster)
    try:
        by_name = {unit.name: unit for unit in units}
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        keeper = ray.remote(num_cpus=0)(Keeper).options(scheduling_strategy=here).remote(str(folder.absolute()))
        trainable = tune.with_resources(
            tune.with_parameters(_trainable(), frozen=frozen, units=by_name, keeper=keeper), {"cpu": cluster.cpus, "gpu": cluster.gpus}
        )
        with tempfile.TemporaryDirectory() as scratch:
            tuner = tune.Tuner(
                trainable, param_space={"unit": tune.grid_search(list(by_name))}, tune_config=tune.TuneConfig(reuse_actors=True),
                run_config=tune.RunConfig(
                    name="units", storage_path=scratch, failure_config=tune.FailureConfig(max_failures=ATTEMPTS - 1), verbose=0,
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False), callbacks=[_teller(told, len(units))],
                ),
            )  # fmt: skip
            results = tuner.fit()
        errors = {_asked(result.config): result.error for result in results if result.config and result.error}
        return {name: _in_line(errors.get(name) or "no result") for name in by_name if not done(folder, name)}
    finally:
        if own:
            ray.shutdown()


def _connect(cluster: Cluster) -> None:
    import ray

    try:
        ray.init(
            address=cluster.address or "local", include_dashboard=cluster.dashboard if cluster.address is None else None, dashboard_host="127.0.0.1",
            log_to_driver=False, logging_level=logging.ERROR,
        )  # fmt: skip
    except (ConnectionError, ValueError) as error:
        raise UserError(f"ray_address: no Ray cluster answers at {cluster.address}: {_in_line(error)}") from None


class Keeper:
    """Writes what units send into a folder of the machine that asked for them."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def keep(self, unit: str, files: dict[str, bytes]) -> None:
        keep(self.folder, unit, files)


def _trainable() -> type:
    from ray import tune

    class Units(tune.Trainable):
        """A process that does one unit after another."""

        def setup(self, config, frozen, units, keeper):
            import ray
            import torch

            torch.set_num_threads(max(1, int(self.trial_resources.required_resources.get("CPU", 1))))
            if ray.get_gpu_ids():
                frozen.bundle.model.to("cuda")
            self.frozen, self.units, self.keeper, self.unit = frozen, units, keeper, _asked(config)

        def reset_config(self, new_config):
            self.unit = _asked(new_config)
            return True

        def step(self):
            import ray

            ray.get(self.keeper.keep.remote(self.unit, work(self.frozen, self.units[self.unit])))
            return {"done": True}

    return Units


def _teller(told: Callable[[str], None], count: int):
    from ray import tune

    class Teller(tune.Callback):
        """A line for each unit that has come to its end."""

        ended = 0

        def on_trial_complete(self, iteration, trials, trial, **info):
            self.ended += 1
            told(f"unit {_asked(trial.config)} is done ({self.ended} of {count})")

        def on_trial_error(self, iteration, trials, trial, **info):
            told(f"unit {_asked(trial.config)} failed in {ATTEMPTS} attempts")

    return Teller()


def _asked(space: dict) -> str:
    """The unit that a trial is about: its search space has no other dimension."""
    (unit,) = space.values()
    return unit


def _in_line(error: object) -> str:
    return " ".join(str(error).split())[-300:]
