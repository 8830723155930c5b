"""What lets RecBole 1.2.1 run on today's numpy, pandas, scipy, torch and ray.

:func:`install` puts one finder on ``sys.meta_path``. It does nothing until RecBole is imported; then the modules
named in :data:`FIXES` are compiled from their source with the edits applied. Nothing is written to disk, and no other
library is patched, except that numpy gets back the names that RecBole reads. A stock model's numbers are those of
RecBole on the libraries it was written for; only clipping under ``enable_scaler``, wrong there, is put right. Edits
keep the number of lines, so that tracebacks still point at the right place in RecBole's files.
"""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import decode_source
from typing import NamedTuple

VERSION = "1.2.1"
REQUIRED = f"recbole=={VERSION} is required: pip install --no-deps recbole=={VERSION}"


class Edit(NamedTuple):
    """``new`` for ``old``, which must occur ``count`` times in ``recbole.<module>`` after the edits before it."""

    module: str
    old: str
    new: str
    count: int = 1


class Fix(NamedTuple):
    """Edits that share a reason; they can go when ``until`` holds."""

    reason: str
    until: str
    edits: list[Edit]


def _fix(reason, until, *edits):
    return Fix(reason, until, [Edit(*edit) for edit in edits])


def _rebind(module, method, count=1):
    """Assign the result of a frame's method to the attribute that holds the frame."""
    return module, f"self.{method}(", f"self.{method.partition('.')[0]} = self.{method}(", count


def _trust(module, call, count=1):
    """Let one call of torch.load read a file that RecBole wrote."""
    return module, f"{call})", f"{call}, weights_only=False)", count


_DATASET, _KG, _INTERACTION = "data.dataset.dataset", "data.dataset.kg_dataset", "data.interaction"
_TRAINER, _QUICK, _COLLECTOR = "trainer.trainer", "quick_start.quick_start", "evaluator.collector"
_CONFIG, _EXLIB = "config.configurator", "model.exlib_recommender"
_GENERAL, _KNOWLEDGE = "model.general_recommender", "model.knowledge_aware_recommender"
_NAME_OF_FEAT = "next(n for n in self.feat_name_list if getattr(self, n) is feat)"

