"""Commands on inputs that once failed succeed, or end in one line that says why.

Each folder in ../shared/cases is a case, and its `cmd` holds the commands, a bash line each, in
which $RUN is the command line and $DATA the real data. Plain lines run in this process; bash runs
the others.
"""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import traceback
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from shops import ROOT

from recbole_llm.cli import main
from recbole_llm.evaluation.ranks import RankTable

CASES = ROOT.parent / "shared" / "cases"
AWAITED = {  # left out: how settings are read is to be written anew, and these are about that alone
    "41-old-keys": "keys of older versions of RecBole",
    "60-a-recbole-config": "a settings file written for RecBole",
    "61-none-as-text": "None as a text on the command line",
    "65b-closed-interval": "intervals as lists",
    "66-tilde": "~ in a path setting",
}
SLOW = {"55-optimizers", "94-full-after-lora", "97-feature-models"}  # many trainings


@dataclass(frozen=True)
class Ended:
    """The output of a command, and its exit code."""

    line: str
    code: int
    out: str
    err: str


def commands(text: str) -> list[str]:
    """Return the lines of a `cmd` that run something, each after the variables set before it."""
    variables, found = [], []
    for line in filter(str.strip, text.splitlines()):
        if re.match(r"\w+=", line) and "$RUN" not in shlex.split(line)[1:]:
            variables.append(line)
        else:
            found.append("\n".join([*variables, line]))
    return found


def plain(command: str) -> list[str] | None:
    """Return the arguments of a command that is $RUN and its arguments, else None."""
    if not command.startswith("$RUN ") or re.search(r"[$`\n]", command.removeprefix("$RUN")):
        return None
    return shlex.split(command)[1:]


