"""Units of work run here or on Ray, once each, whatever fails."""

import copy
import json
import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from test_stacked import RECIPE, learners_of, world  # noqa: F401

from recbole_llm.errors import UserError
from recbole_llm.studies.personalization import jobs
from recbole_llm.studies.personalization.adapter_training import Learner, Recipe, freeze
from recbole_llm.studies.personalization.work_units import Unit, adapter_path, unit_folder
from recbole_llm.studies.ray_cluster import ATTEMPTS, Cluster, check


@pytest.fixture(scope="module")
def frozen(world):  # noqa: F811
    model, part = world
    return freeze(copy.deepcopy(model), part.train, part.valid, part.test)


@pytest.fixture(scope="module")
def units(world):  # noqa: F811
    model, part = world
    recipe, learners = Recipe(**RECIPE | {"epochs": 1}), learners_of(world, 6)
    tests = [part.test[part.test.user == user] for user in range(6)]
    return [
        Unit(
            f"users {number}",
            learners[2 * number : 2 * number + 2],
            tests[2 * number : 2 * number + 2],
            recipe,
            stack=2,
        )
        for number in range(3)
    ]


def contents(folder, units):
    found = {}
    for unit in units:
        for path in unit_folder(folder, unit.name).rglob("*"):
            if path.is_file() and path.name != "unit.json":
                found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


@dataclass(frozen=True)
class Deadly(Unit):
    """The unit kills the first processes that ask for its learners."""

    marks: str = ""
    deaths: int = 1

    def __getattribute__(self, name):
        if (
            name == "learners"
            and "ray" in sys.modules
            and sys.modules["ray"].get_runtime_context().get_actor_id()
        ):
            marks = Path(object.__getattribute__(self, "marks"))
            if len(list(marks.iterdir())) < object.__getattribute__(self, "deaths"):
                (marks / str(os.getpid())).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return object.__getattribute__(self, name)


def broken(unit):
    """Return a unit whose work fails, since its cases are unknown."""
    learner = unit.learners[0]
    cases = type(learner.train)(learner.train.user, learner.train.begin, learner.train.end + 10**6)
    return Unit("broken", [Learner("nobody", cases, cases)], unit.tests[:1], unit.recipe, stack=1)


def test_what_is_there_is_not_done_again_and_a_failure_leaves_the_others(
    frozen, units, tmp_path, monkeypatch
):
    done, told = [], []
    real = jobs.work
    monkeypatch.setattr(
        jobs, "work", lambda frozen, unit, told: done.append(unit.name) or real(frozen, unit, told)
    )
    failed = jobs.run(frozen, [units[0], broken(units[0]), units[1]], tmp_path, None, told.append)
    assert (
        done == ["users 0", *["broken"] * 3, "users 1"]
        and list(failed) == ["broken"]
        and failed["broken"]
    )
    # the type and the place of an error are told where it happened, and so wherever it is read
    failure = r"unit broken failed in 3 attempts: KeyError: \d+ \(in recbole_llm\.\S+, line \d+\)"
    assert any(re.match(failure, line) for line in told), told
    done.clear()
    assert jobs.run(frozen, units, tmp_path, None, told.append) == {} and done == ["users 2"]
    assert "units: 2 of 3 are there already" in told
    assert "starting unit broken (2 of 3)" in told and "starting unit users 2 (1 of 1)" in told
    record = json.loads((unit_folder(tmp_path, "users 2") / "unit.json").read_text())
    assert np.isfinite(list(record["losses"].values())).all()


class Lost:
    """The callable removes a machine of a cluster after one unit, while others are running."""

    def __init__(self, cluster, node):
        self.cluster, self.node, self.lines = cluster, node, []

    def __call__(self, line):
        self.lines.append(line)
        if self.node is not None and line.startswith("unit "):
            self.cluster.remove_node(self.node, allow_graceful=False)
            self.node = None


@pytest.mark.slow
def test_a_machine_that_dies_half_way_loses_nothing(frozen, units, tmp_path, monkeypatch):
    """Two raylets run on one machine, and one is killed after the first unit.

    The files equal those of one process, and what cannot be done is reported.
    """
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster as Machines

    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "6")
    assert jobs.run(frozen, units, tmp_path / "here", None, print) == {}
    machines = Machines(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    lost = Lost(machines, machines.add_node(num_cpus=1))
    machines.wait_for_nodes()
    try:
        message = "expected a machine with 9 cores and 0 GPUs .*, found 1 cores and 0 GPUs; 1 cores"
        with pytest.raises(UserError, match=message):
            check(Cluster(address=machines.address, cpus=9))
        check(Cluster(address=machines.address))
        failed = jobs.run(
            frozen,
            [*units, broken(units[0])],
            tmp_path / "ray",
            Cluster(address=machines.address),
            lost,
        )
        assert list(failed) == ["broken"], (failed, lost.lines)
        assert failed["broken"].startswith("KeyError: "), failed
        assert lost.node is None and not ray.is_initialized()
    finally:
        machines.shutdown()
    assert sum(line.startswith("unit users") for line in lost.lines) == len(units)
    assert contents(tmp_path / "here", units) == contents(tmp_path / "ray", units)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(frozen, units, tmp_path):
    """Each unit kills its first process, one of them more processes than it has attempts."""
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it
    assert jobs.run(frozen, units, tmp_path / "here", None, print) == {}
    deadly = []
    for unit, deaths in zip(units, [ATTEMPTS + 1, 1, 1], strict=True):
        marks = tmp_path / quote(unit.name)
        marks.mkdir()
        deadly.append(Deadly(**vars(unit), marks=str(marks), deaths=deaths))
    told = []
    assert jobs.run(frozen, deadly, tmp_path / "ray", Cluster(), told.append) == {}
    assert told[0] == "starting Ray for 3 units"
    for unit in deadly:
        again = [line for line in told if line.startswith(f"starting unit {unit.name} again, ")]
        assert len(again) == unit.deaths and f"starting unit {unit.name}" in told, told
        assert len(list(Path(unit.marks).iterdir())) == unit.deaths
    assert contents(tmp_path / "here", units) == contents(tmp_path / "ray", units)


def test_any_id_has_a_file_of_its_own():
    names = [
        "user a",
        "user A",
        "user " + "ü" * 300,
        "user " + "ü" * 299,
        "user ../x",
        "user " + "漢" * 40,
    ]
    paths = [adapter_path(name) for name in names]
    assert len({path.lower() for path in paths}) == len(names)
    assert all(path.isascii() and path.count("/") == 1 and len(path) < 90 for path in paths)


@pytest.mark.slow
def test_a_process_that_is_lost_between_two_units_costs_none(frozen, units, tmp_path, monkeypatch):
    """Tune gives such a unit up, however many failures it may have."""
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it
    marks = tmp_path / "marks"
    marks.mkdir()
    real = jobs._trainable()

    class Lost(real):
        def reset_config(self, new_config):
            if not list(marks.iterdir()):
                (marks / "lost").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().reset_config(new_config)

    monkeypatch.setattr(jobs, "_trainable", lambda: Lost)
    told = []
    failed = jobs.run(frozen, units, tmp_path / "ray", Cluster(cpus=2), told.append)
    assert failed == {}
    again = [line for line in told if " again, " in line]
    assert list(marks.iterdir()) and len(again) == 1, told
    assert sum(line.endswith("minutes left)") for line in told) == len(units), told
