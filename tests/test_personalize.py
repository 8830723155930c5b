"""The command `personalize`: seven models, their tables, and the adapter that serves each user."""

import contextlib
import io
import itertools
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rank_tables import make_table
from test_cohorts import tables_of
from worlds import t5

from recbole_llm import cli
from recbole_llm.data.cases.splits import make_split
from recbole_llm.errors import UserError
from recbole_llm.evaluation.metrics import case_values
from recbole_llm.evaluation.ranks import RankTable
from recbole_llm.runs.runner import Runner
from recbole_llm.runs.spec import describe
from recbole_llm.settings import layers as config
from recbole_llm.settings import run_record
from recbole_llm.studies.personalization import findings, groupings
from recbole_llm.studies.personalization.cohorts import Cohorts
from recbole_llm.studies.personalization.outcomes import OUTCOMES
from recbole_llm.studies.personalization.routing import Router
from recbole_llm.studies.personalization.spectrum import Personal

TEXTS = [
    f"id: {number} title: {kind} {number}"
    for number, kind in itertools.product(range(12), ("drink", "food"))
]
MODELS = "1,2,3,4.feat,6.feat,4.file,5,7"


def command(folder, *more):
    said = io.StringIO()
    if any(part.startswith("--models") and "4.file" not in part for part in more):
        more = ("--cohort_file=~", *more)
    with contextlib.redirect_stdout(said):
        code = cli.main(
            [
                "personalize",
                "--dataset=shop",
                f"--data_path={folder}",
                f"--checkpoint_dir={folder / 'saved'}",
                f"--models={MODELS}",
                "--cohorts=low+2,low+high",
                "--low_activity=4",
                f"--cohort_file={folder / 'mine.tsv'}",
                "--jobs=serial",
                "--unit_users=8",
                "--own_users=27",
                "--activity_borders=[3,5]",
                "--adapter_epochs=2",
                "--adapter_learning_rate=0.03",
                "--epochs=2",
                "--scratch_vocabulary=300",
                "--show_progress=false",
                "--max_length=64",
                "--item_length=12",
                *more,
            ]
        )
    return code, said.getvalue()


def world(folder, changes=()):
    folder.mkdir(exist_ok=True)
    tables_of(folder / "shop", changes)
    (folder / "mine.tsv").write_text("u3\tmine\nu4\tmine\nu5\ttheirs\n")
    return folder


DRAWS = findings.DRAWS


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    """Intervals and permutations of fewer draws: most of a report's time goes there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(findings, "DRAWS", 500)
        yield


@pytest.fixture(scope="module")
def spectrum(make_once):
    """(folder, what the command said, the folder of the adapters)."""

    def make(folder):
        world(folder)
        code, said = command(folder, f"--backbone={t5(folder / 't5', TEXTS)}", "--max_length=90")
        assert code == 0
        (adapters,) = (folder / "saved").glob("personal-shop-*")
        return folder, said, adapters

    return make_once("spectrum", make)


def report(adapters):
    (found,) = adapters.glob("report-*")
    return found


def ranks(adapters, model):
    return RankTable.load(report(adapters) / model / "test.ranks.npz")


def row(said, table, name):
    """The numbers of a row of a printed table."""
    lines = said[said.index(table) :].splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name} ")][:1]
    return [
        float(cell.strip("*'"))
        for cell in line.removeprefix(name).split()
        if re.match(r"[-\d]", cell)
    ]


def served(adapters):
    return json.loads((adapters / "run.json").read_text())["routes"]


def test_tables_are_the_means_of_the_stored_ranks(spectrum):
    folder, said, adapters = spectrum
    for model, name in (
        ("3", "3. Low-Full"),
        ("4.feat", "4. Cohorts, features"),
        ("6.feat", "6. Random cohorts, features"),
        ("7", "7. Frequent users"),
    ):
        kept = ranks(adapters, model)
        expected = [
            case_values(kept, metric).mean()
            for metric in ("recall@5", "recall@10", "recall@20", "ndcg@5", "ndcg@10", "ndcg@20")
        ]
        assert row(said, "shop: 20 users", name) == pytest.approx(expected, abs=5e-5)
    assert (report(adapters) / "report.md").read_text().count("**shop: ") == 6 and (
        report(adapters) / "outcomes.png"
    ).stat().st_size > 5000
    for name in (
        "models",
        "cohorts-4.feat",
        "cohorts-6.feat",
        "cohorts-4.file",
        "number",
        "outcomes",
    ):
        assert all(
            (report(adapters) / f"{name}.{suffix}").stat().st_size
            for suffix in ("md", "tex", "csv")
        )


def test_each_user_is_ranked_by_the_adapter_that_serves_it(spectrum):
    """Cohorts' units rank in Model 4, own adapters in Model 7; Model 3 ranks all other users."""
    _, said, adapters = spectrum
    units = {}
    for path in adapters.glob("units/*/ranks.npz"):
        table = RankTable.load(path)
        for user in np.unique(table.user):
            units.setdefault(str(user), []).append(
                (path.parent.name, table.take(table.user == user))
            )
    third, seventh = ranks(adapters, "3"), ranks(adapters, "7")
    frequent = [user for user in np.unique(seventh.user) if not same(seventh, third, user)]
    assert 0 < len(frequent) <= 4  # a fifth of 20
    for user in frequent:
        assert any(
            name.startswith("users") and same(found, seventh, user) for name, found in units[user]
        )
    cohorts = cohorts_of(adapters)
    assert len(cohorts) == 20 and set(cohorts.values()) == {
        "low activity",
        "feature 1",
        "feature 2",
    }
    fourth, file = ranks(adapters, "4.feat"), ranks(adapters, "4.file")
    sizes = {name: list(cohorts.values()).count(name) for name in set(cohorts.values())}
    for user, name in cohorts.items():
        assert any(
            unit.startswith(f"cohort of {sizes[name]} ") and same(found, fourth, user)
            for unit, found in units[user]
        )
    strangers = [user for user in cohorts if user not in ("u3", "u4", "u5")]
    assert all(same(file, third, user) for user in strangers) and not all(
        same(file, third, user) for user in ("u3", "u4", "u5")
    )


