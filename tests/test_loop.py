"""The evaluation loop equals slow oracles in what it masks, lists and leaves out."""

import numpy as np
import pytest
import torch
from worlds import prepared

from recbole_llm.errors import UserError
from recbole_llm.evaluation import metrics
from recbole_llm.evaluation.loop import _best, catalogue_scores, rank_cases

ITEMS = 20


@pytest.fixture(scope="module")
def repeats(tmp_path_factory):
    """Write events of 80 users, who have 6 to 9 among 20 items.

    Targets and negatives are therefore often in the history.
    """
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    target = folder / "repeats"
    target.mkdir()
    events = []
    for user in range(80):
        for time in range(rng.integers(6, 10)):
            events.append((f"u{user}", f"i{rng.integers(ITEMS)}", 100 * user + time))
    events += [
        (f"half{item % 2}", f"i{item}", 9000 + item) for item in range(ITEMS)
    ]  # every item is met
    (target / "repeats.inter").write_text(
        "user_id:token\titem_id:token\ttimestamp:float\n"
        + "".join(f"{u}\t{i}\t{t}\n" for u, i, t in events)
    )
    titles = "".join(f"i{item}\tword{item}\n" for item in range(ITEMS))
    (target / "repeats.item").write_text("item_id:token\ttitle:token_seq\n" + titles)
    return folder


def ranked(model, folder, mode, masked, **own):
    """Return (dataset, scores [cases, items] by the model, table, lists)."""
    settings = {
        "mask_history": masked,
        "eval_args.mode": mode,
        "candidates_exclude": "target",
    } | own
    _, net, trainer, (_, _, test) = prepared(model, folder, "repeats", **settings)
    table, lists = trainer.rank(test, topk=ITEMS)
    dataset = test._dataset
    with torch.no_grad():
        return dataset, catalogue_scores(net, dataset, dataset.cases).numpy(), table, lists


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", ["full", "uni8"])
@pytest.mark.parametrize("model", ["BPR", "GRU4Rec", "NeuMF", "LIR"])
def test_history_is_masked_but_for_the_target(repeats, model, mode, masked):
    """Masking keeps the target.

    NeuMF scores pairs rather than the whole catalogue, so under uniK it sees candidates alone.
    """
    from recbole_llm.data.cases.candidates import draw_candidates

    dataset, scores, table, lists = ranked(model, repeats, mode, masked)
    interactions, cases = dataset.interactions, dataset.cases
    chosen = (
        draw_candidates(interactions, cases, 8, 2020, "target")
        if mode == "uni8"
        else np.tile(np.arange(ITEMS), (len(cases), 1))
    )
    met_candidates = met_targets = 0
    for row in range(len(cases)):
        target, met = (
            int(interactions.item[cases.end[row]]),
            set(interactions.item[cases.begin[row] : cases.end[row]].tolist()),
        )
        others = set(chosen[row].tolist()) - {target}
        met_candidates, met_targets = (
            met_candidates + len(others & met),
            met_targets + (target in met),
        )
        others -= met if masked else set()
        assert table.n_candidates[row] == 1 + len(others)
        assert set(lists.items[row].tolist()) - {-1} == others | {target}
        gap = scores[row, sorted(others)] - scores[row, target]
        if model != "NeuMF":  # whose pairs are scored in other company
            assert (table.above[row], table.tied[row]) == ((gap > 0).sum(), (gap == 0).sum())
        else:
            assert (gap > 1e-6).sum() <= table.above[row] <= (gap > -1e-6).sum()
    assert met_candidates > 100 and met_targets > 10


def test_a_masked_item_cannot_be_ranked_whatever_its_score(repeats):
    """The model repeats purchases, so only history scores above the target."""

    class Repeats(torch.nn.Module):
        device = "cpu"

        def full_sort_predict(self, interaction):
            scores = torch.zeros(len(interaction), ITEMS + 1)
            scores.scatter_(1, interaction["item_id_list"], 1.0)
            scores[:, 1:] += torch.arange(ITEMS) / 100
            return scores

    _, _, _, (_, _, test) = prepared("GRU4Rec", repeats, "repeats")
    dataset = test._dataset
    free, _ = rank_cases(Repeats(), dataset, dataset.cases)
    masked, lists = rank_cases(Repeats(), dataset, dataset.cases, mask_history=True, topk=3)
    new = np.array(
        [
            dataset.interactions.item[end] not in dataset.interactions.item[begin:end]
            for begin, end in zip(dataset.cases.begin, dataset.cases.end)
        ]
    )
    assert (free.above > masked.above)[new].sum() > 10 and not masked.above[~new].any()
    assert (masked.above < masked.n_candidates).all() and (lists.scores[new] < 1).all()


