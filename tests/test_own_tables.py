"""A user's own tables become atomic files that models train on; faults in them are found."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import raw
from raw import tables
from suites import fast_only

pytest.importorskip("duckdb")

from recbole_llm import cli
from recbole_llm.data.prepare.convert import prepare
from recbole_llm.data.prepare.sources import own as own_tables
from recbole_llm.data.reading.atomic import read_atomic

OWN = [
    "prepare",
    "--name=shop",
    "--map=user=who, item=what,time=when,rating=stars,title=label,tags=kinds",
]


def write_own(folder: Path, kind: str):
    """The same tables as CSV, Parquet or JSON lines."""
    import pandas as pd

    rows = [
        (f"u{user}", f"i{item}", f"2020-01-{place + 1:02}", 1 + item % 5)
        for user, place, item in raw.walks()
    ]
    events = pd.DataFrame(rows, columns=["who", "what", "when", "stars"])
    labels = [f'{word}, "fresh"' for word in raw.FRUIT]
    items = pd.DataFrame(
        {
            "what": [f"i{number}" for number in range(12)],
            "label": labels,
            "kinds": [["a", "b"]] * 12,
        }
    )
    paths = [folder / f"{name}.{kind}" for name in ("events", "items")]
    for frame, path in zip((events, items), paths):
        if kind == "csv":
            frame.assign(**{"kinds": "a b"} if "kinds" in frame else {}).to_csv(path, index=False)
        elif kind == "parquet":
            frame.to_parquet(path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))
    return [f"--inter={paths[0]}", f"--items={paths[1]}", f"--data_path={folder}"]


def ran(folder):
    return [
        "--dataset=shop",
        f"--data_path={folder}",
        f"--checkpoint_dir={folder / 'saved'}",
        "--show_progress=false",
        "--beside=[]",
    ]


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_own_tables(tmp_path, kind, capsys):
    assert cli.main([*OWN, *write_own(tmp_path, kind)]) == 0, capsys.readouterr().err
    inter, item = tables(tmp_path, "shop")
    assert (
        len(inter) == 24 * 16
        and inter.timestamp.min() == 1577836800.0
        and item.loc["i1"].tolist() == ['banana, "fresh"', "a b"]
    )
    assert cli.main(["--model=LIR", *ran(tmp_path)]) == 0
    assert "ndcg@10" in capsys.readouterr().out


def test_own_events_without_texts(tmp_path, capsys):
    inter, _, path = write_own(tmp_path, "csv")
    assert (
        cli.main(["prepare", "--name=shop", "--map=user=who,item=what,time=when", inter, path]) == 0
    )
    assert (
        cli.main(["--model=SASRec", *ran(tmp_path), "--epochs=1"]) == 0
        and "ndcg@10" in capsys.readouterr().out
    )


def test_ids_that_an_atomic_file_cannot_hold(tmp_path, capsys):
    for odd in ("one\ttwo", '"quoted', "two\nlines"):
        (tmp_path / "e.jsonl").write_text(json.dumps({"a": "x", "b": odd, "c": 1}) + "\n")
        assert (
            cli.main(
                [
                    "prepare",
                    "--name=odd",
                    f"--inter={tmp_path / 'e.jsonl'}",
                    "--map=user=a,item=b,time=c",
                    f"--data_path={tmp_path}",
                ]
            )
            == 2
        )
        assert (
            "expected ids without tabs, line ends and quotes in front" in capsys.readouterr().err
            and not (tmp_path / "odd").exists()
        )


def own(folder, events, items=None, mapping="user=u,item=i,time=t", kind="csv"):
    """Arguments for tables that are written as they are given."""
    (folder / f"e.{kind}").write_text(events)
    if items is not None:
        (folder / f"i.{kind}").write_text(items)
        mapping += ",title=ti"
    tables = [f"--inter={folder / f'e.{kind}'}"] + (
        [f"--items={folder / f'i.{kind}'}"] if items is not None else []
    )
    return ["prepare", "--name=own", f"--data_path={folder}", f"--map={mapping}", *tables]


EVENTS = "u,i,t\na,x,1\na,y,2\nb,x,3\n"


@pytest.mark.parametrize(
    ("events", "items", "message"),
    [
        (EVENTS + '"open,x,4\nc,x,5\n', None, "e.csv: expected quotes in pairs, found 1"),
        (EVENTS, 'i,ti\nx,X\n"y,Y\nz,Z\n', "i.csv: expected quotes in pairs, found 1"),
        (EVENTS, "i,ti\n1.0,X\n", "i.csv: expected rows of the 2 items of the events, found none"),
        (EVENTS, "", "i.csv: expected a first line with the name of each column"),
        (
            EVENTS,
            "i,ti,ti\nx,X,Y\n",
            "i.csv: expected a first line with the name of each column, each once",
        ),
        (EVENTS, "i,name\nx,X\n", "title=ti, but .*i.csv has no column ti; it has i, name"),
        (EVENTS, "sku,ti\nx,X\n", "item=i, but .*i.csv has no column i; it has sku, ti"),
        ("u,i\na,x\n", None, "time=t, but .*e.csv has no column t; it has u, i"),
        ("u,i,T_\na,x,1\n", None, "time=t, but .*e.csv has no column t; it has u, i, T_"),
        ("u,i,t\r\na,x,1\nb,y,2\r\n", None, "e.csv: cannot be read .*repair it"),
    ],
)
def test_own_tables_that_are_none(tmp_path, capsys, events, items, message):
    ask = own(tmp_path, events, items)
    (tmp_path / "e.csv").write_bytes(events.encode())
    assert cli.main(ask) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1, error
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("items", [False, True])
@pytest.mark.parametrize("header", ["u,i,t\n", "u,i,t", ""])
def test_events_without_a_row_are_told_as_that(tmp_path, capsys, header, items):
    path = tmp_path / "events.csv"
    path.write_text(header)
    (tmp_path / "items.csv").write_text("i,label\na,b\n")
    args = ["prepare", "--name=own", f"--inter={path}", f"--data_path={tmp_path}"]
    args += (
        [f"--items={tmp_path / 'items.csv'}", "--map=user=u,item=i,time=t,title=label"]
        if items
        else ["--map=user=u,item=i,time=t"]
    )
    assert cli.main(args) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{path}" in said and "of one source" not in said, said
    assert not header or "found a file without rows" in said, said
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ("user=us,item=i,time=t", "user=us, but {folder}/e.jsonl has no column us; it has u, i, t"),
        (
            "user=u,item=i,time=t,title=titel",
            (
                "title=titel, but {folder}/i.jsonl has no column titel; "
                "it has i, title; did you mean title?"
            ),
        ),
        ("user=u,item=i,time=T", "time=T, but {folder}/e.jsonl has no column T; it has u, i, t"),
    ],
)
def test_a_misspelt_key_of_json_lines(tmp_path, capsys, mapping, message):
    ask = own(tmp_path, '{"u": 1, "i": 2, "t": 3}\n', kind="jsonl", mapping=mapping)
    (tmp_path / "i.jsonl").write_text('{"i": 2, "title": "two"}\n')
    assert cli.main([*ask, f"--items={tmp_path / 'i.jsonl'}"] if "title" in mapping else ask) == 2
    error = capsys.readouterr().err
    assert message.format(folder=tmp_path) in error and error.count("\n") == 1, error


def test_a_missing_column_of_parquet_is_named_with_those_there_are(tmp_path, capsys):
    import pandas as pd

    pd.DataFrame({"who": ["a"], "What": ["x"], "time": [1]}).to_parquet(tmp_path / "e.parquet")
    ask = ["prepare", "--name=own", f"--inter={tmp_path / 'e.parquet'}", f"--data_path={tmp_path}"]
    assert cli.main([*ask, "--map=user=who,item=what,time=times"]) == 2
    error = capsys.readouterr().err
    assert "time=times, but" in error and "it has who, What, time; did you mean time?" in error
    assert error.count("\n") == 1 and not (tmp_path / "own").exists()
    assert cli.main([*ask, "--map=user=who,item=what,time=time"]) == 0, "case does not count"


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("encoding", "title", "message"),
    [
        ("latin-1", "Thé", "perhaps Latin-1, in which the line is 'y,Thé'; convert the file"),
        ("cp1251", "Чай", "with the encoding that it has in place of latin1"),
        ("utf-16", "Tea", "line 1: expected UTF-8, found UTF-16; convert the file"),
        ("gbk", "茶杯", "iconv -f latin1 -t utf-8"),
    ],
)
def test_another_encoding_is_told_with_its_line(tmp_path, capsys, suffix, encoding, title, message):
    """In one line of a thousand: it would be left out, and with it the item's text."""
    ask = own(tmp_path, EVENTS, "i,ti\n")
    items = f"i,ti\nx,X\ny,{title}\n" + "".join(f"z{row},Z\n" for row in range(1000))
    content = items.encode(encoding)
    path = tmp_path / f"i.csv{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    assert cli.main([part.replace("i.csv", f"i.csv{suffix}") for part in ask]) == 2
    error = capsys.readouterr().err
    assert f"i.csv{suffix}, line " in error and message in error and error.count("\n") == 1, error
    assert ("zcat" if suffix else "cat") + f" i.csv{suffix} | iconv" in error
    assert encoding == "utf-16" or f"i.csv{suffix}, line 3: expected UTF-8" in error
    assert not (tmp_path / "own").exists()


