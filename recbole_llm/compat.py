"""Edits that let RecBole 1.2.1 run on today's numpy, pandas, scipy, torch and ray.

:func:`install` puts one finder on ``sys.meta_path``. It does nothing until RecBole is imported.
Then the modules named in :data:`FIXES` are compiled from their source with the edits applied.
Nothing is written to disk, and no other library is changed, except that numpy gets back the names
that RecBole reads. The results of a stock model are those of RecBole on the libraries it was
written for; only gradient clipping under ``enable_scaler``, which was wrong there, is corrected.
Edits keep the number of lines, so that tracebacks point at the right place in RecBole's files.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import decode_source
from types import CodeType, ModuleType
from typing import Any

VERSION = "1.2.1"
REQUIRED = f"recbole=={VERSION} is required: pip install --no-deps recbole=={VERSION}"


@dataclass(frozen=True)
class Edit:
    """A replacement in the source of a module of RecBole.

    Attributes
    ----------
    module : str
        Name of the module below `recbole`.
    old, new : str
        The text to replace, and what replaces it.
    count : int
        How often `old` must occur after the edits before this one.
    """

    module: str
    old: str
    new: str
    count: int = 1


@dataclass(frozen=True)
class Fix:
    """Edits with the same reason.

    Attributes
    ----------
    reason : str
        What fails without them.
    until : str
        Condition under which they can be removed.
    edits : list of Edit
        The edits.
    """

    reason: str
    until: str
    edits: list[Edit]


def _rebind(module: str, method: str, count: int = 1) -> Edit:
    """Assign the result of a frame's method to the attribute that holds the frame."""
    call = f"self.{method}("
    return Edit(module, call, f"self.{method.partition('.')[0]} = {call}", count)


def _trust(module: str, call: str, count: int = 1) -> Edit:
    """Let a call of torch.load read a file that RecBole wrote."""
    return Edit(module, f"{call})", f"{call}, weights_only=False)", count)


def _index_by_tuple(module: str, items: str) -> Edit:
    """Index scores by rows and items without a list around them."""
    rows = f"torch.arange(len({items})).to(self.device)"
    return Edit(module, f"scores[[{rows}, {items}]]", f"scores[{rows}, {items}]")


def _import_late(module: str, line: str, statement: str) -> list[Edit]:
    """Import from sklearn right before the statement that needs it, not with the module."""
    return [Edit(module, line, ""), Edit(module, statement, f"{line}; {statement}")]


def _update_matrix(module: str) -> Edit:
    """Update a dok_matrix by the method of the installed scipy."""
    return Edit(module, "A._update(", '(getattr(A, "_update", None) or A._dict.update)(')


_DATASET, _KG, _INTERACTION = "data.dataset.dataset", "data.dataset.kg_dataset", "data.interaction"
_TRAINER, _QUICK, _COLLECTOR = "trainer.trainer", "quick_start.quick_start", "evaluator.collector"
_CONFIG, _EXLIB = "config.configurator", "model.exlib_recommender"
_METRICS = "evaluator.metrics"
_GENERAL, _KNOWLEDGE = "model.general_recommender", "model.knowledge_aware_recommender"
_NAME_OF_FEAT = "next(n for n in self.feat_name_list if getattr(self, n) is feat)"


