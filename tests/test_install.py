"""The package as it is installed: a wheel brings its own settings and sample; a checkout uses the folders beside it."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from recbole_llm.errors import UserError
from recbole_llm.settings import files

ROOT = Path(__file__).resolve().parents[1]
WHERE = "from recbole_llm.settings import files; import recbole_llm; print(recbole_llm.__file__, files.properties(), files.SAMPLE, sep='\\n')"


def python(*arguments, path, cwd):
    env = {
        **os.environ,
        "PYTHONPATH": str(path),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of this checkout, built from a copy so that no build folder is left in it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("recbole_llm", "properties"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source / name)
    command = "-m pip wheel . --no-deps --no-build-isolation --no-index --disable-pip-version-check -q -w".split()
    done = subprocess.run(
        [sys.executable, *command, str(folder)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel):
    """The wheel's content, and an empty folder to work in."""
    target, work = wheel.parent / "installed", wheel.parent / "work"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(target)
    work.mkdir()
    return target, work


@pytest.mark.slow
def test_a_wheel_holds_every_module_setting_and_sample(wheel):
    with zipfile.ZipFile(wheel) as file:
        held = set(file.namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "recbole_llm").rglob("*.py")}
    data = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "recbole_llm" / "data" / "sample").iterdir()
        if path.is_file()
    }
    settings = {
        f"recbole_llm/{path.relative_to(ROOT)}" for path in (ROOT / "properties").rglob("*.yaml")
    }
    assert modules | data | settings <= held, sorted((modules | data | settings) - held)
    assert {name.split("/")[0].split("-")[0] for name in held} == {
        "recbole_llm"
    }  # no tests, no bench, no top-level properties
    text = next(
        zipfile.ZipFile(wheel).read(name).decode()
        for name in held
        if name.endswith("entry_points.txt")
    )
    assert "recbole-llm = recbole_llm.cli:main" in text


@pytest.mark.slow
def test_a_wheel_runs_in_an_empty_folder_on_its_own_files(installed):
    target, work = installed
    package, settings, sample = (
        Path(line) for line in python("-c", WHERE, path=target, cwd=work).splitlines()
    )
    own = target / "recbole_llm"
    assert (package.parent, settings, sample) == (own, own / "properties", own / "data" / "sample")
    said = python(
        "-m",
        "recbole_llm",
        "--model=LIR",
        "--dataset=Pet",
        "--beside=[]",
        "--show_progress=false",
        path=target,
        cwd=work,
    )
    assert "Pet-sample: " in said and "LIR" in said
    (run,) = (work / "saved").glob("LIR-Pet-sample-*")
    assert (
        "SYNTHETIC DATA" in (run / "log").read_text(encoding="utf-8")
        and (run / "test.ranks.npz").is_file()
    )
    assert {path.name for path in work.iterdir()} == {"saved"}


@pytest.mark.slow
def test_a_wheels_settings_are_its_own(installed, tmp_path):
    """A changed file in the wheel changes the settings: nothing is read from the checkout."""
    target, work = installed
    copy = tmp_path / "copy"
    shutil.copytree(target, copy)
    path = copy / "recbole_llm" / "properties" / "model" / "LIR.yaml"
    path.write_text(
        path.read_text(encoding="utf-8").replace("last_n: 1", "last_n: 17"), encoding="utf-8"
    )
    assert "last_n: 17" in python(
        "-m", "recbole_llm", "--model=LIR", "--dataset=Pet", "--print_config", path=copy, cwd=work
    )


def test_a_checkout_uses_the_folders_beside_the_package(tmp_path):
    package, settings, sample = (
        Path(line) for line in python("-c", WHERE, path=ROOT, cwd=tmp_path).splitlines()
    )
    assert (package.parent, settings, sample) == (
        ROOT / "recbole_llm",
        ROOT / "properties",
        ROOT / "recbole_llm" / "data" / "sample",
    )


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package folder of no content."""
    folder = tmp_path / "site" / "recbole_llm"
    folder.mkdir(parents=True)
    monkeypatch.setattr(files, "PACKAGE", folder)
    files.properties.cache_clear()
    yield folder
    files.properties.cache_clear()


def test_package_data_comes_before_what_lies_beside(package):
    beside, inside = package.parent / "properties", package / "properties"
    for folder in (beside, inside):
        folder.mkdir()
    inside_file = inside / "overall.yaml"
    (beside / "overall.yaml").touch()
    assert files.properties() == beside
    files.properties.cache_clear()
    inside_file.touch()
    assert files.properties() == inside


def test_an_incomplete_installation_is_told(package):
    with pytest.raises(
        UserError, match="properties/overall.yaml not found .* the installation is incomplete"
    ):
        files.properties()


# --- what is written down twice -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def lines(text):
    return sorted(
        line.strip()
        for line in text.splitlines()
        if line.strip() and not line.strip().startswith("#")
    )


def test_requirements_are_the_same_in_both_places(setup):
    assert lines((ROOT / "requirements.txt").read_text()) == lines(
        setup["options"]["install_requires"]
    )
    assert not any(
        line.startswith("recbole") for line in lines(setup["options"]["install_requires"])
    )  # it pins ray<=2.6.3


def test_setup_lists_every_package_and_every_folder_of_settings(setup):
    packages = lines(setup["options"]["packages"])
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "recbole_llm").rglob("__init__.py")
    }
    settings = {
        ".".join(("recbole_llm", *path.parent.relative_to(ROOT).parts))
        for path in (ROOT / "properties").rglob("*.yaml")
    }
    assert packages == sorted(folders | settings)
    for package in settings:
        assert setup["options.package_data"][package] == "*.yaml"
    python_folders = {path.parent for path in (ROOT / "recbole_llm").rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in python_folders)


def test_requirements_are_met_here(setup):
    """What a fresh environment installs is what these tests ran with."""
    from importlib.metadata import distributions
    from sysconfig import get_paths

    def version(name):  # of the environment: Ray puts copies of its own before it
        (found,) = distributions(name=name, path=[get_paths()["purelib"]])
        return found.version

    for line in lines(setup["options"]["install_requires"]):
        name = re.split(r"[\[<>=]", line)[0]
        for operator, bound in re.findall(r"(>=|<|==)([\d.]+)", line):
            found = [int(part) for part in re.findall(r"\d+", version(name).split("+")[0])]
            wanted = [int(part) for part in bound.split(".")]
            assert {">=": found >= wanted, "<": found < wanted, "==": found == wanted}[operator], (
                f"{line}: found {version(name)}"
            )


def test_the_imports_of_the_package_are_required(setup):
    """Every third-party module that is imported somewhere has its line."""
    stated = "\n".join(
        [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    )
    required = {re.split(r"[\[<>=]", line)[0].replace("-", "_").lower() for line in lines(stated)}
    required = {
        {"pyyaml": "yaml", "scikit_learn": "sklearn", "faiss_cpu": "faiss"}.get(name, name)
        for name in required
    }
    required |= {
        "recbole",
        "recbole_llm",
        "tokenizers",
    }  # installed apart; ourselves; transformers brings it
    for path in (ROOT / "recbole_llm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else names
            ):
                top = name.split(".")[0]
                assert top in sys.stdlib_module_names or top.lower() in required, (
                    f"{path.name} imports {name}, which setup.cfg does not require"
                )
