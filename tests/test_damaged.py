"""Every command that reads a damaged or foreign file of a run names that file in one line."""

import contextlib
import copy
import io
import json
import random
import re
import shutil

import numpy as np
import pytest
from shops import only, there, write_shop

from recbole_llm.cli import main
from recbole_llm.errors import UserError
from recbole_llm.settings import run_record
from recbole_llm.storage.files import read_lines

QUIET = "--show_progress=false"
SASREC = (
    "--model=SASRec",
    "--dataset=tiny",
    "--beside=[]",
    "--epochs=1",
    "--hidden_size=16",
    "--n_layers=1",
    QUIET,
)
LIR = ("--model=LIR", "--dataset=tiny", "--beside=[]", QUIET)
ST5SEQ = (
    "--model=ST5Seq",
    "--dataset=tiny",
    "--beside=[]",
    "--epochs=1",
    "--backbone=scratch:tiny",
    "--max_length=24",
    QUIET,
)


def ran(folder, *args) -> tuple[int, str, str]:
    """Return exit code and streams of a command in a folder."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(args))
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Return a folder that holds finished runs of SASRec and LIR, and an evaluation of SASRec."""
    folder = tmp_path_factory.mktemp("stored")
    write_shop(folder)
    for command in (SASREC, LIR):
        assert ran(folder, *command)[0] == 0
    sasrec = only(folder, "SASRec")
    evaluate = ("evaluate", f"--checkpoint={sasrec.name}", "--eval_args.mode=uni5", QUIET)
    assert ran(folder, *evaluate)[0] == 0
    return folder


@pytest.fixture
def copied(stored, tmp_path):
    """Copy `stored`, so that a test may damage it; return its run of SASRec."""
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    return only(tmp_path, "SASRec")


# ---- run.json ----

FOREIGN = ("null", "[]", "5", '"run"', "{}", '{"epochs": 3}', '[{"status": "finished"}]', "true")
ODD = (
    None,
    0,
    -1,
    1.5,
    1e308,
    float("nan"),
    float("inf"),
    10**30,
    2**63,
    True,
    "",
    "x",
    "\x1b[31mred",
    "\u202e",
    "\0",
    "\ud800",
    [],
    [None],
    [[]],
    {},
    {"x": None},
    {"": {}},
    "a" * 5_000,
)


def places(content, path=()):
    """Return the paths of all values inside."""
    found = [path] if path else []
    inner = enumerate(content) if isinstance(content, list) else ()
    inner = content.items() if isinstance(content, dict) else inner
    for key, value in inner:
        found += places(value, (*path, key))
    return found


def test_a_run_from_before_a_setting_is_still_read(copied):
    """The setting has the value that the run was made with, which need not be today's default."""
    path = copied / "run.json"
    record = json.loads(path.read_text())
    assert record["settings"]["history_at_test"] == "all"
    for key in ("history_at_test", "trust_remote_code"):
        del record["settings"][key]
    path.write_text(json.dumps(record))
    settings = run_record.read_run(copied)["settings"]
    assert settings["history_at_test"] == "training" and settings["trust_remote_code"] is False
    assert settings.keys() == json.loads(path.read_text())["settings"].keys() | {
        "history_at_test",
        "trust_remote_code",
    }
    code, _, err = ran(copied.parent.parent, "evaluate", f"--checkpoint={copied.name}", QUIET)
    assert code == 0, err


def damaged(text: str, rng: random.Random) -> tuple[str, bytes]:
    """Return one damage: its description, and the content of the file."""
    record = json.loads(text)
    kind = rng.choice(
        [
            "removed",
            "odd",
            "odd",
            "odd",
            "odd",
            "cut",
            "bytes",
            "foreign",
            "nested",
            "doubled",
            "kind",
        ]
    )
    path = rng.choice(places(record))
    holder = record
    for key in path[:-1]:
        holder = holder[key]
    what = f"{kind} {'.'.join(map(str, path))}"
    if kind == "removed":
        del holder[path[-1]]
    elif kind == "odd":
        holder[path[-1]] = copy.deepcopy(rng.choice(ODD))
        what += f" = {holder[path[-1]]!r}"[:60]
    elif kind == "kind":  # the same content in another form
        value = holder[path[-1]]
        holder[path[-1]] = [value] if isinstance(value, dict | str) else {"value": value}
    elif kind == "nested":
        depth = rng.choice([50, 100_000])
        return f"nested {depth}", (b'{"status": ' + b"[" * depth + b"]" * depth + b"}")
    elif kind == "doubled":
        return kind, (text + text).encode()
    elif kind == "cut":
        return kind, text.encode()[: rng.randrange(len(text) - 2)]
    elif kind == "foreign":
        return kind, rng.choice(FOREIGN).encode()
    elif kind == "bytes":
        content = bytearray(text.encode())
        for _ in range(rng.choice([1, 20])):
            content[rng.randrange(len(content))] = rng.randrange(256)
        return kind, bytes(content)
    return what, json.dumps(record).encode("utf-8", "surrogatepass")


