"""Tables: who is best, what stands for seeds and gaps, and the same numbers in every format."""

import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from rank_tables import make_table

from recbole_llm.data.sample.locate import warning
from recbole_llm.errors import UserError
from recbole_llm.evaluation.metrics import evaluate
from recbole_llm.evaluation.significance import Interval
from recbole_llm.runs import compare
from recbole_llm.runs.compare import table_of, write_table
from recbole_llm.runs.tables import Cell, Table, to_csv, to_latex, to_markdown, to_screen
from recbole_llm.runs.tables import make_table as report

COLUMNS = ("ndcg@10", "ndcg@10_pes", "mrr")


def places(table):
    found = {}
    for name, cells in table.rows:
        found[name] = tuple(cell.place if cell else None for cell in cells)
    return found


@pytest.fixture
def table():
    results = {
        "Pop": [{"ndcg@10": 0.125, "ndcg@10_pes": 0.1, "mrr": 0.05}],
        "SASRec": [{"ndcg@10": 0.25, "ndcg@10_pes": 0.3, "mrr": 0.06}],
        "CAL_Rec": [{"ndcg@10": 0.5, "ndcg@10_pes": 0.2}],
    }
    return report(
        "Pet: 9 cases",
        results,
        COLUMNS,
        bounds={"Bayes": {"ndcg@10": 0.9}},
        marks={("CAL_Rec", "ndcg@10"): "†"},
        notes=["one note", "another"],
    )


def test_best_and_second_of_each_column(table):
    assert places(table) == {
        "Pop": (0, 0, 2),
        "SASRec": (2, 1, 1),
        "CAL_Rec": (1, 2, None),
        "Bayes": (0, None, None),
    }


def test_all_who_tie_for_best_are_best_and_the_next_is_second():
    table = report(
        "",
        {
            "a": [{"m": 0.5}],
            "b": [{"m": 0.5}],
            "c": [{"m": 0.25}],
            "d": [{"m": 0.25}],
            "e": [{"m": 0.125}],
        },
        ["m"],
    )
    assert places(table) == {"a": (1,), "b": (1,), "c": (2,), "d": (2,), "e": (0,)}


def test_one_model_alone_is_best_of_nothing():
    table = report("", {"a": [{"m": 0.5}], "b": [{}]}, ["m"], bounds={"Bayes": {"m": 0.4}})
    assert places(table) == {"a": (0,), "b": (None,), "Bayes": (0,)}
    assert "best" not in to_screen(table) + to_markdown(table)


def test_a_row_of_other_users_says_so_and_competes_for_nothing():
    """The row stays in place and is not marked; the others are ranked as if it were not there."""
    results = {"all": [{"m": 0.3}], "some": [{"m": 0.9}], "others": [{"m": 0.2}]}
    table = report("", results, ["m"], covers={"some": "340 of 624 users"})
    assert places(table) == {"all": (1,), "some (340 of 624 users)": (0,), "others": (2,)}
    assert "| some (340 of 624 users) | 0.9000 |" in to_markdown(table)
    alone = report("", {"all": [{"m": 0.3}], "some": [{"m": 0.9}]}, ["m"], covers={"some": "few"})
    assert places(alone) == {"all": (0,), "some (few)": (0,)}  # best of nothing


def test_mean_and_sample_deviation_over_seeds():
    table = report(
        "",
        {"a": [{"m": 0.1}, {"m": 0.2}, {"m": 0.6}], "b": [{"m": 0.3}, {}], "c": [{"m": 0.25}]},
        ["m"],
    )
    (_, (a,)), (_, (b,)), (_, (c,)) = table.rows
    assert a.mean == pytest.approx(0.3) and a.sd == pytest.approx(
        math.sqrt((0.04 + 0.01 + 0.09) / 2)
    )
    assert (b.mean, b.sd) == (0.3, None) and c.sd is None  # one seed has no deviation
    assert "0.3000 ± 0.2646" in to_screen(table)


def test_screen(table):
    assert to_screen(table).splitlines() == [
        "Pet: 9 cases",
        "          ndcg@10  ndcg@10_pes      mrr",
        "Pop       0.1250       0.1000   0.0500'",
        "SASRec    0.2500'      0.3000*  0.0600*",
        "CAL_Rec  0.5000†*      0.2000'       –",
        "Bayes     0.9000            –        –",
        "* best, ' second",
        "one note",
        "another",
    ]


