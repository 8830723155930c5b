"""Recommendations of a finished run for one user, or for a given history."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..contracts.cases import Cases
from ..contracts.interactions import Interactions
from ..data.sample import locate
from ..data.texts.text import ItemText
from ..errors import UserError
from ..evaluation.loop import catalogue_scores
from ..models.base.text_model import TextModel
from ..models.base.vector_model import VectorModel
from ..runs.checks import check_answering, edited_since
from ..runs.runner import Runner
from ..runs.spec import describe
from ..settings import run_record
from ..settings.layers import digest
from ..storage import run_folders
from ..storage.readback import run_digests
from ..storage.run_log import RunLog
from .personalization.routing import Router

COVERED = 0.5  # least share of an entry's words that an item must have, see BM25Index.coverage
NEAREST = 3  # number of titles in the message if no item has that share
SHOWN = 10  # number of items of the history that are printed


@dataclass(frozen=True)
class _Catalogue:
    """The items of a dataset and their texts.

    Attributes
    ----------
    interactions : Interactions
        The dataset.
    text : ItemText or None
        The texts of all items; None if the dataset has no item table.
    """

    interactions: Interactions
    text: ItemText | None

    def describe(self, item: int) -> str:
        """An item's id, and its text if there is one."""
        name = str(self.interactions.items[item])
        return f"{name}  {self.text.sentence(item)}" if self.text else name

    def match(self, entry: str) -> tuple[int, int]:
        """Find the item that an entry of a history stands for, by its id or by BM25 of its text.

        Returns
        -------
        item : int
            Index of the best match.
        ties : int
            Number of items that match equally well, with this one.

        Raises
        ------
        UserError
            If no item has enough of the entry's words. The message has the nearest titles.
        """
        by_id = np.flatnonzero(self.interactions.items == entry)
        if len(by_id):
            return int(by_id[0]), 1
        nearest = ""
        if self.text is not None:
            from ..language.matching.bm25 import BM25Index

            index = BM25Index([self.text.plain(item) for item in range(len(self.text))])
            scores = index.scores([entry])[0]
            eligible = np.where(index.coverage(entry) >= COVERED, scores, 0)
            if eligible.max(initial=0) > 0:
                return int(eligible.argmax()), int((eligible == eligible.max()).sum())
            best = np.argsort(-scores, kind="stable")[:NEAREST]
            titles = [repr(self.text.values[item][0]) for item in best if scores[item] > 0]
            nearest = f"; the nearest are {', '.join(titles)}" if titles else ""
        raise UserError(
            f"--history: expected an item's title or id, found {entry!r}, of which no item has "
            f"half of the words{nearest}"
        )


@dataclass(frozen=True)
class _Query:
    """The case to be ranked, with the items of its history, oldest first."""

    dataset: Any  # a TableMixin, which RecBole's classes are mixed into
    cases: Cases
    items: list[int]
    user: str | None = None


def recommend(
    folder: Path,
    settings: dict,
    user: str | None = None,
    history: str | None = None,
    k: int = 10,
    index: str = "exact",
) -> list[str]:
    """Recommend items by a finished run.

    Parameters
    ----------
    folder : Path
        Folder of the run.
    settings : dict
        The run's settings, of which those of data and answering may be changed.
    user : str, optional
        A user id. All of the user's events are the history.
    history : str, optional
        Item titles or ids, separated by `;`. A title stands for the item that BM25 ranks first
        among those with half of the title's words, weighted by inverse document frequency.
    k : int
        Number of recommendations.
    index : {"exact", "faiss"}
        "exact" scores every item. "faiss" searches an index of item vectors, which is built once
        and stored.

    Returns
    -------
    list of str
        The items that entries of `history` were matched to, the history, and a line with rank,
        score, item id and text for each recommendation.

    Raises
    ------
    UserError
        If the user is unknown, an entry of the history matches no item, or the model knows only
        the users of its training data.
    """
    recommender = _Recommender.of_run(folder, settings)
    matches: list[str] = []
    if history is not None:
        query, matches = recommender.query_of_history(history)
    else:
        query = recommender.query_of_user(user)
    scores = recommender.scores(query, k, index)
    warning = locate.warning(recommender.dataset_name)
    lines = [line for line in (warning, recommender.edited) if line]
    if recommender.router:
        lines.append(f"served by: {recommender.router.of(user).name}")
    return [*lines, *matches, *_ranking(recommender.catalogue, query.items, scores, k)]


