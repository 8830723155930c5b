"""Properties that every model must have, and :func:`check_model`, which tests them.

The properties are called laws. The numbers of a model that breaks one are meaningless: it has seen
the targets, its scores depend on the other cases of a batch, or storing the model changes it.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config

from .contracts.cases import Cases
from .evaluation.loop import catalogue_scores
from .evaluation.metrics import evaluate
from .runs.checks import check
from .runs.runner import Runner
from .runs.spec import RunSpec, describe
from .settings import layers, registry
from .settings.recbole_config import known_keys_only

__all__ = ["LawBroken", "Laws", "check_model", "write_small_world"]

WORDS = "apple banana cherry damson elder fig grape hazel iris juniper kiwi lemon".split()
QUICK = {  # settings that make a model small; a model gets those that it has
    "backbone": "scratch:nano",
    "beside": [],
    "embedding_size": 16,
    "epochs": 1,
    "eval_args.mode": "full",
    "eval_step": 1,
    "hidden_size": 16,
    "inner_size": 16,
    "MAX_ITEM_LIST_LENGTH": 10,
    "max_length": 384,
    "max_new_tokens": 16,
    "mf_embedding_size": 8,
    "mlp_embedding_size": 8,
    "mlp_hidden_size": [16],
    "n_layers": 1,
    "samples": 4,
    "scratch_vocabulary": 300,
    "show_progress": False,
    "text_fields": {"Title": "title", "Category": "categories", "Brand": "brand"},
    "topk": [1, 5, 10],
    "train_batch_size": 64,
    "valid_samples": 4,
}
# settings of the training in which a model has to learn the small world
LONGER = {"epochs": 40, "eval_step": 10, "learning_rate": 0.01, "train_batch_size": 16}
LEARNED = "learned"  # the folder of that training and of its world
USERS = 16  # of the world in which nothing has to be learned
FEW = 3  # number of cases that are scored
MARGIN = 0.05  # least gain in NDCG@10 over chance, in the small world
MAX_NORM = 1e-4  # `clip_grad_norm` of all models, so small that every gradient is clipped


class LawBroken(AssertionError):
    """A model breaks a law. The message says which one, and how."""


def write_small_world(
    folder: Path, users: int = 40, length: int = 8, seed: int = 0, name: str = "cycle"
) -> Path:
    """Write a dataset in which the next item is certain.

    Every user goes through the same cycle of items. All items are equally popular, so that only a
    model that reads histories can be better than chance.

    Parameters
    ----------
    folder : Path
        Folder of the dataset's folder, the setting `data_path` of a run.
    users : int
        Number of users.
    length : int
        Number of events of each user.
    seed : int
        Seed of the first item of each user.
    name : str
        Name of the dataset.

    Returns
    -------
    Path
        `folder`.
    """
    rng = np.random.default_rng(seed)
    target = Path(folder) / name
    target.mkdir(parents=True, exist_ok=True)
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(users):
        start = int(rng.integers(len(WORDS)))
        for step in range(length):
            rows.append(f"u{user}\ti{(start + step) % len(WORDS)}\t{1000 * user + step}")
    (target / f"{name}.inter").write_text("\n".join(rows) + "\n")
    items = ["item_id:token\ttitle:token_seq\tcategories:token_seq\tbrand:token_seq"]
    for number, word in enumerate(WORDS):
        items.append(f"i{number}\t{word} juice\tdrinks {word[0]}\tbrand{number % 3}")
    (target / f"{name}.item").write_text("\n".join(items) + "\n")
    return Path(folder)


@dataclass
class Trained:
    """A model with its trainer and data.

    Attributes
    ----------
    spec : Prepared
        The settings with their data.
    model : recommender
        The model.
    trainer : Trainer
        Its trainer.
    loaders : tuple
        Loaders of the train, valid and test cases.
    """

    spec: RunSpec
    model: Any
    trainer: Any
    loaders: tuple

    @property
    def dataset(self):
        """The dataset of the test cases."""
        return self.loaders[2]._dataset

    def fit(self) -> "Trained":
        """Train the model as a run does."""
        self.trainer.fit(self.loaders[0], self.loaders[1])
        return self

    def scores(self, cases: Cases) -> torch.Tensor:
        """Score all items for some cases, float32 [cases, items]."""
        with torch.no_grad():
            self.model.eval()
            scores = catalogue_scores(self.model, self.dataset, cases).float().cpu()
        if scores.isnan().any():
            raise LawBroken(f"{type(self.model).__name__} gives scores that are no numbers (NaN)")
        return scores

    def ndcg(self) -> float:
        """Compute NDCG@10 of the test cases."""
        table, _ = self.trainer.rank(self.loaders[2])
        return evaluate(table, ["NDCG"], [10])["ndcg@10"]


def watch_steps(run: Trained) -> list[float]:
    """Record the gradient norm of each optimizer step of a later training.

    Parameters
    ----------
    run : Trained
        The model to be trained.

    Returns
    -------
    list of float
        The norms. The list grows as training goes on.
    """
    norms: list[float] = []
    step = run.trainer.optimizer.step

    def watched(*args, **kwargs):
        gradients = [value.grad for value in run.model.parameters() if value.grad is not None]
        if gradients:  # a model that only counts, such as ItemKNN, has none
            norms.append(float(torch.cat([one.flatten().float() for one in gradients]).norm()))
        return step(*args, **kwargs)

    run.trainer.optimizer.step = watched
    return norms


class Laws:
    """The laws, as tests of one model with fixed settings. Each raises LawBroken.

    Parameters
    ----------
    model : str or type
        The model, see :func:`recbole_llm.settings.registry.find`.
    folder : Path
        Folder for data and runs.
    settings : mapping
        Settings of the model, over those of QUICK.
    learning : mapping, optional
        Settings of the training in which it has to learn the small world, over those of LONGER.
    """

    def __init__(
        self, model: str | type, folder: Path, settings: Mapping, learning: Mapping | None = None
    ):
        self.spec = registry.find(model)
        self.folder, self.given, self.learning = Path(folder), dict(settings), dict(learning or {})
        write_small_world(self.folder, users=USERS)
        write_small_world(self.folder / LEARNED)
        self.first = self.make("first")
        self.norms = watch_steps(self.first)
        self.first.fit()

    def make(self, name: str, **settings) -> Trained:
        """Build an untrained model, whose runs are in a folder of this name."""
        places = {
            "data_path": str(self.folder / LEARNED if name == LEARNED else self.folder),
            "checkpoint_dir": str(self.folder / name),
            "item_attribute": "brand",
            "selected_features": ["brand"],
        }
        clipped = {"clip_grad_norm": {"max_norm": MAX_NORM}}
        features = {key: places[key] for key in layers.FEATURES}
        known = layers.default_settings(self.spec.key, "cycle", [features])
        # of the laws' own settings a model gets those that it has
        laws = QUICK | clipped | places | (LONGER if name == LEARNED else {})
        chosen = {key: value for key, value in laws.items() if key.partition(".")[0] in known}
        chosen |= self.given | settings
        spec = describe(layers.resolve(self.spec.key, "cycle", [], chosen))
        check(spec)
        return Trained(spec, *Runner(spec).build())

    @property
    def trains(self) -> bool:
        """Whether the model learns by gradients."""
        is_trained = any(value.requires_grad for value in self.first.model.parameters())
        return is_trained and self.first.trainer.epochs > 0

    def the_target_is_never_shown(self) -> None:
        """Check that scores do not change if the targets of the cases are other items."""
        run, split = self.first, self.first.dataset.split
        items = run.dataset.interactions.item
        events = run.dataset.events[run.dataset.iid_field]
        for part in ("train", "valid", "test"):
            cases = getattr(split, part)
            _, one_a_user = np.unique(cases.user, return_index=True)
            cases = cases[np.sort(one_a_user)[:FEW]]
            before = run.scores(cases)
            kept, kept_events = items.copy(), events.clone()
            items[cases.end] = (items[cases.end] + 7) % len(WORDS)
            events[torch.from_numpy(cases.end)] = torch.from_numpy(items[cases.end] + 1).to(events)
            try:
                after = run.scores(cases)
            finally:
                items[:], events[:] = kept, kept_events
            self._same(before, after, 0.0, f"scores of {part} cases change with their targets")

    def scores_do_not_depend_on_the_batch(self) -> None:
        """Check that a case has the same scores alone, in any order and in any batch."""
        run = self.first
        cases = self._of_many_lengths()
        order = np.arange(len(cases))
        together = run.scores(cases)
        backwards = run.scores(cases[order[::-1].copy()]).flip(0)
        self._same(together, backwards, 1e-4, "scores change with the order of a batch")
        alone = torch.cat([run.scores(cases[[row]]) for row in order])
        self._same(together, alone, 1e-4, "scores change with what else is in the batch")

    def _of_many_lengths(self) -> Cases:
        """Test cases, and training cases with shorter histories."""
        split = self.first.dataset.split
        lengths = split.train.end - split.train.begin
        _, one_a_length = np.unique(lengths, return_index=True)
        parts = split.test[np.arange(FEW)], split.train[one_a_length[:FEW]]
        return Cases(
            np.concatenate([part.user for part in parts]),
            np.concatenate([part.begin for part in parts]),
            np.concatenate([part.end for part in parts]),
        )

    def what_is_stored_scores_the_same(self) -> None:
        """Check that a model gives the same scores after it is stored and read."""
        run = self.first
        run.trainer.load_best()
        before = run.scores(run.dataset.split.test[np.arange(FEW)])
        again = self.make("first")
        again.trainer.load_best(run.trainer.folder)
        after = again.scores(again.dataset.split.test[np.arange(FEW)])
        self._same(before, after, 0.0, "scores change when weights are stored and read again")

    def the_same_seed_gives_the_same_model(self) -> None:
        """Check that two trainings with the same seed give the same scores."""
        again = self.make("again").fit()
        cases = self.first.dataset.split.test[np.arange(FEW)]
        self.first.trainer.load_best()
        again.trainer.load_best()
        self._same(
            self.first.scores(cases),
            again.scores(cases),
            0.0,
            "two trainings with one seed give other scores",
        )

    def it_learns_the_small_world(self) -> None:
        """Check that a trained model is better than chance in the small world."""
        chance = float(np.mean(1 / np.log2(np.arange(2, 2 + len(WORDS)))[:10]) * 10 / len(WORDS))
        run = self.make(LEARNED, **{"clip_grad_norm": None} | self.learning).fit()
        run.trainer.load_best()
        reached = run.ndcg()
        if reached < chance + MARGIN:
            raise LawBroken(
                f"{self.spec.name} has learned nothing: NDCG@10 is {reached:.3f} where the next "
                "item "
                f"is certain, and {chance:.3f} by chance; train it longer by learning={{'epochs': "
                f"…}}"
            )

    def gradients_are_clipped(self) -> None:
        """Check that gradient norms do not exceed `clip_grad_norm`."""
        if not self.norms:
            raise LawBroken(f"{self.spec.name} is trained without a step of its optimizer")
        if max(self.norms) > MAX_NORM * 1.01:
            raise LawBroken(
                f"{self.spec.name} takes a step by a gradient of norm {max(self.norms):.2g}, and "
                f"clip_grad_norm allows {MAX_NORM:.2g}"
            )

    def _same(self, before: torch.Tensor, after: torch.Tensor, tolerance: float, what: str) -> None:
        if not torch.allclose(before, after, rtol=tolerance, atol=tolerance / 10, equal_nan=True):
            difference = (before - after).abs()
            finite = difference[difference.isfinite()]
            most = float(finite.max()) if len(finite) else float("inf")
            raise LawBroken(f"{self.spec.name}: {what}, by up to {most:.3g}")

    def all(self) -> list[Callable[[], None]]:
        """List the laws that apply to this model."""
        laws = [
            self.the_target_is_never_shown,
            self.scores_do_not_depend_on_the_batch,
            self.what_is_stored_scores_the_same,
            self.the_same_seed_gives_the_same_model,
        ]
        if self.trains:
            laws += [self.it_learns_the_small_world, self.gradients_are_clipped]
        return laws


def check_model(
    model: str | type,
    folder: Path | None = None,
    laws: Sequence[str] = (),
    learning: Mapping | None = None,
    **settings,
) -> list[str]:
    """Test whether a model obeys the laws, on a small dataset in which the next item is certain.

    Parameters
    ----------
    model : str or type
        A name, "module:Class", or a class.
    folder : Path, optional
        Folder for data and runs; by default a temporary one.
    laws : sequence of str, optional
        Names of methods of :class:`Laws`; by default all that apply.
    learning : mapping, optional
        Settings of the training in which it has to learn the dataset, over those of LONGER.
    **settings
        Settings of the model, over those of QUICK.

    Returns
    -------
    list of str
        The laws that were tested.

    Raises
    ------
    LawBroken
        For the first law that the model breaks.

    Examples
    --------
    >>> check_model("LIR")[0]
    'the target is never shown'
    """
    with (
        tempfile.TemporaryDirectory() as temporary,
        known_keys_only(Config, lambda module: not module.startswith("recbole."), LawBroken),
    ):
        held = Laws(model, folder or Path(temporary), settings, learning)
        names = []
        for law in held.all():
            if not laws or law.__name__ in laws:
                law()
                names.append(law.__name__.replace("_", " "))
        return names