def test_a_case_without_an_answer_has_no_list_and_its_target_is_last(repeats, monkeypatch):
    """Its list would hold the first items of the catalogue."""
    from recbole_llm.models.lir import LIR

    score = LIR.score

    def every_third_unparsed(self, cases):
        scores = score(self, cases)
        scores[np.arange(len(cases)) % 3 == 0] = 0
        return scores

    _, _, whole, all_lists = ranked("LIR", repeats, "full", False)
    monkeypatch.setattr(LIR, "score", every_third_unparsed)
    dataset, _, table, lists = ranked("LIR", repeats, "full", False)
    assert table.fallback.sum() > 10 and not whole.fallback.any()
    assert (table.above[table.fallback] == ITEMS - 1).all() and not table.tied[table.fallback].any()
    assert table.above[~table.fallback].tolist() == whole.above[~table.fallback].tolist()
    assert (lists.items[table.fallback] == -1).all() and np.isneginf(
        lists.scores[table.fallback]
    ).all()
    counts = np.bincount(dataset.interactions.item + 1, minlength=ITEMS + 1)
    rest = all_lists.items[~table.fallback]
    assert metrics.list_metrics(lists.items + 1, counts, [1, 5]) == metrics.list_metrics(
        rest + 1, counts, [1, 5]
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", ["full", "uni8"])
def test_an_unnamed_target_is_last_among_its_candidates(repeats, monkeypatch, mode, masked):
    from recbole_llm.models.lir import LIR

    score = LIR.score

    def every_other_item(self, cases):
        scores = score(self, cases)
        scores[:, ::2] = -np.inf
        return scores

    monkeypatch.setattr(LIR, "score", every_other_item)
    monkeypatch.setattr(LIR, "names_all", True)
    with pytest.raises(UserError, match="targets -inf"):  # of a model that should name all
        ranked("LIR", repeats, mode, masked)
    monkeypatch.setattr(LIR, "names_all", False)
    dataset, _, table, lists = ranked("LIR", repeats, mode, masked)
    unnamed = dataset.interactions.item[dataset.cases.end] % 2 == 0
    assert 20 < unnamed.sum() < len(table) - 20
    assert (table.above == table.n_candidates - 1)[unnamed].all() and not table.tied[unnamed].any()
    assert (lists.items[lists.items >= 0] % 2 == 1).all()
    assert ((lists.items >= 0).sum(axis=1) >= table.above + table.tied)[~unnamed].all()


def slow_best(scores, k):
    order = np.lexsort((np.broadcast_to(np.arange(scores.shape[1]), scores.shape), -scores))[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("width", "k"),
    [(1, 1), (7, 7), (50, 3), (50, 17), (50, 49), (301, 20), (1000, 1), (4000, 1000)],
)
def test_the_best_of_a_row(width, k, dtype):
    """Scores are distinct, tied, all equal, infinite, or mostly -inf.

    In one case, the best are all in one group.
    """
    rng = np.random.default_rng(width)
    kinds = [
        rng.normal(size=(5, width)),
        rng.integers(0, 4, (5, width)),
        np.zeros((2, width)),
        np.sort(rng.normal(size=(2, width)), axis=1),
    ]
    kinds += [
        np.where(rng.random((5, width)) < share, -np.inf, rng.integers(0, 9, (5, width)))
        for share in (0.1, 0.97, 1)
    ]
    kinds += [
        np.where(rng.random((2, width)) < 0.3, np.inf, 0),
        np.where(np.arange(width) % max(1, width // (3 * k)) == 0, 1, rng.random((2, width))),
    ]
    scores = np.concatenate(kinds).astype(dtype)
    padded = np.concatenate([np.full((len(scores), 1), 99, dtype), scores], axis=1)[
        :, 1:
    ]  # as the padding item is cut off
    for given in (scores, padded):
        values, columns = _best(given, k)
        expected, order = slow_best(scores, k)
        assert (
            np.array_equal(values, expected)
            and np.array_equal(columns, order)
            and values.dtype == dtype
        )
    assert np.array_equal(values, torch.from_numpy(scores).topk(k, dim=1).values)
