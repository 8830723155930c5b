"""Train and rank Models 1 to 7 of the personalization spectrum on one dataset."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ... import __version__
from ...contracts.cases import Cases
from ...contracts.interactions import Interactions
from ...data.cases.splits import make_split
from ...errors import UserError
from ...evaluation.ranks import RankTable
from ...runs.checks import check
from ...runs.commands import run_settings
from ...runs.run import Run
from ...runs.runner import Runner
from ...runs.spec import describe
from ...settings import run_record, schema
from ...settings.layers import digest
from ...settings.model_settings.tastelora import TASTELoRASettings
from ...storage import run_folders
from ...storage.progress import say_with_time
from ...storage.readback import run_digests
from .. import ray_cluster
from ..ray_cluster import Cluster, has_ray, need_ray
from . import groupings, jobs
from .adapter_training import Frozen, Learner, Recipe, freeze, step_tokens
from .cohorts import Cohorts, activity, at_random
from .work_units import RANKS, Unit, done, finished, unit_folder

# settings of TASTELoRA that are not used here -> those of personalize
ADAPTER_KEYS = {
    "lora_rank": "--cohort_rank (Models 3, 4 and 6) or --user_rank (5 and 7)",
    "lora_alpha": "--cohort_alpha (Models 3, 4 and 6) or --user_alpha (5 and 7)",
    "lora_dropout": "--adapter_dropout",
}
# settings that personalize sets itself -> their values before that
OWN_KEYS = {
    "adapter": "none",
    "stages": None,
    "init_from": None,
    "test_users": 0,
    "eval_args.part": "pretrain",
}
FULL_RANKING = ("full", {"test": "full"}, {"valid": "full", "test": "full"})
USERS = "users"  # first word of the names of units with adapters of single users


@dataclass(frozen=True)
class Served:
    """The users whom a model serves by adapters of its own.

    Attributes
    ----------
    units : dict of str to ndarray of int64
        Name of a unit -> the users whose adapters it trains.
    users : ndarray of int64
        The users whom the model serves by them.
    others : bool
        Whether Model 3 serves the other users.
    """

    units: dict[str, np.ndarray]
    users: np.ndarray
    others: bool = True


@dataclass(frozen=True)
class Spectrum:
    """The results of all models.

    A model is named by its number and its kind of cohorts, such as `4.text`. A model with another
    grouping than the first has that in its name too, such as `4.text 5`.

    Attributes
    ----------
    interactions : Interactions
        The dataset.
    models : sequence of str
        The models of the main table.
    runs : dict of str to Run
        The runs of Models 1 and 2.
    ranks : dict of str to RankTable
        Model -> its ranks of the Future-Test cases, the same cases in the same order for all.
    covered : dict of str to ndarray of bool [cases]
        Model -> the cases whose users it serves. The ranks of other cases are another model's.
    groupings : dict of str to Cohorts
        Model 4 or 6 -> its cohorts.
    served : dict of str to Served
        Model from 3 on -> the users whom it serves.
    first : str
        The grouping of the models of the main table.
    user : ndarray of int64 [cases]
        User of each case.
    samples : ndarray of int64 [n_users]
        Training cases of each user in Continue Train.
    failed : dict of str to str
        Name of a unit -> its error.
    """

    interactions: Interactions
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
    """A spectrum that is to be run.

    Parameters
    ----------
    settings : dict
        The settings of Model 2.
    options : dict
        The settings of properties/personalize.yaml.

    Raises
    ------
    UserError
        For any mistake that would otherwise show only after training has begun.
    """

    def __init__(self, settings: dict, options: dict):
        self.settings, self.options = settings, options
        self.models = groupings.models_of(options["models"])
        self.grouping_names = groupings.groupings_of(options["cohorts"])
        self.borders = groupings.borders_of(options["activity_borders"])
        kinds = [model.partition(".")[2] for model in self.models if "." in model]
        self.kinds = list(dict.fromkeys(kinds))
        _check(settings)
        self.cluster = self._cluster()
        if self.cluster:
            ray_cluster.check(self.cluster)
        check(describe(settings))
        self.spec = describe(settings | {"eval_args": settings["eval_args"] | {"part": "continue"}})
        self.interactions = self.spec.interactions
        if self.interactions.cases is not None:
            raise UserError(
                f"personalize cuts whole sequences in time, and {self.interactions.name} comes "
                "split already; set --benchmark_filename=~"
            )
        self.part = make_split(self.interactions, settings["eval_args"]["split"], "continue")
        self.recipes = [
            _recipe(settings, options, options["cohort_rank"], options["cohort_alpha"]),
            _recipe(settings, options, options["user_rank"], options["user_alpha"]),
        ]
        self.grouper = groupings.Grouper(
            self.interactions,
            self.part,
            options,
            settings["RATING_FIELD"],
            settings["seed"],
            self._text_vectors,
        )
        self.groupings = self._groupings()

    def _groupings(self) -> dict[str, Cohorts]:
        """The cohorts of Models 4 and 6, by model.

        One kind of cohorts has all groupings, the other kinds only the first.
        """
        self._check_groupings()
        cohorts_of: dict[str, Cohorts] = {}
        main_kind = next((kind for kind in self.kinds if kind != "file"), None)
        for kind in self.kinds:
            names = self.grouping_names if kind == main_kind else self.grouping_names[:1]
            for place, grouping in enumerate(names):
                suffix = f" {grouping}" if place else ""
                cohorts = self.grouper.cohorts(kind, grouping)
                if f"4.{kind}" in self.models:
                    cohorts_of[f"4.{kind}{suffix}"] = cohorts
                if f"6.{kind}" in self.models and (kind == "file" or grouping != groupings.HIGH):
                    cohorts_of[f"6.{kind}{suffix}"] = at_random(cohorts, self.settings["seed"])
        return cohorts_of

    def _check_groupings(self) -> None:
        """Raise UserError if a model and the settings of cohorts do not fit together."""
        if ("file" in self.kinds) != bool(self.options["cohort_file"]):
            raise UserError(
                "4.file among --models and --cohort_file=FILE, with lines `user<TAB>cohort`, go "
                "together; leave both out or none"
            )
        random = [model for model in self.models if model[0] == "6" and model != "6.file"]
        if self.grouping_names[0] == groupings.HIGH and random:
            raise UserError(
                f"cohorts: {groupings.HIGH} has nobody to draw at random for {random[0]}; put "
                "another first, or leave it out of --models"
            )
        if set(self.kinds) - {"file"}:
            groupings.check_low(
                self.grouper.low,
                self.grouper.amount,
                self.grouping_names,
                self.options["low_activity"],
            )

    def _text_vectors(self) -> np.ndarray:
        """Vectors of the items' texts, float [n_items, width]."""
        from ...data.texts.text import ItemText
        from ...language.vectors import frozen_vectors

        text = ItemText.from_interactions(
            self.interactions, self.settings["text_fields"], self.settings["text_words"]
        )
        return frozen_vectors(
            self.settings["text_encoder"],
            [text.plain(item) for item in range(len(text))],
            self.spec.config,
        )

    def run(self, say: Callable[[str], None] = say_with_time) -> tuple[Path, Spectrum]:
        """Train what is missing.

        Parameters
        ----------
        say : callable
            Prints a line.

        Returns
        -------
        folder : Path
            Folder of the adapters.
        spectrum : Spectrum
            The results.

        Raises
        ------
        UserError
            If the adapter of Model 3 fails.
        """
        runs = {}
        if "1" in self.models:
            runs["1"] = run_settings(self.settings | {"epochs": 0})
        base = runs["2"] = run_settings(self.settings)
        folder = self._folder(base)
        frozen = self._frozen(base)
        if self.cluster is None and self.options["jobs"] == "ray":
            say("ray is not installed: the units are done one after another")
        with run_folders.locked(folder, say):
            schedule = _Schedule(self, frozen, f"run:{base.folder.name}")
            units, served = schedule.add_models(folder)
            adapters = sum(len(unit.learners) for unit in units)
            tokens = sum(unit.cost for unit in units)
            say(
                f"{len(units)} units of work: {adapters} adapters, at most {tokens / 1e6:.1f} M "
                "tokens, those of training counted three times"
            )
            failed = jobs.run(frozen, units, folder, self.cluster, say)
        return folder, self._spectrum(folder, runs, served, failed)

    def _folder(self, base: Run) -> Path:
        """Folder of the adapters on the weights of a run."""
        # a run that was trained again has the same id, but may have other weights
        weights = digest(run_digests(base.folder))
        key = digest([base.row["run"], weights, *map(asdict, self.recipes), __version__])
        saved = Path(self.settings["checkpoint_dir"]).absolute()
        return saved / f"personal-{self.spec.dataset}-{key}"

    def _frozen(self, base: Run) -> Frozen:
        """Model 2 with the texts of Continue Train and Future-Test."""
        spec = describe(self.spec.settings, restored=base.folder)
        model, _ = Runner(spec).restore(run_record.finished_run(base.folder))
        return freeze(model, self.part.train, self.part.valid, self.part.test)

    def _spectrum(
        self,
        folder: Path,
        runs: dict[str, Run],
        served: dict[str, Served],
        failed: dict[str, str],
    ) -> Spectrum:
        """Collect the ranks of all models. Raises UserError if Model 3 has none."""
        reference = runs["2"].ranks()
        number_of = {token: number for number, token in enumerate(self.interactions.users)}
        user = np.array([number_of[token] for token in reference.user])
        ranks = {model: run.ranks() for model, run in runs.items()}
        covered = {model: np.ones(len(reference), dtype=bool) for model in ranks}
        # Model 3 comes first; it serves the users whom another model does not serve
        for model, group in served.items():
            names = [name for name in group.units if done(folder, name)]
            table, has_rank = gathered(
                reference, [unit_folder(folder, name) / RANKS for name in names]
            )
            if model == "3" and not has_rank.all():
                raise UserError(
                    "Model 3, which all others are compared with, failed: "
                    f"{'; '.join(failed.values())}"
                )
            inside = np.isin(user, group.users)
            ranks[model] = chosen(table, ranks.get("3", reference), has_rank & inside)
            covered[model] = has_rank & inside
            if group.others:
                covered[model] |= ~inside
        return Spectrum(
            interactions=self.interactions,
            models=self.models,
            runs=runs,
            ranks=ranks,
            covered=covered,
            groupings=self.groupings,
            served=served,
            first=self.grouping_names[0],
            user=user,
            samples=np.bincount(self.part.train.user, minlength=len(self.interactions.users)),
            failed=failed,
        )

    def _cluster(self) -> Cluster | None:
        """Where the units are done; None for this process."""
        options = self.options
        if options["jobs"] == "serial":
            return None
        if options["ray_address"]:
            need_ray("ray_address")
        if not has_ray():
            return None
        return Cluster(
            options["ray_address"], options["unit_cpus"], options["unit_gpus"], options["dashboard"]
        )