def same(one, other, user):
    return np.array_equal(one.take(one.user == user).above, other.take(other.user == user).above)


def test_a_model_that_lacks_users_competes_for_nothing(spectrum):
    _, said, adapters = spectrum
    assert (
        "5. Users has 16 of 20 users; Recall@10 of the same users: 1. Very Low" in said
        and not (report(adapters) / "5").exists()
    )
    lines = said[said.index("shop: 20 users") :].splitlines()
    numbers = [line[:2] for line in lines[2:10]]
    assert numbers == ["1.", "2.", "3.", "4.", "6.", "4.", "5.", "7."]  # in the usual order
    line = lines[8]
    assert line.startswith("5. Users (16 of 20 users) ") and "*" not in line and "'" not in line
    outcome = row(said, "by their own adapter", "all")
    assert outcome[0] == 16 == sum(outcome[3:]) and len(outcome) == 3 + len(OUTCOMES)


def test_groups_by_activity_have_the_borders_asked_for_and_an_empty_one_is_named(spectrum):
    """Users have 3 or 4 Future-Test cases; a group without users is not filled from others."""
    _, said, adapters = spectrum
    table = said[said.index("users by their own adapter against") :]
    assert row(table, "users", "up to 3")[:3] == [7, 3, 3]
    assert row(table, "users", "4 to 5")[:3] == [9, 4, 4]
    assert row(table, "users", "more than 5") == [0]
    assert "more than 5: no user with an adapter of their own" in table
    (line,) = [line for line in table.splitlines() if "5 - 3, ndcg@10, mean over users" in line]
    assert re.search(r"up to 3 \S+ \[.*\], 4 to 5 \S+ \[.*\], more than 5 no user$", line)
    third = ranks(adapters, "3")
    sizes = [int((third.user == user).sum()) for user in served(adapters)["users"]]
    assert sizes.count(3) == 7 and set(sizes) == {3, 4}


def test_personalization_has_to_beat_model_3(spectrum):
    """Model 2 has seen less data: it is compared under a heading of its own, and nowhere else."""
    _, said, adapters = spectrum
    lines = said[said.index("Newer data: ") :].splitlines()
    assert [line.split(":")[0].strip() for line in lines if " - 2: " in line] == ["3 - 2"]
    assert lines[1].startswith("   3 - 2: ") and lines[2].startswith("1. Does personalization help")
    first = [line.split(":")[0].strip() for line in lines[3:7]]
    assert first == ["4.feat - 3", "4.file - 3", "5 - 3", "7 - 3"]
    third, seventh = (case_values(ranks(adapters, model), "recall@10") for model in ("3", "7"))
    gap = float(re.search(r"recall@10 (\S+) ", lines[6])[1])
    assert gap == pytest.approx((seventh - third).mean(), abs=5e-5)
    assert "   4.feat low+high - 3: " in said  # every number of cohorts has an interval
    percent = 100 * (seventh.mean() / third.mean() - 1)
    (note,) = [line for line in said.splitlines() if line.startswith("Recall@10 against 3.")]
    assert f"7. Frequent users {percent:+.1f} %" in note and "3. Low-Full +" not in note
    assert "newer data: Recall@10 of 3. Low-Full against 2. Low " in said


