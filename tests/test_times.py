"""Times of a user's own tables have one order and one value.

Neither their form nor the machine's time zone changes them.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("duckdb")

from recbole_llm import cli
from recbole_llm.data.reading.atomic import read_atomic

ROOT = Path(__file__).resolve().parents[1]
ZONES = ("UTC", "America/New_York", "Asia/Kolkata")
NOON = 1588334400  # 2020-05-01 12:00 UTC


def ask(folder, path, name="own"):
    return [
        "prepare",
        f"--name={name}",
        f"--inter={path}",
        "--map=user=u,item=i,time=t",
        f"--data_path={folder}",
    ]


def written(folder, name="own"):
    """Item -> time, in the order of the file."""
    frame = read_atomic(folder / name / f"{name}.inter")
    return dict(zip(frame.item_id, frame.timestamp, strict=True))


def write(folder, cells, kind="csv"):
    """Events of one user, an item named after each row."""
    path = folder / f"e.{kind}"
    if kind == "csv":
        path.write_text("u,i,t\n" + "".join(f'a,x{n},"{cell}"\n' for n, cell in enumerate(cells)))
    else:
        rows = ({"u": "a", "i": f"x{n}", "t": cell} for n, cell in enumerate(cells))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def in_zone(zone, commands):
    """Run commands in a process that stands in this time zone."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TZ": zone}
    code = (
        "import json, sys; from recbole_llm import cli; "
        "sys.exit(any(map(cli.main, json.loads(sys.argv[1]))))"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)], env=env, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr


MIXED = {  # cell -> seconds since 1970; the last one is first in time
    "2020-05-01T14:00:00+02:00": NOON,
    "2020-05-01 07:00:01-0500": NOON + 1,
    "2020-05-01T12:00:02Z": NOON + 2,
    "2020-05-01T17:30:03 +05:30": NOON + 3,
    "2020-05-01 12:00:04": NOON + 4,
    str(NOON + 5): NOON + 5,
    str((NOON + 6) * 10**3): NOON + 6,
    str((NOON + 7) * 10**6): NOON + 7,
    str((NOON + 8) * 10**9): NOON + 8,
    "2020-05-01T12:00:09.250z": NOON + 9.25,
    "2020/05/01": NOON - 12 * 3600,
}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_every_form_of_a_time_is_one_moment(tmp_path, kind):
    assert cli.main(ask(tmp_path, write(tmp_path, MIXED, kind))) == 0
    assert written(tmp_path) == {f"x{n}": time for n, time in enumerate(MIXED.values())}
    assert list(written(tmp_path)) == ["x10", *(f"x{n}" for n in range(10))]


@pytest.mark.slow
def test_times_do_not_depend_on_the_zone_of_the_machine(tmp_path):
    """Of text, and of Parquet's columns of times with and without a zone."""
    import duckdb

    typed = {
        "zoned": ("TIMESTAMPTZ", NOON),
        "naive": ("TIMESTAMP", NOON + 7200),
        "nanoseconds": ("TIMESTAMP_NS", NOON + 7200),
        "day": ("DATE", NOON - 12 * 3600),
    }
    connection = duckdb.connect()
    for name, (kind, _) in typed.items():
        value = f"'2020-05-01 14:00:00{'+02:00' if name == 'zoned' else ''}'::{kind}"
        connection.execute(
            f"COPY (SELECT 'a' AS u, 'x' AS i, {value} AS t) TO '{tmp_path / name}.parquet'"
        )
    text = write(tmp_path, MIXED)
    for zone in ZONES:
        folder = tmp_path / zone.replace("/", "-")
        paths = [text, *(tmp_path / f"{name}.parquet" for name in typed)]
        in_zone(zone, [ask(str(folder), str(path), path.stem) for path in paths])
        assert list(written(folder, "e").values()) == sorted(MIXED.values()), zone
        for name, (_, time) in typed.items():
            assert written(folder, name) == {"x": time}, (name, zone)


def test_the_engine_reads_dates_in_utc_whatever_its_session_was(tmp_path, monkeypatch):
    """DuckDB's own reading of a CSV makes typed columns, which the session's zone would shift."""
    from recbole_llm.data.prepare.engine import Engine
    from recbole_llm.data.prepare.times import time_columns

    (tmp_path / "t.csv").write_text("t\n2020-05-01 14:00:00+02\n2020-05-01 08:00:01-04\n")
    for zone in ZONES:
        monkeypatch.setenv("TZ", zone)
        engine = Engine(tmp_path / "tables")
        kind = engine.value(f"SELECT typeof(t) FROM read_csv('{tmp_path / 't.csv'}')")
        rows = engine.rows(f"SELECT {time_columns('t')} FROM read_csv('{tmp_path / 't.csv'}')")
        assert kind == "TIMESTAMP WITH TIME ZONE"
        assert [row["time"] for row in rows] == [NOON, NOON + 1]
        engine.close()


@pytest.mark.parametrize("size", [1, 10**3, 10**6, 10**9])
def test_epochs_of_any_unit_become_seconds(tmp_path, size):
    path = write(tmp_path, [(NOON + n) * size for n in range(3)], "jsonl")
    assert cli.main(ask(tmp_path, path)) == 0
    assert list(written(tmp_path).values()) == [NOON, NOON + 1, NOON + 2]
    assert "(2020-05-01)" in (tmp_path / "own" / "README.md").read_text()


