"""Units done one after another in this process, or in parallel by Ray Tune on this machine or a cluster: the same function, the same files."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...errors import described
from ...storage.files import storage_fault
from ...storage.screen import say
from ..ray_cluster import ATTEMPTS, DEATHS, Cluster, asked, connected, teller, trials
from .adapter_training import Frozen
from .work_units import Unit, done, keep, work

RELAY_SECONDS = 5.0  # between two looks at what workers have said
MOST_FAILURES = ATTEMPTS + DEATHS  # of a unit on Ray, those of its work and lost processes together


def run(
    frozen: Frozen,
    units: Sequence[Unit],
    folder: Path,
    cluster: Cluster | None,
    told: Callable[[str], None] = say,
) -> dict[str, str]:
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
    progress = Progress(missing, told)
    return (
        _here(frozen, missing, folder, progress)
        if cluster is None
        else _on_ray(frozen, missing, folder, cluster, progress)
    )


class Progress:
    """Tells of each unit that begins or has come to its end, and how long the others are going to take."""

    def __init__(self, units: Sequence[Unit], told: Callable[[str], None]):
        self.cost, self.told, self.started, self.done = (
            {unit.name: unit.cost for unit in units},
            told,
            time.perf_counter(),
            [],
        )

    def begun(self, unit: str) -> None:
        place = list(self.cost).index(unit) + 1
        self.told(f"starting unit {unit} ({place} of {len(self.cost)})")

    def again(self, unit: str, error: str) -> None:
        self.told(f"starting unit {unit} again, since its process ended with: {error}")

    def ended(self, unit: str, error: str | None = None, attempts: int = ATTEMPTS) -> None:
        self.done.append(unit)
        spent, past = time.perf_counter() - self.started, sum(self.cost[one] for one in self.done)
        left = spent / past * (sum(self.cost.values()) - past) / 60
        what = "is done" if error is None else f"failed in {attempts} attempts: {error}"
        self.told(
            f"unit {unit} {what} ({len(self.done)} of {len(self.cost)}, about {left:.0f} minutes "
            "left)"
        )


def _here(
    frozen: Frozen, units: Sequence[Unit], folder: Path, progress: Progress
) -> dict[str, str]:
    failed = {}
    for unit in units:
        progress.begun(unit.name)
        for attempt in range(ATTEMPTS):
            try:
                keep(folder, unit.name, work(frozen, unit, progress.told))
                progress.ended(unit.name)
                break
            # whatever it is, the others go on, unless their disk is full
            except Exception as error:
                if storage_fault(error):
                    raise
                if attempt + 1 == ATTEMPTS:
                    failed[unit.name] = described(error)
                    progress.ended(unit.name, failed[unit.name])
    return failed


def _on_ray(
    frozen: Frozen, units: Sequence[Unit], folder: Path, cluster: Cluster, progress: Progress
) -> dict[str, str]:
    """One trial for each unit. What all of them read is put into the object store once; an actor on this machine writes what they send."""
    progress.told(f"starting Ray for {len(units)} units")
    with connected(cluster) as resources:
        import ray
        from ray import tune
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        by_name = {unit.name: unit for unit in units}
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        keeper = (
            ray.remote(num_cpus=0)(Keeper)
            .options(scheduling_strategy=here)
            .remote(str(folder.absolute()))
        )
        frozen.bundle.model.to("cpu")  # what a machine without a GPU can read
        trainable = tune.with_resources(
            tune.with_parameters(_trainable(), frozen=frozen, units=by_name, keeper=keeper),
            resources,
        )

        failures, lost, errors = Counter(), set(), {}

        def again(unit: str, error: str) -> None:
            failures[unit] += 1
            progress.again(unit, error)

        def ended(unit: str, result: dict | None, died: str | None) -> None:
            if died is not None and failures[unit] + 1 < MOST_FAILURES:
                failures[unit] += 1
                lost.add(unit)
                return
            errors[unit] = died or result.get("failed")
            progress.ended(unit, errors[unit], ATTEMPTS if died is None else MOST_FAILURES)

        callback = teller(ended, again)
        with _relayed(keeper, progress.told):
            names = list(by_name)
            # Tune gives up a unit that it hands to a process which is gone already, the first
            # time it happens and however many failures it may have: Tune is asked once more.
            while names:
                lost.clear()
                trials(trainable, "unit", names, callback, MOST_FAILURES - 1, reuse_actors=True)
                names = [name for name in by_name if name in lost]
        return {name: errors.get(name) or "no result" for name in by_name if not done(folder, name)}


@contextmanager
def _relayed(keeper, told: Callable[[str], None]):
    """Within it, what workers say through the keeper is told here."""
    import ray

    ended = threading.Event()

    def relay() -> None:
        last = False
        while not last:
            last = ended.wait(RELAY_SECONDS)
            try:
                for line in ray.get(keeper.said.remote()):
                    told(line)
            except ray.exceptions.RayError:  # the cluster is gone, which the units' errors say
                return

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(RELAY_SECONDS)


class Keeper:
    """Writes what units send into a folder of the machine that asked for them, and holds what they say until it is asked for."""

    def __init__(self, folder: str):
        self.folder, self.lines = Path(folder), []
        self.attempts = Counter()

    def say(self, line: str) -> None:
        self.lines.append(line)

    def said(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines

    def keep(self, unit: str, files: dict[str, bytes]) -> None:
        keep(self.folder, unit, files)

    def attempted(self, unit: str) -> int:
        """Count a failure of a unit's work, whichever process it was in. Returns how many."""
        self.attempts[unit] += 1
        return self.attempts[unit]


def _trainable() -> type:
    from ray import tune

    class Units(tune.Trainable):
        """A process that does one unit after another."""

        def setup(self, config, frozen, units, keeper):
            import ray
            import torch

            torch.set_num_threads(
                max(1, int(self.trial_resources.required_resources.get("CPU", 1)))
            )
            if ray.get_gpu_ids():
                frozen.bundle.model.to("cuda")
            self.frozen, self.units, self.keeper, self.unit = frozen, units, keeper, asked(config)

        def reset_config(self, new_config):
            self.unit = asked(new_config)
            return True

        def step(self):
            import ray

            say = self.keeper.say.remote
            say(f"starting unit {self.unit}")
            try:
                files = work(self.frozen, self.units[self.unit], say)
                ray.get(self.keeper.keep.remote(self.unit, files))
            except Exception as error:
                if ray.get(self.keeper.attempted.remote(self.unit)) < ATTEMPTS:
                    raise  # the next attempt has a process of its own
                return {"done": True, "failed": described(error)}
            return {"done": True, "failed": None}

    return Units