@dataclass(frozen=True)
class _Recommender:
    """A finished run with its data.

    Attributes
    ----------
    model : recommender
        With the weights of the run.
    name : str
        Name of the model.
    folder : Path
        Folder of the run that the weights of the model belong to.
    dataset : TableMixin
        The dataset of the test cases.
    dataset_name : str
        Its name.
    catalogue : _Catalogue
        Its items.
    router : Router or None
        Chooses the adapter of a user, if the run has adapters of personalize.
    """

    model: Any
    name: str
    folder: Path
    dataset: Any
    dataset_name: str
    edited: str | None
    catalogue: _Catalogue
    router: Router | None

    @classmethod
    def of_run(cls, folder: Path, settings: dict) -> "_Recommender":
        """Read a run's weights and data."""
        record, adapters = run_record.finished_run(folder), folder
        routes = record.get("routes")
        if routes:
            # the folder has adapters of personalize; the frozen weights are those of another run
            folder, record = _frozen_run(adapters, routes)
        spec = describe(settings | {"stages": None}, restored=folder)
        check_answering(spec, record)
        # the log is never started: what a model logs about its data was printed by its training
        with RunLog():
            model, (_, _, test_data) = Runner(spec).restore(record)
        interactions, text = spec.interactions, None
        if len(interactions.item_table.columns):
            text = ItemText.from_interactions(
                interactions, settings["text_fields"], settings["text_words"]
            )
        model.eval()
        if isinstance(model, VectorModel):
            # where the model looks for stored item vectors
            model.weights = folder
        return cls(
            model=model,
            name=settings["model"],
            folder=folder,
            dataset=test_data._dataset,
            dataset_name=spec.dataset,
            edited=edited_since(spec, record),
            catalogue=_Catalogue(interactions, text),
            router=Router.over(model, adapters, routes) if routes else None,
        )

    def query_of_history(self, history: str) -> tuple[_Query, list[str]]:
        """The case of a typed history, and a line for each entry that is not an item id."""
        if type(self.model).type.name.lower() != "sequential":
            raise UserError(
                f"{self.name} knows users by number: give --user; a --history needs a sequential "
                "model"
            )
        entries = [entry.strip() for entry in history.split(";") if entry.strip()]
        if not entries:
            raise UserError("--history is empty: give item titles or ids separated by ;")
        items, lines = [], []
        for entry in entries:
            item, ties = self.catalogue.match(entry)
            items.append(item)
            if entry != self.catalogue.interactions.items[item]:
                others = f" (one of {ties} that match as well)" if ties > 1 else ""
                lines.append(f"{entry!r} is taken for {self.catalogue.describe(item)}{others}")
        dataset, cases = self.dataset.extended(np.array(items))
        if isinstance(self.model, TextModel):
            self.model.dataset, self.model.interactions = dataset, dataset.interactions
        return _Query(dataset, cases, items), lines

    def query_of_user(self, user: str | None) -> _Query:
        """The case after all events of a user."""
        interactions = self.catalogue.interactions
        numbers = np.flatnonzero(interactions.users == user)
        if not len(numbers):
            raise UserError(
                f"unknown user {user!r}: the data has {len(interactions.users)} users such as "
                f"{', '.join(map(str, interactions.users[:3]))}"
            )
        cases = self.dataset.case_after(int(numbers[0]))
        items = interactions.item[cases.begin[0] : cases.end[0]].tolist()
        return _Query(self.dataset, cases, items, user)

    @torch.no_grad()
    def scores(self, query: _Query, k: int, index: str) -> np.ndarray:
        """Score the items, all of them ("exact") or k and some more that an index finds ("faiss").

        Returns
        -------
        ndarray of float32 [items]
            Scores; -inf for items that the model does not name.
        """
        model = self.model
        if index == "faiss":
            if not isinstance(model, VectorModel):
                raise UserError(
                    f"--index: {self.name} has no vectors of items to put into an index; leave it "
                    "out"
                )
            if self.router:
                raise UserError(
                    "--index: every adapter has item vectors of its own; leave it out, or ask the "
                    "run of Model 2: " + self.folder.name
                )
            with model.autocast():
                return model.nearest_items(query.cases, k, self.folder.parent / "cache")[0]
        if self.router:
            history = model.history(np.array(query.items))
            return self.router.scores([query.user], [history])[0][model.same]
        return catalogue_scores(model, query.dataset, query.cases)[0].float().cpu().numpy()


def _frozen_run(adapters: Path, routes: dict) -> tuple[Path, dict]:
    """The run whose weights the adapters of a folder belong to, and its record.

    Raises UserError if its weights have changed since the adapters were trained.
    """
    folder = run_folders.find_run(routes["base"], adapters.parent)
    record = run_record.finished_run(folder)
    if routes.get("weights") not in (None, digest(run_digests(folder))):
        raise UserError(
            f"{folder} holds other weights than those that the adapters of {adapters} were "
            "trained on; give the command of personalize again, which trains new ones"
        )
    return folder, record


def _ranking(catalogue: _Catalogue, items: list[int], scores: np.ndarray, k: int) -> list[str]:
    """The history and the k items with the best scores, line by line."""
    best = np.argsort(-scores, kind="stable")[:k]
    best = best[~np.isneginf(scores[best])]
    lines = [f"history ({len(items)} items, newest last):"]
    lines += [f"      {catalogue.describe(item)}" for item in items[-SHOWN:]]
    nothing = " nothing, since the model names no item"
    lines.append("recommended:" + ("" if len(best) else nothing))
    for rank, item in enumerate(best, start=1):
        lines.append(f"{rank:4d}  {scores[item]:10.4f}  {catalogue.describe(item)}")
    return lines
