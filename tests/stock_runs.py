"""RecBole's own quick start on four models, with warnings of its libraries as errors.

Run with the folder of a dataset `toy`; the last line says `fine`. Ray is as if it were not
installed.
"""

import sys
import types
import warnings
from pathlib import Path

import pandas  # noqa: F401  loaded before its warnings are errors, as scipy is
import scipy.sparse  # noqa: F401
import torch

from recbole_llm import compat

folder = Path(sys.argv.pop())
torch.set_num_threads(1)
load = torch.load
compat.install()
sys.modules["ray"] = None
for category in (FutureWarning, DeprecationWarning):  # among these is pandas.errors.Pandas4Warning
    warnings.simplefilter("error", category)
# from indexing by a list of tensors
warnings.filterwarnings("error", message="Using a non-tuple sequence")
warnings.filterwarnings("ignore", module="thop")

from recbole.quick_start import (  # noqa: E402
    load_data_and_model,
    objective_function,
    quick_start,
    run_recbole,
)

SETTINGS = {
    "model": "BPR",
    "dataset": "toy",
    "data_path": str(folder),
    "checkpoint_dir": str(folder / "saved"),
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "epochs": 1,
    "show_progress": False,
    "state": "ERROR",
    "use_gpu": False,
    "embedding_size": 16,
    "hidden_size": 16,
    "inner_size": 16,
    "MAX_ITEM_LIST_LENGTH": 10,
}


def run(model, **more):
    settings = {**SETTINGS, **more, "model": model}
    return run_recbole(model=model, dataset="toy", config_dict=settings)["test_result"]


def run_all():
    for model in ("BPR", "LightGCN", "MultiDAE"):
        assert 0 < run(model)["recall@10"] < 1
    assert 0 < run("SASRec", train_neg_sample_args=None)["recall@10"] < 1


def load_again():
    _, model, *_ = load_data_and_model(str(next((folder / "saved").glob("BPR-*.pth"))))
    assert type(model).__name__ == "BPR"
    return type(model)


def run_without_flops(model_type):
    def no_flops(*_):
        raise AssertionError("counted")

    quick_start.get_flops = no_flops
    model_type.skip_flops = True
    run_recbole(model="BPR", dataset="toy", config_dict=dict(SETTINGS), saved=False)


def report_to_ray():
    reports = []
    sys.modules["ray.tune"] = types.SimpleNamespace(report=reports.append)
    objective_function(dict(SETTINGS), saved=False)
    assert "recall@10" in reports[0]


run_all()
run_without_flops(load_again())
report_to_ray()
assert torch.load is load
print("fine")
