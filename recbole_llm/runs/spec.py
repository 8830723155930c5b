"""What a run is, before anything is computed: settings with their data, and an identity."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from .. import __version__
from ..contracts.evaluation_mode import EvaluationMode
from ..contracts.model_inputs import ModelInputs
from ..contracts.model_spec import ModelSpec
from ..data.sample import locate
from ..settings import layers, registry, run_record, stock
from ..storage import run_folders

Settings = dict[str, Any]
Made = TypeVar("Made")


class Datasets:
    """The datasets of one command: each is split once and put into words once.

    Files are read once a process, see :func:`recbole_llm.data.recbole.datasets.load_interactions`.
    """

    def __init__(self) -> None:
        # with the interactions themselves, so that no later ones can have their address
        self._made: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    @classmethod
    def of_inputs(cls, settings: Mapping[str, Any], inputs: ModelInputs) -> "Datasets":
        """Take over the split and the texts that a model was given."""
        datasets = cls()
        datasets._once(inputs.interactions, _read_of_split(settings), lambda: inputs.split)
        datasets._once(inputs.interactions, _read_of_text(settings), lambda: inputs.text)
        return datasets

    def read(self, settings: Mapping[str, Any]) -> Any:
        """Read and filter a dataset.

        Parameters
        ----------
        settings : mapping
            As :func:`recbole_llm.data.sample.locate.located` gives them.

        Raises
        ------
        UserError
            If it cannot be read, or nothing of it is left.
        """
        # torch comes with it, and is loaded only when the dataset is known to be there
        from ..data.recbole.datasets import load_interactions

        return load_interactions(settings)

    def split(self, settings: Mapping[str, Any], interactions: Any) -> Any:
        """Make the Split of a dataset.

        Raises
        ------
        UserError
            If the split is wrong or leaves no training or no test case.
        """
        from ..data.recbole.datasets import split_of

        read = _read_of_split(settings)
        return self._once(interactions, read, lambda: split_of(settings, interactions))

    def text(self, settings: Mapping[str, Any], interactions: Any) -> Any:
        """Make the ItemText of a dataset.

        Raises
        ------
        UserError
            If its items have no text.
        """
        from ..data.texts.text import ItemText

        fields, words = settings["text_fields"], settings["text_words"]
        read = _read_of_text(settings)
        return self._once(
            interactions, read, lambda: ItemText.from_interactions(interactions, fields, words)
        )

    def _once(self, interactions: Any, read: Sequence[Any], make: Callable[[], Made]) -> Made:
        key = (id(interactions), json.dumps(read, default=str))
        if key not in self._made:
            self._made[key] = (interactions, make())
        made: Made = self._made[key][1]
        return made


def _read_of_split(settings: Mapping[str, Any]) -> list[Any]:
    """What a split depends on beside the interactions."""
    return [settings["eval_args"], settings["test_users"]]


def _read_of_text(settings: Mapping[str, Any]) -> list[Any]:
    """What texts depend on: in order, for an item's attributes are written in that order."""
    return [list(settings[key].items()) for key in ("text_fields", "text_words")]


