"""The command `personalize`: run a spectrum, print its tables, and store the results."""

from pathlib import Path

import numpy as np

from ...errors import UserError, require_packages
from ...evaluation import metrics
from ...evaluation.ranks import RankTable
from ...runs.tables import Table, to_markdown, to_screen, write
from ...settings import run_record
from ...settings.layers import digest
from ...storage import run_folders
from ...storage.files import atomically, write_text
from ...storage.readback import run_digests
from .findings import Findings
from .outcomes import OUTCOMES
from .spectrum import Personal, Served, Spectrum, own_name
from .work_units import adapter_path, done, unit_folder

COLOURS = {
    "win": "tab:green",
    "draw": "tab:blue",
    "loss": "tab:red",
    "mixed": "tab:orange",
    "inconclusive": "lightgrey",
}
QUESTIONS = "**Questions** (differences with 95 % intervals over users, each interval by itself)"


def personalize(settings: dict, options: dict) -> list[str]:
    """Run a spectrum, and write its report.

    Parameters
    ----------
    settings : dict
        The settings of Model 2.
    options : dict
        The settings of properties/personalize.yaml.

    Returns
    -------
    list of str
        Lines to be printed: tables, answers, and where everything is stored.

    Raises
    ------
    UserError
        For a mistake in the settings, before anything is trained.
    """
    require_packages("personalize", "plots", "matplotlib")
    personal = Personal(settings, options)
    folder, spectrum = personal.run()
    record = _record(personal, spectrum, folder)
    run_folders.write_json(folder / run_folders.RUN, record)
    findings = Findings(spectrum, options["threshold"], personal.borders)
    tables, answers = findings.tables(), findings.answers()
    target = folder / f"report-{_key(spectrum)}"
    _write_report(tables, answers, target)
    _write_cohorts(spectrum, target)
    _write_models(personal, spectrum, target)
    screens = []
    for table in tables.values():
        screens += [to_screen(table), ""]
    paths = [f"report: {target / 'report.md'}", _serving(folder, record["routes"])]
    return ["", *screens, *answers, "", *paths]


def _key(spectrum: Spectrum) -> str:
    """A digest of the models of a report and of the users whom each serves."""
    users = spectrum.interactions.users
    served = {
        model: [users[group.users].tolist(), sorted(group.units)]
        for model, group in spectrum.served.items()
    }
    return digest([spectrum.models, served])


def _write_report(tables: dict[str, Table], answers: list[str], target: Path) -> None:
    """Write the tables one by one, and all of them with the answers as report.md."""
    for name, table in tables.items():
        write(table, target, name)
    parts = [*map(to_markdown, tables.values()), QUESTIONS, "```\n" + "\n".join(answers) + "\n```"]
    if "outcomes" in tables:
        draw(tables["outcomes"], target / "outcomes.png")
        parts.insert(list(tables).index("outcomes") + 1, "![outcomes](outcomes.png)")
    write_text(target / "report.md", "\n\n".join(parts))


def _serving(folder: Path, routes: dict) -> str:
    """A line about the users whom `recommend` serves by each kind of adapter."""
    who = (
        f"{len(routes['users'])} users by their own, {len(routes['cohorts'])} by a cohort's of "
        f"{routes['cohorts_of'] or 'none'}, others by Model 3's"
    )
    return f"adapters: {folder} (recommend --checkpoint={folder.name} --user=… serves {who})"


def _write_cohorts(spectrum: Spectrum, target: Path) -> None:
    """Write user and cohort for each Model 4 and 6, as --cohort_file reads them."""
    for model, cohorts in spectrum.groupings.items():
        lines = []
        for user, number in zip(spectrum.interactions.users, cohorts.of, strict=True):
            if number >= 0:
                lines.append(f"{user}\t{cohorts.names[number]}")
        write_text(target / f"cohorts-{model.replace(' ', '-')}.tsv", "\n".join(lines))


def _write_models(personal: Personal, spectrum: Spectrum, target: Path) -> None:
    """Store the models from 3 on that have every user as finished runs, for `compare --runs`."""
    for model in spectrum.models:
        complete = model not in "12" and spectrum.covered[model].all()
        if complete and not _is_stored(target / model):
            _write_model(personal, spectrum, model, target / model)


