"""Models 1 to 7 on one dataset: what is trained, and the ranks that it gives."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ... import __version__
from ...contracts.cases import Cases
from ...data.cases.splits import make_split
from ...data.reading.tables import Tables
from ...errors import UserError
from ...evaluation.ranks import RankTable
from ...runs.runner import Run, run_settings
from ...runs.spec import Prepared
from ...settings import run_record, schema
from ...settings.layers import digest
from ...settings.model_settings.tastelora import TASTELoRASettings
from ...storage import run_folders
from ...storage.progress import say_with_time
from ...storage.readback import run_digests
from .. import ray_cluster
from ..ray_cluster import Cluster, has_ray, need_ray
from . import groupings as plan
from . import jobs
from .adapter_training import Frozen, Learner, Recipe, freeze, step_tokens
from .cohorts import Cohorts, activity, at_random
from .work_units import RANKS, Unit, done, finished, unit_folder

ADAPTER_KEYS = {  # of TASTELoRA alone -> those of personalize
    "lora_rank": "--cohort_rank (Models 3, 4 and 6) or --user_rank (5 and 7)",
    "lora_alpha": "--cohort_alpha (Models 3, 4 and 6) or --user_alpha (5 and 7)",
    "lora_dropout": "--adapter_dropout",
}
USERS = "users"  # what the names of units with adapters of single users begin with


@dataclass(frozen=True)
class Served:
    """Whom a model serves by adapters of its own.

    units : unit -> int64, for whom it trains adapters. users : int64, whom the model serves by them. others : whether Model 3 serves the others.
    """

    units: dict[str, np.ndarray]
    users: np.ndarray
    others: bool = True


@dataclass(frozen=True)
class Spectrum:
    """What was found.

    Attributes
    ----------
    runs : those of Models 1 and 2.
    ranks, covered : model -> ranks of the same Future-Test cases, and bool [cases], which of them it has. Models of the table are called by number and
        kind of cohorts (`4.text`), those with another number of cohorts by that too (`4.text 5`).
    groupings : model 4 or 6 -> its cohorts. served : model from 3 on -> whom it serves by which units. user : int64 [cases].
    first : the grouping of the models of the table. samples : int64 [users], training cases in Continue Train. failed : unit -> error.
    """

    tables: Tables
    models: Sequence[str]
    runs: dict[str, Run]
    ranks: dict[str, RankTable]
    covered: dict[str, np.ndarray]
    groupings: dict[str, Cohorts]
    served: dict[str, Served]
    first: str
    user: np.ndarray
    samples: np.ndarray
    failed: dict[str, str]


class Personal:
    """A spectrum that is to be run. Raises UserError for everything that can be wrong before anything is trained.

    settings : of Model 2. own : those of properties/personalize.yaml.
    """

    def __init__(self, settings: dict, own: dict):
        self.settings, self.own = settings, own
        self.models, self.asked = plan.models_of(own["models"]), plan.groupings_of(own["cohorts"])
        self.borders = plan.borders_of(own["activity_borders"])
        self.kinds = list(dict.fromkeys(one.partition(".")[2] for one in self.models if "." in one))
        _check(settings)
        self.cluster = self._cluster()
        if self.cluster:
            ray_cluster.check(self.cluster)
        Prepared(settings).check()
        self.prepared = Prepared(
            settings | {"eval_args": settings["eval_args"] | {"part": "continue"}}
        )
        self.tables = self.prepared.tables
        if self.tables.cases is not None:
            raise UserError(
                f"personalize cuts whole sequences in time, and {self.tables.name} comes split "
                "already; set --benchmark_filename=~"
            )
        self.part = make_split(self.tables, settings["eval_args"]["split"], "continue")
        self.recipes = [
            _recipe(settings, own, own["cohort_rank"], own["cohort_alpha"]),
            _recipe(settings, own, own["user_rank"], own["user_alpha"]),
        ]
        self.grouper = plan.Grouper(
            self.tables,
            self.part,
            own,
            settings["RATING_FIELD"],
            settings["seed"],
            self._text_vectors,
        )
        self.groupings = self._groupings()

    def _groupings(self) -> dict[str, Cohorts]:
        """Models 4 and 6, and those of the table by number of cohorts, with who belongs where."""
        if ("file" in self.kinds) != bool(self.own["cohort_file"]):
            raise UserError(
                "4.file among --models and --cohort_file=FILE, with lines `user<TAB>cohort`, go "
                "together; leave both out or none"
            )
        if self.asked[0] == plan.HIGH and (
            random := [one for one in self.models if one[0] == "6" and one != "6.file"]
        ):
            raise UserError(
                f"cohorts: {plan.HIGH} has nobody to draw at random for {random[0]}; put another "
                "first, or leave it out of --models"
            )
        if set(self.kinds) - {"file"}:
            plan.check_low(
                self.grouper.low, self.grouper.amount, self.asked, self.own["low_activity"]
            )
        found, numbered = {}, next((kind for kind in self.kinds if kind != "file"), None)
        for kind in self.kinds:
            for place, grouping in enumerate(self.asked):
                if place and kind != numbered:
                    break
                cohorts, more = (
                    self.grouper.cohorts(kind, grouping),
                    f" {grouping}" if place else "",
                )
                found[f"4.{kind}{more}"] = cohorts
                if f"6.{kind}" in self.models and (kind == "file" or grouping != plan.HIGH):
                    found[f"6.{kind}{more}"] = at_random(cohorts, self.settings["seed"])
        return {
            model: cohorts
            for model, cohorts in found.items()
            if model.partition(" ")[0] in self.models
        }

    def _text_vectors(self) -> np.ndarray:
        from ...data.texts.text import ItemText
        from ...language.vectors import frozen_vectors

        text = ItemText.from_tables(
            self.tables, self.settings["text_fields"], self.settings["text_words"]
        )
        return frozen_vectors(
            self.settings["text_encoder"],
            [text.plain(item) for item in range(len(text))],
            self.prepared.config,
        )

    def run(self, told=say_with_time) -> tuple[Path, Spectrum]:
        """Train what is not there yet. Returns the folder that it is in, and what was found."""
        epochs = {"1": {"epochs": 0}, "2": {}}
        runs = {
            number: run_settings(self.settings | own)
            for number, own in epochs.items()
            if number in self.models
        }
        base = runs["2"]
        weights = digest(run_digests(base.folder))  # which a run by the same id may have others of
        key = digest([base.row["run"], weights, *map(asdict, self.recipes), __version__])
        folder = (
            Path(self.settings["checkpoint_dir"]).absolute()
            / f"personal-{self.prepared.name}-{key}"
        )
        frozen = self._frozen(base)
        if self.cluster is None and self.own["jobs"] == "ray":
            told("ray is not installed: the units are done one after another")
        with run_folders.locked(folder, told):
            units, served = self._units(frozen, f"run:{base.folder.name}", folder)
            adapters, tokens = (
                sum(len(unit.learners) for unit in units.values()),
                sum(unit.cost for unit in units.values()),
            )
            told(
                f"{len(units)} units of work: {adapters} adapters, at most {tokens / 1e6:.1f} M "
                "tokens, those of training counted three times"
            )
            failed = jobs.run(frozen, list(units.values()), folder, self.cluster, told)
        reference = base.ranks()
        number = {token: user for user, token in enumerate(self.tables.users)}
        user = np.array([number[token] for token in reference.user])
        ranks = {number: run.ranks() for number, run in runs.items()}
        covered = {number: np.ones(len(reference), dtype=bool) for number in ranks}
        for model, whom in served.items():  # Model 3 first, which serves those whom others do not
            table, has = gathered(
                reference,
                [unit_folder(folder, name) / RANKS for name in whom.units if done(folder, name)],
            )
            theirs = np.isin(user, whom.users)
            ranks[model] = chosen(table, ranks.get("3", reference), has & theirs)
            covered[model] = has & theirs | (~theirs if whom.others else False)
            if model == "3" and not has.all():
                raise UserError(
                    "Model 3, which all others are compared with, failed: "
                    f"{'; '.join(failed.values())}"
                )
        samples = np.bincount(self.part.train.user, minlength=len(self.tables.users))
        return folder, Spectrum(
            self.tables,
            self.models,
            runs,
            ranks,
            covered,
            self.groupings,
            served,
            self.asked[0],
            user,
            samples,
            failed,
        )

    def _frozen(self, base: Run) -> Frozen:
        """Model 2 with the texts of Continue Train and Future-Test."""
        prepared = Prepared(self.prepared.settings, restored=base.folder)
        model, _ = prepared.restore(run_record.finished_run(base.folder))
        return freeze(model, self.part.train, self.part.valid, self.part.test)

    def _units(
        self, frozen: Frozen, base: str, folder: Path
    ) -> tuple[dict[str, Unit], dict[str, Served]]:
        """All units by name, the largest first, but those of users whose adapters are in a unit that is done; and whom each model serves by which."""
        units, everybody = {}, np.arange(len(self.tables.users))
        more = {"base": base, "mask_history": self.settings["mask_history"]}

        def unit(users: np.ndarray) -> dict[str, np.ndarray]:
            """The unit of one adapter for these users, the same one wherever they are a cohort; none if nothing trains, validates or tests it."""
            train, valid, test = (
                _of(cases, users) for cases in (self.part.train, self.part.valid, self.part.test)
            )
            if not (len(train) and len(valid) and len(test)):
                return {}
            name = f"cohort of {len(users)} {digest(sorted(self.tables.users[users].tolist()))}"
            units.setdefault(
                name,
                Unit(name, [Learner(name, train, valid)], [test], self.recipes[0], stack=1, **more),
            )
            return {name: users}

        served = {"3": Served(unit(everybody), everybody)}
        for model, cohorts in self.groupings.items():
            own = {
                name: users
                for number in range(len(cohorts.names))
                for name, users in unit(np.flatnonzero(cohorts.of == number)).items()
            }
            served[model] = Served(own, np.concatenate([everybody[:0], *own.values()]))
        able = plan.able(self.part, len(everybody))
        mine = {
            "5": self._drawn(able),
            "7": able[: round(self.own["frequent"] * len(everybody))],
        }
        mine = {model: users for model, users in mine.items() if model in self.models}
        if mine:
            trained = able[np.isin(able, np.concatenate(list(mine.values())))]
            names = np.array([own_name(user) for user in self.tables.users])
            shards = {
                name: trained[np.isin(names[trained], learners)]
                for name, learners in finished(folder, USERS).items()
            }
            left = trained[~np.isin(trained, np.concatenate([everybody[:0], *shards.values()]))]
            for begin in range(0, len(left), self.own["unit_users"]):
                users = left[begin : begin + self.own["unit_users"]]
                name = f"{USERS} {len(users)} {digest(self.tables.users[users].tolist())}"
                learners = [
                    Learner(names[one], _of(self.part.train, [one]), _of(self.part.valid, [one]))
                    for one in users
                ]
                tests = [_of(self.part.test, [one]) for one in users]
                units[name] = Unit(name, learners, tests, self.recipes[1], stack=len(users), **more)
                shards[name] = users
            served |= {
                model: Served(shards, users, others=model == "7") for model, users in mine.items()
            }
        units = {name: replace(unit, cost=_tokens(frozen, unit)) for name, unit in units.items()}
        return dict(sorted(units.items(), key=lambda one: -one[1].cost)), served

    def _drawn(self, able: np.ndarray) -> np.ndarray:
        """int64: the users of Model 5, of those that can have an adapter of their own."""
        tests = activity(self.tables, self.part.test.end)
        most, seed = self.own["own_users"], self.settings["seed"]
        return plan.drawn(able, tests[able], most, seed, self.borders)

    def _cluster(self) -> Cluster | None:
        """Where the units are done; None for this process."""
        own = self.own
        if own["jobs"] == "serial":
            return None
        if own["ray_address"]:
            need_ray("ray_address")
        if not has_ray():
            return None
        return Cluster(own["ray_address"], own["unit_cpus"], own["unit_gpus"], own["dashboard"])


def _check(settings: dict) -> None:
    """Raise UserError for settings of Model 2 that a spectrum cannot be built on."""
    split, mode = settings["eval_args"]["split"], settings["eval_args"]["mode"]
    if "temporal" not in split:
        raise UserError(
            f"personalize: expected --eval_args.split='{{temporal: [0.6, 0.2, 0.2]}}', found "
            f"{split}"
        )
    if mode not in ("full", {"test": "full"}, {"valid": "full", "test": "full"}):
        raise UserError(
            f"personalize ranks the whole catalogue: expected --eval_args.mode=full, found {mode}"
        )
    told = settings | {"eval_args.part": settings["eval_args"]["part"]}
    for key, plain in (
        ("adapter", "none"),
        ("stages", None),
        ("init_from", None),
        ("test_users", 0),
        ("eval_args.part", "pretrain"),
    ):
        if told[key] != plain:
            raise UserError(f"{key}: personalize sets it itself; leave it out")
    if settings["seeds"]:
        raise UserError(
            "seeds: personalize runs one seed, of training and of random cohorts; set --seed, and "
            "give the command once for each"
        )
    defaults = schema.defaults(TASTELoRASettings)
    for key, own in ADAPTER_KEYS.items():
        if settings[key] != defaults[key]:
            raise UserError(f"{key}: personalize reads it of no model; set {own}, or leave it out")


def _recipe(settings: dict, own: dict, rank: int, alpha: float) -> Recipe:
    names = ("negatives", "weight_decay", "warmup", "pass_tokens", "precision", "seed")
    return Recipe(
        lora_rank=rank, lora_alpha=alpha, lora_dropout=own["adapter_dropout"], epochs=own["adapter_epochs"], patience=own["adapter_patience"],
        train_batch_size=own["adapter_batch_size"], learning_rate=own["adapter_learning_rate"],
        max_norm=(settings["clip_grad_norm"] or {"max_norm": float("inf")})["max_norm"],
        **{name: settings[name] for name in names},
    )  # fmt: skip


def own_name(user: str) -> str:
    """Of a user's own adapter; those of cohorts are called like their units."""
    return f"user {user}"


