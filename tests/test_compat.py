"""RecBole 1.2.1 works on today's libraries.

Each test says which stock behaviour it guards against.
"""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recbole_llm import compat

compat.install()

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(importlib.util.find_spec("recbole").origin).parent


def python(code, cwd, path=()):
    """Run code in a fresh interpreter; ``path`` goes before the repository on its import path."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT])),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=120
    )


def fake_recbole(folder, version=None, **modules):
    """Create a package named recbole with given modules, and metadata if it has a version."""
    for name, source in {"__init__": "", **modules}.items():
        file = folder / "recbole" / f"{name.replace('__dot__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    if version:
        info = folder / f"recbole-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: recbole\nVersion: {version}\n"
        )


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Build a Config for a dataset in tmp_path.

    RecBole reads argv, sets CUDA_VISIBLE_DEVICES, and writes to the current folder.
    """
    monkeypatch.setattr(sys, "argv", sys.argv[:1])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    from recbole.config import Config

    def build(model="BPR", dataset="toy", **settings):
        base = {
            "data_path": str(tmp_path),
            "checkpoint_dir": str(tmp_path / "saved"),
            "use_gpu": False,
        }
        return Config(model=model, dataset=dataset, config_dict={**base, **settings})

    return build


def write(tmp_path, name, *rows):
    folder = tmp_path / "toy"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join("\t".join(row) + "\n" for row in rows))


def toy(tmp_path):
    """Write four items, of which i2 lacks values and i4 its row, and three events of each user."""
    events = ("u1 i1 1", "u1 i2 2", "u1 i4 3", "u2 i3 1", "u2 i1 2", "u2 i2 3")
    write(
        tmp_path,
        "toy.inter",
        ("user_id:token", "item_id:token", "timestamp:float"),
        *map(str.split, events),
    )
    header = ("item_id:token", "brand:token", "price:float", "tags:token_seq")
    items = [
        ("i1", "b1", "1", "x y z"),
        ("i2", "", "", ""),
        ("i3", "b2", "3", "y"),
        ("i5", "b1", "5", "x"),
    ]
    write(tmp_path, "toy.item", header, *items)


TOY_COLUMNS = {
    "inter": ["user_id", "item_id", "timestamp"],
    "item": ["item_id", "brand", "price", "tags"],
}


# The hook itself


def test_install_imports_nothing_heavy(tmp_path):
    """`import recbole_llm` must not cost the seconds that torch, pandas and RecBole take."""
    heavy = ("numpy", "torch", "pandas", "scipy", "ray", "recbole", "importlib.metadata")
    code = f"""
import sys
from recbole_llm import compat
compat.install(); compat.install()
compat.alias("recbole.model.sequential_recommender.toy", dict)
compat.after_import("recbole.config", print)
assert sum(type(f).__module__ == "recbole_llm.compat" for f in sys.meta_path) == 1
print([name for name in {heavy} if name in sys.modules])
"""
    done = python(code, tmp_path)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("module", compat._EDITS)
def test_edits_fit_the_installed_recbole(module):
    """Another RecBole is an error, not a half-edited module; tracebacks keep their line numbers."""
    file = PACKAGE.parent / (module.replace(".", "/") + ".py")
    source = (file if file.exists() else file.with_suffix("") / "__init__.py").read_text(
        encoding="utf-8"
    )
    edited = compat._edited(module, source)
    compile(edited, module, "exec")
    assert edited != source and edited.count("\n") == source.count("\n")


def test_metrics_of_sklearn_are_computed_by_it():
    from recbole.evaluator.metrics import AUC, MAE, RMSE

    predicted, true = np.array([1.0, 2.0]), np.array([2.0, 4.0])
    mean, root, area = (kind.__new__(kind).metric_info for kind in (MAE, RMSE, AUC))
    assert mean(predicted, true) == 1.5 and root(predicted, true) == pytest.approx(2.5**0.5)
    assert area(np.array([0.1, 0.9, 0.4]), np.array([0, 1, 0])) == 1.0


@pytest.mark.slow
def test_recboles_models_and_metrics_load_no_sklearn(tmp_path):
    code = (
        "import sys, recbole_llm, recbole.quick_start, recbole.model.general_recommender\n"
        "print('sklearn' in sys.modules)"
    )
    assert python(code, tmp_path).stdout.strip() == "False"