def test_screen_is_aligned_by_width():
    seeds = {"short": [{"m": 0.5}, {"m": 0.25}], "a much longer name": [{"m": 0.125, "n": 1.0}]}
    assert to_screen(report("", seeds, ["m", "n"])).splitlines()[1:4] == [
        "                                   m        n",
        "short               0.3750 ± 0.1768*       –",
        "a much longer name           0.1250'  1.0000",
    ]


def test_markdown(table):
    assert to_markdown(table).splitlines() == [
        "**Pet: 9 cases**",
        "",
        "| | ndcg@10 | ndcg@10_pes | mrr |",
        "| --- | ---: | ---: | ---: |",
        "| Pop | 0.1250 | 0.1000 | <u>0.0500</u> |",
        "| SASRec | <u>0.2500</u> | **0.3000** | **0.0600** |",
        "| CAL_Rec | **0.5000†** | <u>0.2000</u> | – |",
        "| Bayes | 0.9000 | – | – |",
        "",
        "- **best**, <u>second</u>",
        "- one note",
        "- another",
    ]


def test_latex(table):
    assert to_latex(table).splitlines() == [
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r" & ndcg@10 & ndcg@10\_pes & mrr \\",
        r"\midrule",
        r"Pop & 0.1250 & 0.1000 & \underline{0.0500} \\",
        r"SASRec & \underline{0.2500} & \textbf{0.3000} & \textbf{0.0600} \\",
        r"CAL\_Rec & \textbf{0.5000$^\dagger$} & \underline{0.2000} & -- \\",
        r"Bayes & 0.9000 & -- & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
        "% Pet: 9 cases",
        "% one note",
        "% another",
    ]


def test_latex_escapes_names_and_columns_and_nothing_that_it_wrote_itself():
    table = report(
        "", {r"50%_of_#1 & {more} $x^2$ ~\a": [{"a&b_c": 0.5}, {"a&b_c": 0.5}]}, ["a&b_c"]
    )
    head, body = (line for line in to_latex(table).splitlines() if line.endswith(r"\\"))
    assert head == r" & a\&b\_c \\"
    assert body == (
        r"50\%\_of\_\#1 \& \{more\} \$x\textasciicircum{}2\$ "
        r"\textasciitilde{}\textbackslash{}a & 0.5000 $\pm$ 0.0000 \\"
    )
    assert len(re.findall(r"(?<!\\)&", body)) == 1  # two columns


def test_csv_keeps_every_digit(table):
    values = [0.1 + 0.2, 1 / 3, 2 / 7, 1e-17]
    results = {
        'Pop, "counted"': [{"m": value} for value in values[:2]],
        "b": [{"m": values[2], "n": values[3]}],
        "c": [{}],
    }
    table = report("", results, ["m", "n"], bounds={"Bayes": {"n": math.pi}})
    rows = list(csv.reader(io.StringIO(to_csv(table))))
    assert rows[0] == ["model", "m", "m_sd", "n", "n_sd"]
    (name, (first, nothing)), *_ = table.rows
    assert rows[1][0] == name and float(rows[1][1]) == first.mean and float(rows[1][2]) == first.sd
    assert rows[1][3:] == ["", ""] and nothing is None
    assert rows[2] == ["b", repr(values[2]), "", repr(values[3]), ""] and rows[3] == [
        "c",
        "",
        "",
        "",
        "",
    ]
    assert float(rows[4][3]) == math.pi
    assert "\r" not in to_csv(table)


def test_every_format_has_every_row_and_number():
    cells = {name: Cell(mean, 0.001) for name, mean in (("a", 0.1234), ("b", 0.5678))}
    table = Table("t", ("m",), tuple((name, (cell,)) for name, cell in cells.items()))
    for text in (to_screen(table), to_markdown(table), to_latex(table), to_csv(table)):
        assert "0.1234" in text and "0.5678" in text and "0.001" in text


# Of runs


class FakeRun:
    """A run whose targets stand at these ranks, each of another user where users are not given."""

    def __init__(self, above, name="run", user=None, n_candidates=100, test=(), **row):
        self.table = make_table(np.array(above), n_candidates=n_candidates, user=user)
        self.folder = Path("saved") / name
        self.row = {
            "run": name,
            "dataset": "Pet",
            "fingerprint": "f",
            "cases": len(above),
            "split": {"mode": {"valid": "uni5", "test": "full"}},
            "rates": {},
            "evaluation": {"mask_history": False, "group_by_user": False},
        } | row
        grouped = (self.row["evaluation"] or {}).get("group_by_user", False)
        self.part, self.values = "test", evaluate(self.table, ["ndcg"], [10], grouped) | dict(test)

    def ranks(self):
        return self.table