def _of(cases: Cases, users: Sequence[int] | np.ndarray) -> Cases:
    return cases[np.isin(cases.user, users)]


def _tokens(frozen: Frozen, unit: Unit) -> float:
    """What a unit costs, all but exactly: the tokens that it reads, those of training three times."""
    catalogue, recipe = sum(map(len, frozen.items)), unit.recipe
    steps = sum(
        -(-len(learner.train) // recipe.train_batch_size) * step_tokens(frozen, learner, recipe)
        for learner in unit.learners
    )
    return 3 * recipe.epochs * steps + catalogue * len(unit.learners)


def gathered(reference: RankTable, files: Sequence[Path]) -> tuple[RankTable, np.ndarray]:
    """(ranks of these files in the reference's order of cases, bool [cases] which cases they hold; the others are the reference's)."""
    row = {
        case: number
        for number, case in enumerate(zip(reference.user, reference.position, strict=True))
    }
    found, has = reference, np.zeros(len(reference), dtype=bool)
    if files:
        theirs = RankTable.concat(map(RankTable.load, files))
        place = np.array([row[case] for case in zip(theirs.user, theirs.position, strict=True)])
        order = np.arange(len(reference))
        order[place] = len(reference) + np.arange(len(theirs))
        found, has[place] = RankTable.concat([reference, theirs]).take(order), True
    return found, has


def chosen(one: RankTable, other: RankTable, where: np.ndarray) -> RankTable:
    """Ranks of one table where that is said, of the other elsewhere."""
    return RankTable.concat([one, other]).take(np.where(where, 0, len(one)) + np.arange(len(one)))
