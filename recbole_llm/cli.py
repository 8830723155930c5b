"""The command line: arguments in, one call, exit code out.

torch is loaded only once the arguments are right.
"""

import argparse
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compat import require_recbole
from .errors import UserError
from .storage.files import fault_line, storage_fault
from .storage.screen import LogFormatter, say

if TYPE_CHECKING:
    from .runs.run import Run

Settings = dict[str, Any]
PROGRAM = "recbole-llm"
DESCRIPTION = """\
LLM-based sequential recommenders beside RecBole's models, on the same users, items and metrics.

  --model=CALRec --dataset=Pet [--key=value ...]
      train, evaluate, store, print (beside Pop and LIR)
  compare --models=Pop,LIR,CALRec --dataset=Pet [--CALRec.epochs=3] [--seeds=1,2,3]
  compare --runs=RUN,RUN [--columns=mrr@10,recall@3]
      paired tests between any finished runs
  evaluate --checkpoint=RUN [--dataset=...] [--eval_args.mode=uni20] [--on=valid]
  recommend --checkpoint=RUN --user=ID | --history="title; title" [--k=10] [--index=faiss]
  experiment NAME [--paper] [--dataset=...]
      a paper's table or figure; experiment --list names all
  personalize --dataset=ml-100k [--models=2,3,4.text,5,7] [--cohorts=low+5,5] [--jobs=serial]
      one model for all, for cohorts, for each user
  tune --model=SASRec --dataset=ml-100k --space.learning_rate="{log: [1e-4, 1e-2]}"
       [--search=asha|random|grid] [--trials=8]
  plan --model=CALRec --dataset=Pet [--hardware=rtx-4090] [--key=value ...]
      what a run takes: tokens, steps, memory and time, without loading its weights
  summarize --dataset=Pet [--summary=recurrent]
      LLMTRSR's summaries alone, in a file to read
  prepare NAME [--raw=FOLDER] [--mirror=URL] [--proxy=URL] [--memory=MIB]
      raw data into atomic files; prepare --list names all
  prepare --name=MINE --inter=FILE [--items=FILE] --map="user=…,item=…,time=…,title=…"
      your own CSV, Parquet or JSON lines
  prepare --check NAME
      its statistics beside the papers'
  help [COMMAND | MODEL | settings]
      the arguments of a command, the settings of a model or of all

Any setting is --key=value, with dots into groups: --eval_args.mode=uni20; --print_config shows them
all."""


@dataclass(frozen=True)
class Usage:
    """What the help of a command says.

    Attributes
    ----------
    summary : str
    arguments : mapping
        Named arguments beside settings: name to help.
    """

    summary: str
    arguments: Mapping[str, str] = field(default_factory=dict)


