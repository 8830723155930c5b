"""Serve each user by the most personal adapter that exists.

The order is: the user's own adapter, that of the user's cohort, Model 3, and Model 2 without an
adapter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...language.backbones.encoder_decoder import FusionBackbone
from ...language.backbones.stacked_lora import AdapterStack
from ...language.tokens.batches import Tokens
from .adapter_training import Recipe
from .ranking import adapted
from .work_units import RECORD, check_adapter


@dataclass(frozen=True)
class Route:
    """The adapter that serves a user.

    Attributes
    ----------
    name : str
        What it is, for people.
    folder : Path or None
        Folder of the adapter; None for the frozen model without an adapter.
    """

    name: str
    folder: Path | None


class Router:
    """Serves users by the adapters of a folder of `personalize`.

    Parameters
    ----------
    folder : Path
        The folder.
    routes : dict
        The entry `routes` of its run.json.
    bundle : FusionBackbone
        The frozen model.
    items : list of Tokens
        Each distinct item text.
    recipe : Recipe
        Its `precision` and `pass_tokens`.
    """

    def __init__(
        self,
        folder: Path,
        routes: dict,
        bundle: FusionBackbone,
        items: list[Tokens],
        recipe: Recipe,
    ):
        self.folder, self.routes = folder, routes
        self.bundle, self.items, self.recipe = bundle, items, recipe

    @classmethod
    def over(cls, model: Any, folder: Path, routes: dict) -> "Router":
        """Make a router over a TASTELoRA model with the frozen weights.

        Parameters
        ----------
        model : TASTELoRA
            The model.
        folder, routes
            See the class.

        Returns
        -------
        Router
            The router.
        """
        config, items = model.config, [model.item(text) for text in range(len(model.first))]
        recipe = Recipe(precision=config["precision"], pass_tokens=config["pass_tokens"])
        return cls(folder, routes, model.bundle, items, recipe)

    def of(self, user: str | None) -> Route:
        """Choose the adapter of a user.

        Parameters
        ----------
        user : str or None
            A user id; None for an unknown user.

        Returns
        -------
        Route
            The most personal adapter whose unit is done.
        """
        cohort, cohort_path = self.routes["cohorts"].get(user, (None, None))
        candidates = [
            ("own adapter", self.routes["users"].get(user)),
            (f"cohort {cohort}", cohort_path),
            ("Model 3", self.routes["everybody"]),
        ]
        for name, path in candidates:
            if path and ((self.folder / path).parents[1] / RECORD).is_file():
                return Route(name, self.folder / path)
        return Route("Model 2", None)

    def scores(self, users: Sequence[str | None], histories: Sequence[Tokens]) -> np.ndarray:
        """Score all item texts for some cases, by all needed adapters in one stacked pass.

        Parameters
        ----------
        users : sequence of str or None
            User of each case.
        histories : sequence of Tokens
            History of each case.

        Returns
        -------
        ndarray of float32 [cases, distinct item texts]
            Scores.

        Raises
        ------
        UserError
            If the files of an adapter have changed since its training.
        """
        rows_of_folder: dict[Path | None, list[int]] = {}
        for row, user in enumerate(users):
            rows_of_folder.setdefault(self.of(user).folder, []).append(row)
        for folder in rows_of_folder:
            if folder is not None:
                check_adapter(folder)
        stack = AdapterStack.load(self.bundle.model, list(rows_of_folder))
        texts = []
        for rows in rows_of_folder.values():
            texts.append([histories[row] for row in rows])
        user_vectors, item_vectors = adapted(self.bundle, stack, texts, self.items, self.recipe)
        scores = np.empty((len(users), len(self.items)), dtype=np.float32)
        for rows, histories_of_adapter, items in zip(
            rows_of_folder.values(), user_vectors, item_vectors, strict=True
        ):
            scores[rows] = (histories_of_adapter[: len(rows)] @ items.T).cpu().numpy()
        return scores
