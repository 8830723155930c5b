"""Names and layers: how models are found by name, and what importing us costs."""

import ast
import importlib.util
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from recbole_llm.errors import UserError
from recbole_llm.settings import registry

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "recbole_llm"
RECBOLE = Path(importlib.util.find_spec("recbole").submodule_search_locations[0])


def python(code, cwd, *arguments):
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- names


@pytest.mark.parametrize(
    "name",
    [
        *registry.OURS,
        *registry.MENDED,
        "SASRec",
        "GRU4Rec",
        "KD_DAGFM",
        "S3Rec",
        "xDeepFM",
        "Random",
    ],
)
def test_every_spelling_of_a_name(name):
    middle = len(name) // 2
    for spelling in (
        name,
        name.lower(),
        name.upper(),
        f"{name[:middle]}-{name[middle:]}",
        f"{name[:middle].lower()}_{name[middle:]}",
        f" {name} ",
    ):
        assert registry.canonical(spelling) == name


def test_spellings_of_the_papers():
    assert registry.canonical("NCF") == registry.canonical("neu-mf") == "NeuMF"
    assert (
        registry.canonical("BERT-4-Rec") == "BERT4Rec" and registry.canonical("CAL-Rec") == "CALRec"
    )


def test_hyphenated_names_resolve_once_they_are_registered(monkeypatch):
    monkeypatch.setitem(registry.OURS, "ST5Seq", "nowhere")
    monkeypatch.setitem(registry.OURS, "LLMTRSR", "nowhere")
    assert {registry.canonical(name) for name in ("ST5-Seq", "st5seq", "ST5_SEQ")} == {"ST5Seq"}
    assert registry.canonical("LLM-TRSR") == "LLMTRSR"


@pytest.mark.parametrize(
    ("name", "near"),
    [("SASRek", "SASRec"), ("calrc", "CALRec"), ("GRU4Re", "GRU4Rec"), ("LRI", "LIR")],
)
def test_an_unknown_name_names_the_nearest(name, near):
    with pytest.raises(UserError, match=f"unknown model {name!r}: did you mean .*{near}"):
        registry.canonical(name)


def test_an_unknown_name_that_is_like_none():
    with pytest.raises(UserError, match=f"ours are {', '.join(sorted(registry.OURS))}"):
        registry.canonical("0000000")


def test_no_two_models_share_a_spelling():
    names = [*registry.stock_models(), *registry.OURS]
    assert len({registry._plain(name) for name in names}) == len(names)
    assert not {registry._plain(name) for name in names} & registry.ALIASES.keys() and set(
        registry.ALIASES.values()
    ) <= set(names)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_stock_names_are_those_of_recboles_classes():
    """The class in model/<family>/<name>.py whose name is the file's, in any case."""
    expected = {}
    for path in (RECBOLE / "model").glob("*_recommender/*.py"):
        classes = [
            node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)
        ]
        expected |= {
            name: path.parent.name.removesuffix("_recommender")
            for name in classes
            if name.lower() == path.stem
        }
    assert len(expected) > 90
    assert registry.stock_models() == expected


def test_tree_models_are_refused_by_name():
    with pytest.raises(UserError, match="XGBoost: tree models are not run by this harness"):
        registry.model_class(registry.canonical("xgboost"))


def classes_in(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef)]


def test_our_classes_are_where_the_registry_says():
    for name, module in (registry.OURS | registry.MENDED).items():
        assert name in classes_in(ROOT.joinpath(*module.split(".")).with_suffix(".py"))
    assert registry.MENDED.keys() <= registry.stock_models().keys()


def test_no_model_is_left_unregistered():
    """A model's file has the name of its class, in lower case."""
    files = [*(PACKAGE / "models").glob("*.py"), *(PACKAGE / "models" / "stock").glob("*.py")]
    models = set()
    for path in files:
        models |= {name for name in classes_in(path) if name.lower() == path.stem}
    assert models == registry.OURS.keys() | registry.MENDED.keys()


def test_model_class_takes_the_mended_class_and_leaves_recboles_alone():
    from recbole.utils import get_model

    assert registry.model_class("Pop").__module__ == "recbole_llm.models.stock.pop"
    # importing us changes no stock model
    assert get_model("Pop").__module__ == "recbole.model.general_recommender.pop"
    for name in ("BPR", "LIR"):
        assert registry.model_class(name) is get_model(name)