def commands(run: str, lir: str) -> list[tuple]:
    """Return every command that reads the record of a run."""
    return [
        ("evaluate", f"--checkpoint={run}", "--topk_saved=7", QUIET),
        ("evaluate", f"--checkpoint={run}", "--eval_args.mode=uni5", QUIET),
        ("evaluate", f"--checkpoint={run}", "--on=valid", QUIET),
        ("recommend", f"--checkpoint={run}", "--user=u3"),
        ("compare", f"--runs={run},{lir}"),
        ("compare", f"--runs={lir},{run}", "--columns=mrr"),
        (f"--resume={run}", QUIET),
        ("evaluate", f"--checkpoint={run}", "--print_config"),
        SASREC,
        (
            "--model=SASRec",
            "--dataset=tiny",
            "--beside=[]",
            "--epochs=0",
            f"--init_from={run}",
            "--hidden_size=16",
            "--n_layers=1",
            QUIET,
        ),
    ]


def judge(folder, path, what: str, command: tuple) -> bool:
    """Run a command over a damaged file, and return whether it worked as before.

    Otherwise it must name the file in one line.
    """
    before = there(folder)
    try:
        code, out, err = ran(folder, *command)
    except Exception as error:
        raise AssertionError(f"{what}: {' '.join(command)}") from error
    said = f"{what}: {' '.join(command)}\n{out}{err}"
    assert code in (0, 2) and "\x1b" not in out + err and "\u202e" not in out + err, said
    if code == 2:
        assert err.startswith("error: ") and err.count("\n") == 1, said
        assert there(folder) == before, said
    return code == 0


def fuzz(copied, seed: int, count: int) -> tuple[int, int]:
    path = copied / "run.json"
    folder, text = copied.parents[1], path.read_text()
    lir = only(folder, "LIR").name
    rng, kept = random.Random(seed), folder.parent / f"{folder.name}-kept"
    shutil.copytree(copied.parent, kept)
    told = worked = 0
    for _ in range(count):
        what, content = damaged(text, rng)
        path.write_bytes(content)
        command = rng.choice(commands(copied.name, lir))
        if judge(folder, path, what, command):
            worked += 1
            shutil.rmtree(copied.parent)  # what it has written
            shutil.copytree(kept, copied.parent)
        else:
            told += 1
    shutil.rmtree(kept)
    return told, worked


@pytest.mark.slow
def test_records_of_runs_damaged_anyhow(copied):
    told, worked = fuzz(copied, seed=0, count=150)
    assert told >= 75, (told, worked)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_records_of_runs_damaged_in_more_ways(copied, seed):
    fuzz(copied, seed, count=400)


CERTAIN = {  # damage that every command tells, whatever it reads of the record
    "empty": lambda text: b"",
    "cut": lambda text: text.encode()[:1000],
    "binary": lambda text: bytes(range(256)),
    "no UTF-8": lambda text: text.encode().replace(b"SASRec", b"SAS\xffec"),
    "nested": lambda text: b"[" * 100_000,
    "null": lambda text: b"null",
    "a list": lambda text: f"[{text}]".encode(),
    "foreign": lambda text: b'{"epochs": 3}',
    "settings of another kind": lambda text: edited(text, ("settings",), []),
    "no settings": lambda text: edited(text, ("settings",), {}),
    "a setting that is missing": lambda text: edited(text, ("settings", "topk"), ...),
    "a setting of another kind": lambda text: edited(text, ("settings", "topk"), {"a": 1}),
    "settings that do not fit": lambda text: edited(text, ("settings", "valid_metric"), "AUC"),
    "a model that nobody knows": lambda text: edited(text, ("settings", "model"), "SASRek"),
    "a dataset out of its folder": lambda text: edited(text, ("settings", "dataset"), "../x"),
    "NaN": lambda text: edited(text, ("settings", "learning_rate"), float("nan")),
    "a number without end": lambda text: edited(text, ("settings", "seed"), 10**400),
    "a status": lambda text: edited(text, ("status",), "done"),
    "no data": lambda text: edited(text, ("data",), ...),
    "no row": lambda text: edited(text, ("row",), ...),
    "no metrics": lambda text: edited(text, ("row", "test"), ...),
    "metrics that are texts": lambda text: edited(text, ("row", "test", "mrr"), "0.5"),
    "no versions": lambda text: edited(text, ("row", "versions"), None),
    "a zero byte": lambda text: edited(text, ("settings", "data_path"), "a\0b"),
}