def marks(table):
    return {name: cells[0].mark for name, cells in table.rows}


def gaps(table):
    """'best - other' -> difference, of the notes."""
    pattern = r"ndcg@10: (.*) = ([+-][\d.]+), 95 % interval \["
    matches = [re.match(pattern, note) for note in table.notes]
    return {found[1]: float(found[2]) for found in matches if found}


def test_the_best_is_marked_only_where_it_beats_the_second_beyond_chance():
    ranks = np.random.default_rng(0).integers(0, 20, 200)
    worse = np.minimum(ranks + np.arange(200) % 3, 99)
    clear = table_of({"a": [FakeRun(worse, "a")], "b": [FakeRun(ranks, "b")]})
    assert clear.title == "Pet: 200 test cases, full"
    assert marks(clear) == {"a": "", "b": "†"}
    assert clear.notes[0] == (
        "† better than the second of its column: p < 0.05; paired t-tests over 200 users, "
        "Holm's correction for 3 tests (1 pair of rows x 3 columns)"
    )
    assert clear.notes[-1] == (
        "intervals: 2000 bootstrap samples of 200 users, each interval by itself"
    )
    assert list(gaps(clear)) == ["b - a"]
    mixed = np.roll(ranks, 1)
    unclear = table_of({"a": [FakeRun(mixed, "a")], "b": [FakeRun(ranks, "b")]})
    assert set(marks(unclear).values()) == {""}
    assert not any("†" in note for note in unclear.notes) and len(gaps(unclear)) == 1


def test_two_rows_have_intervals_of_every_column_and_more_of_one():
    """The bounds are those of the differences themselves.

    Model b ranks one place before a in half of the cases and one behind in a quarter.
    """
    ranks = np.full(400, 3)
    moved = ranks - np.tile([1, 1, 0, -1], 100)
    runs = {"a": [FakeRun(ranks, "a")], "b": [FakeRun(moved, "b")]}
    table = table_of(runs, ["recall@3", "mrr@10", "ndcg@10"])
    assert table.columns == ("ndcg@10",)  # what the runs have
    for run in (group[0] for group in runs.values()):
        run.values = evaluate(run.table, ["recall", "mrr", "ndcg"], [3, 10], False)
    table = table_of(runs, ["recall@3", "mrr@10", "ndcg@10"])
    found = {}
    for note in table.notes:
        if "95 % interval" in note:
            numbers = re.findall(r"[+-]\d+\.\d+", note)
            found[note.partition(":")[0]] = [float(number) for number in numbers]
    gains = {"recall@3": 0.5, "mrr@10": (1 / 3 - 1 / 4) / 2 - (1 / 4 - 1 / 5) / 4}
    gains["ndcg@10"] = (1 / 2 - 1 / np.log2(5)) / 2 - (1 / np.log2(5) - 1 / np.log2(6)) / 4
    assert list(found) == list(gains)
    for metric, gap in gains.items():
        difference, low, high = found[metric]
        assert low < difference < high and difference == pytest.approx(gap, abs=6e-5)
    difference, low, high = found["recall@3"]  # 0.5 more, of two values: a standard error of 0.025
    assert high - low == pytest.approx(2 * 1.96 * 0.025, rel=0.1)
    three = table_of(runs | {"c": [FakeRun(ranks, "c")]})
    assert all(note.startswith("ndcg@10") for note in three.notes if "95 % interval" in note)


def test_the_test_is_over_users_where_they_have_several_cases():
    """Cases of one user are no independent evidence, however many there are.

    Of two users of 100 cases each, one gains and the other loses.
    """
    user = np.repeat(["u", "v"], 100)
    runs = {
        "a": [FakeRun(np.repeat([1, 1], 100), "a", user)],
        "b": [FakeRun(np.repeat([0, 2], 100), "b", user)],
    }
    assert set(marks(table_of(runs)).values()) == {""}
    alone = {name: [FakeRun(group[0].table.above, name)] for name, group in runs.items()}
    assert marks(table_of(alone))["b"] == "†"