FIXES = [
    Fix(
        reason="numpy 2 removed float_, complex_ and unicode_, so that no Config could be built",
        until="RecBole sets no numpy aliases",
        edits=[
            Edit(_CONFIG, "np.float_", "np.float64"),
            Edit(_CONFIG, "np.complex_", "np.complex128"),
            Edit(_CONFIG, "np.unicode_", "np.str_"),
        ],
    ),
    Fix(
        reason=(
            "numpy deprecates its own functions on torch tensors; sorting in descending order "
            "raised ValueError"
        ),
        until="RecBole calls numpy on arrays",
        edits=[
            Edit(
                _INTERACTION,
                'np.argsort(key, kind="stable")',
                'torch.from_numpy(np.argsort(key.numpy(), kind="stable"))',
            ),
            Edit(_INTERACTION, "torch.tensor(np.array(index)[::-1])", "index.flip(0)"),
            Edit(f"{_GENERAL}.line", "np.array(key_ids.cpu())", "key_ids.cpu().numpy()"),
        ],
    ),
    Fix(
        reason="pandas 3: Series.agg(len) is the number of rows, no longer the length of each cell",
        until="RecBole maps instead of aggregating",
        edits=[
            Edit(_DATASET, ".agg(len)", ".map(len)", count=4),
            Edit(_KG, ".agg(len)", ".map(len)"),
            Edit("data.dataset.sequential_dataset", ".agg(len)", ".map(len)"),
        ],
    ),
    Fix(
        reason=(
            "pandas 3: filling a selected column in place fills a copy; a missing token then "
            "became the id INT64_MIN"
        ),
        until="RecBole assigns the filled column",
        edits=[
            Edit(
                _DATASET,
                'df[field].fillna(value="", inplace=True)',
                'df[field] = df[field].fillna(value="")',
            ),
            Edit(
                _DATASET,
                "feat[field].fillna(value=0, inplace=True)",
                "feat[field] = feat[field].fillna(value=0)",
            ),
            Edit(
                _DATASET,
                "feat[field].fillna(value=feat",
                "feat[field] = feat[field].fillna(value=feat",
            ),
            Edit(_DATASET, "[field].mean(), inplace=True)", "[field].mean())"),
        ],
    ),
    Fix(
        reason=(
            "pandas 3 hands out read-only arrays; torch warns and would share the frame's memory"
        ),
        until="RecBole copies the columns",
        edits=[
            Edit(_DATASET, "data[k].values", "data[k].to_numpy(copy=True)"),
            Edit(_INTERACTION, "interaction[key].values", "interaction[key].to_numpy(copy=True)"),
        ],
    ),
    Fix(
        reason=(
            "pandas 3.1 deprecates inplace in drop, drop_duplicates, sort_values and reset_index"
        ),
        until="RecBole rebinds its frames",
        edits=[
            Edit(
                _DATASET, "feat.drop_duplicates(subset=[f", "feat = feat.drop_duplicates(subset=[f"
            ),
            Edit(
                _DATASET,
                "feat.drop(feat.index[dropped_feat], inplace=True)",
                'setattr(self, name + "_feat", feat.drop(feat.index[dropped_feat]))',
            ),
            Edit(_DATASET, "    feat.drop(\n", f"    setattr(self, {_NAME_OF_FEAT}, feat.drop(\n"),
            Edit(_DATASET, "                        inplace=True,\n", "                    )\n"),
            Edit(
                _DATASET,
                "feat.drop(feat.index[~feat",
                f"setattr(self, {_NAME_OF_FEAT}, feat.drop(feat.index[~feat",
            ),
            Edit(_DATASET, ".isin(interval)], inplace=True)", ".isin(interval)]))"),
            Edit(
                _DATASET,
                "feat.reset_index(drop=True, inplace=True)",
                "setattr(self, feat_name, feat.reset_index(drop=True))",
            ),
            Edit(_DATASET, "feat.drop(columns=field, inplace=True)", "del feat[field]"),
            _rebind(_DATASET, "user_feat.drop"),
            _rebind(_DATASET, "item_feat.drop"),
            _rebind(_DATASET, "inter_feat.drop", count=3),
            _rebind(_DATASET, "inter_feat.drop_duplicates"),
            _rebind(_DATASET, "inter_feat.sort_values"),
            Edit(_DATASET, ", inplace=True", "", count=8),
            _rebind(_KG, "kg_feat.drop"),
            _rebind(_KG, "inter_feat.drop"),
            Edit(_KG, ", inplace=True", "", count=2),
            Edit("data.dataset.decisiontree_dataset", ", inplace=False", ""),
        ],
    ),
    Fix(
        reason=(
            "torch 2.6 refuses pickled objects by default, and each RecBole checkpoint holds some; "
            "these calls read RecBole's own files, as they always did, and torch.load itself is "
            "left alone"
        ),
        until="RecBole writes checkpoints of tensors",
        edits=[
            _trust(_TRAINER, "_file, map_location=self.device", count=2),
            _trust(_QUICK, "torch.load(model_file"),
            _trust("model.sequential_recommender.s3rec", "torch.load(self.pre_model_path"),
            _trust("model.context_aware_recommender.kd_dagfm", 'torch.load(config["warm_up"]'),
            _trust(f"{_GENERAL}.neumf", '_pretrain_path, map_location="cpu"', count=2),
            _trust(f"{_GENERAL}.ract", "torch.load(self.pre_model_path", count=2),
            _trust(f"{_GENERAL}.convncf", "torch.load(self.pre_model_path"),
            _trust(f"{_GENERAL}.nais", "torch.load(self.pretrain_path"),
        ],
    ),
    Fix(
        reason="torch deprecates torch.cuda.amp; torch.amp has the same objects",
        until="RecBole imports torch.amp",
        edits=[
            Edit(_TRAINER, "amp.GradScaler(", 'torch.amp.GradScaler("cuda", ', count=2),
            Edit(_TRAINER, "amp.autocast(", 'torch.autocast("cuda", '),
        ],
    ),
    Fix(
        reason=(
            "with enable_scaler, gradients were clipped while still scaled; unscale_ does nothing "
            "when the scaler is off"
        ),
        until="RecBole unscales before it clips",
        edits=[
            Edit(
                _TRAINER,
                "clip_grad_norm_(self.",
                "scaler.unscale_(self.optimizer); clip_grad_norm_(self.",
                count=2,
            ),
        ],
    ),
    Fix(
        reason="torch deprecates indexing by a list of tensors and announces another result for it",
        until="RecBole indexes by a tuple",
        edits=[
            _index_by_tuple(f"{_GENERAL}.cdae", "predict_items"),
            _index_by_tuple(f"{_GENERAL}.macridvae", "item"),
            _index_by_tuple(f"{_GENERAL}.multidae", "item"),
            _index_by_tuple(f"{_GENERAL}.multivae", "item"),
            _index_by_tuple(f"{_GENERAL}.ract", "item"),
            _index_by_tuple(f"{_GENERAL}.recvae", "item"),
        ],
    ),
    Fix(
        reason="scipy's dok_matrix is no dict any more and has lost _update",
        until="RecBole builds its adjacency as a coo_matrix",
        edits=[
            _update_matrix(f"{_GENERAL}.lightgcn"),
            _update_matrix(f"{_GENERAL}.ngcf"),
            _update_matrix(f"{_GENERAL}.ncl"),
            _update_matrix(f"{_GENERAL}.gcmc"),
            _update_matrix(f"{_GENERAL}.spectralcf"),
            _update_matrix(f"{_KNOWLEDGE}.kgin"),
            _update_matrix(f"{_KNOWLEDGE}.mcclk"),
        ],
    ),
    Fix(
        reason=(
            "SASRecF counts a float_seq feature once for each of its numbers, but embeds it as one "
            "vector, so that every run failed"
        ),
        until="SASRecF counts features",
        edits=[
            Edit("model.sequential_recommender.sasrecf", "else dataset.num(field)", "else 1"),
        ],
    ),
    Fix(
        reason=(
            "NCEPLRec keeps its users' vectors but not the map that made them, so that no other "
            "history could be mapped"
        ),
        until="NCEPLRec keeps its projection",
        edits=[
            Edit(
                f"{_GENERAL}.nceplrec",
                "Q = R @ V_star",
                "Q = R @ V_star; self.item_projection = V_star",
            ),
        ],
    ),
    Fix(
        reason=(
            "only a Tune trial needs ray, and there ray.tune is loaded; ray 2 reports one dict, "
            "not keywords"
        ),
        until="RecBole makes ray optional",
        edits=[
            Edit(_QUICK, "from ray import tune", ""),
            Edit(
                _QUICK,
                "tune.report(**",
                'if "ray.tune" in sys.modules: sys.modules["ray.tune"].report(',
            ),
        ],
    ),
    Fix(
        reason="importing sklearn takes a second and a half, which few metrics and models need",
        until="RecBole imports sklearn where it computes by it",
        edits=[
            Edit(_METRICS, "sk_auc(", "auc("),
            Edit(_METRICS, "import auc as sk_auc", "import auc"),
            *_import_late(_METRICS, "from sklearn.metrics import auc", "result = auc("),
            Edit(_METRICS, "mean_absolute_error, mean_squared_error", "mean_squared_error"),
            *_import_late(
                _METRICS,
                "from sklearn.metrics import mean_squared_error",
                "return np.sqrt(mean_squared_error(",
            ),
            Edit(
                _METRICS,
                "return mean_absolute_error(",
                "from sklearn.metrics import mean_absolute_error; return mean_absolute_error(",
            ),
            *_import_late(
                f"{_GENERAL}.slimelastic",
                "from sklearn.linear_model import ElasticNet",
                "model = ElasticNet(",
            ),
            *_import_late(
                f"{_GENERAL}.slimelastic",
                "from sklearn.exceptions import ConvergenceWarning",
                'warnings.simplefilter("ignore", category=ConvergenceWarning)',
            ),
            *_import_late(
                f"{_GENERAL}.nceplrec",
                "from sklearn.utils.extmath import randomized_svd",
                "_, sigma, Vt = randomized_svd(",
            ),
        ],
    ),
    Fix(
        reason="hyperopt 0.2.7 draws by numpy's Generator, which has no randint",
        until="HyperTuning's exhaustive search draws by a Generator",
        edits=[
            Edit(
                "trainer.hyper_tuning",
                "np.random.RandomState(seed)",
                "np.random.default_rng(seed)",
            ),
        ],
    ),
    Fix(
        reason=(
            "get_flops deep-copies the model, which a language model cannot afford: its class says "
            "skip_flops = True"
        ),
        until="RecBole lets a model opt out",
        edits=[
            Edit(
                _QUICK,
                "= get_flops(",
                '= "not counted" if getattr(model, "skip_flops", False) else get_flops(',
            ),
        ],
    ),
    Fix(
        reason=(
            "a bar's carriage returns filled logs with its states; ours writes lines if "
            "standard error is no terminal"
        ),
        until="tqdm writes no carriage returns to files",
        edits=[
            Edit(
                _TRAINER,
                "from tqdm import tqdm",
                "from recbole_llm.storage.progress import progress as tqdm",
            ),
        ],
    ),
    Fix(
        reason=(
            "importing the sequential models, as RecBole does to find any of them, turned "
            "autograd's anomaly detection on for the whole process"
        ),
        until="RecBole leaves it to the user",
        edits=[
            Edit(
                "model.sequential_recommender.sine", "torch.autograd.set_detect_anomaly(True)", ""
            ),
        ],
    ),
    Fix(
        reason=(
            "without lightgbm, an unknown model name ended in ModuleNotFoundError instead of "
            "RecBole's own ValueError"
        ),
        until="RecBole guards these imports",
        edits=[
            Edit(
                _EXLIB,
                "from recbole.model.exlib_recommender.lightgbm import LightGBM\nfrom ",
                "try: from recbole.model.exlib_recommender.lightgbm import LightGBM; from ",
            ),
            Edit(_EXLIB, " import XGBoost\n", " import XGBoost\nexcept ImportError: pass\n"),
        ],
    ),
    Fix(
        reason=(
            "the collector moved plain counts to the CPU: ItemCoverage, GiniIndex, "
            "AveragePopularity, TailPercentage crashed. It clears listed keys only, so "
            "that others, such as our rec.rank, grew with every validation"
        ),
        until="RecBole moves tensors only and clears all that one evaluation gathered",
        edits=[
            Edit(
                _COLLECTOR,
                "for key in self.data_struct._data_dict:",
                (
                    "for key in [k for k, v in self.data_struct._data_dict.items() "
                    "if isinstance(v, torch.Tensor)]:"
                ),
            ),
            Edit(_COLLECTOR, 'for key in ["rec.topk"', 'for key in ["rec.rank", "rec.topk"'),
        ],
    ),
]