def edited(text: str, path: tuple, value) -> bytes:
    record = json.loads(text)
    holder = record
    for key in path[:-1]:
        holder = holder[key]
    if value is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return json.dumps(record).encode()


@pytest.mark.parametrize("what", CERTAIN)
def test_every_command_names_the_damaged_record(what, copied):
    path, folder = copied / "run.json", copied.parents[1]
    path.write_bytes(CERTAIN[what](path.read_text()))
    for command in commands(copied.name, only(folder, "LIR").name):
        before = there(folder)
        code, out, err = ran(folder, *command)
        assert (code, out, err.count("\n")) == (2, "", 1), (command, out, err)
        assert f"{copied.name}/run.json: expected the record of a run" in err, (command, err)
        assert there(folder) == before


def test_a_record_as_it_was_written_is_taken(stored):
    for path in (stored / "saved").rglob("run.json"):
        assert run_record.read_run(path.parent)["status"] == "finished"


def test_the_record_of_an_evaluation_is_read_as_closely(copied):
    folder = copied.parents[1]
    (path,) = copied.glob("evaluate-*/run.json")
    path.write_bytes(edited(path.read_text(), ("row", "rates"), 5))
    for command in (
        ("evaluate", f"--checkpoint={copied.name}", "--eval_args.mode=uni5", QUIET),
        ("compare", f"--runs={path.parent},{copied.name}"),
    ):
        code, _, err = ran(folder, *command)
        assert code == 2 and f"{path.parent.name}/run.json: expected the record" in err, err


@pytest.mark.parametrize("names", ["SASRec", "SASRec LIR"])
def test_a_run_that_begins_with_itself_is_refused(names, copied):
    """A run may also begin with itself by way of another run."""
    folder = copied.parents[1]
    chain = [only(folder, name) for name in names.split()]
    for run, other in zip(chain, [*chain[1:], chain[0]], strict=True):
        path = run / "run.json"
        path.write_bytes(edited(path.read_text(), ("settings", "init_from"), other.name))
    for command in (
        ("evaluate", f"--checkpoint={copied.name}", "--eval_args.mode=uni3", QUIET),
        (
            "--model=SASRec",
            "--dataset=tiny",
            "--beside=[]",
            "--epochs=0",
            f"--init_from={copied.name}",
            "--hidden_size=16",
            "--n_layers=1",
            QUIET,
        ),
    ):
        before = there(folder)
        code, out, err = ran(folder, *command)
        assert (code, out, err.count("\n")) == (2, "", 1), (command, err)
        assert "/run.json: this run begins with itself; name another one" in err, err
        assert there(folder) == before


# ---- results.jsonl ----


def test_damaged_lines_of_the_results_are_passed_over_and_told(copied, caplog):
    path = copied.parent / "results.jsonl"
    rows = read_lines(path)
    assert len(rows) == 3 and not caplog.records
    lines = path.read_bytes().splitlines()
    for bad in (b"\xff\xfe", b"{", b"[1]", b"null", b'{"a": ' * 10_000, lines[1][:50]):
        path.write_bytes(b"\n".join([lines[0], bad, lines[1], b"", lines[2]]) + b"\n")
        assert read_lines(path) == rows
        (record,) = caplog.records
        assert f"{path}, line 2:" in record.message
        caplog.clear()
    path.write_bytes(b"\n".join([lines[0], b"{"]))  # a killed process; the next run appends behind
    assert ran(copied.parents[1], "--model=Pop", "--dataset=tiny", "--beside=[]", QUIET)[0] == 0
    assert [row["model"] for row in read_lines(path)] == ["SASRec", "Pop"]


# ---- ranks and lists ----