# --- stock RecBole

CALREC = {
    "model": "CALRec",
    "epochs": 1,
    "eval_step": 1,
    "backbone": "scratch:nano",
    "scratch_vocabulary": 300,
    "samples": 2,
    "valid_samples": 2,
    "max_new_tokens": 12,
    "valid_users": 8,
    "max_length": 256,
}


def write_tiny(folder):
    """12 users who walk through 8 items: the next item is certain, and never the last one."""
    fruit = ("apple", "cherry", "fig", "grape", "kiwi", "lemon", "melon", "plum")
    items = [f"i{number}\t{word} juice\tdrinks" for number, word in enumerate(fruit)]
    events = [
        f"u{user}\ti{(user + step) % 8}\t{100 * user + step}"
        for user, step in product(range(12), range(6))
    ]
    target = folder / "tiny"
    target.mkdir(parents=True)
    (target / "tiny.item").write_text(
        "\n".join(["item_id:token\ttitle:token_seq\tcategories:token_seq", *items, ""])
    )
    (target / "tiny.inter").write_text(
        "\n".join(["user_id:token\titem_id:token\ttimestamp:float", *events, ""])
    )


def test_stock_run_recbole_runs_our_models(tmp_path, monkeypatch):
    """Our properties under the user's, our dataset and trainer: the numbers are our runner's."""
    from recbole.quick_start import run_recbole

    from recbole_llm.runs.commands import run_model

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv[:1])  # RecBole's Config reads it
    write_tiny(tmp_path / "data")
    common = {
        "data_path": str(tmp_path / "data"),
        "topk": [1, 5],
        "valid_metric": "NDCG@5",
        "show_progress": False,
        "use_gpu": False,
    }
    for settings in (common | {"model": "LIR"}, common | CALREC):
        stock = run_recbole(model=settings["model"], dataset="tiny", config_dict=settings)
        stock = stock["test_result"]
        own = settings | {"checkpoint_dir": str(tmp_path / "ours")}
        row = run_model(own.pop("model"), "tiny", [], own).row
        assert {"recall@1", "ndcg@5", "ndcg@5_opt", "ndcg@5_pes", "mrr"} <= stock.keys()
        assert stock == pytest.approx({key: row["test"][key] for key in stock}, abs=1e-6)
        if settings["model"] == "LIR":  # the last juice itself scores best
            assert stock["recall@1"] == 0 and stock["recall@5"] > 0


CONFIGS = """
import sys, types
sys.argv = sys.argv[:1]
package = types.ModuleType("recbole_llm")  # the package without its __init__: only compat is there
package.__path__ = [{package!r}]
sys.modules["recbole_llm"] = package
from recbole_llm import compat
compat.install()
from recbole.config import Config

def build(model):
    settings = {{"train_neg_sample_args": None}}
    return Config(model=model, dataset="ml-100k", config_dict=settings).final_config_dict

before = build("GRU4Rec"), build("BPR")
from recbole_llm import recbole_hooks
recbole_hooks.register()
assert (build("GRU4Rec"), build("BPR")) == before
ours = build("LIR")
assert ours["text_fields"]["Title"] == "movie_title" and ours["last_n"] == 1
assert "last_n" not in before[0]
"""


@pytest.mark.slow
def test_the_settings_of_a_stock_model_in_stock_recbole_do_not_change_by_importing_us(tmp_path):
    python(CONFIGS.format(package=str(PACKAGE)), tmp_path)


# --- what is loaded when


def test_importing_the_package_loads_nothing_heavy(tmp_path):
    heavy = {"torch", "numpy", "pandas", "scipy", "yaml", "recbole", "transformers", "ray"}
    code = f"import sys, recbole_llm; print(sorted({heavy!r} & sys.modules.keys()))"
    assert python(code, tmp_path).strip() == "[]"


UNTIL_TORCH = """
import sys
from recbole_llm.cli import main

for line in {lines!r}:
    try:
        assert main(line.split()) in (0, 2), line
    except SystemExit as end:
        assert end.code == 0, line
    assert "torch" not in sys.modules, line
"""


