"""Train many adapters on one frozen model together.

Each adapter has its own users, optimizer state, steps and early stopping. An adapter of one user
has only a few cases, so that alone its steps would be mostly overhead. Here one forward pass reads
the texts of many adapters, equally many of each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...contracts.cases import Cases
from ...contracts.interactions import Interactions
from ...contracts.models import PASS_COST
from ...language.backbones.encoder_decoder import FusionBackbone
from ...language.backbones.precision import autocast
from ...language.backbones.stacked_lora import AdapterStack
from ...language.tokens.batches import Tokens, by_length, pad, shuffled_steps
from ...models.tastelora import Choice, targets_and_others
from ...training import optimizers
from ...training.losses import over_candidates

# a padding text, from which nothing is learned
FILL = Tokens(
    np.zeros(1, dtype=np.int64), np.zeros(1, dtype=bool), 1, 0, 0, roles=np.array([[1], [0]])
)
# numbers of an adapter's random streams, see `_rng`
DROPOUT, INITIAL, VALIDATION, NEGATIVES, ORDER = range(5)


@dataclass(frozen=True)
class Frozen:
    """The frozen model and the tokenised texts, which all units of a run share.

    Attributes
    ----------
    bundle : FusionBackbone
        The frozen model with its tokenizer.
    interactions : Interactions
        The dataset.
    items : list of Tokens
        Each distinct item text.
    events : ndarray of int64 [n_events]
        Index of the text of each event's item.
    same : ndarray of int64 [n_items]
        Index of the text of each item.
    pool : ndarray of int64
        Indices of the texts that negatives are sampled from.
    histories : dict of int to Tokens
        Row of a target in `interactions` -> the history before it.
    """

    bundle: FusionBackbone
    interactions: Interactions
    items: list[Tokens]
    events: np.ndarray
    same: np.ndarray
    pool: np.ndarray
    histories: dict[int, Tokens]


@dataclass(frozen=True)
class Learner:
    """An adapter to be trained.

    Attributes
    ----------
    name : str
        Name of the adapter. It seeds the adapter's random streams.
    train : Cases
        Training cases.
    valid : Cases
        Validation cases.
    """

    name: str
    train: Cases
    valid: Cases


@dataclass(frozen=True)
class Recipe:
    """How adapters are trained.

    Most fields are settings of properties/model/TASTELoRA.yaml. `patience` is the number of
    consecutive validations without improvement that an adapter may have; one more stops it.
    """

    lora_rank: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.05
    epochs: int = 10
    patience: int = 2
    train_batch_size: int = 8
    negatives: int = 9
    learning_rate: float = 0.001
    weight_decay: float = 0.01
    warmup: float = 0.1
    max_norm: float = 1.0
    pass_tokens: int = 16384
    precision: str = "fp32"
    seed: int = 2020


@dataclass
class Trained:
    """Adapters at their best validation.

    Attributes
    ----------
    stack : AdapterStack
        The adapters, in the order of the learners.
    losses : list of list of float
        Validation losses of each adapter; the first is from before training.
    """

    stack: AdapterStack
    losses: list[list[float]]


def freeze(model: Any, *parts: Cases) -> Frozen:
    """Freeze a model, and tokenise the texts that its units need.

    Parameters
    ----------
    model : TASTELoRA
        The model.
    *parts : Cases
        The cases whose histories are needed.

    Returns
    -------
    Frozen
        The model with its texts.
    """
    model.requires_grad_(False).eval()
    histories = {}
    for cases in parts:
        for begin, end in zip(cases.begin, cases.end, strict=True):
            histories[int(end)] = model.history(model.interactions.item[begin:end])
    return Frozen(
        model.bundle,
        model.interactions,
        [model.item(text) for text in range(len(model.first))],
        model.events,
        model.same,
        model.pool,
        histories,
    )


def train(
    frozen: Frozen,
    learners: Sequence[Learner],
    recipe: Recipe,
    advanced: Callable[[float], object] = lambda epochs: None,
) -> Trained:
    """Train one stack of adapters.

    Each adapter starts at zero, so that its first validated state is the frozen model. Its results
    depend on the other adapters only by dropout and by the order of floating-point sums.

    Parameters
    ----------
    frozen : Frozen
        The frozen model.
    learners : sequence of Learner
        The adapters. All have the same number of steps per epoch, see `together`.
    recipe : Recipe
        How they are trained.
    advanced : callable
        Called after each step with the share of an epoch that the step is.

    Returns
    -------
    Trained
        The adapters at their best validation.
    """
    training = _StackTraining(frozen, learners, recipe)
    for epoch in range(recipe.epochs):
        training.run_epoch(epoch, advanced)
        training.validate()
        if not training.drop_stopped():
            break
    return Trained(training.best, training.losses)


class _StackTraining:
    """The state of a stack in training.

    Attributes
    ----------
    living : ndarray of int [living]
        Indices of the learners whose adapters are still trained.
    stack : AdapterStack
        Their adapters.
    optimizer : torch.optim.AdamW
        The optimizer of `stack`.
    best : AdapterStack
        All adapters at their best validation.
    losses : list of list of float
        Validation losses of each learner.
    worse : ndarray of int [learners]
        Consecutive validations without improvement.
    """

    def __init__(self, frozen: Frozen, learners: Sequence[Learner], recipe: Recipe):
        self.frozen, self.learners, self.recipe = frozen, learners, recipe
        torch.manual_seed(int(_rng(recipe, learners[0].name, DROPOUT).integers(2**63)))
        self.stack = AdapterStack.initialized(
            frozen.bundle.model,
            [_seed(recipe, learner.name, INITIAL) for learner in learners],
            rank=recipe.lora_rank,
            alpha=recipe.lora_alpha,
            dropout=recipe.lora_dropout,
        )
        self.best, self.living = self.stack[:], np.arange(len(learners))
        self.valid_choices = [
            choices(frozen, learner.valid, learner, recipe, _rng(recipe, learner.name, VALIDATION))
            for learner in learners
        ]
        first = _validation_losses(frozen, self.stack, self.valid_choices, recipe)
        self.losses = [[loss] for loss in first]
        self.worse = np.zeros(len(learners), dtype=int)
        self.optimizer = torch.optim.AdamW(
            self.stack.parameters(),
            lr=recipe.learning_rate,
            betas=optimizers.BETAS,
            weight_decay=recipe.weight_decay,
        )

    def run_epoch(self, epoch: int, advanced: Callable[[float], object]) -> None:
        """Take the optimizer steps of one epoch."""
        frozen, recipe = self.frozen, self.recipe
        examples, steps = [], []
        for number in self.living.tolist():
            learner = self.learners[number]
            rng = _rng(recipe, learner.name, NEGATIVES, epoch)
            learner_choices = choices(frozen, learner.train, learner, recipe, rng)
            lengths = [sum(map(len, choice)) for choice in learner_choices]
            rng = _rng(recipe, learner.name, ORDER, epoch)
            examples.append(learner_choices)
            steps.append(shuffled_steps(lengths, recipe.train_batch_size, rng))
        count = len(steps[0])
        frozen.bundle.model.train()
        for step, rows_of_learners in enumerate(zip(*steps, strict=True), start=1):
            done = (epoch + step / count) / recipe.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.learning_rate * optimizers.rate(done, recipe.warmup)
            batch = []
            for learner_choices, rows in zip(examples, rows_of_learners, strict=True):
                batch.append([learner_choices[row] for row in rows])
            self.optimizer.zero_grad()
            with self.stack.installed_on(frozen.bundle.model, recipe.precision):
                step_losses(frozen.bundle, batch, recipe).sum().backward()
            _clip(self.stack, recipe.max_norm)
            self.optimizer.step()
            advanced(1 / count)

    def validate(self) -> None:
        """Validate the living adapters, and keep those that have improved."""
        living = self.living.tolist()
        living_choices = [self.valid_choices[number] for number in living]
        losses = _validation_losses(self.frozen, self.stack, living_choices, self.recipe)
        for place, (number, loss) in enumerate(zip(living, losses, strict=True)):
            better = loss < min(self.losses[number])
            self.losses[number].append(loss)
            self.worse[number] = 0 if better else self.worse[number] + 1
            if better:
                self.best.replace(number, self.stack, place)

    def drop_stopped(self) -> bool:
        """Drop adapters that are out of patience. Returns whether any is left."""
        going = self.worse[self.living] <= self.recipe.patience
        if going.any() and not going.all():
            self.living = self.living[going]
            self.stack, self.optimizer = _without(self.stack, self.optimizer, going)
        return bool(going.any())


def step_tokens(frozen: Frozen, learner: Learner, recipe: Recipe) -> int:
    """Estimate the tokens of one training step of a learner.

    Parameters
    ----------
    frozen : Frozen
        The texts.
    learner : Learner
        The learner.
    recipe : Recipe
        Its batch size and number of negatives.

    Returns
    -------
    int
        Tokens.
    """
    cases = learner.train[: recipe.train_batch_size]
    items = (1 + recipe.negatives) * np.mean([len(text) for text in frozen.items])
    return int(len(cases) * items + sum(len(frozen.histories[int(end)]) for end in cases.end))


def together(
    learners: Sequence[Learner],
    batch: int,
    most: int,
    tokens: Sequence[int] | None = None,
    budget: int = 0,
) -> list[list[Learner]]:
    """Group learners into stacks.

    The learners of a stack have the same number of steps per epoch, and similar numbers of cases.
    Every adapter of a stack is padded to the largest one, so that a learner with long steps would
    be costly for the others; it gets a smaller stack.

    Parameters
    ----------
    learners : sequence of Learner
        The learners.
    batch : int
        Cases of a step.
    most : int
        Largest number of adapters in a stack.
    tokens : sequence of int, optional
        Tokens of a step of each learner. Without it only `most` limits a stack.
    budget : int
        Most tokens of a step of a whole stack, after padding. A single adapter may exceed it.

    Returns
    -------
    list of list of Learner
        The stacks.
    """
    sizes = [0] * len(learners) if tokens is None else tokens

    def steps(learner: Learner) -> int:
        return -(-len(learner.train) // batch)

    ordered = sorted(
        zip(learners, sizes, strict=True),
        key=lambda pair: (steps(pair[0]), len(pair[0].train), pair[1]),
    )
    stacks: list[list[Learner]] = []
    largest = 0
    for learner, size in ordered:
        stack, largest = stacks[-1] if stacks else [], max(largest, size)
        alike = bool(stack) and steps(stack[0]) == steps(learner)
        too_large = bool(tokens) and largest * (len(stack) + 1) > budget
        if not alike or len(stack) == most or too_large:
            stacks.append([])
            largest = size
        stacks[-1].append(learner)
    return stacks


def step_losses(
    bundle: FusionBackbone, groups: Sequence[Sequence[Choice]], recipe: Recipe, alone: bool = False
) -> torch.Tensor:
    """Compute the losses of the adapters that are installed on a model.

    Parameters
    ----------
    bundle : FusionBackbone
        The model.
    groups : sequence of sequence of Choice
        The cases of each adapter.
    recipe : Recipe
        Its precision and tokens per pass.
    alone : bool
        Whether a case is compared with its own items only, and not with all items of its adapter's
        step.

    Returns
    -------
    Tensor [adapters]
        Mean loss over the cases of each adapter.
    """
    most, width = max(map(len, groups)), len(groups[0][0]) - 1
    texts = []
    number = np.full((len(groups), most, width), -1)  # index of each item's text, -1 for padding
    for row, group in zip(number, groups, strict=True):
        padding = most - len(group)
        items: list[Tokens] = []
        for choice in group:
            items += choice[1:]
        histories = [choice[0] for choice in group]
        texts.append([*histories, *[FILL] * padding, *items, *[FILL] * (padding * width)])
        row[: len(group)] = [choice.texts for choice in group]
    device = bundle.model.device
    with autocast(device, recipe.precision):
        vectors = stacked_vectors(bundle, texts, recipe.pass_tokens)
    user_vectors, item_vectors = vectors[:, :most], vectors[:, most:]
    # an item with the target's text is no negative
    targets = number[:, :, :1]
    if alone:
        user_vectors, item_vectors = user_vectors[:, :, None], item_vectors.unflatten(1, (most, -1))
        target = torch.zeros(1, dtype=torch.int64)
        wrong = (number == targets)[:, :, None]
    else:
        target = torch.arange(most) * width
        flat = number.reshape(len(groups), 1, -1)
        wrong = (flat == targets) | (flat < 0)
    real = torch.from_numpy(targets[:, :, 0] >= 0).to(device)
    losses = over_candidates(
        user_vectors, item_vectors, target.to(device), torch.from_numpy(wrong).to(device)
    ).view(len(groups), most)
    return torch.where(real, losses, 0).sum(dim=1) / real.sum(dim=1)


def stacked_vectors(
    bundle: FusionBackbone, texts: Sequence[Sequence[Tokens]], budget: int
) -> torch.Tensor:
    """Encode equally many texts for each of the adapters that are installed on a model.

    The texts of each adapter are sorted by length; a pass holds the texts of the same ranks.

    Parameters
    ----------
    bundle : FusionBackbone
        The model.
    texts : sequence of sequence of Tokens
        The texts of each adapter.
    budget : int
        Most padded tokens of a pass.

    Returns
    -------
    Tensor [adapters, texts, width]
        Vectors.
    """
    count = len(texts)
    lengths = np.array([list(map(len, row)) for row in texts])
    order = np.argsort(-lengths, axis=1, kind="stable")
    longest = np.take_along_axis(lengths, order, axis=1).max(axis=0)
    passes = by_length(longest, max(1, budget // count), cost=-(-PASS_COST // count))
    parts = []
    for ranks in passes:
        batch: list[Tokens] = []
        for row, by_rank in zip(texts, order, strict=True):
            batch += [row[place] for place in by_rank[ranks]]
        padded = pad(batch, pad_id=bundle.tokenizer.pad_token_id).to(bundle.model.device)
        parts.append(bundle.vectors(padded, count).view(count, len(ranks), -1))
    vectors = torch.cat(parts, dim=1)
    place = torch.from_numpy(np.argsort(order[:, np.concatenate(passes)], axis=1))
    return vectors.gather(1, place.to(vectors.device)[..., None].expand_as(vectors))


def choices(
    frozen: Frozen, cases: Cases, learner: Learner, recipe: Recipe, rng: np.random.Generator
) -> list[Choice]:
    """Make a training example of each case, with sampled negatives.

    Negatives are texts that are not in the user's events of the learner's training, if any exist.

    Parameters
    ----------
    frozen : Frozen
        The texts.
    cases : Cases
        The cases.
    learner : Learner
        The learner whose training cases decide which items a user has met.
    recipe : Recipe
        Its number of negatives.
    rng : Generator
        Source of randomness.

    Returns
    -------
    list of Choice
        Examples, user by user.
    """
    result = []
    for user in np.unique(cases.user):
        of_user, known = cases[cases.user == user], learner.train[learner.train.user == user]
        if not len(known):
            known = of_user
        texts = targets_and_others(
            frozen.events[of_user.end],
            frozen.events[known.begin.min() : known.end.max() + 1],
            frozen.pool,
            recipe.negatives,
            rng,
        )
        for end, row in zip(of_user.end, texts, strict=True):
            items = [frozen.items[text] for text in row]
            result.append(Choice([frozen.histories[int(end)], *items], row))
    return result


@torch.no_grad()
def _validation_losses(
    frozen: Frozen,
    stack: AdapterStack,
    valid_choices: Sequence[Sequence[Choice]],
    recipe: Recipe,
) -> list[float]:
    """Mean loss over each adapter's validation cases, each with its own items."""
    frozen.bundle.model.eval()
    size, most = recipe.train_batch_size, max(map(len, valid_choices))
    sums = np.zeros(len(valid_choices))
    with stack.installed_on(frozen.bundle.model, recipe.precision):
        for begin in range(0, most, size):
            batch, counts = [], []
            for of_adapter in valid_choices:
                part = of_adapter[begin : begin + size]
                counts.append(len(part))
                # an adapter without further cases repeats one, which counts 0 times
                batch.append(part or of_adapter[:1])
            losses = step_losses(frozen.bundle, batch, recipe, alone=True)
            sums += losses.double().cpu().numpy() * np.array(counts)
    return (sums / list(map(len, valid_choices))).tolist()


