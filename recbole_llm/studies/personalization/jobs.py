"""Do units one after another in this process, or in parallel by Ray Tune.

Both ways call the same function and write the same files.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import described
from ...storage.files import storage_fault
from ...storage.screen import say
from ..ray_cluster import ATTEMPTS, DEATHS, Cluster, connected, reporter, trial_value, trials
from .adapter_training import Frozen
from .work_units import Unit, done, keep, work

RELAY_SECONDS = 5.0  # between two queries for the workers' messages
MOST_FAILURES = ATTEMPTS + DEATHS  # of a unit on Ray, counting errors and lost processes


def run(
    frozen: Frozen,
    units: Sequence[Unit],
    folder: Path,
    cluster: Cluster | None,
    say: Callable[[str], None] = say,
) -> dict[str, str]:
    """Do the units that are not done yet.

    The files of a unit are written when it ends, so that a killed run can be continued.

    Parameters
    ----------
    frozen : Frozen
        The frozen model and the texts.
    units : sequence of Unit
        The units.
    folder : Path
        Folder of the run.
    cluster : Cluster or None
        Where units are done in parallel; None does them in this process, one after another.
    say : callable
        Prints a line.

    Returns
    -------
    dict of str to str
        Name -> error of each unit that failed in all attempts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [unit for unit in units if not done(folder, unit.name)]
    if missing and len(missing) < len(units):
        say(f"units: {len(units) - len(missing)} of {len(units)} are there already")
    if not missing:
        return {}
    progress = Progress(missing, say)
    if cluster is None:
        return _here(frozen, missing, folder, progress)
    return _on_ray(frozen, missing, folder, cluster, progress)


class Progress:
    """Reports units as they start and end, with an estimate of the remaining time.

    Parameters
    ----------
    units : sequence of Unit
        The units to be done.
    say : callable
        Prints a line.
    """

    def __init__(self, units: Sequence[Unit], say: Callable[[str], None]):
        self.cost, self.say = {unit.name: unit.cost for unit in units}, say
        self.started = time.perf_counter()
        self.done: list[str] = []

    def begun(self, unit: str) -> None:
        """Report that a unit starts."""
        place = list(self.cost).index(unit) + 1
        self.say(f"starting unit {unit} ({place} of {len(self.cost)})")

    def again(self, unit: str, error: str) -> None:
        """Report that a unit is tried again."""
        self.say(f"starting unit {unit} again, since its process ended with: {error}")

    def ended(self, unit: str, error: str | None = None, attempts: int = ATTEMPTS) -> None:
        """Report that a unit is done or has failed."""
        self.done.append(unit)
        seconds = time.perf_counter() - self.started
        past = sum(self.cost[name] for name in self.done)
        minutes = seconds / past * (sum(self.cost.values()) - past) / 60
        outcome = "is done" if error is None else f"failed in {attempts} attempts: {error}"
        self.say(
            f"unit {unit} {outcome} ({len(self.done)} of {len(self.cost)}, about {minutes:.0f} "
            "minutes left)"
        )


def _here(
    frozen: Frozen, units: Sequence[Unit], folder: Path, progress: Progress
) -> dict[str, str]:
    """Do units in this process. Returns the errors of those that failed, by name."""
    errors: dict[str, str] = {}
    for unit in units:
        progress.begun(unit.name)
        for attempt in range(ATTEMPTS):
            try:
                keep(folder, unit.name, work(frozen, unit, progress.say))
                progress.ended(unit.name)
                break
            # the other units are done after any error, unless the disk is full
            except Exception as error:
                if storage_fault(error):
                    raise
                if attempt + 1 == ATTEMPTS:
                    errors[unit.name] = described(error)
                    progress.ended(unit.name, errors[unit.name])
    return errors