# names that RecBole reads and numpy has removed -> what RecBole's Config would set them to
NUMPY_NAMES = {
    "bool": "bool_",
    "int": "int_",
    "float": "float64",
    "complex": "complex128",
    "object": "object_",
    "str": "str_",
    "long": "int_",
    "unicode": "str_",
}


def _by_module(fixes: Sequence[Fix]) -> dict[str, list[Edit]]:
    """The edits of each module, by its full name."""
    edits: dict[str, list[Edit]] = {}
    for fix in fixes:
        for edit in fix.edits:
            edits.setdefault(f"recbole.{edit.module}", []).append(edit)
    return edits


_EDITS = _by_module(FIXES)
# name of a module -> function that returns its attributes
_ALIASES: dict[str, Callable[[], dict[str, Any]]] = {}


def _version_fault() -> str | None:
    """One line about the installed RecBole, or None if it is the right one."""
    from importlib import metadata

    installed = None
    with suppress(metadata.PackageNotFoundError):
        installed = metadata.version("recbole")
    return None if installed == VERSION else f"{REQUIRED} (found {installed or 'none'})"


def _prepare_host(recbole: ModuleType) -> None:
    """Check the version of RecBole, and give numpy back the names that it reads.

    RecBole's Config would set them, but a process that only unpickles builds none.
    """
    fault = _version_fault()
    if fault:
        raise ImportError(fault)
    import numpy

    for name, present in NUMPY_NAMES.items():
        if name not in vars(numpy):
            setattr(numpy, name, getattr(numpy, present))


