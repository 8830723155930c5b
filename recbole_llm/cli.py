"""The command line: arguments in, one call, exit code out. torch is loaded only once the arguments are right."""

import argparse
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from .compat import require_recbole
from .errors import UserError
from .storage.files import fault_line, storage_fault
from .storage.screen import LogFormatter, say

DESCRIPTION = """\
LLM-based sequential recommenders beside RecBole's models, on the same users, items and metrics.

  --model=CALRec --dataset=Pet [--key=value ...]     train, evaluate, store, print (beside Pop and LIR)
  compare --models=Pop,LIR,CALRec --dataset=Pet [--CALRec.epochs=3] [--seeds=1,2,3]
  compare --runs=RUN,RUN [--columns=mrr@10,recall@3] paired tests between any finished runs
  evaluate --checkpoint=RUN [--dataset=...] [--eval_args.mode=uni20] [--on=valid]
  recommend --checkpoint=RUN --user=ID | --history="title; title" [--k=10] [--index=faiss]
  experiment NAME [--paper] [--dataset=...]          a paper's table or figure; experiment --list names all
  personalize --dataset=ml-100k [--models=2,3,4.text,5,7] [--cohorts=low+5,5] [--jobs=serial]    one model for all, for cohorts, for each user
  tune --model=SASRec --dataset=ml-100k --space.learning_rate="{log: [1e-4, 1e-2]}" [--search=asha|random|grid] [--trials=8]
  summarize --dataset=Pet [--summary=recurrent]      LLMTRSR's summaries alone, in a file to read
  prepare NAME [--raw=FOLDER] [--mirror=URL] [--proxy=URL] [--memory=MIB]    raw data into atomic files; prepare --list names all
  prepare --name=MINE --inter=FILE [--items=FILE] --map="user=…,item=…,time=…,title=…"    your own CSV, Parquet or JSON lines
  prepare --check NAME                               its statistics beside the papers'

Any setting is --key=value, with dots into groups: --eval_args.mode=uni20; --print_config shows them all."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0, or 2 after a one-line message for a mistake of the user's or a disk that takes nothing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without † still gets its table
    logging.lastResort.setFormatter(LogFormatter())  # of warnings outside a run's log
    of_threads = threading.excepthook
    threading.excepthook = partial(_thread_failed, of_threads)
    argv = list(sys.argv[1:] if argv is None else argv)
    command = argv.pop(0) if argv and not argv[0].startswith("-") else "run"
    try:
        if command not in COMMANDS:
            raise UserError(
                f"unknown command {command!r}: expected one of {', '.join(COMMANDS)}, or --model=… "
                "--dataset=…"
            )
        require_recbole()
        return COMMANDS[command](argv) or 0
    except UserError as error:
        say(f"error: {error}", sys.stderr)
        return 2
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
        threading.excepthook = of_threads


def _thread_failed(show: Callable, failed) -> None:
    """Threads that write, such as tensorboard's, hand a disk's error on to the thread that gave them the work; show others."""
    if storage_fault(failed.exc_value) is None:
        show(failed)


class Parser(argparse.ArgumentParser):
    """argparse prints its usage before a mistake; one line will do."""

    def error(self, message):
        raise UserError(f"{message}; see --help")


def _arguments(argv: list[str], **known: str) -> tuple[argparse.Namespace, dict]:
    """Named arguments, and everything else as settings."""
    from .settings import spellings
    from .settings.layers import parse_value

    parser = Parser(
        prog="run_recbole_llm.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, text in known.items():
        parser.add_argument(f"--{name}", help=text)
    parser.add_argument("--config_files", default="", help="YAML files, separated by spaces")
    parser.add_argument("--print_config", action="store_true", help="print every setting and stop")
    namespace, rest = parser.parse_known_args(argv)
    settings = {}
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


def _run(argv: list[str]) -> int:
    args, settings = _arguments(
        argv,
        model="model name",
        dataset="dataset name",
        seeds=SEEDS,
        resume="run to go on with, by folder or id",
    )
    from .settings import layers as config
    from .settings import registry

    if args.resume:
        if args.model or args.dataset or args.seeds:
            raise UserError(
                "--resume goes on with a run as it is: leave out --model, --dataset and --seeds"
            )
        folder, stored = _stored(args.resume, args.config_files.split(), settings)
        if args.print_config:
            return _print_config(stored)
        from .runs.commands import resume_run

        return _tabulate({stored["model"]: [resume_run(folder, stored)]}, folder.parent)
    dataset = _need(args.dataset, "dataset")
    planned = config.plan(
        [registry.canonical(_need(args.model, "model"))],
        dataset,
        args.config_files.split(),
        settings,
        seeds=_seeds(args.seeds),
    )
    ((resolved, *_),) = planned.values()
    if args.print_config:
        return _print_config(resolved)
    names = [
        name
        for name in map(registry.canonical, resolved["beside"] or [])
        if name != resolved["model"]
    ]
    return _report(
        config.plan(names, dataset, [], config.shared_settings(resolved), seeds=_seeds(args.seeds))
        | planned,
        beside=names,
    )


def _report(planned: dict[str, list[dict]], beside: Sequence[str] = ()) -> int:
    """Run and print one table."""
    from .runs.commands import run_all

    saved = Path(next(iter(planned.values()))[0]["checkpoint_dir"])
    return _tabulate(run_all(planned, beside), saved)


def _tabulate(runs: dict, saved: Path, columns: Sequence[str] = ()) -> int:
    from .runs.compare import COLUMNS, labelled, show, table_of, write_table

    runs = labelled(runs)
    table = table_of(runs, columns or COLUMNS)
    folder = write_table(table, runs, saved)
    show(table)
    say(f"run: {list(runs.values())[-1][-1].folder}   table: {folder}")
    return 0


def _seeds(text: str | None) -> list | None:
    from .settings.layers import parse_value

    return [parse_value(seed) for seed in text.split(",")] if text else None


def _stored(
    name: str, files: list[str], settings: dict, dataset: str | None = None
) -> tuple[Path, dict]:
    """The folder of a run, and its settings with those changes; on another dataset, that one's defaults but in what training alone reads."""
    from .settings import layers as config
    from .settings import run_record
    from .storage import run_folders

    folder = run_folders.find_run(name, Path(settings.get("checkpoint_dir", "saved")))
    stored = run_record.read_run(folder)["settings"]
    if dataset:
        from .runs.spec import moved

        stored = moved(stored, dataset)
    return folder, config.changed(stored, settings, files)


