"""Who is served by which adapter: a user's own, else the cohort's, else Model 3, else Model 2 as it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...language.backbones.encoder_decoder import FusionBackbone
from ...language.backbones.stacked_lora import AdapterStack
from ...language.tokens.batches import Tokens
from .adapter_training import Recipe
from .ranking import adapted
from .work_units import RECORD, check_adapter


@dataclass(frozen=True)
class Route:
    """An adapter by what it is called and where it lies; no folder for the frozen model alone."""

    name: str
    folder: Path | None


class Router:
    """Serves users by the adapters of a folder that `personalize` has filled.

    routes : as its run.json has them. recipe : its precision and pass_tokens are read.
    """

    def __init__(
        self,
        folder: Path,
        routes: dict,
        bundle: FusionBackbone,
        items: list[Tokens],
        recipe: Recipe,
    ):
        self.folder, self.routes, self.bundle, self.items, self.recipe = (
            folder,
            routes,
            bundle,
            items,
            recipe,
        )

    @classmethod
    def over(cls, model, folder: Path, routes: dict) -> "Router":
        """Of a TASTELoRA with the frozen weights."""
        recipe = Recipe(
            precision=model.config["precision"], pass_tokens=model.config["pass_tokens"]
        )
        return cls(
            folder,
            routes,
            model.bundle,
            [model.item(text) for text in range(len(model.first))],
            recipe,
        )

    def of(self, user: str | None) -> Route:
        """The first of the four that is there; None for somebody whom no adapter knows."""
        name, cohort = self.routes["cohorts"].get(user, (None, None))
        ways = [
            ("own adapter", self.routes["users"].get(user)),
            (f"cohort {name}", cohort),
            ("Model 3", self.routes["everybody"]),
        ]
        found = (
            (name, self.folder / path)
            for name, path in ways
            if path and ((self.folder / path).parents[1] / RECORD).is_file()
        )
        return next((Route(*way) for way in found), Route("Model 2", None))

    def scores(self, users: Sequence[str | None], histories: Sequence[Tokens]) -> np.ndarray:
        """float32 [cases, distinct item texts] of cases by their users and histories: each adapter that is needed in one stacked pass.

        Raises UserError for an adapter that is not what was trained.
        """
        routes = [self.of(user) for user in users]
        for folder in {route.folder for route in routes} - {None}:
            check_adapter(folder)
        number = {
            route.folder: place
            for place, route in enumerate({route.folder: route for route in routes}.values())
        }
        place = np.array([number[route.folder] for route in routes])
        groups = [np.flatnonzero(place == one) for one in range(len(number))]
        stack, texts = (
            AdapterStack.load(self.bundle.model, list(number)),
            [[histories[row] for row in rows] for rows in groups],
        )
        found = adapted(self.bundle, stack, texts, self.items, self.recipe)
        scores = np.empty((len(users), len(self.items)), dtype=np.float32)
        for rows, own, items in zip(groups, *found, strict=True):
            scores[rows] = (own[: len(rows)] @ items.T).cpu().numpy()
        return scores