class _Schedule:
    """The units of a spectrum, and the users whom each model serves.

    Parameters
    ----------
    spectrum : Personal
        The spectrum.
    frozen : Frozen
        The frozen model and the texts.
    base : str
        Where the frozen weights of the adapters are found.
    """

    def __init__(self, spectrum: Personal, frozen: Frozen, base: str):
        self.spectrum, self.frozen, self.base = spectrum, frozen, base
        self.interactions, self.part = spectrum.interactions, spectrum.part
        self.units: dict[str, Unit] = {}
        self.served: dict[str, Served] = {}

    def add_models(self, folder: Path) -> tuple[list[Unit], dict[str, Served]]:
        """Make the units of all models.

        Users whose adapters are in a finished unit of the folder are in no other unit.

        Returns
        -------
        units : list of Unit
            The units, the most expensive first.
        served : dict of str to Served
            Model -> the users whom it serves.
        """
        everybody = np.arange(len(self.interactions.users))
        self.served["3"] = Served(self._add_cohort(everybody), everybody)
        for model, cohorts in self.spectrum.groupings.items():
            of_model: dict[str, np.ndarray] = {}
            for number in range(len(cohorts.names)):
                of_model |= self._add_cohort(np.flatnonzero(cohorts.of == number))
            self.served[model] = Served(of_model, _joined(of_model))
        self._add_users(folder)
        units = [replace(unit, cost=_tokens(self.frozen, unit)) for unit in self.units.values()]
        return sorted(units, key=lambda unit: -unit.cost), self.served

    def _add_unit(
        self,
        name: str,
        learners: list[Learner],
        tests: list[Cases],
        recipe: Recipe,
    ) -> None:
        """Add a unit whose adapters may all be in one stack."""
        self.units[name] = Unit(
            name,
            learners,
            tests,
            recipe,
            stack=len(learners),
            base=self.base,
            mask_history=self.spectrum.settings["mask_history"],
        )

    def _add_cohort(self, users: np.ndarray) -> dict[str, np.ndarray]:
        """Add the unit of one adapter for some users.

        Equal cohorts of different models share a unit.

        Returns
        -------
        dict of str to ndarray of int64
            Name of the unit -> its users. Empty if nothing trains, validates or tests the adapter.
        """
        train, valid, test = (
            _of(cases, users) for cases in (self.part.train, self.part.valid, self.part.test)
        )
        if not (len(train) and len(valid) and len(test)):
            return {}
        name = f"cohort of {len(users)} {digest(sorted(self.interactions.users[users].tolist()))}"
        if name not in self.units:
            learner = Learner(name, train, valid)
            self._add_unit(name, [learner], [test], self.spectrum.recipes[0])
        return {name: users}

    def _add_users(self, folder: Path) -> None:
        """Add the units with adapters of single users, for Models 5 and 7."""
        spectrum, part = self.spectrum, self.part
        eligible = groupings.eligible_users(part, len(self.interactions.users))
        frequent = round(spectrum.options["frequent"] * len(self.interactions.users))
        users_of = {"5": self._sample(eligible), "7": eligible[:frequent]}
        users_of = {model: users for model, users in users_of.items() if model in spectrum.models}
        if not users_of:
            return
        trained = eligible[np.isin(eligible, np.concatenate(list(users_of.values())))]
        names = np.array([own_name(user) for user in self.interactions.users])
        shards = {}
        for name, learners in finished(folder, USERS).items():
            shards[name] = trained[np.isin(names[trained], learners)]
        missing = trained[~np.isin(trained, _joined(shards))]
        size = spectrum.options["unit_users"]
        for begin in range(0, len(missing), size):
            users = missing[begin : begin + size]
            name = f"{USERS} {len(users)} {digest(self.interactions.users[users].tolist())}"
            learners_of_unit, tests = [], []
            for user in users:
                train, valid = _of(part.train, [user]), _of(part.valid, [user])
                learners_of_unit.append(Learner(names[user], train, valid))
                tests.append(_of(part.test, [user]))
            self._add_unit(name, learners_of_unit, tests, spectrum.recipes[1])
            shards[name] = users
        for model, users in users_of.items():
            self.served[model] = Served(shards, users, others=model == "7")

    def _sample(self, eligible: np.ndarray) -> np.ndarray:
        """The users of Model 5, int64, of those who can have an adapter."""
        tests = activity(self.interactions, self.part.test.end)[eligible]
        most, seed = self.spectrum.options["own_users"], self.spectrum.settings["seed"]
        return groupings.sample_users(eligible, tests, most, seed, self.spectrum.borders)