@dataclass(frozen=True)
class RunSpec:
    """A run: its settings, its data, the runs that it begins with, and its identity.

    It is made by :func:`describe`, once for each run of a command.

    Attributes
    ----------
    model : ModelSpec
        The model.
    settings : dict
        All settings, as `run.json` stores them.
    dataset : str
        Name of the dataset, or of the sample that replaces it.
    config : Config
        RecBole's configuration with these settings, for RecBole's classes and for models.
    interactions : Interactions
        The dataset.
    language_models : mapping of str to str
        Setting -> the language model that it names, of those that the run loads.
    start : Path or None
        Folder of the finished run whose weights training begins with (`init_from`).
    restored : Path or None
        Folder of the finished run whose weights are used instead of being trained.
    lists : Path or None
        Folder of the finished run whose stored lists are ranked again (`rerank_from`).
    further_datasets : tuple of dict
        `settings` and `data` (fingerprint) of each dataset that the run trains on beside its own.
    hash : str
        8 hex digits over everything that can change a result.
    run_id : str
        Name of the run's folder.
    """

    model: ModelSpec
    settings: Settings
    dataset: str
    config: Any = field(repr=False)
    interactions: Any = field(repr=False)
    language_models: Mapping[str, str]
    start: Path | None
    restored: Path | None
    lists: Path | None
    further_datasets: tuple[Settings, ...] = field(repr=False)
    hash: str
    datasets: Datasets = field(repr=False, compare=False)

    @property
    def saved(self) -> Path:
        """Folder of all runs, the setting `checkpoint_dir`."""
        return Path(self.settings["checkpoint_dir"])

    @property
    def run_id(self) -> str:
        """Name of the run's folder."""
        stage = f"-{self.settings['stage']}" if self.settings.get("stage") else ""
        return f"{self.model.name}-{self.dataset}{stage}-{self.hash}"

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.saved / self.run_id

    @cached_property
    def split(self) -> Any:
        """The Split of the dataset."""
        return self.datasets.split(self.settings, self.interactions)

    @property
    def reads_text(self) -> bool:
        """Whether the model reads the texts of items."""
        return self.model.is_text or self.settings["item_features"] != "id"

    @cached_property
    def inputs(self) -> ModelInputs:
        """What the model is given beside its Config."""
        text = self.datasets.text(self.settings, self.interactions) if self.reads_text else None
        return ModelInputs(
            settings=self.settings,
            interactions=self.interactions,
            split=self.split,
            text=text,
            start=self.start,
            restored=self.restored,
            lists=self.lists,
            # a trained model learns nothing more
            further_datasets=()
            if self.restored
            else tuple(other["settings"] for other in self.further_datasets),
        )

    def mode(self, part: str) -> EvaluationMode:
        """Which items the targets of a part, "valid" or "test", are ranked among."""
        return EvaluationMode.of_part(self.settings["eval_args"]["mode"], part)

    @property
    def measure(self) -> dict[str, Any]:
        """What rows of one table must share."""
        keys = ["mask_history", "group_by_user"]
        if not self.mode("test").is_full:
            keys += ["candidates_exclude", "candidate_seed"]
        if self.settings["test_users"]:
            keys.append("test_users")
        # a row that does not name it is of `all`
        if self.settings["history_at_test"] == "training":
            keys.append("history_at_test")
        return {
            "fingerprint": self.interactions.fingerprint,
            "split": self.settings["eval_args"],
            "evaluation": {key: self.settings[key] for key in keys},
        }


def describe(
    settings: Settings, restored: Path | None = None, datasets: Datasets | None = None
) -> RunSpec:
    """Read what a run is from its settings, its data and the runs that it begins with.

    Parameters
    ----------
    settings : dict
        As :func:`recbole_llm.settings.layers.resolve` gives them.
    restored : Path, optional
        Folder of the finished run whose weights are used instead of being trained.
    datasets : Datasets, optional
        Of the command, where it has several runs.

    Raises
    ------
    UserError
        If the dataset or a run does not exist, or RecBole does not take these settings.
    """
    saved = Path(settings["checkpoint_dir"])
    run_folders.check_writable(saved)
    model, datasets = registry.find(settings["model"]), datasets or Datasets()
    start = run_folders.find_run(settings["init_from"], saved) if settings["init_from"] else None
    if start and "backbone" in settings:
        settings = settings | {"backbone": run_record.backbone_of(start)}
    located = locate.located(settings)
    with stock.refusals(model.key, f"take these settings for {model.name}"):
        config = layers.recbole_config(located, located["data_path"])
    interactions = datasets.read(located)
    reranked = settings.get("rerank_from")
    lists = run_folders.find_run(reranked, saved) if reranked else None
    further = _further_datasets(settings, located["dataset"], restored, datasets)
    return _with_hash(
        RunSpec(
            model=model,
            settings=settings,
            dataset=located["dataset"],
            config=config,
            interactions=interactions,
            language_models=layers.language_models(settings),
            start=start,
            restored=restored,
            lists=lists,
            further_datasets=further,
            hash="",
            datasets=datasets,
        )
    )


