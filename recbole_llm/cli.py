"""The command line: arguments in, one call, exit code out. torch is loaded only once the arguments are right."""

import argparse
import os
import sys
from pathlib import Path

from .errors import UserError

DESCRIPTION = """\
LLM-based sequential recommenders beside RecBole's models, on the same users, items and metrics.

  --model=CALRec --dataset=Pet [--key=value ...]     train, evaluate, store, print (beside Pop and LIR)
  compare --models=Pop,LIR,CALRec --dataset=Pet [--CALRec.epochs=3] [--seeds=1,2,3]
  evaluate --checkpoint=RUN [--dataset=...] [--eval_args.mode=uni20]
  recommend --checkpoint=RUN --user=ID | --history="title; title" [--k=10]

Any setting is --key=value, with dots into groups: --eval_args.mode=uni20; --print_config shows them all."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0, or 2 after a one-line message for a mistake of the user's."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = argv.pop(0) if argv and not argv[0].startswith("-") else "run"
    try:
        if command not in COMMANDS:
            raise UserError(f"unknown command {command!r}: expected one of {', '.join(COMMANDS)}, or --model=… --dataset=…")
        return COMMANDS[command](argv) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last finished epoch", file=sys.stderr)
        return 130


def _arguments(argv: list[str], **known: str) -> tuple[argparse.Namespace, dict]:
    """Named arguments, and everything else as settings."""
    from .config import parse_value

    parser = argparse.ArgumentParser(prog="run_recbole_llm.py", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    for name, text in known.items():
        parser.add_argument(f"--{name}", help=text)
    parser.add_argument("--config_files", default="", help="YAML files, separated by spaces")
    parser.add_argument("--print_config", action="store_true", help="print every setting and stop")
    namespace, rest = parser.parse_known_args(argv)
    settings = {}
    for argument in rest:
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals or not key:
            raise UserError(f"argument {argument!r}: expected --key=value")
        settings[key] = parse_value(value)
    return namespace, settings


def _need(value: str | None, name: str) -> str:
    if not value:
        raise UserError(f"--{name}=… is missing; see --help")
    return value


def _run(argv: list[str]) -> int:
    args, settings = _arguments(argv, model="model name", dataset="dataset name", resume="run to go on with, by folder or id")
    from . import config, store

    if args.resume:
        folder = store.find_run(args.resume, Path(settings.get("checkpoint_dir", "saved")))
        stored = store.read_run(folder)["settings"]
        return _report([config.changed(stored, settings)])
    model, dataset, files = _need(args.model, "model"), _need(args.dataset, "dataset"), args.config_files.split()
    resolved = config.resolve(model, dataset, files, settings)
    if args.print_config:
        return _print_config(resolved)
    shared = config.shared_settings(resolved)
    beside = [config.resolve(name, dataset, [], shared) for name in resolved["beside"] or [] if name != resolved["model"]]
    return _report([*beside, resolved])


def _report(settings: list[dict]) -> int:
    """Run and print one table."""
    from .compare import show, table_of, write_table
    from .run import run_settings

    runs = {one["model"]: [run_settings(one)] for one in settings}
    table = table_of(runs)
    folder = write_table(table, runs, Path(settings[-1]["checkpoint_dir"]))
    show(table)
    print(f"run: {runs[settings[-1]['model']][0].folder}   table: {folder}")
    return 0


def _print_config(settings: dict) -> int:
    import yaml

    print(yaml.safe_dump(settings, sort_keys=True, allow_unicode=True, width=120), end="")
    return 0


def _compare(argv: list[str]) -> int:
    args, settings = _arguments(argv, models="model names, separated by commas", dataset="dataset name", seeds="seeds, separated by commas")
    from . import config, registry
    from .compare import show, table_of, write_table
    from .run import run_settings

    models = [registry.canonical(name.strip()) for name in _need(args.models, "models").split(",")]
    seeds = [config.parse_value(seed) for seed in args.seeds.split(",")] if args.seeds else [None]
    own: dict[str, dict] = {model: {} for model in models}
    for key in list(settings):
        head, _, rest = key.partition(".")
        if rest and head not in config.GROUPS:
            name = registry.canonical(head)
            if name not in own:
                raise UserError(f"--{key}: {name} is not among --models")
            own[name][rest] = settings.pop(key)
    files = args.config_files.split()
    planned = {
        model: [config.resolve(model, _need(args.dataset, "dataset"), files, settings | own[model] | ({} if seed is None else {"seed": seed})) for seed in seeds]
        for model in models
    }
    if args.print_config:
        return _print_config({model: group[0] for model, group in planned.items()})
    runs = {model: [run_settings(one) for one in group] for model, group in planned.items()}
    table = table_of(runs)
    folder = write_table(table, runs, Path(planned[models[0]][0]["checkpoint_dir"]))
    show(table)
    print(f"table: {folder}")
    return 0


def _evaluate(argv: list[str]) -> int:
    args, settings = _arguments(argv, checkpoint="run to evaluate, by folder or id", dataset="another dataset")
    from . import config, store
    from .compare import show, table_of
    from .run import evaluate_run

    saved = Path(settings.get("checkpoint_dir", "saved"))
    folder = store.find_run(_need(args.checkpoint, "checkpoint"), saved)
    overrides = settings | ({"dataset": args.dataset} if args.dataset else {})
    stored = config.changed(store.read_run(folder)["settings"], overrides)
    if args.print_config:
        return _print_config(stored)
    show(table_of({stored["model"]: [evaluate_run(folder, stored)]}))
    return 0


def _recommend(argv: list[str]) -> int:
    args, settings = _arguments(argv, checkpoint="run to ask, by folder or id", user="user id", history="item titles, separated by ;", k="how many items")
    from . import config, store
    from .recommend import recommend

    folder = store.find_run(_need(args.checkpoint, "checkpoint"), Path(settings.get("checkpoint_dir", "saved")))
    if bool(args.user) == bool(args.history):
        raise UserError("recommend: expected either --user=ID or --history=\"title; title\"")
    stored = config.changed(store.read_run(folder)["settings"], settings)
    for line in recommend(folder, stored, user=args.user, history=args.history, k=int(args.k or 10)):
        print(line)
    return 0


COMMANDS = {"run": _run, "compare": _compare, "evaluate": _evaluate, "recommend": _recommend}
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its warning after a fork says nothing to a user