def _print_config(settings: dict) -> int:
    import yaml

    from .settings.layers import shown

    say(yaml.safe_dump(shown(settings), sort_keys=True, allow_unicode=True, width=120), end="")
    return 0


def _compare(argv: list[str]) -> int:
    args, settings = _arguments(
        argv, models="model names, separated by commas", dataset="dataset name", seeds=SEEDS, runs="finished runs to put beside each other instead",
        columns="with --runs: metrics of the table, separated by commas",
    )  # fmt: skip
    from .settings import layers as config
    from .settings import registry

    if args.runs:
        if args.models or args.dataset or args.seeds:
            raise UserError(
                "--runs compares runs as they are: leave out --models, --dataset and --seeds"
            )
        if others := settings.keys() - {"checkpoint_dir"}:
            raise UserError(
                "--runs compares runs as they are: leave out "
                f"{', '.join(f'--{key}' for key in sorted(others))}"
            )
        columns = [name.strip().lower() for name in (args.columns or "").split(",") if name.strip()]
        return _compare_runs(
            args.runs.split(","), Path(settings.get("checkpoint_dir", "saved")), columns
        )
    if args.columns:
        raise UserError(
            "--columns chooses among what finished runs have measured: it goes with --runs"
        )
    models = [registry.canonical(name.strip()) for name in _need(args.models, "models").split(",")]
    own = _own_settings(settings, models)
    planned = config.plan(
        models,
        _need(args.dataset, "dataset"),
        args.config_files.split(),
        settings,
        own,
        _seeds(args.seeds),
    )
    if args.print_config:
        return _print_config({model: config.shown(group[0]) for model, group in planned.items()})
    return _report(planned)