def test_group_by_user_decides_who_is_best_and_by_how_much():
    """One user of 60 cases, ten of one case: a is best over cases, b over users."""
    user = ["busy"] * 60 + [f"u{i}" for i in range(10)]
    a, b = np.r_[np.zeros(60, int), np.full(10, 50)], np.r_[np.full(60, 1), np.zeros(10, int)]
    for grouped, best, gap in (
        (False, "a - b", (60 * (1 - 1 / np.log2(3)) - 10) / 70),
        (True, "b - a", (10 - (1 - 1 / np.log2(3))) / 11),
    ):
        row = {"evaluation": {"group_by_user": grouped}}
        table = table_of({"a": [FakeRun(a, "a", user, **row)], "b": [FakeRun(b, "b", user, **row)]})
        assert gaps(table) == {best: pytest.approx(gap, abs=6e-5)}
        (_, (one,)), (_, (two,)) = [(name, cells[:1]) for name, cells in table.rows]
        assert abs(one.mean - two.mean) == pytest.approx(gap)
    assert marks(table) == {"a": "", "b": "†"}


def test_seeds_vary_with_users():
    """Each seed of b gains in half of the cases, so b gains in every case on average.

    Another seed may gain in none.
    """
    base = np.full(40, 3)
    halves = [np.where(np.arange(40) % 2 == odd, 0, 4) for odd in (0, 1)]
    seeds = table_of(
        {
            "a": [FakeRun(base, "a")],
            "b": [FakeRun(half, f"b{seed}") for seed, half in enumerate(halves)],
        }
    )
    gain = (1 + 1 / np.log2(6)) / 2 - 1 / np.log2(5)
    assert gaps(seeds) == {"b - a": pytest.approx(gain, abs=6e-5)}
    over = "40 users and seeds (1 of a, 2 of b; a single seed is taken as it is)"
    assert f"bootstrap samples of {over}, each" in seeds.notes[-1] and over in seeds.notes[0]
    low, high = map(float, re.findall(r"[+-]\d\.\d{4}", seeds.notes[1])[1:])
    assert low < gain < high and high - low > 0.1  # not a point, as if seeds were known
    three = table_of(
        {
            "a": [FakeRun(base, f"a{seed}") for seed in range(2)],
            "b": [FakeRun(half, f"b{seed}") for seed, half in enumerate(halves)],
        }
    )
    assert "over 40 users and 2 seeds of each row, " in three.notes[0]
    assert gaps(three) == gaps(seeds)
    (_, (a, *_)), (_, (b, *_)) = three.rows
    assert b.mean - a.mean == pytest.approx(gain) and a.sd == pytest.approx(0, abs=1e-15)


TEN = [f"recall@{k}" for k in range(1, 11)]


class FakeTable:
    """Values of ten columns that have nothing to do with each other, for 60 users of two cases."""

    def __init__(self, taste, rng, gain):
        self.user = np.repeat([f"u{i}" for i in range(60)], 2)
        self.values = dict(zip(TEN, taste + gain + rng.normal(size=taste.shape)))

    def means(self):
        return {column: self.values[column].mean() for column in TEN}


@pytest.fixture
def marked_tables(monkeypatch):
    """marked_tables(count, seeds, gain): the marks of `count` tables of three models.

    Model b is better by `gain`.
    """
    monkeypatch.setattr(compare, "case_values", lambda table, column: table.values[column])
    monkeypatch.setattr(compare, "user_bootstrap", lambda *a, **more: Interval(0.0, 0.0, 0.0, 1))

    def marks_of(count, seeds, gain=0.0):
        for world in range(count):
            rng = np.random.default_rng(world)
            taste = rng.normal(size=(10, 120))
            tables, results = {}, {}
            for name in ("a", "b", "c"):
                own = gain * (name == "b")
                tables[name] = [FakeTable(taste, rng, own) for _ in range(seeds)]
                results[name] = [table.means() for table in tables[name]]
            yield compare._significance(results, tables, TEN, False)[0]

    return marks_of


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3])
def test_equal_models_are_marked_in_at_most_5_percent_of_tables(marked_tables, seeds, monkeypatch):
    """The error rate is family-wise: one mark in ten columns of three models counts.

    Without the correction far more tables have a mark.
    """
    count = 150
    assert sum(map(bool, marked_tables(count, seeds))) / count <= 0.05
    monkeypatch.setattr(compare, "holm", np.asarray)
    assert sum(map(bool, marked_tables(count, seeds))) / count > 0.12


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_real_difference_is_marked_in_every_column(marked_tables, seeds):
    (found,) = marked_tables(1, seeds, gain=2.5)
    assert found == {("b", column): "†" for column in TEN}


