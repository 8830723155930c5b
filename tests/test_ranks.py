"""Counting above and tied against a loop, and the table of ranks on disk."""

import math
import os

import numpy as np
import pytest
import torch
from rank_tables import make_table

from recbole_llm.errors import UserError
from recbole_llm.evaluation import ranks
from recbole_llm.evaluation.ranks import (
    UNNAMED,
    RankTable,
    count_above_and_tied,
    in_front,
    names_nothing,
    rank_targets,
    scored_rows,
)

INF = math.inf


# Counting


def loop_counts(scores, targets, rows=None):
    above, tied = [], []
    for case, target in enumerate(targets):
        row = scores[case if rows is None else rows[case]]
        others = [row[j] for j in range(len(row)) if j != target]
        above.append(sum(x > row[target] for x in others))
        tied.append(sum(x == row[target] for x in others))
    return above, tied


@pytest.fixture(params=["numpy", "torch"])
def kernel(request, monkeypatch):
    """Both ways of counting, with tiles that are small enough to be cut in rows and in columns."""
    monkeypatch.setattr(ranks, "NUMPY_THREADS", 10**6 if request.param == "numpy" else 0)
    monkeypatch.setattr(ranks, "CPU_BLOCK", 40)
    return request.param


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("n_rows", "width"), [(1, 1), (7, 3), (13, 17), (5, 40), (3, 41), (4, 203), (0, 5)]
)
def test_counts_equal_a_loop(kernel, dtype, n_rows, width):
    rng = np.random.default_rng(width)
    values = rng.integers(-3, 4, (n_rows, width)).astype(float)
    values[rng.random(values.shape) < 0.2] = -INF
    values[rng.random(values.shape) < 0.05] = INF
    scores, targets = torch.tensor(values, dtype=dtype), rng.integers(0, width, n_rows)
    above, tied = count_above_and_tied(scores, torch.tensor(targets))
    assert above.dtype == tied.dtype == torch.int32
    assert (above.tolist(), tied.tolist()) == loop_counts(values, targets)
    assert torch.equal(scores, torch.tensor(values, dtype=dtype)), "the scores were changed"


def test_several_cases_read_one_row(kernel):
    rng = np.random.default_rng(3)
    values, rows = rng.integers(0, 5, (6, 19)).astype(float), np.array([4, 0, 0, 5, 4, 1, 1, 1, 2])
    targets = rng.integers(0, 19, len(rows))
    above, tied = count_above_and_tied(
        torch.tensor(values), torch.tensor(targets), rows=torch.tensor(rows)
    )
    assert (above.tolist(), tied.tolist()) == loop_counts(values, targets, rows=rows)


@pytest.mark.parametrize("width", [2040, 2041, 4080, 4097])
def test_counts_at_the_limit_of_a_byte(monkeypatch, width):
    """All columns hold: 255 words of ones fill each byte of a sum to the brim."""
    monkeypatch.setattr(ranks, "NUMPY_THREADS", 10**6)
    scores = torch.ones(2, width)
    scores[0, 0] = 0
    above, tied = count_above_and_tied(scores, torch.tensor([0, 1]))
    assert above.tolist() == [width - 1, 0]
    assert tied.tolist() == [0, width - 1]