def _clip(stack: AdapterStack, max_norm: float) -> None:
    """Scale the gradients of each adapter to at most this norm."""
    gradients = [value.grad for value in stack.parameters() if value.grad is not None]
    squares = [gradient.flatten(1).square().sum(dim=1) for gradient in gradients]
    norm = torch.stack(squares).sum(dim=0).sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1)[:, None, None]
    for gradient in gradients:
        gradient.mul_(scale)


def _without(
    stack: AdapterStack, optimizer: torch.optim.AdamW, going: np.ndarray
) -> tuple[AdapterStack, torch.optim.AdamW]:
    """The adapters that go on, with the state of their optimizer."""
    rows = torch.from_numpy(np.flatnonzero(going))
    smaller = stack[rows]
    options = {key: optimizer.defaults[key] for key in ("lr", "betas", "weight_decay")}
    other = torch.optim.AdamW(smaller.parameters(), **options)
    for old, new in zip(stack.parameters(), smaller.parameters(), strict=True):
        for key, value in optimizer.state[old].items():
            other.state[new][key] = value[rows].clone() if value.ndim else value.clone()
    return smaller, other


def _seed(recipe: Recipe, name: str, *stream: int) -> list[int]:
    return [recipe.seed, *stream, *name.encode()]


def _rng(recipe: Recipe, name: str, *stream: int) -> np.random.Generator:
    """The generator of one random stream of an adapter."""
    return np.random.default_rng(_seed(recipe, name, *stream))