def _check(settings: dict) -> None:
    """Raise UserError for settings of Model 2 that a spectrum cannot be built on."""
    split, mode = settings["eval_args"]["split"], settings["eval_args"]["mode"]
    if "temporal" not in split:
        raise UserError(
            f"personalize: expected --eval_args.split='{{temporal: [0.6, 0.2, 0.2]}}', found "
            f"{split}"
        )
    if mode not in FULL_RANKING:
        raise UserError(
            f"personalize ranks the whole catalogue: expected --eval_args.mode=full, found {mode}"
        )
    values = settings | {"eval_args.part": settings["eval_args"]["part"]}
    for key, value in OWN_KEYS.items():
        if values[key] != value:
            raise UserError(f"{key}: personalize sets it itself; leave it out")
    if settings["seeds"]:
        raise UserError(
            "seeds: personalize runs one seed, of training and of random cohorts; set --seed, and "
            "give the command once for each"
        )
    defaults = schema.defaults(TASTELoRASettings)
    for key, replacement in ADAPTER_KEYS.items():
        if settings[key] != defaults[key]:
            raise UserError(
                f"{key}: personalize reads it of no model; set {replacement}, or leave it out"
            )


def _recipe(settings: dict, options: dict, rank: int, alpha: float) -> Recipe:
    """The recipe of adapters of one rank."""
    clipping = settings["clip_grad_norm"] or {"max_norm": float("inf")}
    return Recipe(
        lora_rank=rank,
        lora_alpha=alpha,
        lora_dropout=options["adapter_dropout"],
        epochs=options["adapter_epochs"],
        patience=options["adapter_patience"],
        train_batch_size=options["adapter_batch_size"],
        learning_rate=options["adapter_learning_rate"],
        max_norm=clipping["max_norm"],
        negatives=settings["negatives"],
        weight_decay=settings["weight_decay"],
        warmup=settings["warmup"],
        pass_tokens=settings["pass_tokens"],
        precision=settings["precision"],
        seed=settings["seed"],
    )


