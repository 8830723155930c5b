"""Models of the user's own: a class in a file, in an installed package, or in this process."""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from ..contracts.model_spec import ModelSpec
from ..errors import UserError
from . import schema
from .rules import nearest
from .schema import ModelSettings

# RecBole's kinds of models, and what its folders call them.
FAMILIES = {
    "GENERAL": "general",
    "SEQUENTIAL": "sequential",
    "CONTEXT": "context_aware",
    "KNOWLEDGE": "knowledge",
    "TRADITIONAL": "traditional",
}
# What models derive from; an edit of these is no edit of the model.
LIBRARIES = {"recbole", "recbole_llm", "torch"}
_known: dict[str, ModelSpec] = {}


def known() -> list[ModelSpec]:
    """The models of the user's own that this process has read."""
    return list(_known.values())


def of_path(path: str, key: str | None = None) -> ModelSpec:
    """The model that "module:Class" stands for.

    Parameters
    ----------
    path : str
        The module is a file in the current folder, or can be imported.
    key : str, optional
        Value of the setting `model`; the path where it is None.

    Raises
    ------
    UserError
        If there is no such module or class, if the module cannot be imported, or if the class is
        not a model.
    """
    key = key or path
    if key in _known:
        return _known[key]
    module_name, _, name = path.partition(":")
    if module_name.endswith(".py"):
        module_name = module_name.removesuffix(".py").replace("/", ".")
        raise UserError(f"model {path!r}: expected a module without .py: {module_name}:{name}")
    if not module_name or not name.isidentifier():
        raise UserError(f"model {path!r}: expected module:Class, such as my_models:TwoTower")
    module = _imported(module_name, path)
    model = getattr(module, name, None)
    if not isinstance(model, type):
        classes = [one for one in vars(module) if isinstance(getattr(module, one), type)]
        raise UserError(
            f"model {path!r}: {_place(module)} has no class {name}{nearest(name, classes)}"
        )
    return of_class(model, key)


def of_class(model: type, key: str | None = None) -> ModelSpec:
    """The model that a class stands for; see :func:`of_path`."""
    module = sys.modules.get(model.__module__)
    key = key or f"{_module_name(module, model)}:{model.__name__}"
    before = _known.get(key)
    if before is not None and before.loaded is model:
        return before
    spec = _described(model, module, key)
    _known[key] = spec
    return spec


def _imported(name: str, path: str) -> ModuleType:
    """A module that may be a file in the current folder."""
    here = str(Path.cwd())
    if name == "__main__" or (name in sys.modules and name.partition(".")[0] in sys.modules):
        return sys.modules[name]
    if here not in sys.path:
        sys.path.insert(0, here)  # it stays: the module may import its neighbours later
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            file = f"{name.replace('.', '/')}.py"
            raise UserError(
                f"model {path!r}: expected {file} in {here}, or an installed module {name}; "
                "found neither"
            ) from None
        raise _not_imported(path, error) from error
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        raise _not_imported(path, error) from error


def _not_imported(path: str, error: BaseException) -> UserError:
    """One line with the type, the words and the place of an error in the user's own module."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)[1:]
        if "importlib" not in frame.filename and not _is_installed(Path(frame.filename))
    ]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    words = " ".join(str(error).split())
    return UserError(f"model {path!r} cannot be imported: {type(error).__name__}: {words}{place}")


def _module_name(module: ModuleType | None, model: type) -> str:
    """By which name another process imports the module of a class: a script by its file."""
    file = _file(module)
    return file.stem if file and model.__module__ == "__main__" else model.__module__


def _file(module: ModuleType | None) -> Path | None:
    """The source file of a module, if it has one."""
    path = getattr(module, "__file__", None)
    return Path(path) if path else None


def _place(module: ModuleType) -> str:
    return str(getattr(module, "__file__", None) or module.__name__)


def _described(model: type, module: ModuleType | None, key: str) -> ModelSpec:
    from recbole.model.abstract_recommender import AbstractRecommender

    from ..contracts.models import Scorer

    if not issubclass(model, Scorer | AbstractRecommender):
        bases = ", ".join(base.__name__ for base in model.__bases__)
        raise UserError(
            f"model {key}: expected a class derived from one of recbole_llm.models, or from "
            f"RecBole's recommenders, found {model.__name__}({bases})"
        )
    if missing := sorted(getattr(model, "__abstractmethods__", ())):
        raise UserError(f"model {key}: {model.__name__} has no {' and no '.join(missing)}")
    files = _files_of(model)
    if module is not None and files:
        _check_unchanged(model, module)
    is_text = issubclass(model, Scorer)
    settings = _settings(model, key)
    if settings is not None:
        schema.settings_of(settings)  # which raises what no setting can be
    return ModelSpec(
        key=key,
        name=model.__name__,
        family="text" if is_text else _family(model, key),
        module=model.__module__,
        guest=True,
        settings=settings,
        read_keys=frozenset() if is_text else _read_keys(files),
        source=_digest(files) if files else _code_digest(model),
        loaded=model,
    )


def _settings(model: type, key: str) -> type[ModelSettings] | None:
    """The class of a model's settings; None for one of RecBole's kind without any of its own."""
    from ..contracts.models import Scorer, Trainable
    from .groups import TrainingSettings, UntrainedSettings

    settings, trainable = getattr(model, "Settings", None), issubclass(model, Trainable)
    if settings is None:
        if trainable:
            return TrainingSettings
        return UntrainedSettings if issubclass(model, Scorer) else None
    base = TrainingSettings if trainable else ModelSettings
    if not (isinstance(settings, type) and issubclass(settings, base)):
        raise UserError(
            f"model {key}: expected {model.__name__}.Settings to derive from {base.__name__}, "
            f"found {settings!r}"
        )
    if trainable or not issubclass(model, Scorer):
        return settings
    names = {
        "__doc__": vars(settings).get("__doc__"),
        "__module__": settings.__module__,
        "__qualname__": settings.__qualname__,
    }
    # without TrainingSettings nothing is trained, whatever RecBole's default says
    kind: Any = type(settings)
    combined: type[ModelSettings] = kind(settings.__name__, (settings, UntrainedSettings), names)
    return combined


def _family(model: type, key: str) -> str:
    """RecBole's name for what a class of its kind learns from."""
    kind = getattr(model, "type", None)
    name = getattr(kind, "name", None)
    if name not in FAMILIES:
        raise UserError(
            f"model {key}: expected a class derived from RecBole's SequentialRecommender, "
            f"GeneralRecommender or ContextRecommender, found one of type {name or kind!r}"
        )
    return FAMILIES[name]