# name of a module -> functions to call with it once it is executed
_HOOKS: dict[str, list[Callable[[ModuleType], object]]] = {"recbole": [_prepare_host]}


def _edited(fullname: str, source: str) -> str:
    """The source of a module with its edits applied."""
    for edit in _EDITS[fullname]:
        count = source.count(edit.old)
        if count != edit.count:
            found = f"{fullname} has {count} times {edit.old.strip()!r}, expected {edit.count}"
            raise ImportError(f"{found}; {REQUIRED}")
        source = source.replace(edit.old, edit.new)
    return source


class _EditingLoader(SourceFileLoader):
    """Loads a module of RecBole with its edits, if it has any, and then calls its hooks."""

    def get_code(self, fullname: str) -> CodeType | None:
        if fullname not in _EDITS:
            return super().get_code(fullname)
        path = self.get_filename(fullname)
        return self.source_to_code(_edited(fullname, decode_source(self.get_data(path))), path)

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        for function in _HOOKS.get(module.__name__, ()):
            function(module)


class _AliasLoader(Loader):
    """Sets the attributes of an alias module when it is imported."""

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(_ALIASES[module.__name__]())


class _Finder(MetaPathFinder):
    """Finds RecBole's modules and the aliases, and no others."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in _ALIASES:
            return ModuleSpec(fullname, _AliasLoader(), origin=__name__)
        if fullname.partition(".")[0] != "recbole":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _EditingLoader(fullname, spec.loader.path)
        elif spec is not None and fullname in _EDITS:
            raise ImportError(f"{fullname} has no source file to edit; {REQUIRED}")
        return spec


_FINDER = _Finder()


def install() -> None:
    """Install the finder; later calls do nothing. Neither RecBole nor anything heavy is imported.

    Raises
    ------
    ImportError
        If a module of RecBole that needs edits is already imported.
    """
    if _FINDER in sys.meta_path:
        return
    for module in _EDITS:
        if module in sys.modules:
            raise ImportError(
                f"import recbole_llm before recbole: {module} is already loaded, without its edits"
            )
    sys.meta_path.insert(0, _FINDER)
    for module, functions in _HOOKS.items():
        if module in sys.modules:
            for function in functions:
                function(sys.modules[module])


def require_recbole() -> None:
    """Check that the right RecBole is installed.

    Raises
    ------
    UserError
        If it is not; the message says what to run.
    """
    fault = _version_fault()
    if fault:
        from .errors import UserError

        raise UserError(fault)


def after_import(module_name: str, function: Callable[[ModuleType], object]) -> None:
    """Call a function with a module of RecBole once it is executed; at once if it already is.

    Parameters
    ----------
    module_name : str
        Full name of the module.
    function : callable
        Takes the module.
    """
    module = sys.modules.get(module_name)
    if module is None or getattr(getattr(module, "__spec__", None), "_initializing", False):
        _HOOKS.setdefault(module_name, []).append(function)
    else:
        function(module)


def alias(module_name: str, factory: Callable[[], dict[str, Any]]) -> None:
    """Make a module importable whose attributes a function returns.

    ``importlib.util.find_spec``, by which RecBole looks up a model, finds the module without
    calling the function.

    Parameters
    ----------
    module_name : str
        Full name of the module.
    factory : callable
        Returns the attributes by name; called when the module is imported.
    """
    _ALIASES[module_name] = factory