def test_every_fix_says_why_and_until_when():
    assert all(fix.reason and fix.until and fix.edits for fix in compat.FIXES)


def one_line_error(done):
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("ImportError: "), done.stdout + done.stderr
    return last


def test_other_source_is_one_line(tmp_path):
    fake_recbole(tmp_path, data____init__="", data__dot__interaction="x = 1\n")
    code = "from recbole_llm import compat; compat.install(); import recbole.data.interaction"
    last = one_line_error(python(code, tmp_path, [tmp_path]))
    assert "recbole.data.interaction has 0 times" in last and "expected 1" in last
    assert "pip install --no-deps recbole==1.2.1" in last


def test_other_version_is_one_line(tmp_path):
    fake_recbole(tmp_path, version="1.2.0")
    code = "from recbole_llm import compat; compat.install(); import recbole"
    last = one_line_error(python(code, tmp_path, [tmp_path]))
    assert (
        "recbole==1.2.1 is required: pip install --no-deps recbole==1.2.1" in last
        and "1.2.0" in last
    )


def test_require_recbole(monkeypatch):
    from recbole_llm.errors import UserError

    compat.require_recbole()

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    for version, found in ((missing, "none"), (lambda name: "1.2.0", "1.2.0")):
        monkeypatch.setattr(importlib.metadata, "version", version)
        with pytest.raises(UserError, match="pip install --no-deps recbole==1.2.1") as error:
            compat.require_recbole()
        assert found in str(error.value) and "\n" not in str(error.value)


def test_recbole_imported_first(tmp_path):
    """Modules that were loaded unedited would fail later; those that need no edit may stay."""
    fake_recbole(tmp_path, data__dot__interaction="x = 1\n", harmless="")
    late = (
        "import recbole.{}; from recbole_llm import compat; compat.install(); "
        "import numpy; print(numpy.float)"
    )
    last = one_line_error(python(late.format("data.interaction"), tmp_path, [tmp_path]))
    assert "import recbole_llm before recbole" in last and "recbole.data.interaction" in last
    assert python(late.format("harmless"), tmp_path, [tmp_path]).stdout.strip() == repr(np.float64)


def test_numpy_names_without_a_config(tmp_path):
    """Stock sets np.float and others in Config, which a process that unpickles does not build."""
    code = """
from recbole_llm import compat; compat.install()
import numpy, recbole
assert numpy.float is numpy.float64 and numpy.long and numpy.str is numpy.str_
assert numpy.bool is numpy.bool_
"""
    assert python(code, tmp_path).returncode == 0


def test_after_import_runs_once_late_or_at_once(tmp_path):
    fake_recbole(tmp_path, late="value = 1\n")
    code = """
from recbole_llm import compat; compat.install()
compat.after_import("recbole.late", lambda module: print("late", module.value))
import recbole.late, recbole.late
compat.after_import("recbole.late", lambda module: print("at once", module.value))
"""
    done = python(code, tmp_path, [tmp_path])
    assert done.stdout.split("\n") == ["late 1", "at once 1", ""], done.stderr


def test_alias_is_found_by_name(monkeypatch):
    """Stock get_model searches five packages of its own, and no plugin."""
    from recbole.utils import get_model

    class Toy:
        pass

    calls = []
    name = "recbole.model.sequential_recommender.toy"
    monkeypatch.setitem(compat._ALIASES, name, None)
    compat.alias(name, lambda: calls.append(1) or {"Toy": Toy})
    assert importlib.util.find_spec(name) is not None and not calls
    assert get_model("Toy") is Toy and get_model("Toy") is Toy and calls == [1]
    assert importlib.util.find_spec(name) is not None
    monkeypatch.delitem(sys.modules, name)


def test_unknown_model_name(config):
    """Stock without lightgbm raises ModuleNotFoundError: No module named 'lightgbm'."""
    from recbole.utils import get_model

    with pytest.raises(ValueError, match="NoSuchModel"):
        get_model("NoSuchModel")
    with pytest.raises(ValueError, match="NoSuchModel"):
        config(model="NoSuchModel")


def test_config_builds(config):
    """Stock on numpy 2 raises AttributeError: np.float_ was removed."""
    assert config()["model"] == "BPR" and np.float is np.float64


