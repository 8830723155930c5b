"""Test cases ranked by each user's adapter, through the evaluation loop that ranks for every other model."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ...contracts.cases import Cases
from ...data.reading.tables import Tables
from ...evaluation.loop import rank_cases
from ...evaluation.ranks import RankTable
from ...language.backbones.encoder_decoder import FusionBackbone
from ...language.backbones.precision import autocast
from ...language.backbones.stacked_lora import AdapterStack
from ...language.tokens.batches import Tokens
from ...models.base.vector_model import distinct
from .adapter_training import FILL, Frozen, Recipe, stacked_vectors


class Vectors:
    """Users and items as vectors: what the evaluation loop asks of a model, and of its data.

    users : [cases, width]. items : [distinct, width], and column, int64 [n_items], which of them is each item's.
    """

    def __init__(
        self,
        tables: Tables,
        cases: Cases,
        users: torch.Tensor,
        items: torch.Tensor,
        column: np.ndarray,
    ):
        self.tables, self.users, self.items, self.column, self.device = (
            tables,
            users,
            items,
            column,
            users.device,
        )
        self.row = {int(end): row for row, end in enumerate(cases.end)}
        self.item_num = len(tables.items) + 1

    def eval(self) -> None:
        """Nothing of it is trained."""

    def case_batch(self, cases: Cases) -> torch.Tensor:
        return self.users[[self.row[int(end)] for end in cases.end]]

    def full_sort_predict(self, users: torch.Tensor) -> torch.Tensor:
        return F.pad((users @ self.items.T)[:, self.column], (1, 0), value=-torch.inf)


@torch.no_grad()
def adapted(
    bundle: FusionBackbone,
    stack: AdapterStack,
    histories: Sequence[list[Tokens]],
    items: list[Tokens],
    recipe: Recipe,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(float32 [adapters, most histories, width], [adapters, items, width]): the histories of each adapter and all items, by it.

    Of recipe its precision and pass_tokens are read.
    """
    bundle.model.eval()
    most = max(map(len, histories))
    filled = [[*own, *[FILL] * (most - len(own))] for own in histories]
    with (
        stack.installed_on(bundle.model, recipe.precision),
        autocast(bundle.model.device, recipe.precision),
    ):
        return tuple(
            stacked_vectors(bundle, texts, recipe.pass_tokens).float()
            for texts in (filled, [items] * len(histories))
        )


def rank(
    frozen: Frozen,
    stack: AdapterStack,
    tests: Sequence[Cases],
    recipe: Recipe,
    mask_history: bool = False,
    memory: float = 128,
) -> list[RankTable]:
    """The ranks of each adapter's cases over the whole catalogue.

    tests : of each adapter of the stack. memory : MiB of item vectors, and of scores, held at once.
    """
    tables, catalogue = [], 4 * len(frozen.items) * frozen.bundle.width
    step = max(1, int(memory * 2**20 // catalogue))
    for begin in range(0, len(tests), step):
        some = tests[begin : begin + step]
        histories = [[frozen.histories[int(end)] for end in cases.end] for cases in some]
        users, items = adapted(
            frozen.bundle, stack[begin : begin + step], histories, frozen.items, recipe
        )
        for cases, own, theirs in zip(some, users, items, strict=True):
            apart, row = distinct(theirs.cpu().numpy())
            facade = Vectors(
                frozen.tables, cases, own, torch.from_numpy(apart).to(own.device), row[frozen.same]
            )
            tables.append(
                rank_cases(facade, facade, cases, mask_history=mask_history, memory=memory)[0]
            )
    return tables
