"""What a finished run would recommend to one user, or to somebody with a given history."""

from pathlib import Path

import numpy as np
import torch

from ..data.reading.tables import Tables
from ..data.sample import locate
from ..data.texts.text import ItemText
from ..errors import UserError
from ..models.base.text_model import TextModel
from ..models.base.vector_model import VectorModel
from ..runs.checks import check_answering
from ..runs.runner import Runner
from ..runs.spec import describe
from ..settings import run_record
from ..settings.layers import digest
from ..storage import run_folders
from ..storage.readback import run_digests
from ..storage.run_log import RunLog

COVERED = 0.5  # least share of a text in the history that an item must have, see BM25Index.coverage
NEAREST = 3  # titles named where there is no such item


def recommend(
    folder: Path,
    settings: dict,
    user: str | None = None,
    history: str | None = None,
    k: int = 10,
    index: str = "exact",
) -> list[str]:
    """Lines with rank, score, item id and text; the history first, with what its texts were taken for.

    Parameters
    ----------
    user : a user id; all of the user's events are the history.
    history : item titles or ids, separated by `;`; each is matched to the catalogue, a text to the item that reads most like it and has half of
        its words, weighed by how rare they are.
    index : "exact" scores every item; "faiss" looks the items up in an index of their vectors, which is made once and stored.

    Raises
    ------
    UserError : unknown user, a history that nothing matches, or a model that knows only the users it was trained on.
    """
    done, adapters = run_record.finished_run(folder), folder
    if routes := done.get(
        "routes"
    ):  # adapters of personalize, and the run whose weights they are put on
        folder = run_folders.find_run(routes["base"], folder.parent)
        done = run_record.finished_run(folder)
        if routes.get("weights") not in (None, digest(run_digests(folder))):
            raise UserError(
                f"{folder} holds other weights than those that the adapters of {adapters} were "
                "trained on; give the command of personalize again, which trains new ones"
            )
    prepared = describe(settings | {"stages": None}, restored=folder)
    check_answering(prepared, done)
    with (
        RunLog()
    ):  # never started: what a model logs about its data has been told when it was trained
        model, (_, _, test_data) = Runner(prepared).restore(done)
    dataset, tables = test_data._dataset, prepared.interactions
    text = (
        ItemText.from_tables(tables, settings["text_fields"], settings["text_words"])
        if len(tables.item_table.columns)
        else None
    )
    matched = []
    if history is not None:
        if type(model).type.name.lower() != "sequential":
            raise UserError(
                f"{settings['model']} knows users by number: give --user; a --history needs a "
                "sequential model"
            )
        entries = [entry.strip() for entry in history.split(";") if entry.strip()]
        if not entries:
            raise UserError("--history is empty: give item titles or ids separated by ;")
        found = [_match(entry, tables, text) for entry in entries]
        items = [one[0] for one in found]
        for entry, (item, alike) in zip(entries, found, strict=True):
            if entry != tables.items[item]:
                others = f" (one of {alike} that match as well)" if alike > 1 else ""
                matched.append(f"{entry!r} is taken for {_name(item, tables, text)}{others}")
        dataset, cases = dataset.extended(np.array(items))
        if isinstance(model, TextModel):
            model.dataset, model.tables = dataset, dataset.tables
    else:
        found = np.flatnonzero(tables.users == user)
        if not len(found):
            raise UserError(
                f"unknown user {user!r}: the data has {len(tables.users)} users such as "
                f"{', '.join(map(str, tables.users[:3]))}"
            )
        cases = dataset.case_after(int(found[0]))
        items = tables.item[cases.begin[0] : cases.end[0]].tolist()
    model.eval()
    from ..evaluation.loop import catalogue_scores
    from .personalization.routing import Router

    if isinstance(model, VectorModel):
        model.weights = folder  # whose stored item vectors are taken
    elif index == "faiss":
        raise UserError(
            f"--index: {settings['model']} has no vectors of items to put into an index; leave it "
            "out"
        )
    router = Router.over(model, adapters, routes) if routes else None
    with torch.no_grad():
        if router:
            if index == "faiss":
                raise UserError(
                    "--index: every adapter has item vectors of its own; leave it out, or ask the "
                    "run of Model 2: " + folder.name
                )
            scores = router.scores([user], [model.history(np.array(items))])[0][model.same]
        elif index == "faiss":
            with model.autocast():
                scores = model.nearest_items(cases, k, folder.parent / "cache")[0]
        else:
            scores = catalogue_scores(model, dataset, cases)[0].float().cpu().numpy()
    best = np.argsort(-scores, kind="stable")[:k]
    best = best[~np.isneginf(scores[best])]
    lines = [loud] if (loud := locate.warning(prepared.dataset)) else []
    lines += [f"served by: {router.of(user).name}"] if router else []
    lines += matched
    lines += [
        f"history ({len(items)} items, newest last):",
        *(f"      {_name(item, tables, text)}" for item in items[-10:]),
        "recommended:" if len(best) else "recommended: nothing, since the model names no item",
    ]
    return lines + [
        f"{rank:4d}  {scores[item]:10.4f}  {_name(item, tables, text)}"
        for rank, item in enumerate(best, start=1)
    ]


def _name(item: int, tables: Tables, text: ItemText | None) -> str:
    """An item's id, and its text if there is one."""
    return f"{tables.items[item]}  {text.sentence(item)}" if text else str(tables.items[item])


def _match(entry: str, tables: Tables, text: ItemText | None) -> tuple[int, int]:
    """(item, number of items that match as well, itself included): by its id, else by BM25 of its text.

    Raises UserError if no item has enough of the entry, with the titles that are nearest to it.
    """
    by_id = np.flatnonzero(tables.items == entry)
    if len(by_id):
        return int(by_id[0]), 1
    nearest = ""
    if text is not None:
        from ..language.matching.bm25 import BM25Index

        index = BM25Index([text.plain(item) for item in range(len(text))])
        scores = index.scores([entry])[0]
        enough = np.where(index.coverage(entry) >= COVERED, scores, 0)
        if enough.max(initial=0) > 0:
            return int(enough.argmax()), int((enough == enough.max()).sum())
        some = np.argsort(-scores, kind="stable")[:NEAREST]
        titles = [repr(text.values[item][0]) for item in some if scores[item] > 0]
        nearest = f"; the nearest are {', '.join(titles)}" if titles else ""
    raise UserError(
        f"--history: expected an item's title or id, found {entry!r}, of which no item has half of "
        f"the words{nearest}"
    )