def _own_settings(settings: dict, models: Sequence[str]) -> dict[str, dict]:
    """What is said as --MODEL.key=value, taken out of the settings: model -> key -> value."""
    from .settings import layers as config
    from .settings import registry

    own: dict[str, dict] = {model: {} for model in models}
    names = {registry.find(model).name: model for model in models}
    for key in list(settings):
        module, colon, path = key.rpartition(":")  # the module of a class may have dots
        head, _, rest = path.partition(".")
        if rest and head not in config.GROUPS:
            name = names.get(head) or registry.canonical(module + colon + head)
            if name not in own:
                raise UserError(
                    f"--{key}: {name} is not among the models, which are {', '.join(models)}"
                )
            own[name][rest] = settings.pop(key)
    return own


def _compare_runs(names: list[str], saved: Path, columns: Sequence[str]) -> int:
    from .runs.run import Run
    from .settings import run_record
    from .storage import run_folders

    folders = [run_folders.find_run(name.strip(), saved) for name in names]
    runs = []
    for folder in folders:
        done = run_record.finished_run(folder)
        if "routes" in done:
            raise UserError(
                f"--runs: {folder.name} holds the adapters of many and was not measured itself; "
                f"give the runs of its models, which are in {folder}"
            )
        runs.append(Run(folder, done["row"]))
    if len({run.row["run"] for run in runs}) < len(runs):
        raise UserError("--runs: a run is named twice")
    for run in runs:
        if missing := [name for name in columns if name not in run.values]:
            raise UserError(
                f"--columns: {run.row['run']} has no {', '.join(missing)}, but "
                f"{', '.join(sorted(run.values))}"
            )
    return _tabulate({run.row["run"]: [run] for run in runs}, saved, columns)


def _evaluate(argv: list[str]) -> int:
    args, settings = _arguments(
        argv,
        checkpoint="run to evaluate, by folder or id",
        dataset="another dataset",
        on="test, or valid to choose settings",
    )
    if args.on not in (None, "test", "valid"):
        raise UserError(f"--on: expected test or valid, found {args.on!r}")
    folder, stored = _stored(
        _need(args.checkpoint, "checkpoint"), args.config_files.split(), settings, args.dataset
    )
    if args.print_config:
        return _print_config(stored)
    from .runs.commands import evaluate_run
    from .runs.compare import labelled, show, table_of

    run = evaluate_run(folder, stored, args.on or "test")
    show(table_of(labelled({stored["model"]: [run]})))
    say(f"run: {run.folder}")
    return 0


def _recommend(argv: list[str]) -> int:
    args, settings = _arguments(
        argv,
        checkpoint="run to ask, by folder or id",
        user="user id",
        history="item titles, separated by ;",
        k="how many items",
        index=INDEX,
    )
    folder, stored = _stored(
        _need(args.checkpoint, "checkpoint"), args.config_files.split(), settings
    )
    if bool(args.user) == bool(args.history):
        raise UserError('recommend: expected either --user=ID or --history="title; title"')
    if not (args.k or "10").isdecimal() or args.k == "0":
        raise UserError(f"--k: expected a positive whole number, found {args.k!r}")
    if args.index not in (None, "exact", "faiss"):
        raise UserError(f"--index: expected exact or faiss, found {args.index!r}")
    if args.print_config:
        return _print_config(stored)
    from .studies.recommend import recommend

    for line in recommend(
        folder,
        stored,
        user=args.user,
        history=args.history,
        k=int(args.k or 10),
        index=args.index or "exact",
    ):
        say(line)
    return 0


def _experiment(argv: list[str]) -> int:
    name = argv.pop(0) if argv and not argv[0].startswith("-") else None
    if "--list" in argv:
        argv.remove("--list")
        name = name or "--list"
    paper = "--paper" in argv
    args, settings = _arguments(
        [part for part in argv if part != "--paper"], dataset="datasets, separated by commas"
    )
    from .settings import registry
    from .studies import experiments

    if name == "--list":
        say("\n".join(experiments.listed()))
        return 0
    chosen = experiments.read(_need(name, "list, or the NAME of an experiment"), paper)
    datasets, files = args.dataset.split(",") if args.dataset else None, args.config_files.split()
    own = _own_settings(
        settings,
        list(dict.fromkeys(registry.canonical(row["model"]) for row in chosen.rows.values())),
    )
    if args.print_config:
        from .settings.layers import shown

        return _print_config(
            {
                row: shown(
                    chosen.resolved(row, (datasets or chosen.datasets)[0], files, settings, own)
                )
                for row in chosen.rows
            }
        )
    say("\n".join(experiments.run(chosen, datasets, files, settings, own)))
    return 0