def rank_files(text: bytes, rng: random.Random):
    buffer = io.BytesIO()
    np.savez(buffer, other=np.zeros(3))
    foreign = buffer.getvalue()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, user=np.array([{}], dtype=object))
    yield from (b"", b"x", foreign, buffer.getvalue(), text[:100], text[: len(text) // 2])
    for _ in range(40):
        content = bytearray(text)
        for _ in range(rng.choice([1, 5, 200])):
            content[rng.randrange(len(content))] = rng.randrange(256)
        yield bytes(content)


def test_damaged_ranks_are_named(copied):
    folder, lir = copied.parents[1], only(copied.parents[1], "LIR").name
    path = copied / "test.ranks.npz"
    told = 0
    for content in rank_files(path.read_bytes(), random.Random(0)):
        path.write_bytes(content)
        code, out, err = ran(folder, "compare", f"--runs={copied.name},{lir}")
        assert code in (0, 2), err
        if code:
            told += 1
            assert err.count("\n") == 1 and copied.name in err, err
    assert told >= 20


def changed_metric(folder, value):
    path = folder / "run.json"
    path.write_bytes(edited(path.read_text(), ("row", "test", "ndcg@10"), value))


def ranks_of_another_run(folder, lir):
    shutil.copy(lir / "test.ranks.npz", folder / "test.ranks.npz")


WRONG = {  # damage: what is said of it
    "a digit": (
        lambda run, lir: changed_metric(run, 0.99),
        r"run.json: test ndcg@10 is 0.99, and by the ranks in test.ranks.npz it is 0.\d+: ",
    ),
    "the last digit that is shown": (
        lambda run, lir: changed_metric(run, metric(run) + 1e-4),
        r"run.json: test ndcg@10 is ",
    ),
    "no number": (
        lambda run, lir: changed_metric(run, float("nan")),
        r"run.json: expected the record of a run.*test.ndcg@10: expected .* number, found nan",
    ),
    "ranks of another run": (
        ranks_of_another_run,
        r"run.json: test recall@\d+ is .*, and by the ranks",
    ),
}


def metric(folder):
    return run_record.read_run(folder)["row"]["test"]["ndcg@10"]


@pytest.mark.parametrize("what", WRONG)
def test_metrics_that_are_not_those_of_the_ranks_are_refused(what, copied):
    """Every command that shows them refuses them, and shows none beside other tests."""
    folder, lir = copied.parents[1], only(copied.parents[1], "LIR")
    change, said = WRONG[what]
    change(copied, lir)
    for command in (
        ("compare", f"--runs={copied.name},{lir.name}"),
        ("compare", f"--runs={lir.name},{copied.name}", "--columns=ndcg@10"),
        ("evaluate", f"--checkpoint={copied.name}", QUIET),
        (f"--resume={copied.name}", QUIET),
        SASREC,
    ):
        before = there(folder)
        code, out, err = ran(folder, *command)
        assert (code, out, err.count("\n")) == (2, "", 1), (command, out, err)
        assert re.search(said, err), err
        assert there(folder) == before
    if what != "no number":  # what the line says to type
        assert f"test.ranks.npz, and --resume=saved/{copied.name} ranks again by the stored" in err
        (copied / "test.ranks.npz").unlink()
        assert ran(folder, f"--resume={copied}", QUIET)[0] == 0
        assert ran(folder, "compare", f"--runs={copied.name},{lir.name}")[0] == 0


def test_metrics_of_an_evaluation_are_compared_with_its_ranks(copied):
    folder = copied.parents[1]
    (evaluation,) = copied.glob("evaluate-*")
    before = metric(evaluation)
    changed_metric(evaluation, 0.5)
    again = ("evaluate", f"--checkpoint={copied.name}", "--eval_args.mode=uni5", QUIET)
    code, _, err = ran(folder, *again)
    assert code == 2 and "test ndcg@10 is 0.5, and by the ranks" in err
    (evaluation / "test.ranks.npz").unlink()
    assert ran(folder, *again)[0] == 0 and metric(evaluation) == before


@pytest.mark.parametrize("by_user", [False, True])
def test_metrics_as_they_were_stored_are_those_of_the_ranks(tmp_path, by_user):
    write_shop(tmp_path)
    split = "--eval_args.split={RS: [0.5, 0.2, 0.3]}"  # several cases of a user
    command = (*LIR, split, f"--group_by_user={by_user}")
    for _ in range(2):
        code, _, err = ran(tmp_path, *command)
        assert code == 0, err


LOST = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("how", LOST)
@pytest.mark.parametrize("names", ["test.ranks", "valid.ranks test.ranks", "valid.top"])
def test_ranks_that_are_lost_are_ranked_again_by_the_stored_weights(names, how, copied, caplog):
    folder = copied.parents[1]
    record, before = (copied / "run.json").read_text(), {}
    for path in copied.glob("*.npz"):
        with np.load(path) as file:
            before[path.name] = dict(file)
    kept = {name: (copied / name).read_bytes() for name in ("model.safetensors", "readback.json")}
    for name in names.split():
        LOST[how](copied / f"{name}.npz")
    code, _, err = ran(folder, *SASREC)
    assert code == 0 and "ranked again by the stored weights" in err and "epoch 0" not in err, err
    assert {name: (copied / name).read_bytes() for name in kept} == kept
    for name, arrays in before.items():
        with np.load(copied / name) as file:
            for key, values in arrays.items():
                assert np.array_equal(file[key], values), (name, key)
    old, new = json.loads(record), json.loads((copied / "run.json").read_text())
    old["row"]["seconds"] = new["row"]["seconds"] = None
    assert old == new
    code, _, err = ran(folder, *SASREC)
    assert code == 0 and "already there" in err and "ranked again" not in err


def test_ranks_that_are_lost_cost_no_weights_where_ranking_fails(copied, monkeypatch):
    """Neither a user's error nor a killed process turns the run into an unfinished one."""
    from recbole_llm.runs.runner import Runner

    folder, evaluate, calls = copied.parents[1], Runner.evaluate, []

    def fails(self, trainer, data, target, part):
        calls.append(part)
        if part == "test":
            raise KeyboardInterrupt if len(calls) > 2 else UserError("no")
        return evaluate(self, trainer, data, target, part)

    for part in ("valid", "test"):
        (copied / f"{part}.ranks.npz").unlink()
    monkeypatch.setattr(Runner, "evaluate", fails)
    for code in (2, 130):
        assert ran(folder, *SASREC)[0] == code
        assert (copied / "model.safetensors").is_file()
        assert run_record.finished_run(copied)["row"]["test"]
    monkeypatch.undo()
    assert calls == ["valid", "test", "test"]  # what is ranked again is not ranked once more
    code, _, err = ran(folder, *SASREC)
    assert code == 0 and "epoch 0" not in err, err


@pytest.mark.parametrize("how", ["cut", "missing", "other cases", "no lists"])
def test_lists_of_another_run_that_are_damaged_are_named(how, copied):
    folder, lir = copied.parents[1], only(copied.parents[1], "LIR")
    path = lir / "valid.top.npz"
    if how in LOST:
        LOST[how](path)
    else:
        with np.load(path) as file:
            arrays = {name: values[1:] for name, values in file.items()}
        np.savez(path, **({"x": np.zeros(3)} if how == "no lists" else arrays))
    command = (
        "--model=LLMTRSR",
        "--dataset=tiny",
        "--beside=[]",
        f"--rerank_from={lir.name}",
        "--eval_args.mode=full",
        "--backbone=scratch:tiny",
        "--summaries=stored",
        QUIET,
    )
    before = there(folder)
    code, out, err = ran(folder, *command)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    path = path.relative_to(folder)
    assert f"{path} are missing or damaged, or not those of its 40 cases; remove {path}, " in err
    assert f"--resume=saved/{lir.name} ranks again by the stored weights" in err, err
    assert there(folder) == before


# ---- a search ----


def test_damaged_trials_are_tried_again(tmp_path, caplog):
    from recbole_llm.studies.tune import TRIALS, Search

    search = Search.__new__(Search)
    search.folder = tmp_path
    good = {
        "point": {"a": 1},
        "status": "finished",
        "score": 0.5,
        "epochs": 1,
        "run": "x",
        "error": None,
    }
    others = [
        good | {"point": [1]},
        good | {"score": None},
        good | {"run": None},
        good | {"epochs": "1"},
        {"point": {}},
        {},
    ]
    lines = [json.dumps(one) for one in [good, *others]] + ["{", "\0"]
    (tmp_path / TRIALS).write_text("\n".join(lines))
    assert list(search._ended().values()) == [good]
    assert "8 trials are done again" in caplog.text


def test_a_run_as_backbone_is_read_as_closely(tmp_path, stored):
    saved = tmp_path / "saved"
    shutil.copytree(stored / "saved", saved)
    run = only(tmp_path, "SASRec")
    (run / "run.json").write_bytes(edited((run / "run.json").read_text(), ("status",), 5))
    write_shop(tmp_path)
    code, _, err = ran(tmp_path, *ST5SEQ[:-3], f"--backbone=run:{run.name}", QUIET)
    assert code == 2 and f"{run.name}/run.json: expected the record" in err, err
    with pytest.raises(UserError, match="expected the record"):
        run_record.finished_run(run)


# ---- records with more in them ----

ROUTES = {
    "base": "x",
    "everybody": "a/b",
    "cohorts": {"u1": ["one", "a/c"]},
    "cohorts_of": "4",
    "users": {"u2": "a/d"},
}


def test_every_part_of_a_record_is_checked(stored):
    from recbole_llm.settings.run_record import check_record

    record = json.loads((only(stored, "SASRec") / "run.json").read_text())
    other = {"settings": record["settings"], "data": "x"}
    part = {"values": {"mrr": 0.5}, "rates": {}, "seconds": 1.5, "candidates": None}
    whole = record | {"joint": [other], "parts": {"valid": part}, "versions": {"code": "x"}}
    check_record(whole)
    served = record | {"routes": ROUTES, "row": {"run": "x"}}
    check_record(served)
    for holder, path, value in (
        (whole, ("joint",), {}),
        (whole, ("joint", 0), None),
        (whole, ("joint", 0, "data"), 5),
        (whole, ("joint", 0, "settings", "topk"), ...),
        (whole, ("parts",), []),
        (whole, ("parts", "valid"), 3),
        (whole, ("parts", "valid", "values"), None),
        (whole, ("parts", "valid", "seconds"), "long"),
        (whole, ("versions",), 5),
        (whole, ("row", "candidates"), "x"),
        (whole, ("row", "evaluation"), []),
        (whole, ("row", "split"), {}),
        (whole, ("row", "part"), "train"),
        (whole, ("row", "part"), "valid2"),
        (served, ("routes", "base"), None),
        (served, ("routes", "users"), []),
        (served, ("routes", "users", "u2"), 5),
        (served, ("routes", "cohorts", "u1"), ["one"]),
        (served, ("routes", "cohorts", "u1"), "one"),
        (served, ("routes", "cohorts_of"), ...),
        (served, ("row",), {}),
    ):
        damaged = json.loads(edited(json.dumps(holder), path, value))
        with pytest.raises(UserError) as told:
            check_record(damaged)
        assert "\n" not in str(told.value)


def test_adapters_of_many_are_no_run_to_compare(copied):
    path, lir = copied / "run.json", only(copied.parents[1], "LIR").name
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"routes": ROUTES, "row": {"run": copied.name}}))
    code, _, err = ran(copied.parents[1], "compare", f"--runs={lir},{copied.name}")
    assert code == 2 and "holds the adapters of many" in err and err.count("\n") == 1


