"""Progress in a log: lines now and then, no carriage returns, from our loops and RecBole's."""

import io
import re

import pytest
from shops import command, write_shop

from recbole_llm.storage import progress as module
from recbole_llm.storage.progress import LEAST, MOST, LineProgress, progress, say_with_time


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def lines_of(steps, seconds, **own):
    """Lines of work of so many steps, each of which takes so long."""
    clock, lines = Clock(), []
    shown = LineProgress(range(steps), "Train", clock=clock, write=lines.append, **own)
    for _ in shown:
        clock.now += seconds
    return lines


@pytest.mark.parametrize("steps", [10, 1000, 20000])
@pytest.mark.parametrize("hours", [0.001, 0.1, 1, 30])
def test_lines_are_few_but_come_in_time(steps, hours):
    lines = lines_of(steps, 3600 * hours / steps)
    assert len(lines) <= 11 + 3600 * hours / MOST and len(lines) <= 1 + 3600 * hours / LEAST
    assert len(lines) >= min(9, 3600 * hours // max(LEAST, 360 * hours) - 1)
    if lines:
        assert lines[-1].startswith(f"Train: {steps} of {steps} (100 %)")


def test_work_that_is_over_soon_says_nothing():
    assert lines_of(100, 0.1) == []


def test_a_line_says_how_far_how_fast_and_how_long():
    lines = lines_of(100, 60.0)
    assert lines[0] == "Train: 10 of 100 (10 %), 1.0 a minute, about 90 min left"
    clock, lines = Clock(), []
    how = {"initial": 50, "write": lines.append, "clock": clock, "unit": "B"}
    shown = LineProgress(None, "\x1b[1;35mTrain\x1b[0m", 100, **how)
    clock.now = 40.0
    shown.set_postfix(loss=0.5)
    shown.update(40)
    assert lines == ["Train: 90 of 100 (90 %), 1.0 bytes a second, about 10 s left, loss=0.5"]
    with LineProgress(None, "no total", write=lines.append, clock=clock) as shown:
        clock.now += 31
        shown.update()
        shown.update()
    assert lines[1:] == ["no total: 1, 1.9 a minute", "no total: 2, 3.9 a minute"]


def test_a_terminal_has_a_bar_and_a_file_has_none(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, kind in ((Terminal(), "tqdm"), (io.StringIO(), "LineProgress")):
        monkeypatch.setattr("sys.stderr", stream)
        shown = progress(range(3), desc="Train")
        assert type(shown).__name__ == kind and list(shown) == [0, 1, 2]
        assert ("\r" in stream.getvalue()) == (kind == "tqdm")
        assert list(progress(range(3), desc="Train", disable=True)) == [0, 1, 2]


def test_say_tells_the_time(capsys):
    say_with_time("units")
    assert re.fullmatch(r"\d\d:\d\d:\d\d units\n", capsys.readouterr().out)


@pytest.mark.parametrize("call", ["update", "set_postfix", "set_description", "close"])
def test_both_are_used_alike(call):
    from tqdm import tqdm

    assert callable(getattr(LineProgress, call)) and callable(getattr(tqdm, call))


QUICK = ["--dataset=tiny", "--epochs=2", "--beside=[]"]
COMMANDS = {
    "RecBole's trainer": ["--model=GRU4Rec", *QUICK],
    "ours": [
        "--model=LLMTRSR",
        *QUICK,
        "--backbone=scratch:nano",
        "--eval_args.mode=uni4",
        "--max_length=500",
        "--scratch_vocabulary=400",
        "--targets=one",
    ],
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_log_holds_lines(tmp_path, monkeypatch, kind):
    write_shop(tmp_path)
    monkeypatch.setattr(module, "LEAST", 0.0)
    done = command(tmp_path, *COMMANDS[kind])
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stderr + done.stdout and "\x1b" not in done.stderr
    lines = done.stderr.splitlines()
    bars = [line for line in lines if re.search(r"(Train|Evaluate).*: \d+ of \d+ \(\d+ %\)", line)]
    assert len({line.partition(":")[2] for line in bars}) >= 3, done.stderr
    assert len(lines) < 120 and max(map(len, lines)) < 250


def test_no_module_draws_bars_of_its_own():
    from pathlib import Path

    for path in Path(module.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "tqdm(" not in text or path.name in ("progress.py", "compat.py"), path