def test_help_settings_and_mistakes_come_before_torch(tmp_path):
    lines = [
        "--help",
        "compare --help",
        "--model=LIR --dataset=ml-100k --print_config",
        "compare --models=Pop,CALRec --dataset=Pet --print_config",
        "--model=SASRek --dataset=Pet",
        "--model=LIR --dataset=Pet --tpok=3",
        "--model=LIR --dataset=Pet --epochs=abc",
        "--model=LIR --dataset=none",
        "evaluate --checkpoint=none",
        "recommend --checkpoint=none --user=u1",
        "--resume=none",
        "what",
    ]
    python(UNTIL_TORCH.format(lines=lines), tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- layers

# A package imports only from packages before its own, in functions and for type checkers too.
# `compat` and `recbole_hooks` are where RecBole meets the package.
ORDER = [
    "errors",
    "contracts",
    "compat",
    "storage",
    "evaluation",
    "settings",
    "data",
    "language",
    "training",
    "models",
    "runs",
    "testing",
    "studies",
    "cli",
    "recbole_hooks",
    "__init__",
    "__main__",
]
# Imports inside functions that look ahead: the Python front door.
AHEAD = {("__init__", "runs")}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield path, parts[:-1] if parts[-1] == "__init__" else parts


NAMES = {parts for _, parts in modules()}


def imports(path, parts):
    """(module, at the top level) for every module of ours that a module imports."""
    package = parts if path.name == "__init__.py" else parts[:-1]

    def walk(node, top):
        for child in ast.iter_child_nodes(node):
            inner = top and not isinstance(
                child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.If
            )
            if isinstance(child, ast.ImportFrom):
                module = tuple((child.module or "").split(".")) if child.module else ()
                base = (
                    (*package[: len(package) + 1 - child.level], *module) if child.level else module
                )
                if base[0] == "recbole_llm":
                    yield from (
                        ((*base, alias.name) if (*base, alias.name) in NAMES else base, top)
                        for alias in child.names
                    )
            elif isinstance(child, ast.Import):
                yield from (
                    (tuple(alias.name.split(".")), top)
                    for alias in child.names
                    if alias.name.split(".")[0] == "recbole_llm"
                )
            yield from walk(child, inner)

    return list(walk(ast.parse(path.read_text()), True))


def layer(parts):
    return parts[1] if len(parts) > 1 else "__init__"


def test_every_package_has_its_place():
    assert {layer(parts) for parts in NAMES} <= set(ORDER)
    assert len(set(ORDER)) == len(ORDER)


def test_the_root_is_small():
    files = {path.stem for path in PACKAGE.glob("*.py")}
    assert len(files) <= 8, f"a module belongs into a package: {sorted(files)}"


def test_a_module_imports_only_from_packages_before_its_own():
    wrong = []
    for path, parts in modules():
        package = layer(parts)
        for target, top in imports(path, parts):
            line = f"{'.'.join(parts)} imports {'.'.join(target)}"
            if target not in NAMES:
                wrong.append(f"{line}, which is no module")
                continue
            other = layer(target)
            if other == package or target == ("recbole_llm",):  # the version is the package's
                continue
            before = ORDER.index(other) < ORDER.index(package)
            if not before and (top or (package, other) not in AHEAD):
                wrong.append(line)
    assert wrong == []


def test_no_circle_of_imports_at_the_top_level():
    graph = {}
    for path, parts in modules():
        targets = {target for target, top in imports(path, parts) if top}
        graph[parts] = targets - {("recbole_llm",)}
    done = set()

    def visit(parts, path):
        assert parts not in path, " -> ".join(".".join(step) for step in (*path, parts))
        if parts not in done:
            for target in graph[parts]:
                visit(target, (*path, parts))
            done.add(parts)

    for parts in graph:
        visit(parts, ())
    assert sum(map(len, graph.values())) > 50  # the imports were found


def test_exceptions_to_the_order_are_in_use():
    inside_functions = set()
    for path, parts in modules():
        targets = [target for target, top in imports(path, parts) if not top]
        inside_functions |= {(layer(parts), layer(target)) for target in targets}
    assert inside_functions >= AHEAD
