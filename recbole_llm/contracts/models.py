"""What a model offers: scores to rank by, and, if it learns, examples and a loss.

Evaluation needs a :class:`Scorer` and nothing else. Our trainer needs a :class:`Trainable`. Both
are written here with every member that anybody reads, and with its default.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .cases import Cases

if TYPE_CHECKING:
    from torch import Tensor

MAX_CASES = 1024  # per call of `score`, whatever the memory
PASS_COST = 256  # what a forward pass costs beside its tokens, in tokens


class Split(Protocol):
    """Whose cases train a model."""

    train: Cases


class Scorer(ABC):
    """Gives the items of a catalogue a score for each case.

    Attributes
    ----------
    max_cases : int
        Most cases in one call of `score_catalogue` or `score_candidates`.
    names_all : bool
        Whether every item gets a score, so that a score of -inf is an error. Otherwise an item
        without a score is `UNNAMED`, see :mod:`recbole_llm.evaluation.ranks`.
    judges_candidates : bool
        Whether candidates of a case are scored by `score_candidates`, and not by picking their
        scores out of those of the whole catalogue.
    fallback : bool array [cases] or None
        Cases of the last call for which no item was named.
    unmatched_reason : str
        What is the matter if it could say nothing about any case.
    counts : Counter
        Tallies of one ranking.
    device : torch.device
        Where scores are computed.
    """

    max_cases: int = MAX_CASES
    names_all: bool = True
    judges_candidates: bool = False
    fallback: np.ndarray | None = None
    unmatched_reason: str = "it names no item for any case"
    counts: Counter
    training: bool

    @abstractmethod
    def score_catalogue(self, cases: Cases) -> Tensor:
        """Score every item.

        Returns
        -------
        float tensor [cases, items], writable.
        """

    @abstractmethod
    def score_candidates(self, cases: Cases, items: Tensor) -> Tensor:
        """Score some items of each case.

        Parameters
        ----------
        items : int64 tensor [cases, C]
            Item numbers from 0.

        Returns
        -------
        float tensor [cases, C], writable.
        """

    @abstractmethod
    def probe(self, cases: Cases) -> np.ndarray | Tensor:
        """Numbers [cases, ...] by which weights that are read back are compared with those saved.

        They are the same for the same weights, differ for others in whatever the scores depend on,
        and cost little.
        """

    @abstractmethod
    def eval(self):
        """Score from now on as after training."""

    @abstractmethod
    def train(self, mode: bool = True):
        """Compute from now on as in training."""

    def start_ranking(self, part: str, selecting: bool, folder: Path | None = None) -> None:
        """Prepare for the ranking of the cases of a part.

        Parameters
        ----------
        part : str
            "test" or "valid".
        selecting : bool
            Whether the ranking chooses a checkpoint.
        folder : Path, optional
            Of the run whose weights these are, for answers to be stored in.
        """

    def rates(self) -> dict[str, float]:
        """Shares of the last ranking that are worth printing beside its metrics."""
        return {}

    def prepare_texts(self, parts: dict[str, Cases]) -> None:
        """Have texts written that scores depend on, before anything is trained.

        Parameters
        ----------
        parts : dict
            Part ("train", "valid" or "test") -> its cases.
        """

    def costs(self) -> dict:
        """What `prepare_texts` has cost; empty if nothing."""
        return {}


class StoredWeights:
    """How the weights of a model are stored beside the tensors that the trainer writes.

    Attributes
    ----------
    externally_saved : tuple of str
        Beginnings of the names of tensors that `save` and `load` are responsible for.
    transfer_excludes : tuple of str
        Beginnings of the names of tensors that a later stage does not take over.
    frozen_base : str or None
        Digest of frozen weights that trained adapters belong to.
    """

    externally_saved: tuple[str, ...] = ()
    transfer_excludes: tuple[str, ...] = ()
    frozen_base: str | None = None

    def save(self, folder: Path) -> None:
        """Write the tensors of `externally_saved` into a run's folder."""

    def load(self, folder: Path) -> None:
        """Read the tensors of `externally_saved` from a run's folder."""


class Trainable(ABC):
    """A model that our trainer trains.

    An epoch is a list of examples. A step takes `train_batch_size` of them, and cuts their pieces
    into forward passes of like size. The defaults are those of a model whose example is a training
    case, given by its row: such a model adds `loss` alone.

    Attributes
    ----------
    pass_cost : int
        What a forward pass costs beside its pieces, in `cost_unit`.
    cost_unit : str
        What `cost` counts, for the log.
    split : Split
        Its `train` are the training cases.
    """

    pass_cost: int = PASS_COST
    cost_unit: str = "examples"
    split: Split

    def examples(self, epoch: int) -> Sequence:
        """Training examples of an epoch, in any order; the same for the same epoch and seed."""
        return np.arange(len(self.split.train))

    def pieces(self, example) -> Sequence:
        """What an example consists of; pieces of one example may stand in several passes."""
        return (example,)

    def cost(self, piece) -> int:
        """How much of a forward pass a piece takes: its tokens, or 1 where all are alike."""
        return 1

    def targets(self, piece) -> int:
        """How many targets a piece holds; a step divides its loss by those of all its pieces."""
        return 1

    def collate(self, pieces: Sequence):
        """A batch of pieces, as `loss` takes it, on the model's device."""
        return self.split.train[np.asarray(pieces)]

    def batch_cost(self, batch) -> int:
        """How much of a forward pass a batch takes, with its padding."""
        return len(batch)

    @abstractmethod
    def loss(self, batch) -> Tensor:
        """Loss of a batch.

        Returns
        -------
        float tensor [], the sum over the batch's targets.
        """


class ContrastiveTrainable(Trainable):
    """A trainable model whose loss compares the vectors of all pieces of a step.

    A step may be several passes; the trainer gathers their vectors, and hands the gradient back to
    each pass (cached gradients).

    Attributes
    ----------
    contrastive : bool
        Whether `pair_loss` is part of the loss.
    """

    contrastive: bool = True

    @abstractmethod
    def loss_and_vectors(self, batch, with_loss: bool) -> tuple[Tensor, Tensor]:
        """Own loss of a batch, and a vector of each piece.

        Parameters
        ----------
        batch : object
            As `collate` makes it.
        with_loss : bool
            False where the loss is not looked at.

        Returns
        -------
        loss : float tensor []
            Sum over the batch's targets; 0 if pieces have no loss of their own.
        vectors : float tensor [pieces, ...]
        """

    @abstractmethod
    def pair_loss(self, vectors: Tensor, examples: Sequence) -> Tensor:
        """Loss over all pieces of a step.

        Parameters
        ----------
        vectors : float tensor [examples, pieces of an example, ...]
        examples : sequence
            The examples of the step.
        """

    def loss(self, batch) -> Tensor:
        return self.loss_and_vectors(batch, True)[0]