def _write_model(personal: Personal, spectrum: Spectrum, model: str, folder: Path) -> None:
    """Store one model as a finished run."""
    settings, ranks, report = personal.settings, spectrum.ranks[model], folder.parent
    folder.mkdir(parents=True, exist_ok=True)
    values = metrics.evaluate(
        ranks, settings["metrics"], settings["topk"], bool(settings["group_by_user"])
    )
    row = spectrum.runs["2"].row | personal.spec.measure
    row |= {
        "run": f"{report.parent.name}/{report.name}/{model}",
        "personal": model,
        # these models have learned from both parts of the training period
        "split": settings["eval_args"] | {"part": "both"},
        "hash": digest([report.parent.name, report.name, model]),
        "test": values,
        "cases": len(ranks),
        "versions": run_folders.versions(),
        "seconds": {},
        "memory_mib": {},
        "rates": {},
        "candidates": {},
    }
    row = {key: value for key, value in row.items() if key not in ("valid", "best_epoch")}
    ranks.save(folder / run_folders.RANKS.format(part="test"))
    run_folders.write_json(folder / run_folders.RUN, _finished(personal, row))
    run_folders.append_result(report.parent.parent, row)


def _is_stored(folder: Path) -> bool:
    """Whether a folder has a run with its ranks."""
    if run_record.read_run(folder) is None:
        return False
    try:
        RankTable.load(folder / run_folders.RANKS.format(part="test"))
    except UserError:
        return False
    return True


def _finished(personal: Personal, row: dict) -> dict:
    """The record of a finished run."""
    return {
        "status": "finished",
        "settings": personal.spec.settings,
        "versions": run_folders.versions(),
        "data": personal.interactions.fingerprint,
        "row": row,
    }


def _record(personal: Personal, spectrum: Spectrum, folder: Path) -> dict:
    """The content of run.json of the adapters: which of them serves which user, see routing.py.

    Users keep the adapters of earlier commands that this command has not trained.
    """
    record = run_record.read_run(folder) or {}
    before = record.get("routes", {"cohorts": {}, "cohorts_of": None, "users": {}})
    users, base = spectrum.interactions.users, spectrum.runs["2"].folder
    cohorts, model = before["cohorts"], _routing_model(spectrum)
    if model:
        cohorts, grouping = {}, spectrum.groupings[model]
        for unit, members in _done_units(folder, spectrum.served.get(model)).items():
            name = grouping.names[grouping.of[members[0]]]
            route = [name, _relative_path(folder, unit, unit)]
            cohorts |= dict.fromkeys(users[members].tolist(), route)
    own_adapters = dict(before["users"])
    for number in ("5", "7"):
        for unit, members in _done_units(folder, spectrum.served.get(number)).items():
            for user in users[members].tolist():
                own_adapters[user] = _relative_path(folder, unit, own_name(user))
    (everybody,) = spectrum.served["3"].units
    routes = {
        "base": base.name,
        "weights": digest(run_digests(base)),
        "everybody": _relative_path(folder, everybody, everybody),
        "cohorts": cohorts,
        "cohorts_of": model or before["cohorts_of"],
        "users": own_adapters,
    }
    return _finished(personal, {"run": folder.name}) | {"routes": routes}


def _routing_model(spectrum: Spectrum) -> str | None:
    """The Model 4 whose cohorts serve users: that of a file, else the first."""
    for model in ("4.file", *spectrum.models):
        if model.startswith("4.") and model in spectrum.groupings:
            return model
    return None


def _done_units(folder: Path, served: Served | None) -> dict[str, np.ndarray]:
    """Units of a model that are done, with their users."""
    units = served.units if served else {}
    return {unit: members for unit, members in units.items() if done(folder, unit)}


def _relative_path(folder: Path, unit: str, adapter: str) -> str:
    """The path of an adapter, relative to the folder of all adapters."""
    path = unit_folder(folder, unit) / adapter_path(adapter)
    return path.relative_to(folder).as_posix()


def draw(table: Table, path: Path) -> None:
    """Draw the shares of users by outcome, a bar for each group by activity that has users.

    Parameters
    ----------
    table : Table
        As `Findings.outcomes` makes it.
    path : Path
        The PNG file to be written.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    labels, shares = [], []
    for name, cells in table.rows:
        numbers = [cell.mean if cell else 0.0 for cell in cells]
        users, outcomes = numbers[0], numbers[-len(OUTCOMES) :]
        if name != "all" and users:
            labels.append(f"{name}\n{users:.0f} users")
            shares.append([count / users for count in outcomes])
    figure, axis = pyplot.subplots(figsize=(7, 4))
    left = np.zeros(len(labels))
    for outcome, share in zip(OUTCOMES, np.array(shares).T, strict=True):
        axis.barh(labels, share, left=left, label=outcome, color=COLOURS[outcome])
        left += share
    axis.set(xlabel="share of users", title=table.title, xlim=(0, 1))
    axis.invert_yaxis()
    figure.legend(loc="lower center", ncols=len(OUTCOMES), frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    with atomically(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    pyplot.close(figure)
