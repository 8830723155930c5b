"""Adapters on one frozen model, trained together: each by its own users, its own optimizer state, its own steps and its own early stop.

An adapter of one user has a handful of cases, so that alone its steps are mostly overhead. Here one pass reads the texts of many adapters, in equal shares.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...contracts.cases import Cases
from ...contracts.models import PASS_COST
from ...data.reading.tables import Tables
from ...language.backbones.encoder_decoder import FusionBackbone
from ...language.backbones.precision import autocast
from ...language.backbones.stacked_lora import AdapterStack
from ...language.tokens.batches import Tokens, by_length, pad, shuffled_steps
from ...models.tastelora import Choice, targets_and_others
from ...training import optimizers
from ...training.losses import over_candidates

FILL = Tokens(
    np.zeros(1, dtype=np.int64), np.zeros(1, dtype=bool), 1, 0, 0, roles=np.array([[1], [0]])
)  # a text that nothing is learned from


@dataclass(frozen=True)
class Frozen:
    """What all units of a run share.

    Attributes
    ----------
    items : tokens of each distinct item text. events, same : int64 [n_events] and [n_items], the text of each event's item, and of each item.
    pool : int64, the texts that negatives are drawn from.
    histories : tokens of what comes before an event, by the event's row in `tables`.
    """

    bundle: FusionBackbone
    tables: Tables
    items: list[Tokens]
    events: np.ndarray
    same: np.ndarray
    pool: np.ndarray
    histories: dict[int, Tokens]


@dataclass(frozen=True)
class Learner:
    """An adapter to be trained: whose it is, and the cases that train and validate it."""

    name: str
    train: Cases
    valid: Cases


@dataclass(frozen=True)
class Recipe:
    """How adapters are trained; see properties/model/TASTELoRA.yaml for most of the names."""

    lora_rank: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.05
    epochs: int = 10
    patience: int = 2  # validations in a row that are no better, after which an adapter stops
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
    """Adapters as they were at their best validation. losses : validation losses of each, the first before any training."""

    stack: AdapterStack
    losses: list[list[float]]


def freeze(model, *parts: Cases) -> Frozen:
    """What units need of a TASTELoRA model and of these cases."""
    model.requires_grad_(False).eval()
    histories = {
        int(end): model.history(model.tables.item[begin:end])
        for cases in parts
        for begin, end in zip(cases.begin, cases.end, strict=True)
    }
    return Frozen(
        model.bundle,
        model.tables,
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
    """Train one stack of adapters. All of them have as many steps an epoch: see `together`.

    advanced : called after each step, with the share of an epoch that it is.

    Each begins with nothing added to the frozen model, which counts as its first validated state. None of its numbers depends on the others but for
    dropout and the order of sums.
    """
    model = frozen.bundle.model
    torch.manual_seed(int(_rng(recipe, learners[0].name, 0).integers(2**63)))  # dropout's
    names = [_seed(recipe, learner.name, 1) for learner in learners]
    stack = AdapterStack.initialized(
        model, names, rank=recipe.lora_rank, alpha=recipe.lora_alpha, dropout=recipe.lora_dropout
    )
    best, living = stack[:], np.arange(len(learners))
    checks = [
        choices(frozen, learner.valid, learner, recipe, _rng(recipe, learner.name, 2))
        for learner in learners
    ]
    losses = [[loss] for loss in _validate(frozen, stack, checks, recipe)]
    worse = np.zeros(len(learners), dtype=int)
    optimizer = torch.optim.AdamW(
        stack.parameters(),
        lr=recipe.learning_rate,
        betas=optimizers.BETAS,
        weight_decay=recipe.weight_decay,
    )
    for epoch in range(recipe.epochs):
        examples = [
            choices(
                frozen,
                learners[one].train,
                learners[one],
                recipe,
                _rng(recipe, learners[one].name, 3, epoch),
            )
            for one in living
        ]
        plans = [
            shuffled_steps(
                [sum(map(len, group)) for group in own],
                recipe.train_batch_size,
                _rng(recipe, learners[one].name, 4, epoch),
            )
            for one, own in zip(living, examples, strict=True)
        ]
        model.train()
        for step, chosen in enumerate(zip(*plans, strict=True)):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * optimizers.rate(
                    (epoch + (step + 1) / len(plans[0])) / recipe.epochs, recipe.warmup
                )
            optimizer.zero_grad()
            with stack.installed_on(model, recipe.precision):
                step_losses(
                    frozen.bundle,
                    [
                        [own[row] for row in rows]
                        for own, rows in zip(examples, chosen, strict=True)
                    ],
                    recipe,
                ).sum().backward()
            _clip(stack, recipe.max_norm)
            optimizer.step()
            advanced(1 / len(plans[0]))
        now = _validate(frozen, stack, [checks[one] for one in living], recipe)
        for place, (one, loss) in enumerate(zip(living, now, strict=True)):
            better = loss < min(losses[one])
            losses[one].append(loss)
            worse[one] = 0 if better else worse[one] + 1
            if better:
                best.replace(one, stack, place)
        going = worse[living] <= recipe.patience
        if not going.any():
            break
        if not going.all():
            living, stack, optimizer = living[going], *_without(stack, optimizer, going)
    return Trained(best, losses)


def step_tokens(frozen: Frozen, learner: Learner, recipe: Recipe) -> int:
    """Tokens of a learner's step, all but exactly."""
    cases = learner.train[: recipe.train_batch_size]
    items = (1 + recipe.negatives) * np.mean([len(one) for one in frozen.items])
    return int(len(cases) * items + sum(len(frozen.histories[int(end)]) for end in cases.end))


