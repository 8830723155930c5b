"""Units of work: here or on Ray, once each, whatever fails."""

import copy
import json

import numpy as np
import pytest
from test_stacked import RECIPE, learners_of, world  # noqa: F401

from recbole_llm.cluster import Cluster
from recbole_llm.personal import jobs
from recbole_llm.personal.training import Learner, Recipe, freeze
from recbole_llm.personal.units import Unit, unit_folder


@pytest.fixture(scope="module")
def frozen(world):  # noqa: F811
    model, part = world
    return freeze(copy.deepcopy(model), part.train, part.valid, part.test)


@pytest.fixture(scope="module")
def units(world):  # noqa: F811
    model, part = world
    recipe, learners = Recipe(**RECIPE | {"epochs": 1}), learners_of(world, 6)
    tests = [part.test[part.test.user == user] for user in range(6)]
    return [Unit(f"users {number}", learners[2 * number : 2 * number + 2], tests[2 * number : 2 * number + 2], recipe, stack=2) for number in range(3)]


def contents(folder, units):
    paths = [path for unit in units for path in unit_folder(folder, unit.name).rglob("*") if path.is_file() and path.name != "unit.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def broken(unit):
    """A unit whose work fails: its cases are unknown."""
    learner = unit.learners[0]
    cases = type(learner.train)(learner.train.user, learner.train.begin, learner.train.end + 10**6)
    return Unit("broken", [Learner("nobody", cases, cases)], unit.tests[:1], unit.recipe, stack=1)


def test_what_is_there_is_not_done_again_and_a_failure_leaves_the_others(frozen, units, tmp_path, monkeypatch):
    done, told = [], []
    real = jobs.work
    monkeypatch.setattr(jobs, "work", lambda frozen, unit: done.append(unit.name) or real(frozen, unit))
    failed = jobs.run(frozen, [units[0], broken(units[0]), units[1]], tmp_path, None, told.append)
    assert done == ["users 0", *["broken"] * 3, "users 1"] and list(failed) == ["broken"] and failed["broken"]
    assert any(line.startswith("unit broken failed in 3 attempts: ") for line in told)
    done.clear()
    assert jobs.run(frozen, units, tmp_path, None, told.append) == {} and done == ["users 2"]
    assert "units: 2 of 3 are there already" in told
    record = json.loads((unit_folder(tmp_path, "users 2") / "unit.json").read_text())
    assert np.isfinite(list(record["losses"].values())).all()


def test_ray_gives_the_same_files(frozen, units, tmp_path):
    pytest.importorskip("ray")
    told = []
    assert jobs.run(frozen, units, tmp_path / "here", None, told.append) == {}
    failed = jobs.run(frozen, [*units, broken(units[0])], tmp_path / "ray", Cluster(), told.append)
    assert list(failed) == ["broken"] and failed["broken"] != "no result"
    here, ray = (contents(tmp_path / name, units) for name in ("here", "ray"))
    assert here == ray