def own_name(user: str) -> str:
    """Return the name of a user's own adapter. The adapter of a cohort has its unit's name."""
    return f"user {user}"


def _of(cases: Cases, users: Sequence[int] | np.ndarray) -> Cases:
    """The cases of some users."""
    return cases[np.isin(cases.user, users)]


def _joined(units: dict[str, np.ndarray]) -> np.ndarray:
    """The users of some units, int64."""
    return np.concatenate([np.arange(0), *units.values()])


def _tokens(frozen: Frozen, unit: Unit) -> float:
    """Estimate the tokens that a unit reads; those of training count three times."""
    catalogue, recipe = sum(map(len, frozen.items)), unit.recipe
    epoch = 0
    for learner in unit.learners:
        steps = -(-len(learner.train) // recipe.train_batch_size)
        epoch += steps * step_tokens(frozen, learner, recipe)
    return 3 * recipe.epochs * epoch + catalogue * len(unit.learners)


def gathered(reference: RankTable, files: Sequence[Path]) -> tuple[RankTable, np.ndarray]:
    """Read ranks from files, in the order of another table.

    Parameters
    ----------
    reference : RankTable
        Ranks of all cases.
    files : sequence of Path
        Files with ranks of some of the cases.

    Returns
    -------
    table : RankTable
        The ranks of the files; the reference's for the other cases.
    present : ndarray of bool [cases]
        The cases that are in the files.
    """
    present = np.zeros(len(reference), dtype=bool)
    if not files:
        return reference, present
    keys = zip(reference.user, reference.position, strict=True)
    row = {case: number for number, case in enumerate(keys)}
    stored = RankTable.concat(map(RankTable.load, files))
    place = np.array([row[case] for case in zip(stored.user, stored.position, strict=True)])
    order = np.arange(len(reference))
    order[place] = len(reference) + np.arange(len(stored))
    present[place] = True
    return RankTable.concat([reference, stored]).take(order), present


def chosen(one: RankTable, other: RankTable, where: np.ndarray) -> RankTable:
    """Merge two tables of the same cases.

    Parameters
    ----------
    one, other : RankTable
        The tables.
    where : ndarray of bool [cases]
        The cases whose ranks are those of `one`.

    Returns
    -------
    RankTable
        The merged table.
    """
    return RankTable.concat([one, other]).take(np.where(where, 0, len(one)) + np.arange(len(one)))