def test_one_user_is_no_sample():
    table = table_of(
        {"a": [FakeRun([0, 1, 2], "a", ["u"] * 3)], "b": [FakeRun([3, 4, 5], "b", ["u"] * 3)]}
    )
    assert table.notes == () and set(marks(table).values()) == {""}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"fingerprint": "g"}, "one table needs one fingerprint: first has f, second has g"),
        (
            {"split": {"mode": "full"}},
            r"one table needs one split.mode: first has .*uni5.*, second has ",
        ),
        (
            {"evaluation": {"mask_history": True, "group_by_user": False}},
            "one table needs one evaluation.mask_history: first has False, second has True",
        ),
        ({"evaluation": None}, "one table needs one evaluation: first has {.*}, second has None"),
        (
            {"n_candidates": 99},
            (
                r"same n_candidates per case: of user u0 first has 100, "
                r"second has 99 \(3 of 3 cases differ\)"
            ),
        ),
        ({"user": ["u0", "u1", "x"]}, "the same cases, found 1 only in the first"),
        ({"name": "first"}, "run first is given 2 times"),
    ],
)
@pytest.mark.parametrize("seeds", [False, True])
def test_what_does_not_measure_the_same_is_no_table(other, said, seeds):
    first, second = FakeRun([0, 1, 2], "first"), FakeRun([2, 1, 0], **{"name": "second"} | other)
    with pytest.raises(UserError, match=said) as fault:
        table_of({"a": [first, second]} if seeds else {"a": [first], "b": [second]})
    assert "\n" not in str(fault.value)


def test_cases_are_paired_before_their_candidates_are_counted():
    one, two = FakeRun([0, 1, 2], "one"), FakeRun([2, 1, 0], "two")
    one.table = make_table([0, 1, 2], n_candidates=np.array([7, 8, 9]))
    two.table = make_table([2, 1, 0], n_candidates=np.array([7, 8, 9])).take(np.array([2, 0, 1]))
    assert len(table_of({"a": [one], "b": [two]}).rows) == 2


def test_columns_are_those_of_every_run():
    more, less = (
        FakeRun([0, 1, 2], "more", test={"mrr": 0.5, "recall@1": 0.1}),
        FakeRun([2, 1, 0], "less", test={"recall@1": 0.2}),
    )
    for runs in ({"a": [more], "b": [less]}, {"b": [less], "a": [more]}):
        assert table_of(runs).columns == ("recall@1", "ndcg@10", "ndcg@10_opt", "ndcg@10_pes")


def test_a_synthetic_sample_is_told_first_in_every_table():
    runs = {
        name: [FakeRun(above, name, dataset="Pet-sample")]
        for name, above in (("a", [0, 1]), ("b", [1, 0]))
    }
    table = table_of(runs)
    assert table.notes[0] == warning("Pet-sample") and len(table.notes) > 1
    assert not any("SYNTHETIC" in note for note in table_of({"a": [FakeRun([0, 1])]}).notes)
    for text in (to_screen(table), to_markdown(table), to_latex(table)):
        warned, tested = (text.index(words) for words in ("SYNTHETIC", "paired t-tests"))
        assert warned < tested


def test_tables_of_other_runs_have_other_folders(tmp_path):
    """The same models with another seed, setting or evaluation."""
    names = [
        ("Pop-1", "LIR-1"),
        ("Pop-1", "LIR-2"),
        ("Pop-2", "LIR-2"),
        ("Pop-1/evaluate-1", "LIR-1/evaluate-1"),
        ("LIR-1", "Pop-1"),
    ]
    folders = []
    for pop, lir in names:
        runs = {"Pop": [FakeRun([0, 1], pop)], "LIR": [FakeRun([1, 0], lir)]}
        for _ in range(2):  # once more: the same place
            folders.append(write_table(table_of(runs), runs, tmp_path))
        assert json.loads((folders[-1] / "runs.json").read_text()) == [pop, lir]
    assert len(set(folders)) == len(names) and {folder.parent for folder in folders} == {
        tmp_path / "tables"
    }
    assert all(re.fullmatch("Pet-Pop-LIR-[0-9a-f]{8}", folder.name) for folder in folders)
    long = {f"{'x' * 90}{i}/evaluate": [FakeRun([0, 1], f"r{i}")] for i in range(2)}
    assert len(write_table(table_of(long), long, tmp_path).name) == 120
    assert sorted(path.name for path in folders[0].iterdir()) == [
        "runs.json",
        "table.csv",
        "table.md",
        "table.tex",
    ]