# pandas


def test_missing_values_are_filled(tmp_path, config):
    """Stock on pandas 3 fills a copy.

    The token became INT64_MIN, the float stayed NaN, and the empty list raised.
    """
    from recbole.data.dataset import Dataset

    toy(tmp_path)
    dataset = Dataset(config(load_col=TOY_COLUMNS, filter_inter_by_user_or_item=False))
    ids, feat = dataset.field2token_id, dataset.item_feat
    row = {
        token: feat.index[feat["item_id"] == ids["item_id"][token]][0]
        for token in ("i1", "i2", "i3", "i4", "i5")
    }
    assert [feat["brand"][row[item]] for item in ("i2", "i4")] == [0, 0]
    assert [feat["price"][row[item]] for item in ("i1", "i2", "i4")] == [1.0, 3.0, 3.0]
    dataset._change_feat_format()
    assert dataset.item_feat["brand"].min() == 0 and not dataset.item_feat["price"].isnan().any()


def test_token_lists_keep_their_items(tmp_path, config):
    """Stock on pandas 3 takes agg(len) for the number of rows, and splits ids at wrong places."""
    from recbole.data.dataset import Dataset

    toy(tmp_path)
    dataset = Dataset(config(load_col=TOY_COLUMNS, filter_inter_by_user_or_item=False))
    tokens = dataset.field2id_token["tags"]
    items = dataset.field2id_token["item_id"][dataset.item_feat["item_id"]]
    tags = {
        item: list(tokens[ids])
        for item, ids in zip(items, dataset.item_feat["tags"])
        if item != "[PAD]"
    }
    assert tags == {"i1": ["x", "y", "z"], "i2": [], "i3": ["y"], "i4": [], "i5": ["x"]}


def test_benchmark_list_lengths(tmp_path, config):
    """Stock on pandas 3 gives every row the number of rows as its length, without an error."""
    from recbole.data.dataset import SequentialDataset

    header = ("user_id:token", "item_id_list:token_seq", "item_id:token")
    write(tmp_path, "toy.train.inter", header, ("u1", "a b c", "d"), ("u2", "b", "c"))
    write(tmp_path, "toy.test.inter", header, ("u1", "b d", "a"))
    columns = {"inter": ["user_id", "item_id_list", "item_id"]}
    settings = {
        "benchmark_filename": ["train", "test"],
        "load_col": columns,
        "alias_of_item_id": ["item_id_list"],
    }
    dataset = SequentialDataset(config("SASRec", train_neg_sample_args=None, **settings))
    assert list(dataset.inter_feat[dataset.item_list_length_field]) == [3, 1, 2]


@pytest.mark.filterwarnings("error")
def test_filters_without_inplace(tmp_path, config):
    """The edited filters drop the same rows as stock did, without a warning of pandas."""
    from recbole.data.dataset import Dataset

    toy(tmp_path)
    write(
        tmp_path,
        "toy.user",
        ("user_id:token", "age:float"),
        ("u1", "30"),
        ("u2", "40"),
        ("u3", "50"),
        ("u1", "60"),
    )
    settings = {
        "load_col": {**TOY_COLUMNS, "user": ["user_id", "age"]},
        "rm_dup_inter": "first",
        "val_interval": {"age": "[30,40]", "timestamp": "[1,2]", "brand": ["b1", "b2"]},
        "item_inter_num_interval": "[1,inf)",
    }
    dataset = Dataset(config(**settings))
    tokens = {field: dataset.field2id_token[field] for field in ("user_id", "item_id")}
    pairs = zip(
        tokens["user_id"][dataset.inter_feat["user_id"]],
        tokens["item_id"][dataset.inter_feat["item_id"]],
    )
    assert sorted(pairs) == [("u1", "i1"), ("u2", "i1"), ("u2", "i3")]
    assert set(tokens["item_id"]) == {"[PAD]", "i1", "i3"} and set(tokens["user_id"]) == {
        "[PAD]",
        "u1",
        "u2",
    }
    assert list(dataset.user_feat["age"][1:]) == [30.0, 40.0]