def test_the_line_of_another_encoding_far_down_a_large_file(tmp_path):
    from recbole_llm.data.prepare.files.reading import PIECE, check_encoding
    from recbole_llm.errors import UserError

    line = ("a,é," + "x" * 90 + "\n").encode()  # whose letter may be cut by the end of a block
    count = 2 * PIECE // len(line) + 7
    (tmp_path / "e.csv").write_bytes(line * count)
    check_encoding(tmp_path / "e.csv")
    (tmp_path / "e.csv").write_bytes(line * count + b"b,\xe9t\xe9\n")
    with pytest.raises(UserError, match=f"e.csv, line {count + 1}: .* is 'b,été'"):
        check_encoding(tmp_path / "e.csv")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("{'i': 'x', 'ti': \"it's\"}", 1),
        ("{u'i': u'x', u'ti': u'X'}", 1),
        ('{"i": "v", "ti": "V"}\n{\'i\': \'x\', \'price\': nan}', 2),
    ],
)
def test_printed_python_is_told_from_json(tmp_path, capsys, suffix, line, where):
    """As Amazon's metadata of 2014 are."""
    (tmp_path / "e.jsonl").write_text('{"u": "a", "i": "x", "t": 1}\n')
    path = tmp_path / f"i.json{suffix}"
    content = "".join(f"{one}\n" for one in line.split("\n")).encode()
    path.write_bytes(gzip.compress(content) if suffix else content)
    ask = ["prepare", "--name=own", f"--inter={tmp_path / 'e.jsonl'}", f"--items={path}"]
    assert cli.main([*ask, "--map=user=u,item=i,time=t,title=ti", f"--data_path={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert f"{path}, line {where}: expected a JSON object, found a Python dict" in error
    assert "ast.literal_eval" in error and error.count("\n") == 1, error
    assert not (tmp_path / "own").exists()


def test_the_command_that_is_given_for_printed_python_works(tmp_path, capsys):
    (tmp_path / "e.jsonl").write_text('{"u": "a", "i": "x", "t": 1}\n')
    (tmp_path / "i.json").write_text("{'i': 'x', 'ti': \"it's \\u00e9\", 'p': None}\n")
    ask = ["prepare", "--name=own", f"--inter={tmp_path / 'e.jsonl'}", f"--data_path={tmp_path}"]
    ask += ["--map=user=u,item=i,time=t,title=ti"]
    assert cli.main([*ask, f"--items={tmp_path / 'i.json'}"]) == 2
    told = capsys.readouterr().err.partition("convert the file: ")[2].strip()
    told = told.replace("python -c", f"{sys.executable} -c")
    subprocess.run(["sh", "-c", told], cwd=tmp_path, check=True)
    assert cli.main([*ask, f"--items={tmp_path / 'converted.jsonl'}"]) == 0
    assert tables(tmp_path, "own")[1].loc["x", "title"] == "it's é"


def test_metadata_of_broken_lines_alone_is_told_as_that(tmp_path, capsys):
    (tmp_path / "e.jsonl").write_text('{"u": "a", "i": "x", "t": 1}\n')
    (tmp_path / "i.jsonl").write_text('{"i": "x", "ti": "X"\n' * 3 + '{"ti": "X", "i": null}\n')
    ask = ["prepare", "--name=own", f"--inter={tmp_path / 'e.jsonl'}", f"--data_path={tmp_path}"]
    assert (
        cli.main([*ask, f"--items={tmp_path / 'i.jsonl'}", "--map=user=u,item=i,time=t,title=ti"])
        == 2
    )
    error = capsys.readouterr().err
    assert "found none, and 4 lines that are broken or lack the item" in error


def test_what_is_passed_over_is_counted(tmp_path, capsys):
    """Faulty rows of events and of metadata are counted; a byte-order mark is no fault."""
    items = 'i,ti,note\nx,"X\nover two lines",1\ny,"a ""q"" b",2\nz,"5"nail",3\nq,bad,4,5\n'
    ask = own(tmp_path, EVENTS + "c,z,4,5,6\nc,,4\n", items)
    (tmp_path / "i.csv").write_bytes(items.encode() + b'v,"even",5\nw,w",6\n')
    assert cli.main(ask) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "2 of 5 events are broken" in out and "left out: 2" in out
    assert tables(tmp_path, "own")[1].title.to_dict() == {"x": "X over two lines", "y": 'a "q" b'}
    for kind in ("jsonl", "jsonl.gz"):
        text = "\ufeff" + "".join(f'{{"u": "u{row}", "i": "x", "t": 1}}\n' for row in range(3))
        (tmp_path / f"b.{kind}").write_bytes(
            text.encode() if kind == "jsonl" else gzip.compress(text.encode())
        )
        name = kind.replace(".", "")
        mapped = ["--map=user=u,item=i,time=t", f"--data_path={tmp_path}"]
        assert (
            cli.main(["prepare", f"--name={name}", f"--inter={tmp_path / f'b.{kind}'}", *mapped])
            == 0
        )
        assert (
            len(read_atomic(tmp_path / name / f"{name}.inter")) == 3
            and "broken" not in capsys.readouterr().out
        )


def test_quoted_cells_of_large_tables(tmp_path):
    """Line breaks within quoted cells start no rows, whichever thread would read them."""
    rows, cell = 40_000, "\n".join(f"ghost{line},gi,{line},zz" for line in range(60))
    with open(tmp_path / "e.csv", "w") as file:
        file.write(
            "u,i,t,note\n"
            + "".join(f'u{row % 100},i{row % 7},{row},"{cell}"\n' for row in range(rows))
        )
    assert (tmp_path / "e.csv").stat().st_size > 2**25
    recipe = own_tables.recipe("own", {"inter": tmp_path / "e.csv"}, "user=u,item=i,time=t")
    prepare(recipe, tmp_path, {"inter": tmp_path / "e.csv"}, None, log=str)
    assert set(read_atomic(tmp_path / "own" / "own.inter").user_id) == {
        f"u{user}" for user in range(100)
    }


def test_roles_that_are_called_like_anything(tmp_path, capsys):
    """No column of a user collides with one of ours."""
    (tmp_path / "e.jsonl").write_text('{"u": 1, "i": 2, "t": 3}\n')
    (tmp_path / "i.jsonl").write_text('{"i": 2, "ti": "two", "p": "here"}\n')
    columns = ("place", "titled", "number", "new", "select", "title_2")
    mapping = "user=u,item=i,time=t,title=ti," + ",".join(f"{name}=p" for name in columns)
    files = [f"--inter={tmp_path / 'e.jsonl'}", f"--items={tmp_path / 'i.jsonl'}"]
    assert (
        cli.main(["prepare", "--name=own", f"--map={mapping}", f"--data_path={tmp_path}", *files])
        == 0
    ), capsys.readouterr().err
    assert tables(tmp_path, "own")[1].loc["2"].to_dict() == {"title": "two"} | dict.fromkeys(
        columns, "here"
    )


def test_nothing_is_left_of_an_earlier_dataset(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own.item").write_text("item_id:token\ttitle:token_seq\n")
    (tmp_path / "e.csv").write_text(EVENTS)
    prepare(
        own_tables.recipe("own", {"inter": tmp_path / "e.csv"}, "user=u,item=i,time=t"),
        tmp_path,
        {"inter": tmp_path / "e.csv"},
        None,
        log=str,
    )
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "own.inter", "own.yaml"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a process's peak")
@pytest.mark.parametrize("rows", fast_only([9_000], [9_000, 300_000]))
def test_many_items_without_a_title_take_no_memory(tmp_path, rows):
    (tmp_path / "e.csv").write_text(
        "u,i,t\n" + "".join(f"u{row % 9},i{row},{row}\n" for row in range(rows))
    )
    (tmp_path / "i.csv").write_text(
        "i,ti\n" + "".join(f"i{row},\n" for row in range(rows)) * 2 + "i5,five\n"
    )
    ask = [
        "prepare",
        "--name=own",
        f"--inter={tmp_path / 'e.csv'}",
        f"--items={tmp_path / 'i.csv'}",
        f"--data_path={tmp_path}",
        "--memory=512",
    ]
    script = (
        "import re, sys; from recbole_llm import cli; code = cli.main(sys.argv[1:]); "
        "print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]); sys.exit(code)"
    )
    child = subprocess.run(
        [sys.executable, "-c", script, *ask, "--map=user=u,item=i,time=t,title=ti"],
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    assert int(child.stdout.splitlines()[-1]) < 500_000  # KiB; 190,000 as a rule
    assert tables(tmp_path, "own")[1].loc["i5", "title"] == "five"


def test_own_cells_are_taken_as_they_are_written(tmp_path, capsys):
    """Neither guessed to be numbers nor cut; a column that is not there is named."""
    folder = tmp_path / "u=7"
    folder.mkdir()
    ids = ["007", "12345678901234567890123", "2020-1-1"]
    (folder / "a*b.csv").write_text(
        "who,what,when\n"
        + "".join(f"{one},i,{place}\n" for place, one in enumerate(ids))
        + "x,i,nan\n"
    )
    (folder / "aXb.csv").write_text("who,what,when\nother,i,1\n")
    (folder / "e.jsonl").write_text(
        "".join(
            json.dumps({"who": one, "what": 7, "when": place}) + "\n"
            for place, one in enumerate(ids)
        )
        + "broken{\n"
    )
    for number, name in enumerate(("a*b.csv", "e.jsonl")):
        ask = [
            "prepare",
            f"--name=own{number}",
            f"--inter={folder / name}",
            f"--data_path={tmp_path}",
        ]
        assert cli.main([*ask, "--map=user=who,item=what,time=when"]) == 0, capsys.readouterr().err
        assert set(read_atomic(tmp_path / f"own{number}" / f"own{number}.inter").user_id) == set(
            ids
        )
        assert "1 of 4 events are broken" in capsys.readouterr().out
    assert (
        cli.main(
            [
                "prepare",
                "--name=odd",
                f"--inter={folder / 'a*b.csv'}",
                "--map=user=whom,item=what,time=when",
                f"--data_path={tmp_path}",
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert "user=whom, but" in error and "it has who, what, when; did you mean who" in error