# fmt: off
FIXES = [
    _fix("numpy 2 removed float_, complex_ and unicode_, so that no Config could be built",
         "RecBole sets no numpy aliases",
         (_CONFIG, "np.float_", "np.float64"),
         (_CONFIG, "np.complex_", "np.complex128"),
         (_CONFIG, "np.unicode_", "np.str_")),
    _fix("numpy deprecates its own functions on torch tensors; sorting in descending order raised ValueError",
         "RecBole calls numpy on arrays",
         (_INTERACTION, 'np.argsort(key, kind="stable")', 'torch.from_numpy(np.argsort(key.numpy(), kind="stable"))'),
         (_INTERACTION, "torch.tensor(np.array(index)[::-1])", "index.flip(0)"),
         (f"{_GENERAL}.line", "np.array(key_ids.cpu())", "key_ids.cpu().numpy()")),
    _fix("pandas 3: Series.agg(len) is the number of rows, no longer the length of each cell",
         "RecBole maps instead of aggregating",
         (_DATASET, ".agg(len)", ".map(len)", 4),
         (_KG, ".agg(len)", ".map(len)"),
         ("data.dataset.sequential_dataset", ".agg(len)", ".map(len)")),
    _fix("pandas 3: filling a selected column in place fills a copy; a missing token then became the id INT64_MIN",
         "RecBole assigns the filled column",
         (_DATASET, 'df[field].fillna(value="", inplace=True)', 'df[field] = df[field].fillna(value="")'),
         (_DATASET, "feat[field].fillna(value=0, inplace=True)", "feat[field] = feat[field].fillna(value=0)"),
         (_DATASET, "feat[field].fillna(value=feat", "feat[field] = feat[field].fillna(value=feat"),
         (_DATASET, "[field].mean(), inplace=True)", "[field].mean())")),
    _fix("pandas 3 hands out read-only arrays; torch warns and would share the frame's memory",
         "RecBole copies the columns",
         (_DATASET, "data[k].values", "data[k].to_numpy(copy=True)"),
         (_INTERACTION, "interaction[key].values", "interaction[key].to_numpy(copy=True)")),
    _fix("pandas 3.1 deprecates inplace in drop, drop_duplicates, sort_values and reset_index",
         "RecBole rebinds its frames",
         (_DATASET, "feat.drop_duplicates(subset=[f", "feat = feat.drop_duplicates(subset=[f"),
         (_DATASET, "feat.drop(feat.index[dropped_feat], inplace=True)",
          'setattr(self, name + "_feat", feat.drop(feat.index[dropped_feat]))'),
         (_DATASET, "    feat.drop(\n", f"    setattr(self, {_NAME_OF_FEAT}, feat.drop(\n"),
         (_DATASET, "                        inplace=True,\n", "                    )\n"),
         (_DATASET, "feat.drop(feat.index[~feat", f"setattr(self, {_NAME_OF_FEAT}, feat.drop(feat.index[~feat"),
         (_DATASET, ".isin(interval)], inplace=True)", ".isin(interval)]))"),
         (_DATASET, "feat.reset_index(drop=True, inplace=True)",
          "setattr(self, feat_name, feat.reset_index(drop=True))"),
         (_DATASET, "feat.drop(columns=field, inplace=True)", "del feat[field]"),
         _rebind(_DATASET, "user_feat.drop"),
         _rebind(_DATASET, "item_feat.drop"),
         _rebind(_DATASET, "inter_feat.drop", 3),
         _rebind(_DATASET, "inter_feat.drop_duplicates"),
         _rebind(_DATASET, "inter_feat.sort_values"),
         (_DATASET, ", inplace=True", "", 8),
         _rebind(_KG, "kg_feat.drop"),
         _rebind(_KG, "inter_feat.drop"),
         (_KG, ", inplace=True", "", 2),
         ("data.dataset.decisiontree_dataset", ", inplace=False", "")),
    _fix("torch 2.6 refuses pickled objects by default, and each RecBole checkpoint holds some; these calls read "
         "RecBole's own files, as they always did, and torch.load itself is left alone",
         "RecBole writes checkpoints of tensors",
         _trust(_TRAINER, "_file, map_location=self.device", 2),
         _trust(_QUICK, "torch.load(model_file"),
         _trust("model.sequential_recommender.s3rec", "torch.load(self.pre_model_path"),
         _trust("model.context_aware_recommender.kd_dagfm", 'torch.load(config["warm_up"]'),
         _trust(f"{_GENERAL}.neumf", '_pretrain_path, map_location="cpu"', 2),
         _trust(f"{_GENERAL}.ract", "torch.load(self.pre_model_path", 2),
         _trust(f"{_GENERAL}.convncf", "torch.load(self.pre_model_path"),
         _trust(f"{_GENERAL}.nais", "torch.load(self.pretrain_path")),
    _fix("torch deprecates torch.cuda.amp; torch.amp has the same objects",
         "RecBole imports torch.amp",
         (_TRAINER, "amp.GradScaler(", 'torch.amp.GradScaler("cuda", ', 2),
         (_TRAINER, "amp.autocast(", 'torch.autocast("cuda", ')),
    _fix("with enable_scaler, gradients were clipped while still scaled; unscale_ does nothing when the scaler is off",
         "RecBole unscales before it clips",
         (_TRAINER, "clip_grad_norm_(self.", "scaler.unscale_(self.optimizer); clip_grad_norm_(self.", 2)),
    _fix("torch deprecates indexing by a list of tensors and announces another result for it",
         "RecBole indexes by a tuple",
         *((f"{_GENERAL}.{name}", f"scores[[torch.arange(len({items})).to(self.device), {items}]]",
            f"scores[torch.arange(len({items})).to(self.device), {items}]")
           for name, items in (("cdae", "predict_items"), ("macridvae", "item"), ("multidae", "item"),
                               ("multivae", "item"), ("ract", "item"), ("recvae", "item")))),
    _fix("scipy's dok_matrix is no dict any more and has lost _update",
         "RecBole builds its adjacency as a coo_matrix",
         *((module, "A._update(", '(getattr(A, "_update", None) or A._dict.update)(')
           for module in (f"{_GENERAL}.lightgcn", f"{_GENERAL}.ngcf", f"{_GENERAL}.ncl", f"{_GENERAL}.gcmc",
                          f"{_GENERAL}.spectralcf", f"{_KNOWLEDGE}.kgin", f"{_KNOWLEDGE}.mcclk"))),
    _fix("SASRecF counts a float_seq feature once for each of its numbers, but embeds it as one vector: no run came to its end",
         "SASRecF counts features",
         ("model.sequential_recommender.sasrecf", "else dataset.num(field)", "else 1")),
    _fix("NCEPLRec keeps its users' vectors but not the map that made them, so that no other history could be mapped",
         "NCEPLRec keeps its projection",
         (f"{_GENERAL}.nceplrec", "Q = R @ V_star", "Q = R @ V_star; self.item_projection = V_star")),
    _fix("only a Tune trial needs ray, and there ray.tune is loaded; ray 2 reports one dict, not keywords",
         "RecBole makes ray optional",
         (_QUICK, "from ray import tune", ""),
         (_QUICK, "tune.report(**", 'if "ray.tune" in sys.modules: sys.modules["ray.tune"].report(')),
    _fix("hyperopt 0.2.7 draws by numpy's Generator, which has no randint",
         "HyperTuning's exhaustive search draws by a Generator",
         ("trainer.hyper_tuning", "np.random.RandomState(seed)", "np.random.default_rng(seed)")),
    _fix("get_flops deep-copies the model, which a language model cannot afford: its class says skip_flops = True",
         "RecBole lets a model opt out",
         (_QUICK, "= get_flops(", '= "not counted" if getattr(model, "skip_flops", False) else get_flops(')),
    _fix("a bar's carriage returns filled logs with its states; ours writes lines where standard error is no terminal",
         "tqdm writes no carriage returns to files",
         (_TRAINER, "from tqdm import tqdm", "from recbole_llm.storage.progress import progress as tqdm")),
    _fix("importing the sequential models, as RecBole does to find any of them, turned autograd's anomaly detection on for the whole process",
         "RecBole leaves it to the user",
         ("model.sequential_recommender.sine", "torch.autograd.set_detect_anomaly(True)", "")),
    _fix("without lightgbm, an unknown model name ended in ModuleNotFoundError instead of RecBole's own ValueError",
         "RecBole guards these imports",
         (_EXLIB, "from recbole.model.exlib_recommender.lightgbm import LightGBM\nfrom ",
          "try: from recbole.model.exlib_recommender.lightgbm import LightGBM; from "),
         (_EXLIB, " import XGBoost\n", " import XGBoost\nexcept ImportError: pass\n")),
    _fix("the collector moved plain counts to the CPU: ItemCoverage, GiniIndex, AveragePopularity, TailPercentage "
         "crashed; and what it does not name when it clears, such as our rec.rank, grew with every "
         "validation",
         "RecBole moves tensors only and clears all that one evaluation gathered",
         (_COLLECTOR, "for key in self.data_struct._data_dict:",
          "for key in [k for k, v in self.data_struct._data_dict.items() if isinstance(v, torch.Tensor)]:"),
         (_COLLECTOR, 'for key in ["rec.topk"', 'for key in ["rec.rank", "rec.topk"')),
]

