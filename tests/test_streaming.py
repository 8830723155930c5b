"""An epoch's examples are made step by step, from rows that are planned without texts."""

import numpy as np
import pytest
from worlds import prepared, write_cycle

from recbole_llm.contracts.cases import Cases
from recbole_llm.language.tokens.batches import ShuffledSteps
from recbole_llm.models.tastelora import targets_and_others
from recbole_llm.storage.arrays import ranges
from recbole_llm.training.corpora import CasesByUser, LazyExamples, Windows

RNG = np.random.default_rng(0)


class World:
    """Random users, items and training cases, in place of a corpus."""

    def __init__(self, rng, shuffled=False):
        lengths = rng.integers(2, 15, size=20)
        start = np.concatenate([[0], np.cumsum(lengths)])
        self.items = rng.integers(0, 9, size=start[-1])
        user, begin, end = [], [], []
        for number, (first, last) in enumerate(zip(start[:-1], start[1:], strict=True)):
            for row in range(first + 1, last):
                if rng.random() < 0.7:
                    user.append(number)
                    begin.append(rng.integers(first, row) if rng.random() < 0.3 else first)
                    end.append(row)
        order = rng.permutation(len(end)) if shuffled else np.arange(len(end))
        self.cases = Cases(
            np.array(user, dtype=np.int32)[order],
            np.array(begin, dtype=np.int64)[order],
            np.array(end, dtype=np.int64)[order],
        )
        self.by_user = CasesByUser(self.cases)
        self.interactions = self
        self.folder = None
        self.item = self.items


def windows_by_hand(world, sizes, room):
    """The definition: the newest case that is not covered, with as many items as fit."""
    rows = []
    for user in range(len(world.by_user)):
        covered_from = np.inf
        for row in world.by_user[user][::-1]:
            target, oldest = world.cases.end[row], world.cases.begin[row]
            if target >= covered_from:
                continue
            first = target - 1
            while first > oldest and sizes[world.items[first - 1 : target]].sum() <= room(target):
                first -= 1
            rows.append(row)
            covered_from = first + 1
    return rows


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("together", [1, 3, 100])
def test_windows_are_those_of_the_definition(shuffled, together, monkeypatch):
    monkeypatch.setattr("recbole_llm.training.corpora.USERS_AT_ONCE", together)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        world, sizes = World(rng, shuffled), rng.integers(0, 6, size=9)
        most = int(rng.integers(1, 25))

        def room(target, world=world, sizes=sizes, most=most):
            return most - sizes[world.items[target]]

        windows = Windows(world, sizes, lambda items, s=sizes, m=most: m - s[items])
        everybody = np.arange(len(world.by_user))
        assert windows.of(everybody).tolist() == windows_by_hand(world, sizes, room)
        some = rng.permutation(everybody)[:5]
        expected = [windows.of(np.array([user])).tolist() for user in some]
        assert windows.of(some).tolist() == sum(expected, [])


@pytest.mark.parametrize("length", [60, 100, 256])
def test_what_is_planned_to_fit_is_what_the_encoder_keeps(tmp_path, length):
    write_cycle(tmp_path, users=8, length=12)
    _, model, _, _ = prepared("CALRec", tmp_path, nig_targets="all", max_length=length)
    (corpus,) = model.corpora
    learned = np.zeros(len(corpus.interactions.item), dtype=int)
    for row, (tokens, *_) in zip(model.examples(0).rows[0], model.examples(0), strict=True):
        begin, end = corpus.cases.begin[row] + tokens.cut, corpus.cases.end[row]
        learned[begin + 1 : end + 1] += 1
    assert (learned[corpus.cases.end] == 1).all()


@pytest.mark.parametrize("shuffled", [False, True])
def test_cases_are_grouped_by_user_and_time(shuffled):
    world = World(np.random.default_rng(3), shuffled)
    cases, groups = world.cases, world.by_user
    assert len(groups) == len(np.unique(cases.user))
    for user, rows in zip(np.unique(cases.user), groups, strict=True):
        expected = np.flatnonzero(cases.user == user)
        assert rows.tolist() == expected[np.argsort(cases.end[expected])].tolist()
    some = np.array([4, 0, 4])
    assert groups.rows(some).tolist() == np.concatenate([groups[user] for user in some]).tolist()
    assert groups.last(some).tolist() == [groups[user][-1] for user in some]
    drawn = [groups.one_of_each(some, np.random.default_rng(seed), 2) for seed in range(60)]
    for place, user in enumerate(some):
        assert {rows[place] for rows in drawn} == set(groups[user][-2:])
    empty = CasesByUser(cases[np.zeros(0, dtype=int)])
    assert len(empty) == 0 and list(empty) == []
    assert empty.one_of_each(np.zeros(0, dtype=int), RNG).tolist() == []


