"""A command does once what it needs to do once."""

from collections import Counter

import pytest
from worlds import write_cycle

from recbole_llm import cli


@pytest.fixture
def calls(monkeypatch):
    """Return name -> number of calls of what a command is to do once."""
    import recbole.config.configurator

    import recbole_llm.data.cases.splits
    import recbole_llm.data.reading.interactions
    import recbole_llm.data.recbole.datasets
    import recbole_llm.data.texts.text
    import recbole_llm.runs.checks
    import recbole_llm.settings.resolving

    made: Counter = Counter()

    def count(owner, attribute, name):
        inner = getattr(owner, attribute)

        def counted(*args, **kwargs):
            made[name] += 1
            return inner(*args, **kwargs)

        monkeypatch.setattr(owner, attribute, counted)

    count(recbole_llm.settings.resolving, "resolve", "settings resolved")
    count(recbole_llm.data.reading.interactions, "read_atomic", "files read")
    count(recbole_llm.data.recbole.datasets, "make_split", "splits made")
    count(recbole_llm.data.texts.text.ItemText, "from_interactions", "texts made")
    count(recbole_llm.runs.checks, "check", "runs checked")
    count(recbole.config.configurator.Config, "__init__", "Configs of RecBole")
    recbole_llm.data.recbole.datasets._load.cache_clear()
    return made


def test_a_command_goes_one_lap(calls, tmp_path, monkeypatch):
    """With two models beside one, steps on the data run once, and steps on a model once each."""
    write_cycle(tmp_path)
    monkeypatch.chdir(tmp_path)
    command = ["--model=CALRec", "--dataset=cycle", f"--data_path={tmp_path}", "--epochs=1"]
    quick = ["--backbone=scratch:nano", "--scratch_vocabulary=400", "--samples=1"]
    assert cli.main([*command, *quick, "--valid_samples=1", "--max_new_tokens=4"]) == 0
    assert calls == {
        "settings resolved": 3,
        "files read": 2,  # .inter and .item
        "splits made": 1,
        "texts made": 1,
        "runs checked": 3,
        "Configs of RecBole": 3,
    }