def run(command: str, folder: Path) -> Ended:
    """Run one command in a folder."""
    arguments = plain(command)
    if arguments is None:
        env = {
            **os.environ,
            "RUN": f"{sys.executable} {ROOT / 'run_recbole_llm.py'}",
            "DATA": str(CASES.parent / "data"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True
        )
        return Ended(command, done.returncode, done.stdout, done.stderr)
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.chdir(folder)
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
        except Exception:
            code = 1
            traceback.print_exc()
    return Ended(command, code, out.getvalue(), err.getvalue())


class Case:
    """A copy of a case's folder, in which its commands have run one after the other."""

    def __init__(self, name: str, folder: Path):
        self.folder = folder
        shutil.copytree(CASES / name, folder)
        lines = commands((CASES / name / "cmd").read_text(encoding="utf-8"))
        self.ended: list[Ended] = []
        self.made: list[list[Path]] = []  # the new folders of runs after each command
        for line in lines:
            before = set(self.runs())
            self.ended.append(run(line, folder))
            self.made.append([found for found in self.runs() if found not in before])

    def runs(self) -> list[Path]:
        """Return the folders of runs, the oldest first."""
        records = (self.folder / "saved").glob("*/run.json")
        return [path.parent for path in sorted(records, key=lambda path: path.stat().st_ctime_ns)]

    def row(self, number: int) -> dict:
        """Return the row of the only run that a command has made."""
        (folder,) = self.made[number]
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))["row"]

    def ranks(self, number: int) -> RankTable:
        """Return the ranks of the test cases of the only run that a command has made."""
        (folder,) = self.made[number]
        return RankTable.load(folder / "test.ranks.npz")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Return case(name): the case after its commands, which run once."""
    known: dict[str, Case] = {}

    def ran(name: str) -> Case:
        if name not in known:
            known[name] = Case(name, tmp_path_factory.mktemp("case") / name)
        return known[name]

    return ran


def names() -> list[str]:
    found = sorted(path.parent.name for path in CASES.glob("*/cmd")) if CASES.is_dir() else []
    return [name for name in found if name not in AWAITED]


def marked(name: str, *values, **keys):
    marks = [pytest.mark.slow] if name in SLOW else []
    return pytest.param(name, *values, marks=marks, **keys)


def every_command() -> list:
    found = []
    for name in names():
        lines = commands((CASES / name / "cmd").read_text(encoding="utf-8"))
        for number in range(len(lines)):
            found.append(marked(name, number, id=f"{name}-{number + 1}"))
    return found


def test_commands_of_a_case_are_read():
    read = commands('R="$RUN --a=1 --b=2"\n$R\n$R --c=$(ls)\n\nPYTHONPATH=. $RUN --d="x y"\n')
    assert [line.splitlines()[-1] for line in read] == [
        "$R",
        "$R --c=$(ls)",
        'PYTHONPATH=. $RUN --d="x y"',
    ]
    assert all(line.startswith('R="$RUN --a=1 --b=2"\n') for line in read)
    assert plain("$RUN --a='x y' --b=[1,2]") == ["--a=x y", "--b=[1,2]"]
    assert plain("$RUN --a=$(ls)") is None and plain("PYTHONPATH=. $RUN --a") is None


@pytest.mark.skipif(not CASES.is_dir(), reason="no ../shared/cases")
def test_every_case_has_its_expectation():
    assert set(names()) == set(EXPECTED)


@pytest.mark.skipif(not CASES.is_dir(), reason="no ../shared/cases")
@pytest.mark.parametrize("name, number", every_command())
def test_a_command_ends_well_or_in_one_line(case, name, number):
    there = case(name)
    ended = there.ended[number]
    said = f"{ended.line}\n{ended.out[-3000:]}\n{ended.err[-3000:]}"
    assert ended.code in (0, 2), said
    assert "Traceback" not in ended.out + ended.err, said
    if ended.code == 2:
        lines = ended.err.strip().splitlines()
        assert len(lines) <= 3 and lines[-1].startswith("error: "), said
        if "diverged" not in ended.err:  # which training alone can tell
            assert not there.made[number], said
    else:
        assert "error: " not in ended.err, said
    assert not list(there.folder.rglob("*.tmp")), said


# ---- what each case expects of its commands ----


def refused(ended: Ended, *patterns: str) -> None:
    """Check that a command was refused, and that its line matches all patterns."""
    assert ended.code == 2, ended
    for pattern in patterns:
        assert re.search(pattern, ended.err), (pattern, ended.err)


def runs_or_refused(ended: Ended, *patterns: str) -> None:
    if ended.code:
        refused(ended, *patterns)
    else:
        assert re.search(r"^run: \S+ ", ended.out, re.MULTILINE), ended


def separated_by_spaces(case):
    refused(case.ended[0], r"shop\.inter", r"\btabs?\b|space|field_separator")
    runs_or_refused(case.ended[1], r"separator|\btabs?\b|shop\.item")


def separated_by_commas(case):
    refused(case.ended[0], r"shop\.inter", r"comma|field_separator|\btabs?\b")
    runs_or_refused(case.ended[1], r"separator|\btabs?\b|shop\.item")


def price_as_feature(case):
    runs_or_refused(case.ended[0], r"price", r"numerical_features")


def price_as_number(case):
    runs_or_refused(case.ended[0], r"price")


def padded_by_zero(case):
    for number, ended in enumerate(case.ended):
        if ended.code:
            refused(ended, r"\b0\b", r"pad")
            continue
        ranks = case.ranks(number)
        assert "14 items" in ended.err and "15 items" not in ended.err, ended
        assert set(ranks.n_candidates) == {14} and "0" not in ranks.target


def no_list_column(case):
    refused(case.ended[0], r"item_id_list", r"histor|before|sequen|pre-split")


def empty_history(case):
    codes = {ended.code for ended in case.ended}
    assert len(codes) == 1  # whatever the model
    for number, ended in enumerate(case.ended):
        assert re.search(r"histor|item_id_list", ended.err), ended
        if ended.code == 0:
            assert "u0" not in case.ranks(number).user and len(case.ranks(number)) == 23


def numeric_fields(case):
    told = {
        "--numerical_features=[nothing]": "nothing",
        "--normalize_field=[nothing]": "nothing",
        "--preload_weight='{iid: item_emb}'": "preload_weight",
        "--transform=nothing": "transform",
        "--transform=user_defined": "transform",
    }
    for ended in case.ended:
        asked = [argument for argument in told if ended.line.endswith(argument)]
        if asked:
            refused(ended, told[asked[0]])
        else:
            runs_or_refused(ended)


def wandb_is_not_there(case):
    (ended,) = case.ended
    runs_or_refused(ended, r"wandb")


def wandb_is_told(case):
    (ended,) = case.ended
    if ended.code:
        refused(ended, r"log_wandb")
        return
    calls = ended.out.partition("WANDB CALLS:")[2]
    assert re.search(r"log .*(train|loss)", calls), ended.out
    assert re.search(r"log .*(valid|ndcg|recall|mrr)", calls), ended.out


def without_negatives(case):
    refused(case.ended[0], r"BPR", r"negative", r"train_neg_sample_args")


def optimizers(case):
    for ended in case.ended:
        if ended.line.endswith("--learner=sdg"):
            refused(ended, r"sdg", r"sgd")
        elif ended.line.endswith(("--learning_rate=-0.1", "--learning_rate=0")):
            runs_or_refused(ended, r"learning_rate")
            assert ended.code == 2 or ended.line.endswith("=0")
        else:
            runs_or_refused(ended)


def shared_settings(case):
    (ended,) = case.ended
    if ended.code:
        refused(ended, r"train_neg_sample_args", r"BPR")
        return
    stored = [json.loads((folder / "run.json").read_text()) for folder in case.made[0]]
    negatives = {
        record["settings"]["model"]: record["settings"]["train_neg_sample_args"]
        for record in stored
    }
    assert negatives["BPR"]["sample_num"] >= 1 and not negatives["SASRec"]


def python_literals(case):
    for ended in case.ended:
        refused(ended, r"m\.json", r"JSON")
    assert not list(case.folder.glob("dataset/*"))


def german_dates(case):
    refused(case.ended[0], r"\bday\b|\btimes?\b", r"\d\d\.\d\d\.2020")
    assert not list(case.folder.glob("dataset/mine*"))


def latin1(case):
    refused(case.ended[0], r"i\.csv", r"UTF-8|encoding")


def missing_column(case):
    refused(case.ended[0], r"asin", r"e\.csv", r"customer.*sku.*day.*stars")
    assert not re.search(r"Binder|Referenced column|LINE 1", case.ended[0].err)


def zones(case):
    for ended, name in zip(case.ended, ("mine", "mine2")):
        assert ended.code == 0, ended
        path = case.folder / "dataset" / name / f"{name}.inter"
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        columns = [column.partition(":")[0] for column in head.split("\t")]
        user, item, time = map(columns.index, ("user_id", "item_id", "timestamp"))
        order, times = defaultdict(str), defaultdict(list)
        for line in lines:
            cells = line.split("\t")
            order[cells[user]] += cells[item][0]
            times[cells[user]].append(float(cells[time]))
        assert order and set(order.values()) == {"abcd"}, order
        assert all(sorted(one) == one for one in times.values())
        # 08:00, 09:00 and 10:00 UTC of one day, and 10:00 of the next
        assert {tuple(np.diff(one)) for one in times.values()} == {(3600, 3600, 86400)}


def chinese_titles(case):
    """Titles in Chinese rank as well as the same titles with spaces between characters."""
    (ended,) = case.ended
    assert ended.code == 0, ended
    for metric in ("ndcg@10", "ndcg@10_pes"):
        chinese, spaced = case.row(0)["test"][metric], case.spaced.row(0)["test"][metric]
        assert chinese == pytest.approx(spaced, rel=0.02) and chinese > 0


def spaced_titles(case):
    assert case.ended[0].code == 0 and case.row(0)["test"]["ndcg@10"] > 0.5


def full_after_lora(case):
    assert [ended.code for ended in case.ended] == [0, 0, 0]
    assert re.search(r"^CALRec +\d", case.ended[2].out, re.MULTILINE)
    (third,) = case.made[2]
    row = case.row(2)
    for kept in third.glob("test.*"):  # ranks, lists and texts, which would be taken as they are
        kept.unlink()
    again = run(f"$RUN evaluate --checkpoint={third.name} --topk_saved=11", case.folder)
    assert again.code == 0, again
    (path,) = third.glob("evaluate-*/run.json")
    found = json.loads(path.read_text(encoding="utf-8"))["row"]["test"]
    assert found == pytest.approx({key: row["test"][key] for key in found})


def feature_models(case):
    fdsa = "--model=FDSA --dataset=shop --beside=[] --show_progress=false --epochs=1"
    told = {
        fdsa: "selected_features",
        "GRU4RecKG": "GRU4RecKG",
        "LightGBM": "LightGBM",
    }
    for ended in case.ended:
        asked = [
            part
            for part in told
            if ended.line.endswith(part) or not part.startswith("--") and f"={part} " in ended.line
        ]
        if asked:
            refused(ended, told[asked[0]])
        else:
            runs_or_refused(ended)
            if re.search(r"=(lightgcn|LightGCN|Caser) ", ended.line):
                assert ended.code == 0, ended


EXPECTED = {
    "01-space-separated": separated_by_spaces,
    "02-comma-separated": separated_by_commas,
    "05b-price-empty": price_as_feature,
    "05c-float-feature": price_as_feature,
    "05c-float-feature-num": price_as_number,
    "07-benchmark-padded-zero": padded_by_zero,
    "10-benchmark-no-list-column": no_list_column,
    "13-benchmark-empty-history": empty_history,
    "42-numeric-fields": numeric_fields,
    "43-wandb": wandb_is_not_there,
    "44-wandb-fake": wandb_is_told,
    "54b-bpr-without-negatives": without_negatives,
    "55-optimizers": optimizers,
    "69-compare-shared-yaml": shared_settings,
    "82-prepare-2014-python-dicts": python_literals,
    "83c-german-dates": german_dates,
    "83f-latin1": latin1,
    "83l-missing-column": missing_column,
    "84-zones-order": zones,
    "91-chinese-titles": chinese_titles,
    "91b-the-same-spaced": spaced_titles,
    "94-full-after-lora": full_after_lora,
    "97-feature-models": feature_models,
}


@pytest.mark.skipif(not CASES.is_dir(), reason="no ../shared/cases")
@pytest.mark.parametrize("name", [marked(name) for name in EXPECTED])
def test_a_case_gives_what_it_expects(case, name):
    there = case(name)
    if name == "91-chinese-titles":
        there.spaced = case("91b-the-same-spaced")
    EXPECTED[name](there)