def test_both_kernels_agree_on_untiled_sizes(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(17, 140_000, generator=generator).mul(100).round()
    targets = torch.randint(0, 140_000, (17,), generator=generator)
    bounds = scores[torch.arange(17), targets][:, None]
    for threads in (0, 10**6):
        monkeypatch.setattr(ranks, "NUMPY_THREADS", threads)
        above, tied = count_above_and_tied(scores, targets)
        assert torch.equal(above, (scores > bounds).sum(1, dtype=torch.int32))
        assert torch.equal(tied, (scores == bounds).sum(1, dtype=torch.int32) - 1)


@pytest.mark.parametrize("column", [0, 5, 30])
def test_nan_is_an_error_that_names_the_row(kernel, column):
    scores = torch.zeros(9, 31)
    scores[4:] = torch.arange(31.0)
    scores[6, column] = torch.nan
    with pytest.raises(FloatingPointError, match=r"row 6 \(1 of 9"):
        count_above_and_tied(scores, torch.full((9,), 5))
    with pytest.raises(FloatingPointError, match="row 6"):
        count_above_and_tied(scores, torch.tensor([5, 5]), rows=torch.tensor([8, 6]))


def test_a_nan_target_alone_is_an_error(kernel):
    with pytest.raises(FloatingPointError, match="row 0"):
        count_above_and_tied(torch.tensor([[torch.nan]]), torch.tensor([0]))


def test_an_unnamed_target_ties_with_all_others_by_count_but_is_last_by_rank():
    scores = torch.tensor([[-INF, 1.0, -INF, -INF, 2.0]])  # 0 is padding, 3 the target
    assert [x.item() for x in count_above_and_tied(scores, torch.tensor([3]))] == [2, 2]
    assert scored_rows(scores, torch.tensor([0]), torch.tensor([3])).tolist() == [[3, 0, 4]]
    assert scored_rows(scores, torch.tensor([0]), torch.tensor([1])).tolist() == [[1, 0, 2]]
    for column, expected in ((3, [3, 0]), (1, [1, 0]), (4, [0, 0])):  # 4 candidates
        found = rank_targets(scores, torch.tensor([column]), torch.tensor([4]))
        assert [x.item() for x in found] == expected


def test_ranks_of_a_part_of_the_catalogue_do_not_depend_on_order_or_company():
    rng = np.random.default_rng(5)
    scores = torch.tensor(rng.integers(0, 4, (40, 30)).astype(float))
    scores[torch.tensor(rng.random(scores.shape) < 0.6)] = UNNAMED
    targets, size = torch.tensor(rng.integers(0, 30, 40)), torch.full((40,), 30)
    above, tied = rank_targets(scores, targets, size)
    unnamed = scores[torch.arange(40), targets] == UNNAMED
    assert 10 < unnamed.sum() < 35
    assert (above[unnamed] == 29).all() and (tied[unnamed] == 0).all()
    for row in range(40):
        one = rank_targets(scores[[row]], targets[[row]], size[[row]])
        assert (one[0].item(), one[1].item()) == (above[row], tied[row])
    order = torch.tensor(rng.permutation(30))
    moved = rank_targets(scores[:, order], order.argsort()[targets], size)
    assert torch.equal(moved[0], above) and torch.equal(moved[1], tied)


@pytest.mark.parametrize("seed", range(5))
def test_what_the_first_method_names_stands_before_what_the_second_does(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(0, 50, (2, 60, 12)).round(1)
    first[rng.random(first.shape) < 0.5], second[rng.random(second.shape) < 0.3] = UNNAMED, UNNAMED
    first[:3], second[2:5], first[5] = UNNAMED, UNNAMED, 7.0
    found = in_front(first, second)
    for row in range(60):
        named, rest = first[row] != UNNAMED, first[row] == UNNAMED
        expected = sorted(
            range(12),
            key=lambda item: (named[item], first[row, item] if named[item] else second[row, item]),
        )
        ordered = found[row, expected]
        assert (ordered[1:] >= ordered[:-1]).all()
        assert ((found[row] == UNNAMED) == (rest & (second[row] == UNNAMED))).all()
        if named.any() and (second[row, rest] != UNNAMED).any():
            assert found[row, named].min() > found[row, rest].max()
        if named.any():
            shift = found[row, named] - first[row, named]
            assert np.ptp(shift) < 1e-9, "differences are those of the first method"
    assert (found[5] == first[5]).all(), "where all items are named, the scores stay"


def test_a_case_names_nothing_if_all_scores_are_zero_or_unnamed():
    rows = [[0.0, 0.0], [UNNAMED, UNNAMED], [UNNAMED, 0.0], [0.0, 1.0], [-2.0, -2.0]]
    assert names_nothing(np.array(rows)).tolist() == [True, True, False, False, False]


def test_gradients_and_wrong_arguments():
    scores = torch.randn(3, 5, requires_grad=True)
    count_above_and_tied(scores, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="expected, found"):
        count_above_and_tied(scores, torch.tensor([0, 1]))
    for wrong in (-1, 5):
        with pytest.raises(IndexError):
            count_above_and_tied(scores, torch.tensor([0, wrong, 1]))
    with pytest.raises(TypeError, match="floating point"):
        count_above_and_tied(torch.ones(2, 2, dtype=torch.int64), torch.tensor([0, 1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_do_not_round_the_counts(monkeypatch, dtype):
    monkeypatch.setattr(ranks, "NUMPY_THREADS", 0)
    scores = torch.ones(1, 70_002, dtype=dtype)
    scores[0, 0] = 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        above, _ = count_above_and_tied(scores, torch.tensor([0]))
    assert above.item() == 70_001


# The table


def test_table_round_trip(tmp_path):
    table = make_table([3, 0, 7], [0, 2, 1], n_candidates=20, user=["NA", "ü", "0007"])
    table.save(tmp_path / "ranks.npz")
    again = RankTable.load(tmp_path / "ranks.npz")
    assert os.listdir(tmp_path) == ["ranks.npz"]
    for name in ("user", "target", "above", "tied", "n_candidates", "fallback", "position"):
        assert np.array_equal(getattr(again, name), getattr(table, name))
        assert getattr(again, name).dtype == getattr(table, name).dtype
    both = RankTable.concat([table, make_table([1], [1], user=["a longer token"])])
    assert len(both) == 4 and both.user[3] == "a longer token" and both.user[0] == "NA"
    assert both.take(np.array([3, 0])).above.tolist() == [1, 3]


def test_table_takes_objects_and_no_rows():
    table = make_table([1], [0], user=np.array(["x"], dtype=object))
    assert table.user.dtype.kind == "U"
    empty = RankTable([], [], [], [], [], [], [])
    assert len(empty) == 0 and len(RankTable.concat([empty, table])) == 1


def test_table_refuses_what_it_cannot_mean():
    with pytest.raises(TypeError, match="str tokens"):
        make_table([1], [0], user=[17])
    with pytest.raises(ValueError, match="found above 3, tied 2, n_candidates 5"):
        make_table([3], [2], n_candidates=5)
    with pytest.raises(ValueError, match="equal length"):
        RankTable(["a"], ["b"], [0], [0], [0], [1], [False, True])
    with pytest.raises(TypeError, match="above"):
        RankTable(["a"], ["b"], [0], [0.5], [0], [1], [False])
    with pytest.raises(ValueError, match="int32"):
        RankTable(["a"], ["b"], [2**31], [0], [0], [1], [False])


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "ranks.npz"
    make_table([1], [0]).save(path)
    before = path.read_bytes()
    monkeypatch.setattr(np, "savez", lambda file, **_: file.write(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_table([2], [0]).save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["ranks.npz"]


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_load_never_unpickles_and_says_what_to_do(tmp_path):
    np.savez(tmp_path / "evil.npz", user=np.array([Trap(str(tmp_path / "sprung"))], dtype=object))
    (tmp_path / "short.npz").write_bytes(b"PK\x03\x04")
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name in ("evil.npz", "short.npz", "one.npy", "missing.npz"):
        with pytest.raises(
            UserError,
            match=(
                f"rank table .*{name} is missing or damaged; give the command that wrote it again"
            ),
        ) as fault:
            RankTable.load(tmp_path / name)
        assert "\n" not in str(fault.value)
    assert not (tmp_path / "sprung").exists()


def test_a_flipped_byte_is_told_or_does_no_harm(tmp_path):
    """Zipfile has an exception of its own for nearly every field."""
    path, rng = tmp_path / "ranks.npz", np.random.default_rng(0)
    table = make_table([3, 0], [0, 2], n_candidates=9)
    table.save(path)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    refused = 0
    for at in rng.choice(len(whole), 300, replace=False):
        broken = whole.copy()
        broken[at] ^= 1 << rng.integers(8)
        path.write_bytes(broken.tobytes())
        try:
            assert np.array_equal(RankTable.load(path).above, table.above)
        except UserError:
            refused += 1
    assert refused > 100