@pytest.mark.filterwarnings("error")
def test_tensors_do_not_share_the_frame(tmp_path, config):
    """Stock shares int64 columns with the frame and warns that numpy's array is read-only."""
    from recbole.data.dataset import Dataset

    toy(tmp_path)
    dataset = Dataset(config())
    tensors = dataset._dataframe_to_interaction(dataset.inter_feat)
    tensors["item_id"][:] = 7
    assert 7 not in dataset.inter_feat["item_id"].values


@pytest.mark.filterwarnings("error")
def test_interaction_sort(config):
    """Stock warns on each sort, and raises ValueError (negative strides) if descending."""
    import torch
    from recbole.data.interaction import Interaction

    batch = Interaction({"key": torch.tensor([2, 1, 2, 1]), "row": torch.arange(4)})
    batch.sort("key")
    assert batch["row"].tolist() == [1, 3, 0, 2]
    batch.sort(["key", "row"], ascending=[False, True])
    assert batch["key"].tolist() == [2, 2, 1, 1]


# Evaluation and training


def test_coverage_metrics(config):
    """Stock raises AttributeError: 'int' and 'Counter' have no attribute 'cpu'.

    rec.rank would grow with each validation.
    """
    from collections import Counter

    import torch
    from recbole.evaluator import Collector, Evaluator

    metrics = ["ItemCoverage", "GiniIndex", "AveragePopularity", "TailPercentage"]
    settings = config(metrics=metrics, topk=[2], valid_metric="ItemCoverage@2")
    collector, evaluator = Collector(settings), Evaluator(settings)
    collector.data_struct.set("data.num_items", 5)
    collector.data_struct.set("data.count_items", Counter({1: 4, 2: 2, 3: 1, 4: 1}))
    scores = torch.tensor([[-9.0, 4, 3, 2, 1], [-9, 4, 3, 2, 1]])
    for _ in range(2):
        collector.eval_batch_collect(scores, None, torch.tensor([0, 1]), torch.tensor([1, 2]))
        collector.data_struct.update_tensor("rec.rank", torch.ones(2, 3))
        struct = collector.get_data_struct()
        assert len(struct.get("rec.rank")) == len(struct.get("rec.items")) == 2
        result = evaluator.evaluate(struct)
        assert result["itemcoverage@2"] == 0.4 and result["averagepopularity@2"] == 3.0
        assert {"giniindex@2", "tailpercentage@2"} <= set(result)


def test_gradients_are_unscaled_before_clipping(tmp_path, config, monkeypatch):
    """Stock clips gradients that are 65,536 times too large, and so hardly learns."""
    import torch
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    toy(tmp_path)
    cpu_scaler = torch.amp.GradScaler

    def weights(scaled, **settings):
        with monkeypatch.context() as patch:
            patch.setattr(
                torch.amp, "GradScaler", lambda device, enabled: cpu_scaler("cpu", enabled=scaled)
            )
            settings = config(
                epochs=1, learner="sgd", learning_rate=0.5, show_progress=False, **settings
            )
            init_seed(1, True)
            train, _, _ = data_preparation(settings, create_dataset(settings))
            model = get_model("BPR")(settings, train.dataset)
            get_trainer(settings["MODEL_TYPE"], "BPR")(settings, model).fit(
                train, saved=False, verbose=False
            )
        return model.item_embedding.weight.detach()

    plain = weights(False)
    assert torch.equal(weights(True, clip_grad_norm={"max_norm": 10}), plain)
    assert torch.equal(weights(False, clip_grad_norm={"max_norm": 10}), plain)
    assert not torch.equal(weights(False, clip_grad_norm={"max_norm": 1e-3}), plain)


@pytest.mark.slow
def test_run_recbole_is_silent(tmp_path):
    """Stock fails on all four models; see stock_runs.py for what else is checked."""
    header, *events = (PACKAGE / "dataset_example/ml-100k/ml-100k.inter").read_text().splitlines()
    rows = [line.split("\t") for line in events]
    few = [row for row in rows if int(row[0]) <= 30]
    write(tmp_path, "toy.inter", header.split("\t"), *few)
    script = Path(__file__).with_name("stock_runs.py")
    code = f"import runpy, sys; sys.argv = ['', {str(tmp_path)!r}]; runpy.run_path({str(script)!r})"
    done = python(code, tmp_path)
    assert done.stdout.strip().endswith("fine"), done.stdout[-500:] + done.stderr[-3000:]