def test_gains_of_cohorts_are_correlated_with_what_is_known_of_them(monkeypatch):
    """Samples in the order of the gains, silhouettes against it; scipy is the oracle."""
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    gains = rng.normal(size=9)
    samples, shapes = np.exp(gains), -gains + rng.normal(size=9) / 4
    found = findings.Findings.__new__(findings.Findings)
    monkeypatch.setattr(found, "cohort_gains", lambda: (gains, samples, shapes), raising=False)
    lines = found._by_cohort()
    assert "number of samples: Spearman +1.0000 [+1.0000, +1.0000], p = 0.00, 9 cohorts" in lines[0]
    assert f"silhouette: Spearman {spearmanr(shapes, gains)[0]:+.4f} [" in lines[1]
    monkeypatch.setattr(found, "cohort_gains", lambda: (gains[:2], samples[:2], shapes[:2]))
    assert found._by_cohort() == ["   2 clustered cohorts with a gain: too few for a correlation"]
    monkeypatch.setattr(found, "cohort_gains", lambda: (0 * gains, samples, shapes))
    assert found._by_cohort() == ["   all 9 clustered cohorts have the same gain"]


def test_a_correlation_that_is_not_defined_is_said_to_be_so(monkeypatch):
    found = findings.Findings.__new__(findings.Findings)
    cases, other = np.array([3, 5, 9, 2]), np.zeros((4, 4))
    gains = other + np.arange(4)[:, None]
    for own, counts, said in (
        (other, cases, "not defined, since all users have the same difference"),
        (gains, 0 * cases + 3, "not defined, since all users have the same activity"),
        (gains, np.arange(4), "+1.0000 ["),
    ):
        groups = findings.by_activity(counts, (2, 5))
        monkeypatch.setattr(
            found,
            "own_users",
            lambda own=own, counts=counts, groups=groups: (counts, own, other, groups),
            raising=False,
        )
        lines = [line for line in found._by_activity() if "correlation" in line]
        assert len(lines) == 2 and all(f"(Spearman): {said}" in line for line in lines), lines
    shapes = np.array([0.5, 0.5, 0.5])
    monkeypatch.setattr(
        found, "cohort_gains", lambda: (np.arange(3.0), np.arange(3.0), shapes), raising=False
    )
    lines = found._by_cohort()
    assert "number of samples: Spearman +1.0000 [" in lines[0]
    assert "not defined, since all 3 cohorts have the same silhouette" in lines[1]


def test_p_of_a_correlation_is_the_share_of_orders_that_correlate_as_much(monkeypatch):
    from itertools import permutations

    monkeypatch.setattr(findings, "DRAWS", DRAWS)
    x, y = np.array([1.0, 5, 2, 8, 3, 4]), np.array([2.0, 1, 3, 9, 4, 8])
    seen = abs(findings.spearman(x, y))
    every = [abs(findings.spearman(x, np.array(order))) for order in permutations(y)]
    exact = np.mean(np.array(every) >= seen - 1e-9)
    assert findings.permutation_p(x, y) == pytest.approx(exact, abs=0.03)
    rng = np.random.default_rng(0)
    chance = [findings.permutation_p(*rng.normal(size=(2, 8))) < 0.05 for _ in range(300)]
    assert np.mean(chance) < 0.05 + 0.038  # three standard errors
    assert findings.permutation_p(x, np.ones(6)) == 1


