"""Tables: who is best, what stands for seeds and gaps, and the same numbers in every format."""

import csv
import io
import math
import re

import numpy as np
import pytest

from recbole_llm.compare import table_of
from recbole_llm.evaluation.ranks import RankTable
from recbole_llm.report.table import Cell, Table, make_table, to_csv, to_latex, to_markdown, to_screen

COLUMNS = ("ndcg@10", "ndcg@10_pes", "mrr")


def places(table):
    return {name: tuple(cell.place if cell else None for cell in cells) for name, cells in table.rows}


@pytest.fixture
def table():
    results = {
        "Pop": [{"ndcg@10": 0.125, "ndcg@10_pes": 0.1, "mrr": 0.05}],
        "SASRec": [{"ndcg@10": 0.25, "ndcg@10_pes": 0.3, "mrr": 0.06}],
        "CAL_Rec": [{"ndcg@10": 0.5, "ndcg@10_pes": 0.2}],
    }
    return make_table("Pet: 9 cases", results, COLUMNS, bounds={"Bayes": {"ndcg@10": 0.9}}, marks={("CAL_Rec", "ndcg@10"): "†"}, notes=["one note", "another"])


def test_best_and_second_of_each_column(table):
    assert places(table) == {"Pop": (0, 0, 2), "SASRec": (2, 1, 1), "CAL_Rec": (1, 2, None), "Bayes": (0, None, None)}


def test_all_who_tie_for_best_are_best_and_the_next_is_second():
    table = make_table("", {"a": [{"m": 0.5}], "b": [{"m": 0.5}], "c": [{"m": 0.25}], "d": [{"m": 0.25}], "e": [{"m": 0.125}]}, ["m"])
    assert places(table) == {"a": (1,), "b": (1,), "c": (2,), "d": (2,), "e": (0,)}


def test_one_model_alone_is_best_of_nothing():
    table = make_table("", {"a": [{"m": 0.5}], "b": [{}]}, ["m"], bounds={"Bayes": {"m": 0.4}})
    assert places(table) == {"a": (0,), "b": (None,), "Bayes": (0,)}
    assert "best" not in to_screen(table) + to_markdown(table)


def test_mean_and_sample_deviation_over_seeds():
    table = make_table("", {"a": [{"m": 0.1}, {"m": 0.2}, {"m": 0.6}], "b": [{"m": 0.3}, {}], "c": [{"m": 0.25}]}, ["m"])
    (_, (a,)), (_, (b,)), (_, (c,)) = table.rows
    assert a.mean == pytest.approx(0.3) and a.sd == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2))
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
    assert to_screen(make_table("", seeds, ["m", "n"])).splitlines()[1:4] == [
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
    table = make_table("", {r"50%_of_#1 & {more} $x^2$ ~\a": [{"a&b_c": 0.5}, {"a&b_c": 0.5}]}, ["a&b_c"])
    head, body = (line for line in to_latex(table).splitlines() if line.endswith(r"\\"))
    assert head == r" & a\&b\_c \\"
    assert body == r"50\%\_of\_\#1 \& \{more\} \$x\textasciicircum{}2\$ \textasciitilde{}\textbackslash{}a & 0.5000 $\pm$ 0.0000 \\"
    assert len(re.findall(r"(?<!\\)&", body)) == 1  # two columns


def test_csv_keeps_every_digit(table):
    values = [0.1 + 0.2, 1 / 3, 2 / 7, 1e-17]
    results = {'Pop, "counted"': [{"m": value} for value in values[:2]], "b": [{"m": values[2], "n": values[3]}], "c": [{}]}
    table = make_table("", results, ["m", "n"], bounds={"Bayes": {"n": math.pi}})
    rows = list(csv.reader(io.StringIO(to_csv(table))))
    assert rows[0] == ["model", "m", "m_sd", "n", "n_sd"]
    (name, (first, nothing)), *_ = table.rows
    assert rows[1][0] == name and float(rows[1][1]) == first.mean and float(rows[1][2]) == first.sd
    assert rows[1][3:] == ["", ""] and nothing is None
    assert rows[2] == ["b", repr(values[2]), "", repr(values[3]), ""] and rows[3] == ["c", "", "", "", ""]
    assert float(rows[4][3]) == math.pi
    assert "\r" not in to_csv(table)


def test_every_format_has_every_row_and_number():
    cells = {name: Cell(mean, 0.001) for name, mean in (("a", 0.1234), ("b", 0.5678))}
    table = Table("t", ("m",), tuple((name, (cell,)) for name, cell in cells.items()))
    for text in (to_screen(table), to_markdown(table), to_latex(table), to_csv(table)):
        assert "0.1234" in text and "0.5678" in text and "0.001" in text


class FakeRun:
    """A run whose targets stand at these ranks."""

    def __init__(self, above):
        above = np.array(above)
        n = len(above)
        self.table = RankTable(
            user=[f"u{i}" for i in range(n)], target=["i"] * n, position=np.ones(n, int), above=above, tied=np.zeros(n, int),
            n_candidates=np.full(n, 100), fallback=np.zeros(n, bool),
        )  # fmt: skip
        test = {"ndcg@10": float(np.where(above < 10, 1 / np.log2(above + 2), 0).mean())}
        self.row = {"dataset": "Pet", "cases": n, "split": {"mode": {"valid": "uni5", "test": "full"}}, "rates": {}, "test": test}

    def ranks(self):
        return self.table


def test_the_best_is_marked_only_where_it_beats_the_second_beyond_chance():
    ranks = np.random.default_rng(0).integers(0, 20, 200)
    worse = np.minimum(ranks + np.arange(200) % 3, 99)
    clear = table_of({"a": [FakeRun(worse)], "b": [FakeRun(ranks)]})
    assert clear.title == "Pet: 200 test cases, full"
    assert {name: cells[0].mark for name, cells in clear.rows} == {"a": "", "b": "†"}
    assert any(note.startswith("ndcg@10: b - a = +") for note in clear.notes)
    mixed = np.roll(ranks, 1)
    unclear = table_of({"a": [FakeRun(mixed)], "b": [FakeRun(ranks)]})
    assert all(not cells[0].mark for _, cells in unclear.rows)
