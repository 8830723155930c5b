"""Rank the test cases of many adapters by the evaluation loop that ranks all other models too."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ...contracts.cases import Cases
from ...contracts.interactions import Interactions
from ...evaluation.loop import rank_cases
from ...evaluation.ranks import RankTable
from ...language.backbones.encoder_decoder import FusionBackbone
from ...language.backbones.precision import autocast
from ...language.backbones.stacked_lora import AdapterStack
from ...language.tokens.batches import Tokens
from ...models.base.vector_model import distinct
from .adapter_training import FILL, Frozen, Recipe, stacked_vectors


class Vectors:
    """Cases and items as vectors, in the form that the evaluation loop expects of a model.

    It also stands for the dataset in the loop.

    Parameters
    ----------
    interactions : Interactions
        The dataset.
    cases : Cases
        The cases.
    users : Tensor [cases, width]
        Vectors of the cases' histories.
    items : Tensor [distinct, width]
        Distinct vectors of items.
    column : ndarray of int64 [n_items]
        Index of each item's vector in `items`.
    """

    def __init__(
        self,
        interactions: Interactions,
        cases: Cases,
        users: torch.Tensor,
        items: torch.Tensor,
        column: np.ndarray,
    ):
        self.interactions, self.users, self.items, self.column = interactions, users, items, column
        self.device = users.device
        self.row = {int(end): row for row, end in enumerate(cases.end)}
        self.item_num = len(interactions.items) + 1

    def eval(self) -> None:
        """Do nothing: vectors are not trained."""

    def case_batch(self, cases: Cases) -> torch.Tensor:
        """Return the vectors of some of the cases, [cases, width]."""
        return self.users[[self.row[int(end)] for end in cases.end]]

    def full_sort_predict(self, users: torch.Tensor) -> torch.Tensor:
        """Score all items, [cases, 1 + n_items]; the first column is RecBole's padding item."""
        return F.pad((users @ self.items.T)[:, self.column], (1, 0), value=-torch.inf)


@torch.no_grad()
def adapted(
    bundle: FusionBackbone,
    stack: AdapterStack,
    histories: Sequence[list[Tokens]],
    items: list[Tokens],
    recipe: Recipe,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode histories and items by each adapter of a stack.

    Parameters
    ----------
    bundle : FusionBackbone
        The frozen model.
    stack : AdapterStack
        The adapters.
    histories : sequence of list of Tokens
        The histories of each adapter.
    items : list of Tokens
        The items, for all adapters.
    recipe : Recipe
        Its `precision` and `pass_tokens`.

    Returns
    -------
    users : Tensor of float32 [adapters, most histories, width]
        Vectors of the histories; rows behind an adapter's last history are padding.
    items : Tensor of float32 [adapters, items, width]
        Vectors of the items.
    """
    bundle.model.eval()
    most = max(map(len, histories))
    padded = [[*of_adapter, *[FILL] * (most - len(of_adapter))] for of_adapter in histories]
    with (
        stack.installed_on(bundle.model, recipe.precision),
        autocast(bundle.model.device, recipe.precision),
    ):
        users = stacked_vectors(bundle, padded, recipe.pass_tokens)
        catalogue = stacked_vectors(bundle, [items] * len(histories), recipe.pass_tokens)
        return users.float(), catalogue.float()


def rank(
    frozen: Frozen,
    stack: AdapterStack,
    tests: Sequence[Cases],
    recipe: Recipe,
    mask_history: bool = False,
    memory: float = 128,
) -> list[RankTable]:
    """Rank the cases of each adapter over the whole catalogue.

    Parameters
    ----------
    frozen : Frozen
        The frozen model and the texts.
    stack : AdapterStack
        The adapters.
    tests : sequence of Cases
        The cases of each adapter.
    recipe : Recipe
        Its `precision` and `pass_tokens`.
    mask_history : bool
        Whether items of a case's history are excluded.
    memory : float
        MiB of item vectors that are in memory at a time; also of scores.

    Returns
    -------
    list of RankTable
        The ranks of each adapter's cases.
    """
    interactions, catalogue = [], 4 * len(frozen.items) * frozen.bundle.width
    step = max(1, int(memory * 2**20 // catalogue))
    for begin in range(0, len(tests), step):
        part = tests[begin : begin + step]
        histories = []
        for cases in part:
            histories.append([frozen.histories[int(end)] for end in cases.end])
        users, items = adapted(
            frozen.bundle, stack[begin : begin + step], histories, frozen.items, recipe
        )
        for cases, case_vectors, item_vectors in zip(part, users, items, strict=True):
            different, row = distinct(item_vectors.cpu().numpy())
            model = Vectors(
                frozen.interactions,
                cases,
                case_vectors,
                torch.from_numpy(different).to(case_vectors.device),
                row[frozen.same],
            )
            ranks, *_ = rank_cases(model, model, cases, mask_history=mask_history, memory=memory)
            interactions.append(ranks)
    return interactions
