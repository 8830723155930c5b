"""What several test files share: data, small datasets on disk, and datasets as we build them."""

import logging
import os
import pickle
import re
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from cpu_times import CpuTimes
from filelock import FileLock
from shops import run_commands
from small_encoder import write_part

ROOT = Path(__file__).resolve().parents[1]
# The tests' servers have no certificates. Reading the machine's takes 50 ms for every client.
os.environ.setdefault("SSL_CERT_DIR", str(ROOT / "tests"))


def pytest_addoption(parser):
    parser.addoption(
        "--cpu", action="store_true", help="print the CPU seconds of files and tests at the end"
    )


def pytest_configure(config):
    if config.getoption("--cpu"):
        config.pluginmanager.register(CpuTimes())


@pytest.fixture(scope="session", autouse=True)
def small_minilm(request, tmp_path_factory):
    """What `minilm` means in this process: a part of the real one, except in slow tests."""
    folder = tmp_path_factory.mktemp("packages")
    if request.config.getoption("markexpr") != "slow" and write_part(folder):
        sys.path.insert(0, str(folder))


@pytest.fixture(scope="session", autouse=True)
def only_known_keys():
    """It is an error if our code reads a setting that no model has, such as a misspelt one."""
    from recbole_llm import compat
    from recbole_llm.settings.recbole_config import known_keys_only

    with ExitStack() as stack:

        def watch(module):
            is_ours = re.compile(r"recbole_llm\.").match
            stack.enter_context(known_keys_only(module.Config, is_ours, AssertionError))

        compat.after_import("recbole.config.configurator", watch)
        yield


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch):
    """RecBole's run_recbole measures the machine's load for a second, which no test needs."""
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 0.0)


@pytest.fixture(autouse=True)
def no_handlers_left():
    """RecBole's own code adds handlers to the root logger, for good."""
    before = list(logging.root.handlers)
    yield
    for handler in list(logging.root.handlers):
        if handler not in before and not type(handler).__module__.startswith("_pytest"):
            logging.root.removeHandler(handler)
            handler.close()


@pytest.fixture(scope="session")
def make_once(tmp_path_factory):
    """make_once(name, make): what make(folder) returns, made by one of the workers for all.

    The value is pickled, so that a second worker has it without making it again. Nobody may write
    into the folder afterwards.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of all workers

    def once(name, make):
        folder, stored = base / f"once-{name}", base / f"once-{name}.pickle"
        with FileLock(f"{stored}.lock"):
            if not stored.exists():
                folder.mkdir()
                stored.write_bytes(pickle.dumps(make(folder)))
        return pickle.loads(stored.read_bytes())

    return once


@pytest.fixture(scope="session")
def shop(make_once):
    """Two folders in which commands have run; see shops.Shop."""
    return make_once("shop", run_commands)


@pytest.fixture
def trained_run(make_once, tmp_path):
    """trained_run(model, **settings): a finished run on the small world, both in `tmp_path`.

    A run of these settings is trained once and copied: the test may do with it what it likes.
    """
    from worlds import settings_for, write_cycle

    from recbole_llm.runs.commands import run_settings
    from recbole_llm.settings.identity import digest

    def trained_run(model, users=16, **settings):
        def train(folder):
            run_settings(settings_for(model, write_cycle(folder, users=users), **settings))
            return folder

        source = make_once(digest([model, users, settings]), train)
        shutil.copytree(source, tmp_path, dirs_exist_ok=True)
        return run_settings(settings_for(model, tmp_path, **settings))

    return trained_run


@pytest.fixture
def shared():
    """The folder of real data beside the repository; the test is skipped where there is none."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("no ../shared/data")
    return folder


@pytest.fixture
def write(tmp_path):
    """write({suffix: rows}) puts the atomic files of dataset `toy` into a new folder.

    The first row of each file is its header.
    """
    count = 0

    def write(files: dict) -> Path:
        nonlocal count
        count += 1
        folder = tmp_path / str(count) / "toy"
        folder.mkdir(parents=True)
        for suffix, rows in files.items():
            text = "".join("\t".join(map(str, row)) + "\n" for row in rows)
            (folder / f"toy.{suffix}").write_text(text, encoding="utf-8")
        return folder

    return write


@pytest.fixture
def parts():
    """parts(model, folder, **settings): our (train, valid, test) datasets."""
    from worlds import loaders_of

    from recbole_llm.settings import layers

    def build(model, folder, **settings):
        resolved = layers.resolve(model, folder.name, [], {"use_gpu": False} | settings)
        return [loader._dataset for loader in loaders_of(layers.recbole_config(resolved, folder))]

    return build


@pytest.fixture
def stock(monkeypatch):
    """stock(model, folder, **settings): RecBole's own dataset, not yet built.

    It is split as `split` says.
    """
    import recbole_llm  # noqa: F401  lets RecBole run on today's libraries

    monkeypatch.setattr(sys, "argv", sys.argv[:1])  # RecBole's Config reads it
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # and sets this

    def build(
        model,
        folder,
        columns=("user_id", "item_id", "timestamp"),
        split=None,
        mode="full",
        **settings,
    ):
        from recbole.config import Config
        from recbole.data import create_dataset

        args = {
            "split": split or {"LS": "valid_and_test"},
            "order": "TO",
            "group_by": "user",
            "mode": mode,
        }
        base = {
            "data_path": str(folder.parent),
            "load_col": {"inter": list(columns)},
            "eval_args": args,
            "train_neg_sample_args": None,
        }
        return create_dataset(
            Config(
                model=model, dataset=folder.name, config_dict={**base, "use_gpu": False, **settings}
            )
        )

    return build