# Names that RecBole reads and numpy has removed, as RecBole's Config would set them.
NUMPY_NAMES = {"bool": "bool_", "int": "int_", "float": "float64", "complex": "complex128",
               "object": "object_", "str": "str_", "long": "int_", "unicode": "str_"}
# fmt: on

_EDITS: dict[str, list[Edit]] = {}
for _edit in (edit for fix in FIXES for edit in fix.edits):
    _EDITS.setdefault(f"recbole.{_edit.module}", []).append(_edit)
_ALIASES: dict[str, Callable[[], dict]] = {}


def _version_fault():
    """One line about the installed RecBole, or None if it is the right one."""
    from importlib import metadata

    try:
        found = metadata.version("recbole")
    except metadata.PackageNotFoundError:
        found = None
    return None if found == VERSION else f"{REQUIRED} (found {found or 'none'})"


def _prepare_host(recbole):
    """Check the version, and set numpy's names here, because a process that only unpickles builds no Config."""
    if fault := _version_fault():
        raise ImportError(fault)
    import numpy

    for name, present in NUMPY_NAMES.items():
        if name not in vars(numpy):
            setattr(numpy, name, getattr(numpy, present))


_HOOKS: dict[str, list[Callable]] = {"recbole": [_prepare_host]}


def _edited(fullname, source):
    for _, old, new, count in _EDITS[fullname]:
        if source.count(old) != count:
            found = f"{fullname} has {source.count(old)} times {old.strip()!r}, expected {count}"
            raise ImportError(f"{found}; {REQUIRED}")
        source = source.replace(old, new)
    return source


class _EditingLoader(SourceFileLoader):
    """Loads a module of RecBole: from edited source where FIXES names it, as usual otherwise; then runs its hooks."""

    def get_code(self, fullname):
        if fullname not in _EDITS:
            return super().get_code(fullname)
        path = self.get_filename(fullname)
        return self.source_to_code(_edited(fullname, decode_source(self.get_data(path))), path)

    def exec_module(self, module):
        super().exec_module(module)
        for function in _HOOKS.get(module.__name__, ()):
            function(module)


class _AliasLoader:
    """Fills an alias module when it is imported."""

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        vars(module).update(_ALIASES[module.__name__]())


class _Finder:
    """Serves RecBole's modules and the aliases among them, and no others."""

    def find_spec(self, fullname, path=None, target=None):
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


def install():
    """Put the finder in place; later calls do nothing. Imports neither RecBole nor anything heavy.

    Modules that were imported before stay as they are, so it is an error if one of them needs an edit.
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


def require_recbole():
    """Raise a UserError that says what to run unless the right RecBole is installed."""
    if fault := _version_fault():
        from .errors import UserError

        raise UserError(fault)


def after_import(module_name, function):
    """Call ``function(module)`` once a module of RecBole has been executed; at once if it already has."""
    module = sys.modules.get(module_name)
    if module is not None and not getattr(
        getattr(module, "__spec__", None), "_initializing", False
    ):
        function(module)
    else:
        _HOOKS.setdefault(module_name, []).append(function)


def alias(module_name, factory):
    """Let ``import module_name`` yield a module whose attributes are ``factory()``, called at that import.

    ``importlib.util.find_spec(module_name)`` finds it without calling ``factory``: so RecBole looks a model up.
    """
    _ALIASES[module_name] = factory
