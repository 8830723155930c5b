"""Interfaces of models: scores to rank by, and, for models that learn, examples and a loss.

Evaluation needs a :class:`Scorer` only. Our trainer needs a :class:`Trainable`. Both declare every
member that other modules read, with its default value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .cases import Cases

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# cases in one call of `score_catalogue` or `score_candidates`, even if memory allows more
MAX_CASES = 1024
# fixed cost of a forward pass, as the number of tokens that take as long
PASS_COST = 256


class Split(Protocol):
    """A split of a dataset, of which training reads the training cases.

    Attributes
    ----------
    train : Cases
        The training cases.
    """

    @property
    def train(self) -> Cases:
        """The training cases."""


class Scorer(ABC):
    """A model that scores the items of a catalogue for each case.

    Attributes
    ----------
    max_cases : int
        Maximum number of cases in one call of `score_catalogue` or `score_candidates`.
    names_all : bool
        Whether every item gets a score, so that a score of -inf is an error. Otherwise an item
        without a score has the score `UNNAMED`, see :mod:`recbole_llm.evaluation.ranks`.
    judges_candidates : bool
        Whether `score_candidates` computes the scores of candidates. Otherwise they are selected
        from the scores of the whole catalogue.
    fallback : ndarray of bool, [n_cases], or None
        Cases of the last call for which no item got a score.
    unmatched_reason : str
        Explanation for the error message if no case got any score.
    counts : Counter of str
        Counters of one ranking, which `rates` summarises.
    device : torch.device
        Where scores are computed.
    training : bool
        Whether the model is in training mode.
    """

    max_cases: int = MAX_CASES
    names_all: bool = True
    judges_candidates: bool = False
    fallback: np.ndarray | None = None
    unmatched_reason: str = "it names no item for any case"
    counts: Counter[str]
    device: torch.device

    if TYPE_CHECKING:
        # read-only for type checkers alone: torch's modules assign this attribute
        @property
        def training(self) -> bool:
            """Whether the model trains now; `eval` and `train` change it."""

    @abstractmethod
    def score_catalogue(self, cases: Cases) -> Tensor:
        """Score every item for each case.

        Parameters
        ----------
        cases : Cases
            At most `max_cases` cases.

        Returns
        -------
        Tensor of float, [n_cases, n_items]
            Scores, which the caller may overwrite.
        """

    @abstractmethod
    def score_candidates(self, cases: Cases, items: Tensor) -> Tensor:
        """Score some items of each case.

        Parameters
        ----------
        cases : Cases
            At most `max_cases` cases.
        items : Tensor of int64, [n_cases, n_candidates]
            Item indices from 0.

        Returns
        -------
        Tensor of float, [n_cases, n_candidates]
            Scores, which the caller may overwrite.
        """

    @abstractmethod
    def probe(self, cases: Cases) -> np.ndarray | Tensor:
        """Compute numbers that tell the weights of this model from other weights.

        They are equal for equal weights, differ for weights that give other scores, and cost
        little. They show whether stored weights that are read back are those that were saved.

        Parameters
        ----------
        cases : Cases
            A few cases.

        Returns
        -------
        ndarray or Tensor of float, [n_cases, ...]
            The numbers.
        """

    @abstractmethod
    def eval(self) -> Any:
        """Switch to evaluation mode."""

    @abstractmethod
    def train(self, mode: bool = True) -> Any:
        """Switch to training mode, or to evaluation mode if `mode` is False."""

    def start_ranking(self, part: str, selecting: bool, folder: Path | None = None) -> None:
        """Prepare for the ranking of the cases of a part.

        Parameters
        ----------
        part : {"test", "valid"}
            The part.
        selecting : bool
            Whether the ranking selects a checkpoint.
        folder : Path, optional
            Folder of the run whose weights are loaded, where generated answers are stored.
        """

    def rates(self) -> dict[str, float]:
        """Summarise the last ranking by shares that are printed beside its metrics.

        Returns
        -------
        dict of str to float
            Name -> share; empty by default.
        """
        return {}

    def prepare_texts(self, parts: dict[str, Cases]) -> None:
        """Generate the texts that scores depend on, before training begins.

        Parameters
        ----------
        parts : dict of str to Cases
            Part ("train", "valid" or "test") -> its cases.
        """

    def costs(self) -> dict[str, Any]:
        """Report what `prepare_texts` has cost.

        Returns
        -------
        dict of str to object
            Kind of cost -> amount; empty if there was none.
        """
        return {}


class StoredWeights:
    """How the weights of a model are stored beside the tensors that the trainer writes.

    Attributes
    ----------
    externally_saved : tuple of str
        Name prefixes of the tensors that `save` and `load` store in place of the trainer.
    transfer_excludes : tuple of str
        Name prefixes of the tensors that a later stage initialises anew.
    frozen_base : str or None
        Digest of the frozen weights that trained adapters belong to.
    """

    externally_saved: tuple[str, ...] = ()
    transfer_excludes: tuple[str, ...] = ()
    frozen_base: str | None = None

    def save(self, folder: Path) -> None:
        """Write the tensors of `externally_saved`.

        Parameters
        ----------
        folder : Path
            The run's folder.
        """

    def load(self, folder: Path) -> None:
        """Read the tensors of `externally_saved`.

        Parameters
        ----------
        folder : Path
            The run's folder.
        """


class Trainable(ABC):
    """A model that our trainer trains.

    An epoch is a sequence of examples, which are read for some steps at a time. A step takes
    `train_batch_size` of them and splits their pieces into forward passes of similar cost. By
    default an example is the row of a training case, so that a model needs to implement `loss`
    only.

    Attributes
    ----------
    pass_cost : int
        Fixed cost of a forward pass, in `cost_unit`.
    cost_unit : str
        Unit of `cost`, for the log.
    split : Split
        The split with the training cases.
    """

    pass_cost: int = PASS_COST
    cost_unit: str = "examples"
    split: Split

    def examples(self, epoch: int) -> Sequence[Any]:
        """List the training examples of an epoch.

        Parameters
        ----------
        epoch : int
            Number of the epoch, from 0.

        Returns
        -------
        sequence
            Examples in any order; equal for equal epochs and seeds.
        """
        return range(len(self.split.train))

    def pieces(self, example: Any) -> Sequence[Any]:
        """Split an example into the parts that may be in different forward passes.

        Parameters
        ----------
        example : object
            An element of `examples`.

        Returns
        -------
        sequence
            Its pieces.
        """
        return (example,)

    def cost(self, piece: Any) -> int:
        """Cost of a piece in a forward pass: its tokens, or 1 if all pieces cost the same."""
        return 1

    def targets(self, piece: Any) -> int:
        """Number of targets of a piece; the loss of a step is divided by those of all pieces."""
        return 1

    def collate(self, pieces: Sequence[Any]) -> Any:
        """Batch pieces.

        Parameters
        ----------
        pieces : sequence
            The pieces of one forward pass.

        Returns
        -------
        object
            The batch that `loss` takes, on the model's device.
        """
        return self.split.train[np.asarray(pieces)]

    def batch_cost(self, batch: Any) -> int:
        """Cost of a batch, padding included, in `cost_unit`."""
        return len(batch)

    def fit_passes(self, longest: int, largest: int, pieces: Sequence[Any]) -> None:
        """Choose passes that fit into memory, before the first step.

        Parameters
        ----------
        longest : int
            Cost of the largest piece.
        largest : int
            Cost of the largest step.
        pieces : sequence
            The pieces of the first step.
        """

    def recompute(self) -> bool:
        """Take less memory for a pass by computing activations again in the backward pass.

        Returns
        -------
        bool
            Whether it does so from now on; False if it did already, or cannot.
        """
        return False

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """Compute the loss of a batch.

        Parameters
        ----------
        batch : object
            As `collate` makes it.

        Returns
        -------
        Tensor of float, []
            Sum of the losses of the batch's targets.
        """


class ContrastiveTrainable(Trainable):
    """A trainable model whose loss compares the vectors of all pieces of a step.

    A step may have several forward passes. The trainer gathers their vectors and passes the
    gradients of the vectors back to each of them (Gao et al., "Scaling deep contrastive learning
    batch size under memory limited setup", RepL4NLP 2021).

    Attributes
    ----------
    contrastive : bool
        Whether `pair_loss` is part of the loss.
    """

    contrastive: bool = True

    @abstractmethod
    def loss_and_vectors(self, batch: Any, with_loss: bool) -> tuple[Tensor, Tensor]:
        """Compute the loss that a batch has by itself, and a vector of each piece.

        Parameters
        ----------
        batch : object
            As `collate` makes it.
        with_loss : bool
            If False, the caller ignores the loss.

        Returns
        -------
        loss : Tensor of float, []
            Sum of the losses of the batch's targets; 0 if `pair_loss` is the only loss.
        vectors : Tensor of float, [n_pieces, ...]
            Vectors that `pair_loss` compares.
        """

    @abstractmethod
    def pair_loss(self, vectors: Tensor, examples: Sequence[Any]) -> Tensor:
        """Compute the loss that compares the pieces of a step.

        Parameters
        ----------
        vectors : Tensor of float, [n_examples, pieces of an example, ...]
            Vectors of all pieces.
        examples : sequence
            The examples of the step.

        Returns
        -------
        Tensor of float, []
            The loss.
        """

    def loss(self, batch: Any) -> Tensor:
        """See :meth:`Trainable.loss`."""
        return self.loss_and_vectors(batch, True)[0]