def test_gains_are_of_clustered_cohorts_in_which_model_2_finds_something():
    """Five cohorts have two users each; Model 2 finds nothing in one, and one was not clustered.

    Where Model 2 hits once, 4.text hits twice, once or never.
    """
    users = np.arange(10)
    hits = {"2": [1, 0] * 3 + [0, 0, 1, 0], "3": [1] * 10, "4.text": [1, 1, 1, 0, 0, 0, 1, 1, 1, 1]}
    space = np.repeat(np.arange(5.0), 2)[:, None] * 10 + np.array([0, 1.0] * 5)[:, None]
    space[8:] = np.nan
    cohorts = Cohorts(tuple("abcde"), users // 2, space)
    tables = {
        model: make_table(np.where(own, 0, 50), n_candidates=99, user=users.astype(str))
        for model, own in hits.items()
    }
    found = findings.Findings(
        SimpleNamespace(
            ranks=tables,
            models=["2", "3", "4.text"],
            groupings={"4.text": cohorts},
            covered={"4.text": np.ones(10, dtype=bool)},
            user=users,
            samples=np.arange(10) ** 2,
            served={"4.text": SimpleNamespace(users=users)},
        )
    )
    gains, samples, shapes = found.cohort_gains()
    assert gains.tolist() == [100, 0, -100] and samples.tolist() == [0 + 1, 4 + 9, 16 + 25]
    values = cohorts.silhouettes()
    assert shapes.tolist() == [values[name] for name in "abc"]


def test_weights_are_numbers_of_future_test_cases(spectrum):
    """The average over cohorts, weighted by cases, is the model's row.

    Each cohort's gain is over Model 2 on the same users.
    """
    folder, said, adapters = spectrum
    table = "shop: 4. Cohorts, features, 3 cohorts"
    parts = [row(said, table, f"4. {name}") for name in ("low activity", "feature 1", "feature 2")]
    cases = {name: 0 for name in ("low activity", "feature 1", "feature 2")}
    cohorts = cohorts_of(adapters)
    kept = ranks(adapters, "4.feat")
    for user in kept.user:
        cases[cohorts[str(user)]] += 1
    average = row(said, table, "4. weighted average")
    assert average[4] == pytest.approx(
        np.average([part[4] for part in parts], weights=list(cases.values())), abs=1e-4
    )
    assert average[0] == sum(part[0] for part in parts) == 20 and average[1] == sum(
        part[1] for part in parts
    )
    base = RankTable.load(next((folder / "saved").glob("TASTELoRA-shop-*")) / "test.ranks.npz")
    assert {part[6] for part in parts} and len(base) == len(kept)


def test_answers_are_six_with_intervals(spectrum):
    _, said, adapters = spectrum
    third, fourth = (case_values(ranks(adapters, model), "ndcg@10") for model in ("3", "4.feat"))
    lines = [line for line in said.splitlines() if line.strip().startswith("4.feat - 3: ")]
    line, again = lines  # personalization at all, and cohorts
    assert line == again
    gap, low, high = map(float, re.search(r"ndcg@10 (\S+) \[(\S+), (\S+)\]", line).groups())
    assert gap == pytest.approx((fourth - third).mean(), abs=5e-5) and low <= gap <= high
    assert [
        line[:2]
        for line in said.splitlines()
        if re.match(r"\d\. (Does|Clus|Cohorts against|Users)", line)
    ][-6:] == ["1.", "2.", "3.", "4.", "5.", "6."]


def test_models_stand_beside_finished_runs(spectrum, capsys):
    folder, _, adapters = spectrum
    names = [f"{adapters.name}/{report(adapters).name}/{model}" for model in ("3", "4.feat")]
    assert (
        cli.main(["compare", f"--runs={','.join(names)}", f"--checkpoint_dir={folder / 'saved'}"])
        == 0
    )
    assert "ndcg@10" in capsys.readouterr().out
    rows = [
        json.loads(line) for line in (folder / "saved" / "results.jsonl").read_text().splitlines()
    ]
    assert [row.get("personal") for row in rows][2:] == ["3", "4.feat", "6.feat", "4.file", "7"]
    assert (
        cli.main(
            ["evaluate", f"--checkpoint={adapters.name}", f"--checkpoint_dir={folder / 'saved'}"]
        )
        == 2
    )
    assert "holds the adapters of many" in capsys.readouterr().err


def test_the_same_command_trains_nothing_and_a_lost_unit_is_done_again(
    spectrum, copied, monkeypatch
):
    from recbole_llm.studies.personalization import jobs

    folder, said, _ = spectrum
    adapters, how = copied
    done, real = [], jobs.work
    monkeypatch.setattr(
        jobs, "work", lambda frozen, unit, told: done.append(unit.name) or real(frozen, unit, told)
    )
    code, again = command(folder, *how)
    before = (adapters / "run.json").read_bytes()
    assert code == 0 and not done and models_of(again) == models_of(said)
    lost = sorted(adapters.glob("units/users *"))[-1]
    shutil.rmtree(lost)
    code, again = command(folder, *how)
    assert done == [lost.name] and models_of(again) == models_of(said)
    assert (adapters / "run.json").read_bytes() == before


def test_more_users_are_added_and_less_asked_for_takes_nobodys_adapter_away(
    spectrum, tmp_path, monkeypatch
):
    """A smaller command leaves each user's adapter as it was; a larger one adds the missing ones.

    Both commands run on a copy of the shared results.
    """
    from recbole_llm.studies.personalization import jobs

    folder, _, adapters = spectrum
    shutil.copytree(folder / "saved", tmp_path / "saved")
    done, real = [], jobs.work
    monkeypatch.setattr(
        jobs, "work", lambda frozen, unit, told: done.append(unit) or real(frozen, unit, told)
    )
    how, copy = (
        [
            f"--backbone={folder / 't5'}",
            "--max_length=90",
            f"--checkpoint_dir={tmp_path / 'saved'}",
        ],
        tmp_path / "saved" / adapters.name,
    )
    code, said = command(folder, *how, "--models=2,3")
    assert (
        code == 0
        and not done
        and served(copy) == served(adapters)
        and f"{len(served(adapters)['users'])} users by their own" in said
    )
    code, said = command(folder, *how, "--own_users=0")
    (unit,) = done
    assert code == 0 and {learner.name for learner in unit.learners} == {
        f"user {user}" for user in set(cohorts_of(adapters)) - set(served(adapters)["users"])
    }
    assert (
        served(copy)["users"].items() > served(adapters)["users"].items()
        and len(served(copy)["users"]) == 20
    )
    assert (report(adapters) / "3" / "test.ranks.npz").read_bytes() == next(
        copy.glob("report-*/5")
    ).with_name("3").joinpath("test.ranks.npz").read_bytes()


def cohorts_of(adapters):
    return dict(
        line.split("\t")
        for line in (report(adapters) / "cohorts-4.feat.tsv").read_text().splitlines()
    )


def test_units_that_fail_leave_a_table_without_them(spectrum, tmp_path, monkeypatch):
    from recbole_llm.studies.personalization import jobs

    folder, _, adapters = spectrum
    shutil.copytree(folder / "saved", tmp_path / "saved")
    copy = tmp_path / "saved" / adapters.name
    gone = [path for path in copy.glob("units/*") if path.name.startswith(("users", "cohort of 7"))]
    for path in gone:
        shutil.rmtree(path)

    def broken(frozen, unit, told):
        raise ValueError(f"no {unit.name} today")

    monkeypatch.setattr(jobs, "work", broken)
    code, said = command(
        folder,
        f"--backbone={folder / 't5'}",
        "--max_length=90",
        f"--checkpoint_dir={tmp_path / 'saved'}",
    )
    assert (
        code == 0 and "5. Users has no user" in said and "by their own adapter against" not in said
    )
    assert re.search(
        r"4. Cohorts, features has (6|13) of 20 users; Recall@10 of the same users: ", said
    )
    assert re.search(
        (
            r"failed: cohort of 7 \w{8}, of 4.feat, "
            r".*low activity: ValueError: no cohort of 7 \w{8} today"
        ),
        said,
    )


# --- routing --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def router(spectrum):
    """(router, model, tables)."""
    folder, _, adapters = spectrum
    record = run_record.finished_run(adapters)
    base = folder / "saved" / record["routes"]["base"]
    prepared = describe(record["settings"], restored=base)
    model, _ = Runner(prepared).restore(run_record.finished_run(base))
    return Router.over(model, adapters, record["routes"]), model, prepared.interactions


def test_own_adapter_then_cohort_then_model_3_then_model_2(spectrum, router):
    _, _, adapters = spectrum
    own, _, tables = router
    names = {user: own.of(user).name for user in tables.users}
    assert sorted(names.values()).count("own adapter") == len(served(adapters)["users"]) >= 16
    others = {user: name for user, name in names.items() if user not in served(adapters)["users"]}
    assert {"cohort mine", "Model 3"} >= set(others.values()) and served(adapters)[
        "cohorts_of"
    ] == "4.file"  # the user's own file comes first
    assert all(
        own.of(user).name == ("cohort mine" if user in ("u3", "u4") else "Model 3")
        for user in others
    )
    assert own.of("stranger").name == own.of(None).name == "Model 3"
    bare = Router(
        adapters, served(adapters) | {"everybody": "lost"}, own.bundle, own.items, own.recipe
    )
    assert bare.of("stranger").name == "Model 2" and bare.of("stranger").folder is None


def test_a_mixed_batch_is_one_stacked_pass_and_scores_as_each_adapter_alone(router, monkeypatch):
    """PEFT with the merged or bare model is the oracle."""
    from peft import PeftModel

    own, model, tables = router
    users = [*tables.users[:6].tolist(), None, "stranger"]
    histories = [
        model.history(tables.item[tables.start[row] : tables.start[row] + 6 + row])
        for row in range(len(users))
    ]
    passes = []
    real = own.bundle.vectors
    monkeypatch.setattr(
        own.bundle, "vectors", lambda batch, shares=1: passes.append(shares) or real(batch, shares)
    )
    found = own.scores(users, histories)
    distinct = len({own.of(user).folder for user in users})
    assert (
        len(passes) == 2 and set(passes) == {distinct} and distinct > 3
    )  # the histories, and the catalogue
    from copy import deepcopy

    from recbole_llm.language.tokens.batches import pad

    monkeypatch.undo()
    for row, user in enumerate(users):
        core = PeftModel.from_pretrained(deepcopy(own.bundle.model), own.of(user).folder).eval()
        bundle = type(own.bundle)(core.base_model.model, own.bundle.tokenizer)
        with torch.no_grad():
            mine, items = (
                bundle.vectors(pad(texts, pad_id=own.bundle.tokenizer.pad_token_id))
                for texts in ([histories[row]], own.items)
            )
        assert np.allclose(found[row], (mine @ items.T)[0].numpy(), atol=2e-5)


def test_recommend_says_who_serves(spectrum, router, capsys):
    folder, _, adapters = spectrum
    ask = [
        "recommend",
        f"--checkpoint={adapters.name}",
        f"--checkpoint_dir={folder / 'saved'}",
        "--k=3",
    ]
    user = next(iter(served(adapters)["users"]))
    assert cli.main([*ask, f"--user={user}"]) == 0
    said = capsys.readouterr().out
    assert "served by: own adapter" in said
    own, model, tables = router
    at = int(np.flatnonzero(tables.users == user)[0])
    scores = own.scores(
        [user], [model.history(tables.item[tables.start[at] : tables.start[at + 1]])]
    )[0][model.same]
    assert f"   1  {scores.max():10.4f}  {tables.items[scores.argmax()]} " in said
    assert cli.main([*ask, "--history=drink 2; food 3"]) == 0
    assert "served by: Model 3" in capsys.readouterr().out
    assert cli.main([*ask, f"--user={user}", "--index=faiss"]) == 2
    assert "every adapter has item vectors of its own" in capsys.readouterr().err


# --- what is asked for ----------------------------------------------------------------------------


def test_models_and_groupings_that_are_not_there():
    assert groupings.models_of([5, "4", "6.feat"]) == ["2", "3", "4.text", "6.feat", "5"]
    assert groupings.groupings_of([5, "low+5", "low+high", "5"]) == ["5", "low+5", "low+high"]
    for asked in (["8"], ["4.age"]):
        with pytest.raises(UserError, match="models: expected some of 1, 2, 3, 4.text"):
            groupings.models_of(asked)
    for asked in (["five"], ["low+"], [0], []):
        with pytest.raises(UserError, match="cohorts: expected numbers"):
            groupings.groupings_of(asked)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--low_activity=99"],
            (
                "low_activity: every user has fewer than 99 "
                "interactions in Continue Train, where the median is 4"
            ),
        ),
        (["--low_activity=0"], "low_activity: no user has fewer than 0"),
        (["--cohort_file=nowhere.tsv"], "cohorts: nowhere.tsv cannot be read"),
        (
            ["--models=4.feat", "--cohort_file=mine.tsv"],
            "4.file among --models and --cohort_file=FILE",
        ),
        (["--cohorts=low+high"], "cohorts: low+high has nobody to draw at random for 6.feat"),
        (["--eval_args.part=both"], "eval_args.part: personalize sets it itself"),
        (["--init_from=RUN"], "init_from"),
        (["--cohorts=low+2,40"], "expected at least 40 different users or items to cluster"),
        (["--models=4.attr", "--user_columns=shoe"], "expected the columns shoe of users"),
        (
            ["--eval_args.split={LS: valid_and_test}"],
            "expected --eval_args.split='{temporal: [0.6, 0.2, 0.2]}'",
        ),
        (["--eval_args.mode=uni9"], "personalize ranks the whole catalogue"),
        (["--adapter=lora"], "adapter: personalize sets it itself"),
        (
            ["--lora_rank=8"],
            (
                "lora_rank: personalize reads it of no model; "
                "set --cohort_rank (Models 3, 4 and 6) or --user_rank"
            ),
        ),
        (["--lora_alpha=8"], "set --cohort_alpha (Models 3, 4 and 6) or --user_alpha"),
        (["--lora_dropout=0.5"], "set --adapter_dropout"),
        (
            ["--seeds=[1,2]"],
            "seeds: personalize runs one seed, of training and of random cohorts; set --seed",
        ),
        (["--user_inter_num_interval=[99,inf)"], "nothing"),
        (["--adapter_epoch=3"], "unknown key 'adapter_epoch'"),
        (["--frequent=2"], "frequent: expected"),
        (["--activity_borders=[10,5]"], "activity_borders: expected ascending numbers"),
        (["--activity_borders=10,5"], "or quartiles, found [10, 5]"),
        (
            ["--models=4.text", "--text_encoder=scratch:tiny"],
            "text_encoder: scratch:tiny has random weights",
        ),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(tmp_path, capsys, more, message):
    world(tmp_path)
    code, _ = command(tmp_path, *more)
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        code == 2
        and (message in line or message == "nothing")
        and not (tmp_path / "saved").exists()
    )