def test_the_record_of_a_unit_that_is_damaged_is_none(tmp_path):
    from recbole_llm.evaluation.ranks import RankTable
    from recbole_llm.studies.personalization.work_units import (
        RANKS,
        RECORD,
        done,
        finished,
        unit_folder,
    )

    good = {
        "unit": "own 1",
        "losses": {"u1": [0.5]},
        "samples": {"u1": 3},
        "seconds": 1.5,
        "memory_mib": 5.0,
    }
    path = unit_folder(tmp_path, "own 1") / RECORD
    path.parent.mkdir(parents=True)
    ranks = path.with_name(RANKS)
    RankTable(["u1"], ["i1"], [1], [0], [0], [5], [False]).save(ranks)
    for content, there_ in (
        (json.dumps(good), True),
        ("", False),
        ("[1]", False),
        ("{}", False),
        (json.dumps(good)[:40], False),
        (json.dumps(good | {"losses": 5}), False),
        ("\0" * 50, False),
        ("[" * 100_000, False),
    ):
        path.write_text(content)
        assert done(tmp_path, "own 1") == there_
        assert finished(tmp_path, "own") == ({"own 1": ["u1"]} if there_ else {})
    path.write_text(json.dumps(good))
    for how in LOST:  # the unit is done again then
        assert done(tmp_path, "own 1")
        whole = ranks.read_bytes()
        LOST[how](ranks)
        assert not done(tmp_path, "own 1") and finished(tmp_path, "own") == {}
        ranks.write_bytes(whole)
