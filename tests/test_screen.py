"""Control characters of files never reach the terminal, nor markup a page."""

import contextlib
import io
import json
import logging
import re

import numpy as np
import pytest
from shops import edit, only, process, write_shop

from recbole_llm.cli import main
from recbole_llm.runs.tables import make_table, to_latex, to_markdown, to_screen
from recbole_llm.storage.run_log import RunLog
from recbole_llm.storage.screen import printable

ESCAPE = "\x1b[31m\x1b]0;title\x07"
TURNED = "\u202egnp.exe"
NASTY = f"{ESCAPE}{TURNED}\x9b2J\x08"
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
QUIET = ("--beside=[]", "--show_progress=false")


def ran(folder, *args) -> tuple[int, str]:
    """Exit code and all that a command has said."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main(list(args))
    return code, out.getvalue()


def clean(said: str) -> str:
    assert not STEERING.search(said), ascii(said)
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A shop whose first item and first user have nasty names, and such settings files."""
    folder = tmp_path_factory.mktemp("nasty")
    write_shop(folder)
    for suffix in ("item", "inter"):
        edit(folder, suffix, lambda text: re.sub(r"\bi0\t", f"i0{NASTY}\t", text))
        edit(folder, suffix, lambda text: re.sub(r"\bu3\t", f"u3{NASTY}\t", text))
    edit(folder, "item", lambda text: text.replace(" n1\t", f" n1 {NASTY}\t"))
    edit(folder, "item", lambda text: text.replace("categories:", f"cat{NASTY}:", 1))
    files = {
        "value": {"learning_rate": f"fast{NASTY}"},
        "key": {f"epo{NASTY}": 1},
        "column": {"text_fields": {"Title": f"name{NASTY}"}},
    }
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(json.dumps(content))
    code, said = ran(folder, "--model=LIR", "--dataset=tiny", *QUIET)
    assert code == 0 and clean(said)
    return folder


def test_titles_and_ids_are_shown_escaped(folder):
    run = only(folder, "LIR").name
    code, said = ran(folder, "recommend", f"--checkpoint={run}", f"--user=u3{NASTY}", "--k=30")
    assert code == 0 and r"\x1b[31m\x1b]0;title\x07\u202egnp.exe\x9b2J\x08" in clean(said)


@pytest.mark.parametrize(
    "line",
    [
        "recommend --checkpoint=RUN --user=NASTY",
        "recommend --checkpoint=RUN --user=u1 --k=NASTY",
        "evaluate --checkpoint=NASTY",
        "evaluate --checkpoint=RUN --eval_args.mode=NASTY",
        "compare --runs=RUN --columns=NASTY",
        "--model=NASTY --dataset=tiny",
        "--model=LIR --dataset=NASTY",
        "--model=LIR --dataset=tiny --NASTY=1",
        "--model=LIR --dataset=tiny --checkpoint_dir=x/NASTY --eval_args.mode=uni99",
        "--model=LIR --dataset=tiny --config_files=NASTY.yaml",
        "--model=LIR --dataset=tiny --config_files=value.yaml",
        "--model=LIR --dataset=tiny --config_files=key.yaml",
        "--model=LIR --dataset=tiny --config_files=column.yaml",
        "--model=LIR --dataset=tiny --text_fields.Title=none",
        "prepare --name=mine --inter=NASTY.csv --map=user=a,item=b,time=c,title=d",
        "NASTY",
    ],
)
def test_messages_are_escaped(line, folder):
    run = only(folder, "LIR").name
    args = [part.replace("NASTY", NASTY).replace("RUN", run) for part in line.split()]
    code, said = ran(folder, *args)
    assert code == 2 and said.startswith("error: ") and clean(said)


def test_settings_are_shown_escaped(folder):
    how = ("--model=LIR", "--dataset=tiny", f"--data_path={NASTY}")
    code, said = ran(folder, *how, "--print_config")
    assert code == 0 and "data_path" in clean(said)


def test_a_record_with_control_characters_is_shown_escaped(folder):
    path = only(folder, "LIR") / "run.json"
    before = path.read_text()
    record = json.loads(before)
    record["row"] |= {"run": NASTY, "dataset": NASTY, "rates": {NASTY: 0.5}}
    record["row"]["test"][NASTY] = 1.0
    path.write_text(json.dumps(record))
    try:
        code, said = ran(folder, "compare", f"--runs={path.parent}")
        assert code == 0 and r"\x1b[31m" in clean(said)
        tables = [*(folder / "saved" / "tables").rglob("table.*")]
        assert tables and all(clean(table.read_text()) for table in tables)
    finally:
        path.write_text(before)


@pytest.mark.slow
def test_in_a_process_of_its_own(folder):
    done = process(
        folder, "recommend", f"--checkpoint={only(folder, 'LIR').name}", f"--user={NASTY}"
    )
    assert done.returncode == 2 and clean(done.stderr).startswith("error: unknown user")


def test_a_log_is_escaped_on_the_screen_and_in_its_file(tmp_path, capfd):
    with RunLog() as log:
        log.info(f"before {NASTY}")
        log.start(tmp_path)
        logging.getLogger().warning(f"after {NASTY}")
        log.info("\x1b[1;35mRecBole colours\x1b[0m")
    for said in (capfd.readouterr().err, (tmp_path / "log").read_text()):
        assert clean(said).count(r"\u202egnp.exe") == 2 and "RecBole colours" in said


def test_text_of_any_language_is_left_as_it_is():
    text = "Tee für 2 € – 保温杯 कॉफ़ी שלום 👩‍👩‍👧 a\tb\nc"
    assert printable(text) == text
    assert printable("\r\x85\u2028\ud800") == r"\r\x85\u2028\ud800"


def test_names_do_not_break_the_tables():
    name = f"a|b<script>{NASTY}"
    table = make_table(name, {name: [{"m|<i>": 0.5}], "x": [{"m|<i>": 0.4}]}, ["m|<i>"])
    markdown = to_markdown(table)
    for text in (to_screen(table), markdown, to_latex(table)):
        clean(text)
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}
    assert "<script>" not in markdown and "<i>" not in markdown and "<u>0.4000</u>" in markdown


def test_a_page_shows_markup_as_text(tmp_path):
    pytest.importorskip("plotly")
    from recbole_llm.studies.projection import draw

    title = f"<b>bold</b><script>alert(1)</script> $10 & $_{{ {NASTY}"
    points = np.zeros((2, 2), dtype=np.float32)
    _, page = draw({title: points}, {title: [title, "b"]}, {title: [title, "c"]}, title, tmp_path)
    text = page.read_text(encoding="utf-8")
    data = text.rpartition("Plotly.newPlot(")[2]
    assert "bold" in data and data.count("</script>") == 1  # the end of the page's own
    assert "<b>" not in data and r"\u003cb\u003e" not in data and r"\u003cscript" not in data
    assert r"\u001b" not in data and r"\\u202egnp" in data
