"""The personalization spectrum of a dataset, run, shown and stored."""

from pathlib import Path

import numpy as np

from ...errors import UserError, require_packages
from ...evaluation import metrics
from ...evaluation.ranks import RankTable
from ...runs.tables import Table, to_markdown, to_screen, write, write_text
from ...settings import run_record
from ...settings.layers import digest
from ...storage import run_folders
from ...storage.files import atomically
from ...storage.readback import run_digests
from .findings import Findings
from .outcomes import OUTCOMES
from .spectrum import Personal, Spectrum, own_name
from .work_units import adapter_path, done, unit_folder


def personalize(settings: dict, own: dict) -> list[str]:
    """Run what is not there yet. Returns lines to be shown: tables, answers, and where everything is stored.

    Parameters
    ----------
    settings : of Model 2. own : those of properties/personalize.yaml.
    """
    require_packages("personalize", "plots", "matplotlib")
    asked = Personal(settings, own)
    folder, found = asked.run()
    record = _record(asked, found, folder)
    run_folders.write_json(folder / run_folders.RUN, record)
    findings = Findings(found, own["threshold"], asked.borders)
    tables, answers = findings.tables(), findings.answers()
    who = {
        model: [found.tables.users[served.users].tolist(), sorted(served.units)]
        for model, served in found.served.items()
    }
    target = folder / f"report-{digest([found.models, who])}"
    for name, table in tables.items():
        write(table, target, name)
    parts = [
        *map(to_markdown, tables.values()),
        "**Questions** (differences with 95 % intervals over users, each interval by itself)",
        "```\n" + "\n".join(answers) + "\n```",
    ]
    if "outcomes" in tables:
        draw(tables["outcomes"], target / "outcomes.png")
        parts.insert(list(tables).index("outcomes") + 1, "![outcomes](outcomes.png)")
    write_text(target / "report.md", "\n\n".join(parts))
    _write_cohorts(found, target)
    _keep_models(asked, found, target)
    shown = [line for table in tables.values() for line in (to_screen(table), "")]
    return [
        "",
        *shown,
        *answers,
        "",
        f"report: {target / 'report.md'}",
        _serving(folder, record["routes"]),
    ]


def _serving(folder: Path, routes: dict) -> str:
    """Whom recommend serves by what."""
    who = f"{len(routes['users'])} users by their own, {len(routes['cohorts'])} by a cohort's of {routes['cohorts_of'] or 'none'}, others by Model 3's"
    return f"adapters: {folder} (recommend --checkpoint={folder.name} --user=… serves {who})"


def _write_cohorts(found: Spectrum, target: Path) -> None:
    """A table for each model 4 and 6: user, cohort. Each can be given back by --cohort_file."""
    for model, cohorts in found.groupings.items():
        lines = [
            f"{user}\t{cohorts.names[of]}"
            for user, of in zip(found.tables.users, cohorts.of, strict=True)
            if of >= 0
        ]
        write_text(target / f"cohorts-{model.replace(' ', '-')}.tsv", "\n".join(lines))


def _keep_models(asked: Personal, found: Spectrum, target: Path) -> None:
    """Models from 3 on that have every user, as finished runs for `compare --runs`; they have learned from both parts."""
    prepared, settings = asked.prepared, asked.settings
    split = settings["eval_args"] | {"part": "both"}
    for model in [
        model for model in found.models if model not in "12" and found.covered[model].all()
    ]:
        folder = target / model
        if _is_kept(folder):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        ranks = found.ranks[model]
        values = metrics.evaluate(
            ranks, settings["metrics"], settings["topk"], bool(settings["group_by_user"])
        )
        row = found.runs["2"].row | prepared.measure | {
            "run": f"{target.parent.name}/{target.name}/{model}", "personal": model, "split": split, "hash": digest([target.parent.name, target.name, model]),
            "test": values, "cases": len(ranks), "versions": run_folders.versions(), "seconds": {}, "memory_mib": {}, "rates": {}, "candidates": {},
        }  # fmt: skip
        row = {key: value for key, value in row.items() if key not in ("valid", "best_epoch")}
        ranks.save(folder / run_folders.RANKS.format(part="test"))
        run_folders.write_json(folder / run_folders.RUN, _finished(asked, row))
        run_folders.append_result(target.parent.parent, row)


def _is_kept(folder: Path) -> bool:
    """Whether a model is there as a run, with its ranks."""
    if run_record.read_run(folder) is None:
        return False
    try:
        RankTable.load(folder / run_folders.RANKS.format(part="test"))
    except UserError:
        return False
    return True


def _finished(asked: Personal, row: dict) -> dict:
    return {
        "status": "finished",
        "settings": asked.prepared.settings,
        "versions": run_folders.versions(),
        "data": asked.tables.fingerprint,
        "row": row,
    }


def _record(asked: Personal, found: Spectrum, folder: Path) -> dict:
    """run.json of the adapters: which of them serves whom, see routing.py. What an earlier command has trained and this one not stays in it.

    Cohorts are those of the user's own file, else of the first Model 4 that was asked for.
    """
    users, before = (
        found.tables.users,
        (run_record.read_run(folder) or {}).get(
            "routes", {"cohorts": {}, "cohorts_of": None, "users": {}}
        ),
    )
    model = next(
        (
            model
            for model in ("4.file", *found.models)
            if model.startswith("4.") and model in found.groupings
        ),
        None,
    )

    def adapter(unit: str, name: str) -> str:
        return (unit_folder(folder, unit) / adapter_path(name)).relative_to(folder).as_posix()

    (everybody,) = found.served["3"].units
    cohorts = {} if model else before["cohorts"]
    for unit, members in found.served[model].units.items() if model else ():
        if done(folder, unit):
            name = found.groupings[model].names[found.groupings[model].of[members[0]]]
            cohorts |= dict.fromkeys(users[members].tolist(), [name, adapter(unit, unit)])
    own = dict(before["users"])
    for number in ("5", "7"):
        served = found.served.get(number)
        for unit, members in served.units.items() if served else ():
            if done(folder, unit):
                own |= {user: adapter(unit, own_name(user)) for user in users[members].tolist()}
    base, kind = found.runs["2"].folder.name, model or before["cohorts_of"]
    routes = {
        "base": base,
        "weights": digest(run_digests(found.runs["2"].folder)),
        "everybody": adapter(everybody, everybody),
        "cohorts": cohorts,
        "cohorts_of": kind,
        "users": own,
    }
    return _finished(asked, {"run": folder.name}) | {"routes": routes}


COLOURS = {
    "win": "tab:green",
    "draw": "tab:blue",
    "loss": "tab:red",
    "mixed": "tab:orange",
    "inconclusive": "lightgrey",
}


def draw(table: Table, path: Path) -> None:
    """Shares of users by outcome, a bar for each group by activity that has users."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plot

    rows = [
        (name, [cell.mean for cell in cells])
        for name, cells in table.rows
        if name != "all" and cells[0].mean
    ]
    figure, axis = plot.subplots(figsize=(7, 4))
    left = np.zeros(len(rows))
    for number, outcome in enumerate(OUTCOMES, start=3):
        share = np.array([values[number] / values[0] for _, values in rows])
        axis.barh(
            [f"{name}\n{values[0]:.0f} users" for name, values in rows],
            share,
            left=left,
            label=outcome,
            color=COLOURS[outcome],
        )
        left += share
    axis.set(xlabel="share of users", title=table.title, xlim=(0, 1))
    axis.invert_yaxis()
    figure.legend(loc="lower center", ncols=len(OUTCOMES), frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    with atomically(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plot.close(figure)