def test_ranges_are_put_one_behind_the_other():
    begin, end = np.array([5, 2, 9]), np.array([7, 2, 12])
    assert ranges(begin, end).tolist() == [5, 6, 9, 10, 11]
    assert ranges(begin[:0], end[:0]).tolist() == []


def test_an_example_depends_on_its_place_alone():
    examples = LazyExamples(
        [np.array([7, 8]), np.array([], dtype=int), np.array([9])],
        lambda number, row, rng: (number, row, rng.random()),
        [1, 0],
    )
    whole = list(examples)
    assert [example[:2] for example in whole] == [(0, 7), (0, 8), (2, 9)]
    assert len({example[2] for example in whole}) == 3
    assert examples[2] == examples[-1] == whole[2] and examples[::2] == whole[::2]
    assert examples[1] == whole[1]
    with pytest.raises(IndexError):
        examples[3]


def test_steps_are_dealt_without_a_look_at_other_chunks():
    lengths = np.random.default_rng(1).integers(1, 99, size=333)
    steps = ShuffledSteps(333, 5, np.random.default_rng(2), near=4)
    again = ShuffledSteps(333, 5, np.random.default_rng(2), near=4)
    assert len(steps) == 67 and steps.chunks == 17
    every = []
    for number in range(steps.chunks):
        rows = steps.chunk(number)
        dealt = steps.deal(number, lengths[rows])
        assert len(dealt) == (4 if number < 16 else 3)
        every += [rows[places] for places in dealt]
    assert sorted(np.concatenate(every)) == list(range(333))
    last = again.deal(16, lengths[again.chunk(16)])
    assert [again.chunk(16)[places].tolist() for places in last] == [
        rows.tolist() for rows in every[-3:]
    ]


@pytest.mark.parametrize("model", ["CALRec", "ST5Seq", "RecFormer", "UniSRec", "TASTELoRA"])
def test_no_more_examples_are_made_than_some_steps_need(tmp_path, model, monkeypatch):
    write_cycle(tmp_path, users=80, length=8)
    _, built, trainer, (train, *_) = prepared(model, tmp_path, train_batch_size=2)
    monkeypatch.setattr("recbole_llm.training.text_trainer.SAMPLE", 5)
    made, most = [0], [0]
    inner = LazyExamples.__getitem__

    def watched(self, index):
        if not isinstance(index, slice):
            made[0] += 1
        return inner(self, index)

    def step(batch):
        most[0] = max(most[0], made[0] - 2 * trainer.steps)
        return 1.0

    monkeypatch.setattr(LazyExamples, "__getitem__", watched)
    trainer._step = step
    count = len(built.examples(0))
    trainer._train_epoch(train, 0)
    assert trainer.steps == -(-count // 2)
    assert most[0] <= 32 + 10 < count  # a chunk, and those whose lengths are looked at first


def test_passes_are_planned_again_for_a_longer_text(tmp_path, monkeypatch):
    write_cycle(tmp_path)
    _, model, trainer, _ = prepared("CALRec", tmp_path, train_batch_size=2)
    examples, planned = model.examples(0), []
    monkeypatch.setattr(model, "fit_passes", lambda longest, largest, _: planned.append(longest))
    longest = max(max(map(len, example)) for example in examples)
    made = examples[:4]
    for cost in (3, longest, 2 * longest, 2 * longest - 1, 3 * longest):
        trainer._plan(examples, made, [[1, cost], [1, 1]])
    assert planned == [longest, 2 * longest, 3 * longest]  # the first time others are looked at


def test_negatives_are_drawn_evenly_from_what_is_not_met():
    pool, met = np.arange(10), np.arange(9)
    texts = targets_and_others(np.array([3]), met, pool, 50, RNG)
    assert (texts[0, 1:] == 9).all() and texts[0, 0] == 3
    texts = targets_and_others(np.array([3]), pool, pool, 500, RNG)
    assert set(texts[0, 1:]) == set(range(10))
    drawn = targets_and_others(np.array([1, 2]), np.array([1, 2, 4]), pool, 35_000, RNG)[:, 1:]
    counts = np.bincount(drawn.ravel(), minlength=10)
    assert (counts[[1, 2, 4]] == 0).all()
    others = counts[counts > 0]
    assert len(others) == 7 and (abs(others - 10_000) < 400).all()