def _files_of(model: type) -> list[Path]:
    """Source files of the user's own that a class and its base classes come from."""
    files: set[Path] = set()
    for kind in model.__mro__:
        module = sys.modules.get(kind.__module__)
        package = kind.__module__.partition(".")[0]
        if module is None or package in LIBRARIES or package in sys.stdlib_module_names:
            continue
        path = _file(module)
        if kind is model or (path is not None and not _is_installed(path)):
            files.update(_files(module))
    return sorted(files)


def _is_installed(path: Path) -> bool:
    """Whether a file belongs to this package or to another installed one."""
    is_ours = path.is_relative_to(Path(__file__).parents[1])
    return is_ours or "site-packages" in path.parts or "dist-packages" in path.parts


def _files(module: ModuleType) -> list[Path]:
    """Source files of the user's own that a module consists of.

    They are its own file, and those that it imports, directly or not, from its package or, where
    it is in none, from beside it.
    """
    path = _file(module)
    if path is None or not path.is_file():
        return []
    first = path.resolve()
    name = module.__spec__.name if module.__spec__ else first.stem
    folders = list(getattr(sys.modules.get(name.partition(".")[0]), "__path__", []))
    if folders:
        root = Path(folders[0]).resolve().parent
        within = root / name.partition(".")[0]
    elif _is_installed(first):
        return [first]  # beside it lies everything else that is installed
    else:
        root = within = first.parent
    files, waiting = {first: name}, [first]
    while waiting:
        file = waiting.pop()
        for imported in _imports(file, files[file]):
            place = root.joinpath(*imported.split("."))
            for near in (place.with_suffix(".py"), place / "__init__.py"):
                if near.is_file() and near.is_relative_to(within) and near not in files:
                    files[near] = imported
                    waiting.append(near)
    return sorted(files)


def _imports(file: Path, name: str) -> Iterator[str]:
    """Names of all modules that a file may import: `from a import b` may be of a module a.b."""
    package = name if file.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            wanted = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for module in wanted:
            parts = module.split(".")
            yield from (".".join(parts[: size + 1]) for size in range(len(parts)))


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _code_digest(model: type) -> str:
    """Of a class without a source file, as in a notebook: over its functions' instructions."""
    digest = hashlib.sha256()
    for kind in model.__mro__:
        if kind.__module__ != model.__module__:
            continue
        for name, value in sorted(vars(kind).items()):
            function = getattr(value, "__func__", value)  # of class and static methods
            if isinstance(function, FunctionType):
                code = inspect.unwrap(function).__code__
                digest.update(name.encode() + _instructions(code))
            elif isinstance(value, int | float | str | tuple) and not name.startswith("__"):
                digest.update(f"{name}={value!r}".encode())
    return digest.hexdigest()[:16]


def _instructions(code: CodeType) -> bytes:
    parts = [code.co_code, repr(code.co_names).encode()]
    for constant in code.co_consts:
        is_code = isinstance(constant, CodeType)
        parts.append(_instructions(constant) if is_code else repr(constant).encode())
    return b"\0".join(parts)


def _check_unchanged(model: type, module: ModuleType) -> None:
    """Raise UserError for a class whose file has changed since it was imported.

    The digest of the file would be that of other code.
    """
    path = _file(module)
    if path is None or type(getattr(module, "__loader__", None)) is not SourceFileLoader:
        return
    try:
        compiled = compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError, OSError):
        compiled = None
    inside = _inner(compiled, model.__name__) if compiled else None
    if inside is None:
        functions = []
    else:
        functions = [
            (value.__code__, _inner(inside, name))
            for name, value in vars(model).items()
            if isinstance(value, FunctionType) and value.__code__.co_name == name
        ]
    if compiled is None or any(there is not None and here != there for here, there in functions):
        raise UserError(
            f"{path} has changed since Python imported it; start Python again, or reload the module"
        )


def _inner(code: CodeType, name: str) -> CodeType | None:
    inner = [one for one in code.co_consts if isinstance(one, CodeType) and one.co_name == name]
    return inner[0] if len(inner) == 1 else None


def _read_keys(files: list[Path]) -> frozenset[str]:
    """Keys that sources read by `config["key"]`.

    What a class of RecBole's kind takes is written nowhere else.
    """
    keys = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                value = node.value
                name = getattr(value, "id", getattr(value, "attr", None))
                if name == "config" and isinstance(node.slice.value, str):
                    keys.add(node.slice.value)
    return frozenset(keys)