@pytest.mark.parametrize(
    "cells",
    [
        [1, 2, 3],
        [20200501, 20200502, 20210101],  # days as numbers
        [0, NOON * 1000, (NOON + 1) * 1000],  # something that is no time among milliseconds
        [202005011200, 202005011201],
        [0.5, 99999999999, 100000000005],
    ],
)
def test_numbers_that_are_no_epochs_stay(tmp_path, cells, capsys):
    assert cli.main(ask(tmp_path, write(tmp_path, cells))) == 0
    assert list(written(tmp_path).values()) == sorted(cells)
    told = "all are kept as they are" in capsys.readouterr().out
    assert told == (NOON * 1000 in cells), "said where some of them could be times"
    assert "timestamp:float` (as in the source)" in (tmp_path / "own" / "README.md").read_text()


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["2020-05-01", "20200430"], "found 20200430 .1 such numbers. beside dates"),
        ([NOON, NOON * 1000, 7], "found 7 .* beside seconds and milliseconds"),
    ],
)
def test_times_that_do_not_fit_each_other(tmp_path, cells, message, capsys):
    assert cli.main(ask(tmp_path, write(tmp_path, cells))) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1, error
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize(
    "cell",
    [
        "01.05.2020",
        "05/13/2020 10:00",
        "13-05-20",  # DuckDB takes it for a day of the year 13
        "1 May 2020",
        "2020-05-01 10:00:00 CEST",  # a cast without zones would drop it
        "1.588.327.200",
        "0000-00-00",
        "yesterday",
        "10:00:00",
        "Epoch",  # DuckDB takes these for times or numbers
        "infinity",
        "-Infinity",
        "inf",
        "-inf",
        "-nan",
        "1e999",
        "1_588_334_400",
    ],
)
def test_an_unreadable_date_is_one_line_and_not_half_of_the_data(tmp_path, kind, cell, capsys):
    path = write(tmp_path, ["2020-05-01", "", cell, cell], kind)
    assert cli.main(ask(tmp_path, path)) == 2
    error = capsys.readouterr().err
    line = 4 if kind == "csv" else 3
    assert f"{path}, line {line}: expected a number or an ISO 8601 date" in error
    assert f"in column t, found {cell!r} (2 of 4 events" in error and error.count("\n") == 1
    assert not (tmp_path / "own").exists()


def test_a_line_number_counts_the_lines_within_cells(tmp_path, capsys):
    path = tmp_path / "e.csv"
    path.write_text('u,note,i,t\na,"one\ntwo",x,2020-05-01\na,,x,02.05.2020\n')
    assert cli.main(ask(tmp_path, path)) == 2
    assert f"{path}, line 4: expected" in capsys.readouterr().err


def test_missing_times_are_counted_and_left_out(tmp_path, capsys):
    cells = ["2020-05-01", "", "NaN", "NULL", "NaT", "None", " 2020-05-02 "]
    assert cli.main(ask(tmp_path, write(tmp_path, cells))) == 0
    assert "5 of 7 events are broken or lack" in capsys.readouterr().out
    assert list(written(tmp_path)) == ["x0", "x6"]


def test_numbers_are_read_however_they_are_written(tmp_path):
    cells = {"5": 5, "+6.5": 6.5, "-7": -7, "8.": 8, ".5": 0.5, "1.5e3": 1500, "25E-1": 2.5}
    assert cli.main(ask(tmp_path, write(tmp_path, cells))) == 0
    assert written(tmp_path) == {f"x{n}": value for n, value in enumerate(cells.values())}


def test_numbers_without_end_in_a_column_of_numbers_are_unreadable(tmp_path, capsys):
    import duckdb

    path = tmp_path / "e.parquet"
    for cell, code in (("nan", 0), ("infinity", 2), ("-infinity", 2)):
        rows = f"(VALUES ('x', 5.0::DOUBLE), ('y', '{cell}'::DOUBLE)) v(i, t)"
        duckdb.execute(f"COPY (SELECT 'a' AS u, i, t FROM {rows}) TO '{path}'")
        assert cli.main(ask(tmp_path, path, f"own{cell}")) == code
        said = capsys.readouterr()
        assert ("1 of 2 events are broken" in said.out) != (": expected a number" in said.err)


def test_yelp_reads_offsets_too(tmp_path):
    """Its releases have none so far; the helper is the same."""
    from recbole_llm.data.prepare.engine import Engine
    from recbole_llm.data.prepare.sources import catalogue
    from recbole_llm.data.prepare.sources.yelp import REVIEWS

    row = {"user_id": "u", "business_id": "b", "stars": 4.0}
    dates = ["2020-05-01T14:00:00+02:00", "2020-05-01 12:00:01", "2020-05-01"]
    path = tmp_path / "review.json"
    path.write_text("".join(json.dumps(row | {"date": date}) + "\n" for date in dates))
    engine = Engine(tmp_path / "tables")
    rows = list(engine.rows(catalogue.find("Yelp").events({REVIEWS: path})))
    assert [row["time"] for row in rows] == [NOON, NOON + 1, NOON - 12 * 3600]
    engine.close()