def _personalize(argv: list[str]) -> int:
    args, settings = _arguments(argv, dataset="dataset name")
    from .settings import layers as config

    own, layers = config.of_command("personalize", args.config_files.split(), settings)
    resolved = config.resolve("TASTELoRA", _need(args.dataset, "dataset"), layers)
    if args.print_config:
        return _print_config(resolved | own)
    from .studies.personalization.command import personalize

    say("\n".join(personalize(resolved, own)))
    return 0


def _tune(argv: list[str]) -> int:
    args, settings = _arguments(argv, model="model name", dataset="dataset name")
    from .settings import layers as config
    from .settings import registry

    model, dataset = (
        registry.canonical(_need(args.model, "model")),
        _need(args.dataset, "dataset"),
    )
    own, layers = config.of_command("tune", args.config_files.split(), settings)
    if args.print_config:
        return _print_config(config.resolve(model, dataset, layers) | own)
    from .studies.tune import tune

    say("\n".join(tune(model, dataset, layers, own)))
    return 0


def _summarize(argv: list[str]) -> int:
    args, settings = _arguments(argv, dataset="dataset name")
    from .settings import layers as config

    resolved = config.resolve(
        "LLMTRSR", _need(args.dataset, "dataset"), args.config_files.split(), settings
    )
    if args.print_config:
        return _print_config(resolved)
    from .studies.summarize import summarize

    say("\n".join(summarize(resolved)))
    return 0


def _prepare(argv: list[str]) -> int:
    from .data.prepare.engine import LEAST, MEMORY, MOST

    parser = Parser(
        prog="run_recbole_llm.py prepare",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
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
    for name, meaning in (
        ("name", "what your own dataset is to be called"),
        ("inter", "your events"),
        ("items", "your items"),
        ("map", "role=column,…"),
    ):
        parser.add_argument(f"--{name}", help=meaning)
    args = parser.parse_args(argv)
    from .data.prepare.convert import prepare
    from .data.prepare.files.raw import Net
    from .data.prepare.sources import catalogue, own
    from .settings.rules import check_name

    if args.list:
        say("\n".join(catalogue.listed()))
        return 0
    if not LEAST <= args.memory <= MOST:
        raise UserError(f"--memory: expected {LEAST} to {MOST} (MiB), found {args.memory}")
    args.data_path = args.data_path.expanduser()
    if args.raw and not (raw := args.raw.expanduser()).is_dir():
        raise UserError(f"--raw: expected a folder, found {raw}")
    if args.inter or args.name:
        if args.dataset or args.raw or args.mirror:
            raise UserError("prepare: expected either NAME or --name with --inter")
        check_name(_need(args.name, "name"), "--name")
        files = {
            role: Path(file).expanduser()
            for role, file in (("inter", _need(args.inter, "inter")), ("items", args.items))
            if file
        }
        recipe, net = own.recipe(args.name, files, _need(args.map, "map")), None
    else:
        if args.items or args.map:
            raise UserError(
                "prepare: --items and --map are of your own tables, which --name and --inter name"
            )
        recipe, files = catalogue.find(_need(args.dataset, "list, or the NAME of a dataset")), None
        net = Net(args.mirror, args.proxy)
    if args.check:
        from .data.prepare.check import check  # it reads atomic files, by what runs read them with

        say("\n".join(check(recipe.name, args.data_path)))
    else:
        prepare(recipe, args.data_path, files or (args.raw and raw), net, args.memory)
    return 0


INDEX = "exact, or faiss for catalogues of millions"
SEEDS = "seeds, separated by commas: one run for each"
COMMANDS = {
    "run": _run, "compare": _compare, "evaluate": _evaluate, "recommend": _recommend, "experiment": _experiment, "personalize": _personalize,
    "tune": _tune, "summarize": _summarize, "prepare": _prepare,
}  # fmt: skip
# Read when torch is loaded (GNU OpenMP): its threads spin for long while they wait for each other. Where anything else ran on one of two
# cores, training steps took up to 5 times as long; spinning briefly mends that and left the time on idle cores as it was.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault(
    "TOKENIZERS_PARALLELISM", "false"
)  # its warning after a fork says nothing to a user