def test_settings_of_the_command_and_of_its_models_are_told_apart(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("adapter_epochs: 3\nepochs: 4\nrun: {topk: [10, 3]}\n")
    own, layers = config.of_command(
        "personalize",
        [str(path)],
        {"adapter_patience": 1, "eval_args.split": {"temporal": [0.5, 0.3, 0.2]}},
    )
    assert (own["adapter_epochs"], own["adapter_patience"], own["own_users"]) == (
        3,
        1,
        0,
    ) and "run" not in own
    settings = config.resolve("TASTELoRA", "any", layers)
    assert (
        settings["epochs"] == 4
        and settings["eval_args"]["split"] == {"temporal": [0.5, 0.3, 0.2]}
        and settings["topk"] == [10, 3]
    )


def test_own_adapters_are_drawn_evenly_by_activity(tmp_path):
    tests = np.repeat([2, 8, 16, 30], 10)
    users = np.arange(40)[::-1]
    borders = (5, 10, 20)
    found = groupings.sample_users(users, tests[users], 8, 1, borders)
    assert (
        np.bincount(tests[found])[[2, 8, 16, 30]].tolist() == [2, 2, 2, 2]
        and (np.diff(found) < 0).all()
    )
    assert len(
        groupings.sample_users(users, tests[users], 0, 1, borders)
    ) == 40 and not np.array_equal(
        found, groupings.sample_users(users, tests[users], 8, 2, borders)
    )
    quartiles = groupings.sample_users(users, tests[users], 8, 1, None)
    assert np.bincount(tests[quartiles])[[2, 8, 16, 30]].tolist() == [2, 2, 2, 2]


def test_a_small_group_by_activity_is_not_filled_from_the_others():
    """The paper's 340 users are 85 of each of four groups by activity.

    Where 560 of 624 users have up to 5 cases, that group still has 85 users.
    """
    tests = np.repeat([2, 3, 5, 6, 9], [300, 200, 60, 60, 4])
    found = tests[groupings.sample_users(np.arange(624), tests, 340, 0, (5, 10, 20))]
    assert (found <= 5).sum() == 85 and (found > 5).sum() == 64
    for most in (1, 2, 3, 6, 7):  # what four do not divide
        found = tests[groupings.sample_users(np.arange(624), tests, most, 0, (5, 10, 20))]
        assert (found <= 5).sum() == -(-most // 4) and len(found) <= most
    busy = np.repeat([15, 40], 10)
    for most, expected in ((1, [1, 0]), (2, [1, 1]), (4, [1, 1]), (5, [2, 1]), (400, [10, 10])):
        found = busy[groupings.sample_users(np.arange(20), busy, most, 0, (5, 10, 20))]
        assert [(found == 15).sum(), (found == 40).sum()] == expected
    assert len(groupings.sample_users(np.arange(0), tests[:0], 340, 0, (5, 10, 20))) == 0
    assert len(groupings.sample_users(np.arange(0), tests[:0], 340, 0, None)) == 0


@pytest.mark.parametrize(
    "wrong", [[], [5, 5], [10, 5], [0, 5], [2.5], ["five"], [True], ["quartiles", 5], [None]]
)
def test_borders_that_are_none(wrong):
    with pytest.raises(UserError, match="activity_borders: expected ascending numbers"):
        groupings.borders_of(wrong)
    assert groupings.borders_of([5]) == (5,) and groupings.borders_of(["quartiles"]) is None


# --- what must not leak ---------------------------------------------------------------------------


def asked(folder):
    own, layers = config.of_command(
        "personalize", [], {"models": "4.feat,6.feat,5,7", "cohorts": "low+2", "low_activity": 4}
    )
    told = {
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "scratch_vocabulary": 300,
    }
    return Personal(config.resolve("TASTELoRA", "shop", [*layers, told]), own)


def test_continue_train_and_future_test_follow_the_published_identity(tmp_path):
    """Each user has one Future-Test item more than samples; three interactions are in no part."""
    own = asked(world(tmp_path))
    count = len(own.interactions.users)
    samples, tests = (
        np.bincount(cases.user, minlength=count) for cases in (own.part.train, own.part.test)
    )
    first = np.bincount(
        make_split(own.interactions, own.settings["eval_args"]["split"], "pretrain").train.user,
        minlength=count,
    )
    assert (samples + 1 == tests).all() and (
        first + samples + tests + 3 == np.diff(own.interactions.start)
    ).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone,models",
    [
        ("t5", "4.feat,7"),
        ("t5", "4.feat,6.feat,5,7"),
        ("scratch:tiny", "4.feat,6.feat,5,7"),
    ],
)
def test_future_test_changes_no_model_and_no_cohort(tmp_path, backbone, models):
    """Data with another Future-Test give the same models and cohorts, and other ranks.

    Model 2 and every adapter have the same bytes.

    backbone : from scratch its tokenizer is trained on the items' texts.
    """
    how = [
        f"--backbone={t5(tmp_path / 't5', TEXTS) if backbone == 't5' else backbone}",
        "--max_length=90",
    ]
    one, two = world(tmp_path / "one"), tmp_path / "two"
    own = asked(one)
    changes = {}
    for end in own.part.test.end:
        user, step = (
            own.interactions.users[own.interactions.user[end]],
            int(own.interactions.position[end]),
        )
        changes[int(user[1:]), step] = 11 - int(
            own.interactions.items[own.interactions.item[end]][1:]
        )
    assert len(changes) == len(own.part.test)
    world(two, changes)
    found = []
    for folder in (one, two):
        code, _ = command(
            folder,
            f"--models={models}",
            "--epochs=1",
            "--unit_users=20",
            "--cohorts=low+2",
            "--adapter_epochs=1",
            *how,
        )
        assert code == 0
        (adapters,), (base,) = (
            list((folder / "saved").glob(pattern)) for pattern in ("personal-*", "TASTELoRA-*")
        )
        weights = {
            path.relative_to(adapters).as_posix(): path.read_bytes()
            for path in adapters.rglob("adapter_model.safetensors")
        }
        weights |= {"base": (base / "backbone" / "model.safetensors").read_bytes()}
        found.append(
            (
                weights,
                (report(adapters) / "cohorts-4.feat.tsv").read_text(),
                ranks(adapters, "7").above,
            )
        )
    (weights, cohorts, above), (other, others, elsewhere) = found
    assert (
        weights.keys() == other.keys()
        and len(weights) > (5 if models == "4.feat,7" else 20)
        and [name for name in weights if weights[name] != other[name]] == []
    )
    assert cohorts == others and not np.array_equal(above, elsewhere)


# --- what was stored is what is read -----------------------------------------------------------


@pytest.fixture
def copied(spectrum, tmp_path):
    """The adapters in a copy of saved/ that may be damaged, and the settings that find it."""
    folder, _, adapters = spectrum
    shutil.copytree(folder / "saved", tmp_path / "saved")
    how = [
        f"--backbone={folder / 't5'}",
        "--max_length=90",
        f"--checkpoint_dir={tmp_path / 'saved'}",
    ]
    return tmp_path / "saved" / adapters.name, how


def damage(path):
    """Change a bit near the end, where the numbers are."""
    content = bytearray(path.read_bytes())
    content[-7] ^= 64
    path.write_bytes(bytes(content))


def ask(folder, adapters, capsys):
    """Exit code and streams of `recommend` for a user with an adapter of its own."""
    user = sorted(served(adapters)["users"])[0]
    saved = f"--checkpoint_dir={adapters.parent}"
    args = ["recommend", f"--checkpoint={adapters.name}", f"--user={user}", saved]
    return cli.main([*args, f"--data_path={folder}"]), *capsys.readouterr()


def models_of(said):
    """What `personalize` shows of its models, without where it lies."""
    lines = said[said.index("shop: 20 users") :].splitlines()
    return [line for line in lines if "personal-shop-" not in line]


DAMAGE = {
    "other numbers": lambda adapter: damage(adapter / "adapter_model.safetensors"),
    "truncated": lambda adapter: (adapter / "adapter_model.safetensors").write_bytes(b"short"),
    "another scale": lambda adapter: (adapter / "adapter_config.json").write_text(
        (adapter / "adapter_config.json").read_text().replace('"lora_alpha": ', '"lora_alpha": 1')
    ),
    "no configuration": lambda adapter: (adapter / "adapter_config.json").unlink(),
    "no folder": lambda adapter: shutil.rmtree(adapter.parent),
}


@pytest.mark.parametrize("way", DAMAGE)
def test_a_damaged_adapter_is_refused_and_trained_again(spectrum, copied, capsys, monkeypatch, way):
    from recbole_llm.studies.personalization import jobs
    from recbole_llm.studies.personalization import work_units as units

    folder, said, _ = spectrum
    adapters, how = copied
    code, before, _ = ask(folder, adapters, capsys)
    assert code == 0
    adapter = adapters / served(adapters)["users"][sorted(served(adapters)["users"])[0]]
    DAMAGE[way](adapter)
    code, out, err = ask(folder, adapters, capsys)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and not out and adapter.name in line and "personalize again" in line
    assert not units.done(adapters, adapter.parents[1].name)
    if way != "other numbers":
        return  # all of them are trained again in the same way
    done, real = [], jobs.work
    monkeypatch.setattr(
        jobs, "work", lambda frozen, unit, told: done.append(unit.name) or real(frozen, unit, told)
    )
    code, again = command(folder, *how)
    assert code == 0 and done == [adapter.parents[1].name]
    assert models_of(again) == models_of(said)
    assert ask(folder, adapters, capsys)[:2] == (0, before)


@pytest.mark.parametrize("way", ["truncated", "no configuration"])
def test_a_damaged_adapter_of_an_earlier_version_is_one_line(spectrum, copied, capsys, way):
    """Its unit does not tell what was written."""
    folder, _, _ = spectrum
    adapters, _ = copied
    adapter = adapters / served(adapters)["users"][sorted(served(adapters)["users"])[0]]
    record = adapter.parents[1] / "unit.json"
    old = json.loads(record.read_text())
    del old["files"]
    record.write_text(json.dumps(old))
    assert ask(folder, adapters, capsys)[0] == 0
    DAMAGE[way](adapter)
    code, out, err = ask(folder, adapters, capsys)
    assert code == 2 and not out and f"{adapter.name}' cannot be loaded" in err
    assert "Traceback" not in err


def test_adapters_of_another_model_2_are_not_taken(spectrum, copied, capsys):
    """A run by the same id may hold other weights, as after another version of a library."""
    folder, _, _ = spectrum
    adapters, how = copied
    base = adapters.parent / served(adapters)["base"]
    (file,) = base.glob("backbone/*.safetensors")
    damage(file)
    record = json.loads((base / "readback.json").read_text())
    record |= {"tensors": {}, "files": {}}
    (base / "readback.json").write_text(json.dumps(record))
    code, out, err = ask(folder, adapters, capsys)
    assert code == 2 and not out and f"{base} holds other weights than those that" in err
    code, _ = command(folder, *how, "--models=2,3")
    assert code == 0 and len(list(adapters.parent.glob("personal-shop-*"))) == 2