def of_model(model: ModelSpec, config: Any, inputs: ModelInputs) -> RunSpec:
    """What a training of RecBole's own code is as a run.

    Parameters
    ----------
    model : ModelSpec
        The model.
    config : Config
        RecBole's configuration.
    inputs : ModelInputs
        What the model was given.
    """
    settings = dict(inputs.settings)
    return _with_hash(
        RunSpec(
            model=model,
            settings=settings,
            dataset=settings["dataset"],
            config=config,
            interactions=inputs.interactions,
            language_models=layers.language_models(settings),
            start=inputs.start,
            restored=None,
            lists=None,
            further_datasets=(),
            hash="",
            datasets=Datasets.of_inputs(settings, inputs),
        )
    )


def _with_hash(spec: RunSpec) -> RunSpec:
    """The run with its identity."""
    digest = layers.settings_hash(
        spec.settings | _identities(spec),
        data=spec.interactions.fingerprint,
        version=__version__,
    )
    return replace(spec, hash=digest)


def _further_datasets(
    settings: Settings, dataset: str, restored: Path | None, datasets: Datasets
) -> tuple[Settings, ...]:
    """The datasets that a run trains on, or has trained on, beside its own."""
    if restored:
        return tuple(run_record.finished_run(restored).get("joint", []))
    from ..training import corpora

    return tuple(
        {"settings": other, "data": datasets.read(locate.located(other)).fingerprint}
        for other in corpora.further_datasets(settings, dataset)
    )


def _identities(spec: RunSpec) -> dict[str, Any]:
    """What the hash reads in place of names: the same run or model may have several."""
    settings, saved = spec.settings, spec.saved
    identities: dict[str, Any] = {
        "init_from": run_record.finished_run(spec.start)["row"]["run"] if spec.start else None
    }
    for key, name in spec.language_models.items():
        identities[key] = run_folders.model_id(name, saved)
    if layers.asks_server(settings):
        identities["summarizer"] = "a server"  # wherever it is
    if spec.lists:
        identities["rerank_from"] = run_record.finished_run(spec.lists)["row"]["run"]
    if spec.further_datasets and _same_dataset(spec):
        identities["datasets"] = [_identity_of_dataset(one) for one in spec.further_datasets]
    if spec.model.source:  # an edited class is another model
        identities["source"] = spec.model.source
    return identities


def _identity_of_dataset(further: Settings) -> list[Any]:
    """What decides what a further dataset teaches: its data, its texts and its split."""
    settings = further["settings"]
    read = ("text_fields", "text_words", "eval_args")
    return [further["data"], *(settings[key] for key in read)]


def _same_dataset(spec: RunSpec) -> bool:
    """Whether the weights are used on the dataset that they were trained on."""
    if not spec.restored:
        return True
    stored = run_record.finished_run(spec.restored)["settings"]
    return bool(stored["dataset"] == spec.settings["dataset"])


def moved(stored: Settings, dataset: str) -> Settings:
    """Settings of a run for its evaluation on another dataset.

    They are that dataset's defaults, but in what training alone reads.
    """
    changeable = inference_settings(stored)
    there = layers.moved(stored, dataset)
    changed = {key: value for key, value in there.items() if key in changeable}
    return stored | changed | {"dataset": dataset}


def inference_settings(settings: Settings) -> set[str]:
    """Settings that may differ between training and evaluation."""
    spec = registry.find(settings["model"])
    model: Any = spec.load() if spec.is_text else None
    of_model = model.inference_settings if spec.is_text else ()
    shared = layers.shared_settings(settings).keys() - {"seed", "MAX_ITEM_LIST_LENGTH"}
    shared |= {"dataset", "precision", "valid_metric", "trust_remote_code"}
    return shared | {*of_model} | layers.NOT_IN_HASH