def together(
    learners: Sequence[Learner],
    batch: int,
    most: int,
    tokens: Sequence[int] | None = None,
    budget: int = 0,
) -> list[list[Learner]]:
    """Stacks of adapters that have as many steps an epoch, like numbers of cases beside each other.

    Parameters
    ----------
    batch : cases of a step.
    most : adapters of a stack.
    tokens : of a step of each learner. Every adapter of a stack is padded to the largest, so a stack holds as many of those
        as fit into the budget, and one at least; other stacks do not suffer for it. None: the number alone counts.
    budget : tokens of a step of a whole stack.
    """
    sizes = [0] * len(learners) if tokens is None else tokens

    def steps(learner: Learner) -> int:
        return -(-len(learner.train) // batch)

    ordered = sorted(
        zip(learners, sizes, strict=True),
        key=lambda one: (steps(one[0]), len(one[0].train), one[1]),
    )
    found: list[list[Learner]] = []
    largest = 0
    for learner, size in ordered:
        own, largest = found[-1] if found else [], max(largest, size)
        alike = bool(own) and steps(own[0]) == steps(learner)
        if not alike or len(own) == most or (tokens and largest * (len(own) + 1) > budget):
            found.append([])
            largest = size
        found[-1].append(learner)
    return found


def step_losses(
    bundle: FusionBackbone, groups: Sequence[Sequence[Choice]], recipe: Recipe, alone: bool = False
) -> torch.Tensor:
    """[adapters]: the mean loss of each adapter's cases, by the adapters that are on the model.

    alone : each case against its own items, and not against all items of its adapter's step.
    """
    count, most, wide = len(groups), max(map(len, groups)), len(groups[0][0])
    device = bundle.model.device
    texts = [
        [*(group[0] for group in own), *(FILL for _ in range(most - len(own)))] for own in groups
    ]
    for row, own in zip(texts, groups, strict=True):
        row += [tokens for group in own for tokens in group[1:]] + [FILL] * (
            (most - len(own)) * (wide - 1)
        )
    with autocast(device, recipe.precision):
        vectors = stacked_vectors(bundle, texts, recipe.pass_tokens)
    number = np.full((count, most, wide - 1), -1)
    for row, own in zip(number, groups, strict=True):
        row[: len(own)] = [group.texts for group in own]
    users, items, targets = vectors[:, :most], vectors[:, most:], number[:, :, :1]
    if alone:
        users, items, target = (
            users[:, :, None],
            items.unflatten(1, (most, -1)),
            torch.zeros(1, dtype=torch.int64),
        )
        wrong = (number == targets)[:, :, None]
    else:
        target, number = torch.arange(most) * (wide - 1), number.reshape(count, 1, -1)
        wrong = (number == targets) | (number < 0)
    wrong, real = (torch.from_numpy(one).to(device) for one in (wrong, targets[:, :, 0] >= 0))
    found = over_candidates(users, items, target.to(device), wrong).view(count, most)
    return torch.where(real, found, 0).sum(dim=1) / real.sum(dim=1)


def stacked_vectors(
    bundle: FusionBackbone, texts: Sequence[Sequence[Tokens]], budget: int
) -> torch.Tensor:
    """[adapters, texts, width] of as many texts of each adapter, in passes that hold the texts of like rank by length of all of them."""
    count = len(texts)
    lengths = np.array([[len(one) for one in row] for row in texts])
    order = np.argsort(-lengths, axis=1, kind="stable")
    longest = np.take_along_axis(lengths, order, axis=1).max(axis=0)
    parts = by_length(longest, max(1, budget // count), cost=-(-PASS_COST // count))
    found = []
    for ranks in parts:
        batch = pad(
            [
                row[place]
                for row, places in zip(texts, order, strict=True)
                for place in places[ranks]
            ],
            pad_id=bundle.tokenizer.pad_token_id,
        )
        found.append(
            bundle.vectors(batch.to(bundle.model.device), count).view(count, len(ranks), -1)
        )
    back = np.argsort(order[:, np.concatenate(parts)], axis=1)
    vectors = torch.cat(found, dim=1)
    return vectors.gather(
        1, torch.from_numpy(back).to(vectors.device)[..., None].expand_as(vectors)
    )


def choices(
    frozen: Frozen, cases: Cases, learner: Learner, recipe: Recipe, rng: np.random.Generator
) -> list[Choice]:
    """Cases with their targets and other items at random, none of them met by the user in what trains the learner."""
    found, items = [], frozen.events
    for user in np.unique(cases.user):
        own, known = cases[cases.user == user], learner.train[learner.train.user == user]
        known = known if len(known) else own
        texts = targets_and_others(
            items[own.end],
            items[known.begin.min() : known.end.max() + 1],
            frozen.pool,
            recipe.negatives,
            rng,
        )
        found += [
            Choice([frozen.histories[int(end)], *(frozen.items[text] for text in row)], row)
            for end, row in zip(own.end, texts, strict=True)
        ]
    return found


@torch.no_grad()
def _validate(
    frozen: Frozen, stack: AdapterStack, checks: Sequence[Sequence[Choice]], recipe: Recipe
) -> list[float]:
    """Mean loss of each adapter's validation cases, each against its own items."""
    frozen.bundle.model.eval()
    sums, most = np.zeros(len(checks)), max(map(len, checks))
    with stack.installed_on(frozen.bundle.model, recipe.precision):
        for begin in range(0, most, recipe.train_batch_size):
            some = [own[begin : begin + recipe.train_batch_size] for own in checks]
            sizes = np.array(list(map(len, some)))
            some = [
                one or own[:1] for one, own in zip(some, checks, strict=True)
            ]  # an adapter that has no more cases
            now = step_losses(frozen.bundle, some, recipe, alone=True).double().cpu().numpy()
            sums += now * sizes
    return (sums / [len(own) for own in checks]).tolist()


def _clip(stack: AdapterStack, most: float) -> None:
    """Scale each adapter's gradients to a norm of at most so much."""
    gradients = [parameter.grad for parameter in stack.parameters()]
    norm = (
        torch.stack([gradient.flatten(1).square().sum(dim=1) for gradient in gradients])
        .sum(dim=0)
        .sqrt()
    )
    scale = (most / (norm + 1e-6)).clamp(max=1)[:, None, None]
    for gradient in gradients:
        gradient.mul_(scale)


def _without(
    stack: AdapterStack, optimizer: torch.optim.AdamW, going: np.ndarray
) -> tuple[AdapterStack, torch.optim.AdamW]:
    """The adapters that go on, with their optimizer's state."""
    rows = torch.from_numpy(np.flatnonzero(going))
    less = stack[rows]
    other = torch.optim.AdamW(
        less.parameters(),
        **{key: optimizer.defaults[key] for key in ("lr", "betas", "weight_decay")},
    )
    for old, new in zip(stack.parameters(), less.parameters(), strict=True):
        other.state[new] = {
            key: value[rows].clone() if value.ndim else value.clone()
            for key, value in optimizer.state[old].items()
        }
    return less, other


def _seed(recipe: Recipe, name: str, *what: int) -> list[int]:
    return [recipe.seed, *what, *name.encode()]


def _rng(recipe: Recipe, name: str, *what: int) -> np.random.Generator:
    return np.random.default_rng(_seed(recipe, name, *what))