SEEDS = "seeds, separated by commas: one run for each"
USAGES = {
    "run": Usage(
        "Train and evaluate a model, and print its row beside those of others (--beside).",
        {
            "model": "model name",
            "dataset": "dataset name",
            "seeds": SEEDS,
            "resume": "run to go on with, by folder or id",
        },
    ),
    "compare": Usage(
        "Put models, or finished runs, in one table with paired tests. --MODEL.key=value is a "
        "setting of one model.",
        {
            "models": "model names, separated by commas",
            "dataset": "dataset name",
            "seeds": SEEDS,
            "runs": "finished runs to put beside each other instead",
            "columns": "with --runs: metrics of the table, separated by commas",
        },
    ),
    "evaluate": Usage(
        "Evaluate a stored run again, with other settings or on another dataset.",
        {
            "checkpoint": "run to evaluate, by folder or id",
            "dataset": "another dataset",
            "on": "test, or valid to choose settings",
        },
    ),
    "recommend": Usage(
        "Name the items that a stored run recommends to a user.",
        {
            "checkpoint": "run to ask, by folder or id",
            "user": "user id",
            "history": "item titles, separated by ;",
            "k": "how many items",
            "index": "exact, or faiss for catalogues of millions",
        },
    ),
    "experiment": Usage(
        "Make a paper's table or figure: experiment NAME [--paper]; --list names all.",
        {"dataset": "datasets, separated by commas"},
    ),
    "personalize": Usage(
        "Compare one model for all users with adapters for cohorts and for single users.",
        {"dataset": "dataset name"},
    ),
    "tune": Usage(
        "Search settings of a model by validation.",
        {"model": "model name", "dataset": "dataset name"},
    ),
    "plan": Usage(
        "Reckon what a run takes: tokens, steps, memory, time, and what a summarizer costs.",
        {"model": "model name", "dataset": "dataset name"},
    ),
    "summarize": Usage(
        "Write LLMTRSR's summaries alone, in a file to read.", {"dataset": "dataset name"}
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns
    -------
    int
        0, or 2 after a one-line message for a mistake of the user's or a disk that takes nothing.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without † still gets its table
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(LogFormatter())  # of warnings outside a run's log
    show_thread_error = threading.excepthook
    threading.excepthook = partial(_thread_failed, show_thread_error)
    try:
        return _command(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        say(f"error: {error}", sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has closed it, as `head` does when it has its lines
        # so that the interpreter's last flush of it says nothing either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        say("stopped; the same command goes on where it last stored its state", sys.stderr)
        return 130
    except Exception as error:
        fault = storage_fault(error)
        if fault is None:
            raise
        say(f"error: {fault_line(fault)}", sys.stderr)
        return 2
    finally:
        threading.excepthook = show_thread_error


def _command(argv: list[str]) -> int:
    command = argv.pop(0) if argv and not argv[0].startswith("-") else None
    if command is not None and command not in COMMANDS:
        raise UserError(
            f"unknown command {command!r}: expected one of {', '.join(COMMANDS)}, or --model=… "
            "--dataset=…"
        )
    require_recbole()
    if {"--help", "-h"} & set(argv):
        models = [part.partition("=")[2] for part in argv if part.startswith("--model=")]
        return _help([*([command] if command else []), *models])
    return COMMANDS[command or "run"](argv) or 0


def _thread_failed(show: Callable[[Any], object], error: Any) -> None:
    """Show the error of a thread unless it is a disk's.

    Threads that write, such as tensorboard's, hand it on to the thread that gave them the work.
    """
    if storage_fault(error.exc_value) is None:
        show(error)


class Parser(argparse.ArgumentParser):
    """argparse prints its usage before a mistake; one line will do."""

    def error(self, message: str) -> Any:
        """Raise UserError with a message."""
        raise UserError(f"{message}; see --help")


def _parser(command: str) -> Parser:
    usage = USAGES[command]
    parser = Parser(
        prog=f"{PROGRAM} {command}",
        usage=f"{PROGRAM} {command} [--argument=value ...] [--key=value ...]",
        description=usage.summary,
        allow_abbrev=False,
        add_help=False,
    )
    for name, text in usage.arguments.items():
        parser.add_argument(f"--{name}", help=text)
    parser.add_argument("--config_files", default="", help="YAML files, separated by spaces")
    parser.add_argument("--print_config", action="store_true", help="print every setting and stop")
    return parser


def _arguments(argv: Sequence[str], command: str = "run") -> tuple[argparse.Namespace, Settings]:
    """Split the arguments of a command into named ones, and settings."""
    from .settings import spellings
    from .settings.layers import parse_value

    namespace, rest = _parser(command).parse_known_args(argv)
    settings: Settings = {}
    for argument, following in pairwise([*rest, "--"]):
        key, equals, value = argument.removeprefix("--").partition("=")
        is_switch = not equals and following.startswith("--")  # such as --overwrite
        if not argument.startswith("--") or not key or not (equals or is_switch):
            raise UserError(f"argument {argument!r}: expected --key=value")
        settings[key] = True if is_switch else spellings.of_value(key, parse_value(value))
    return namespace, settings


def _need(value: str | None, name: str) -> str:
    if not value:
        raise UserError(f"--{name}=… is missing; see --help")
    return value


def _help(argv: list[str]) -> int:
    """Describe commands, and models with their settings; without a name, list both."""
    from .settings import help as settings_help
    from .settings.commands import COMMANDS as COMMAND_SETTINGS

    if not argv:
        say(f"{DESCRIPTION}\n\n{settings_help.models_help()}")
    for place, name in enumerate(argv):
        if place:
            say("")
        if name in USAGES:
            say(_parser(name).format_help(), end="")
            if settings := COMMAND_SETTINGS.get(name):
                say(f"\n{settings_help.settings_help(settings)}")
        elif name == "prepare":
            say(_prepare_parser().format_help(), end="")
        elif name == "help":
            say(f"usage: {PROGRAM} help [COMMAND | MODEL | settings]")
        elif name == "settings":
            say(settings_help.shared_help())
        else:
            say(settings_help.model_help(name))
    return 0


def _run(argv: list[str]) -> int:
    args, settings = _arguments(argv, "run")
    from .settings import layers, registry

    files, seeds = args.config_files.split(), _seeds(args.seeds)
    if args.resume:
        return _resume(args, files, settings)
    dataset = _need(args.dataset, "dataset")
    model = registry.canonical(_need(args.model, "model"))
    planned = layers.plan([model], dataset, files, settings, seeds=seeds)
    resolved = planned[model][0]
    if args.print_config:
        return _print_config(resolved)
    names = [name for name in map(registry.canonical, resolved["beside"] or []) if name != model]
    beside = layers.plan(names, dataset, [], layers.shared_settings(resolved), seeds=seeds)
    return _report(beside | planned, beside=names)


def _resume(args: argparse.Namespace, files: list[str], settings: Settings) -> int:
    """Go on with a run that was stopped."""
    if args.model or args.dataset or args.seeds:
        raise UserError(
            "--resume goes on with a run as it is: leave out --model, --dataset and --seeds"
        )
    folder, stored = _stored(args.resume, files, settings)
    if args.print_config:
        return _print_config(stored)
    from .runs.commands import resume_run

    return _tabulate({stored["model"]: [resume_run(folder, stored)]}, folder.parent)


def _report(planned: dict[str, list[Settings]], beside: Sequence[str] = ()) -> int:
    """Run all that is planned, and print one table."""
    from .runs.commands import run_all

    saved = Path(next(iter(planned.values()))[0]["checkpoint_dir"])
    return _tabulate(run_all(planned, beside), saved)


def _tabulate(runs: "dict[str, list[Run]]", saved: Path, columns: Sequence[str] = ()) -> int:
    from .runs.compare import COLUMNS, labelled, show, table_of, write_table

    runs = labelled(runs)
    table = table_of(runs, columns or COLUMNS)
    folder = write_table(table, runs, saved)
    show(table)
    say(f"run: {list(runs.values())[-1][-1].folder}   table: {folder}")
    return 0


def _seeds(text: str | None) -> list[Any] | None:
    from .settings.layers import parse_value

    return [parse_value(seed) for seed in text.split(",")] if text else None


def _stored(
    name: str, files: list[str], settings: Settings, dataset: str | None = None
) -> tuple[Path, Settings]:
    """Find a run, and change its settings.

    Parameters
    ----------
    name : str
        Folder or id.
    files : list of str
        Settings files.
    settings : dict
        Over those of the files.
    dataset : str, optional
        Another data set, whose defaults then hold for all but what training alone reads.

    Returns
    -------
    folder : Path
    settings : dict
    """
    from .settings import layers, run_record
    from .storage import run_folders

    folder = run_folders.find_run(name, Path(settings.get("checkpoint_dir", "saved")))
    record = run_record.read_run(folder)
    if record is None:
        raise UserError(f"{folder} holds no run.json")
    stored: Settings = record["settings"]
    if dataset:
        from .runs.spec import moved

        stored = moved(stored, dataset)
    return folder, layers.changed(stored, settings, files)


def _print_config(settings: Settings) -> int:
    """Print settings as a file of settings: those of a run, or of several runs by name."""
    from .settings.layers import shown

    if "model" in settings:
        say(_commented(shown(settings)), end="")
        return 0
    for name, of_run in settings.items():
        say(f"{name}:")
        say(_commented(shown(of_run), "  "), end="")
    return 0


def _commented(settings: Settings, indent: str = "") -> str:
    from .settings import registry
    from .settings.commands import COMMANDS as OF_COMMANDS
    from .settings.harness import HarnessSettings
    from .settings.recbole_keys import RecBoleSettings
    from .settings.rendering import commented

    of_model = registry.find(settings["model"]).settings
    classes: list[Any] = [RecBoleSettings, HarnessSettings, *OF_COMMANDS.values()]
    return commented(settings, [*classes, *([of_model] if of_model else [])], indent)


def _compare(argv: list[str]) -> int:
    args, settings = _arguments(argv, "compare")
    from .settings import layers, registry

    if args.runs:
        return _compare_runs(args, settings)
    if args.columns:
        raise UserError(
            "--columns chooses among what finished runs have measured: it goes with --runs"
        )
    models = [registry.canonical(name.strip()) for name in _need(args.models, "models").split(",")]
    of_models = _settings_of_models(settings, models)
    dataset, files = _need(args.dataset, "dataset"), args.config_files.split()
    planned = layers.plan(models, dataset, files, settings, of_models, _seeds(args.seeds))
    if args.print_config:
        return _print_config({model: layers.shown(group[0]) for model, group in planned.items()})
    return _report(planned)


def _settings_of_models(settings: Settings, models: Sequence[str]) -> dict[str, Settings]:
    """Take what is said as --MODEL.key=value out of the settings: model to key to value."""
    from .settings import registry
    from .settings.defaults import group_keys

    groups = group_keys(models)
    of_models: dict[str, Settings] = {model: {} for model in models}
    names = {registry.find(model).name: model for model in models}
    for key in list(settings):
        module, colon, path = key.rpartition(":")  # the module of a class may have dots
        head, _, rest = path.partition(".")
        if rest and head not in groups:
            name = names.get(head) or _model_of_prefix(module + colon + head, names)
            if name not in of_models:
                raise UserError(
                    f"--{key}: {name} is not among the models, which are {', '.join(models)}"
                )
            of_models[name][rest] = settings.pop(key)
    return of_models


def _model_of_prefix(prefix: str, names: Iterable[str]) -> str:
    """The model that a prefix such as `SASRec.` names; of the table's models, the nearest first."""
    from .settings import registry
    from .settings.rules import nearest

    near = nearest(prefix, names)
    try:
        return registry.canonical(prefix)
    except UserError as error:
        if not near:
            raise
        raise UserError(f"unknown model {prefix!r}{near}") from error


def _compare_runs(args: argparse.Namespace, settings: Settings) -> int:
    """Put finished runs in one table."""
    if args.models or args.dataset or args.seeds:
        raise UserError(
            "--runs compares runs as they are: leave out --models, --dataset and --seeds"
        )
    if others := settings.keys() - {"checkpoint_dir"}:
        arguments = ", ".join(f"--{key}" for key in sorted(others))
        raise UserError(f"--runs compares runs as they are: leave out {arguments}")
    columns = [name.strip().lower() for name in (args.columns or "").split(",") if name.strip()]
    saved = Path(settings.get("checkpoint_dir", "saved"))
    runs = _finished_runs(args.runs.split(","), saved)
    if len({run.row["run"] for run in runs}) < len(runs):
        raise UserError("--runs: a run is named twice")
    for run in runs:
        if missing := [name for name in columns if name not in run.values]:
            raise UserError(
                f"--columns: {run.row['run']} has no {', '.join(missing)}, but "
                f"{', '.join(sorted(run.values))}"
            )
    return _tabulate({run.row["run"]: [run] for run in runs}, saved, columns)


def _finished_runs(names: Iterable[str], saved: Path) -> "list[Run]":
    from .runs.run import Run
    from .settings import run_record
    from .storage import run_folders

    runs = []
    for folder in [run_folders.find_run(name.strip(), saved) for name in names]:
        record = run_record.finished_run(folder)
        if "routes" in record:
            raise UserError(
                f"--runs: {folder.name} holds the adapters of many and was not measured itself; "
                f"give the runs of its models, which are in {folder}"
            )
        runs.append(Run(folder, record["row"]))
    return runs


def _evaluate(argv: list[str]) -> int:
    args, settings = _arguments(argv, "evaluate")
    if args.on not in (None, "test", "valid"):
        raise UserError(f"--on: expected test or valid, found {args.on!r}")
    name, files = _need(args.checkpoint, "checkpoint"), args.config_files.split()
    folder, stored = _stored(name, files, settings, args.dataset)
    if args.print_config:
        return _print_config(stored)
    from .runs.commands import evaluate_run
    from .runs.compare import labelled, show, table_of

    run = evaluate_run(folder, stored, args.on or "test")
    show(table_of(labelled({stored["model"]: [run]})))
    say(f"run: {run.folder}")
    return 0


def _recommend(argv: list[str]) -> int:
    args, settings = _arguments(argv, "recommend")
    name, files = _need(args.checkpoint, "checkpoint"), args.config_files.split()
    folder, stored = _stored(name, files, settings)
    if bool(args.user) == bool(args.history):
        raise UserError('recommend: expected either --user=ID or --history="title; title"')
    if not (args.k or "10").isdecimal() or args.k == "0":
        raise UserError(f"--k: expected a positive whole number, found {args.k!r}")
    if args.index not in (None, "exact", "faiss"):
        raise UserError(f"--index: expected exact or faiss, found {args.index!r}")
    if args.print_config:
        return _print_config(stored)
    from .studies.recommend import recommend

    chosen = {"user": args.user, "history": args.history, "k": int(args.k or 10)}
    for line in recommend(folder, stored, **chosen, index=args.index or "exact"):
        say(line)
    return 0


def _experiment(argv: list[str]) -> int:
    name = argv.pop(0) if argv and not argv[0].startswith("-") else None
    switches = {switch for switch in ("--list", "--paper") if switch in argv}
    rest = [part for part in argv if part not in switches]
    args, settings = _arguments(rest, "experiment")
    from .settings import layers, registry
    from .studies import experiments

    if name is None and "--list" in switches:
        say("\n".join(experiments.listed()))
        return 0
    name = _need(name, "list, or the NAME of an experiment")
    chosen = experiments.read(name, "--paper" in switches)
    datasets, files = args.dataset.split(",") if args.dataset else None, args.config_files.split()
    models = dict.fromkeys(registry.canonical(row["model"]) for row in chosen.rows.values())
    of_models = _settings_of_models(settings, list(models))
    if args.print_config:
        dataset = (datasets or chosen.datasets)[0]
        resolved = {
            row: chosen.resolved(row, dataset, files, settings, of_models) for row in chosen.rows
        }
        return _print_config({row: layers.shown(one) for row, one in resolved.items()})
    say("\n".join(experiments.run(chosen, datasets, files, settings, of_models)))
    return 0


def _personalize(argv: list[str]) -> int:
    args, settings = _arguments(argv, "personalize")
    from .settings import layers

    options, given = layers.of_command("personalize", args.config_files.split(), settings)
    resolved = layers.resolve("TASTELoRA", _need(args.dataset, "dataset"), given)
    if args.print_config:
        return _print_config(resolved | options)
    from .studies.personalization.command import personalize

    say("\n".join(personalize(resolved, options)))
    return 0


def _tune(argv: list[str]) -> int:
    args, settings = _arguments(argv, "tune")
    from .settings import layers, registry

    model = registry.canonical(_need(args.model, "model"))
    dataset = _need(args.dataset, "dataset")
    options, given = layers.of_command("tune", args.config_files.split(), settings)
    if args.print_config:
        return _print_config(layers.resolve(model, dataset, given) | options)
    from .studies.tune import tune

    say("\n".join(tune(model, dataset, given, options)))
    return 0


def _plan(argv: list[str]) -> int:
    args, settings = _arguments(argv, "plan")
    from .settings import layers, registry

    model = registry.canonical(_need(args.model, "model"))
    dataset = _need(args.dataset, "dataset")
    options, given = layers.of_command("plan", args.config_files.split(), settings)
    resolved = layers.resolve(model, dataset, given)
    if args.print_config:
        return _print_config(resolved | options)
    from .studies.plan import plan

    say("\n".join(plan(resolved, options)))
    return 0


def _summarize(argv: list[str]) -> int:
    args, settings = _arguments(argv, "summarize")
    from .settings import layers

    dataset, files = _need(args.dataset, "dataset"), args.config_files.split()
    resolved = layers.resolve("LLMTRSR", dataset, files, settings)
    if args.print_config:
        return _print_config(resolved)
    from .studies.summarize import summarize

    say("\n".join(summarize(resolved)))
    return 0


def _prepare_parser() -> Parser:
    from .data.prepare.engine import MEMORY

    parser = Parser(
        prog=f"{PROGRAM} prepare",
        description="Turn raw data into atomic files.",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("dataset", nargs="?", metavar="NAME", help="a dataset that --list names")
    parser.add_argument("--list", action="store_true", help="name all that can be prepared")
    parser.add_argument(
        "--check",
        action="store_true",
        help="print the statistics of a prepared dataset beside the papers'",
    )
    parser.add_argument(
        "--data_path", type=Path, default=Path("dataset"), help="folder of the datasets (dataset)"
    )
    parser.add_argument(
        "--raw",
        type=Path,
        help="folder with raw files that were fetched by hand (DATA_PATH/raw/NAME)",
    )
    parser.add_argument(
        "--mirror",
        help="address below which the raw files lie as below the source's own, asked first",
    )
    parser.add_argument(
        "--proxy", help="proxy for downloads; without it those of HTTPS_PROXY and HTTP_PROXY"
    )
    parser.add_argument(
        "--memory",
        type=int,
        default=MEMORY,
        help=f"MiB of tables held before they go to disk ({MEMORY})",
    )
    own_tables = {
        "name": "what your own dataset is to be called",
        "inter": "your events",
        "items": "your items",
        "map": "role=column,…",
    }
    for name, text in own_tables.items():
        parser.add_argument(f"--{name}", help=text)
    return parser


def _prepare(argv: list[str]) -> int:
    args = _prepare_parser().parse_args(argv)
    from .data.prepare.convert import prepare
    from .data.prepare.engine import LEAST, MOST
    from .data.prepare.files.raw import Net
    from .data.prepare.sources import catalogue

    if args.list:
        say("\n".join(catalogue.listed()))
        return 0
    if not LEAST <= args.memory <= MOST:
        raise UserError(f"--memory: expected {LEAST} to {MOST} (MiB), found {args.memory}")
    args.data_path = args.data_path.expanduser()
    raw = args.raw and args.raw.expanduser()
    if raw and not raw.is_dir():
        raise UserError(f"--raw: expected a folder, found {raw}")
    net = Net(args.mirror, args.proxy)
    if args.inter or args.name:
        recipe, raw = _own_recipe(args)
    elif args.items or args.map:
        raise UserError(
            "prepare: --items and --map are of your own tables, which --name and --inter name"
        )
    else:
        recipe = catalogue.find(_need(args.dataset, "list, or the NAME of a dataset"))
    if args.check:
        from .data.prepare.check import check  # it reads atomic files, by what runs read them with

        say("\n".join(check(recipe.name, args.data_path)))
    else:
        prepare(recipe, args.data_path, raw, net, args.memory)
    return 0


def _own_recipe(args: argparse.Namespace) -> tuple[Any, dict[str, Path]]:
    """The recipe for tables of the user's own, and the tables by their roles."""
    from .data.prepare.sources import own
    from .settings.rules import check_name

    if args.dataset or args.raw or args.mirror:
        raise UserError("prepare: expected either NAME or --name with --inter")
    check_name(_need(args.name, "name"), "--name")
    given = {"inter": _need(args.inter, "inter"), "items": args.items}
    files = {role: Path(file).expanduser() for role, file in given.items() if file}
    return own.recipe(args.name, files, _need(args.map, "map")), files


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": _run,
    "compare": _compare,
    "evaluate": _evaluate,
    "recommend": _recommend,
    "experiment": _experiment,
    "personalize": _personalize,
    "tune": _tune,
    "summarize": _summarize,
    "plan": _plan,
    "prepare": _prepare,
    "help": _help,
}
# Read when torch is loaded (GNU OpenMP): its threads spin for long while they wait for each other.
# Where anything else ran on one of two cores, training steps took up to 5 times as long; spinning
# briefly mends that and left the time on idle cores as it was.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# its warning after a fork says nothing to a user
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