def _on_ray(
    frozen: Frozen, units: Sequence[Unit], folder: Path, cluster: Cluster, progress: Progress
) -> dict[str, str]:
    """Do each unit as a trial of Ray Tune. Returns the errors of those that failed, by name.

    The frozen model is put into Ray's object store once. An actor on this machine writes the files
    that the trials send.
    """
    progress.say(f"starting Ray for {len(units)} units")
    with connected(cluster) as resources:
        import ray
        from ray import tune
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        by_name = {unit.name: unit for unit in units}
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        keepers = ray.remote(num_cpus=0)(Keeper).options(scheduling_strategy=here)
        keeper = keepers.remote(str(folder.absolute()))
        # a machine without a GPU cannot read a model that is on one
        frozen.bundle.model.to("cpu")
        trainable = tune.with_resources(
            tune.with_parameters(_trainable(), frozen=frozen, units=by_name, keeper=keeper),
            resources,
        )
        outcomes = _Outcomes(progress)
        callback = reporter(outcomes.ended, outcomes.again)
        with _relayed(keeper, progress.say):
            names = list(by_name)
            # Tune gives up a unit at once, whatever its number of failures may be, if it hands it
            # to a process that has just died. Such units are given to Tune again.
            while names:
                outcomes.lost.clear()
                trials(trainable, "unit", names, callback, MOST_FAILURES - 1, reuse_actors=True)
                names = [name for name in by_name if name in outcomes.lost]
        failed = [name for name in by_name if not done(folder, name)]
        return {name: outcomes.errors.get(name) or "no result" for name in failed}


class _Outcomes:
    """How the trials of units have ended.

    Attributes
    ----------
    failures : Counter of str
        Number of failures of each unit.
    lost : set of str
        Units that are to be given to Tune again.
    errors : dict of str to str or None
        Error of each unit that has ended; None if it is done.
    """

    def __init__(self, progress: Progress):
        self.progress = progress
        self.failures: Counter[str] = Counter()
        self.lost: set[str] = set()
        self.errors: dict[str, str | None] = {}

    def again(self, unit: str, error: str) -> None:
        """Count a failure after which Tune tries the unit again."""
        self.failures[unit] += 1
        self.progress.again(unit, error)

    def ended(self, unit: str, result: dict | None, died: str | None) -> None:
        """Record the end of a trial: its last result, or how its process died."""
        if died is not None and self.failures[unit] + 1 < MOST_FAILURES:
            self.failures[unit] += 1
            self.lost.add(unit)
            return
        self.errors[unit] = died or (result or {}).get("failed")
        attempts = ATTEMPTS if died is None else MOST_FAILURES
        self.progress.ended(unit, self.errors[unit], attempts)


@contextmanager
def _relayed(keeper: Any, say: Callable[[str], None]) -> Iterator[None]:
    """Print the workers' messages, which the keeper collects, for the length of a block."""
    import ray

    ended = threading.Event()

    def relay() -> None:
        last = False
        while not last:
            last = ended.wait(RELAY_SECONDS)
            try:
                for line in ray.get(keeper.said.remote()):
                    say(line)
            except ray.exceptions.RayError:
                # the cluster is gone, as the errors of the units say
                return

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(RELAY_SECONDS)


class Keeper:
    """An actor of Ray's on this machine, which writes the units' files and collects messages.

    Parameters
    ----------
    folder : str
        Folder of the run.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.lines: list[str] = []
        self.attempts: Counter[str] = Counter()

    def say(self, line: str) -> None:
        """Add a message."""
        self.lines.append(line)

    def said(self) -> list[str]:
        """Return the messages since the last call."""
        lines, self.lines = self.lines, []
        return lines

    def keep(self, unit: str, files: dict[str, bytes]) -> None:
        """Write the files of a unit."""
        keep(self.folder, unit, files)

    def attempted(self, unit: str) -> int:
        """Count an error of a unit, in whatever process. Returns their number."""
        self.attempts[unit] += 1
        return self.attempts[unit]


def _trainable() -> type:
    """A class trainable of Ray Tune, which is made here because its base needs Ray."""
    from ray import tune

    class Units(tune.Trainable):
        """A process that does one unit after another."""

        def setup(
            self, config: dict, frozen: Any = None, units: Any = None, keeper: Any = None
        ) -> None:
            import ray
            import torch

            resources = self.trial_resources
            cores = resources.required_resources.get("CPU", 1) if resources else 1
            torch.set_num_threads(max(1, int(cores)))
            if ray.get_gpu_ids():
                frozen.bundle.model.to("cuda")
            self.frozen, self.units, self.keeper = frozen, units, keeper
            self.unit = trial_value(config)

        def reset_config(self, new_config: dict) -> bool:
            self.unit = trial_value(new_config)
            return True

        def step(self) -> dict:
            import ray

            send = self.keeper.say.remote
            send(f"starting unit {self.unit}")
            try:
                files = work(self.frozen, self.units[self.unit], send)
                ray.get(self.keeper.keep.remote(self.unit, files))
            except Exception as error:
                if ray.get(self.keeper.attempted.remote(self.unit)) < ATTEMPTS:
                    # the next attempt gets a new process
                    raise
                return {"done": True, "failed": described(error)}
            return {"done": True, "failed": None}

    return Units
