"""Texts that a run has written are kept, read by people, and not decoded again."""

import gzip
import json

import pytest
import torch
from suites import fast_only
from worlds import prepared, settings_for, write_cycle

from recbole_llm.errors import UserError
from recbole_llm.evaluation import resumable as kept_module
from recbole_llm.language.decoding.answer_log import Answer, AnswerLog
from recbole_llm.models.base import generative_model
from recbole_llm.runs.commands import evaluate_run, run_settings
from recbole_llm.storage import run_folders

OWN = {"samples": 6, "max_new_tokens": 12, "temperature": 1.0}
CASES = 16


def files(folder, part="test"):
    return sorted(folder.glob(run_folders.TEXTS.format(part=part, key="*")))


def lines(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture
def run(trained_run):
    return trained_run("CALRec", **OWN)


def refuse(monkeypatch, name):
    monkeypatch.setattr(
        generative_model, name, lambda *args, **kwargs: pytest.fail("decoded again")
    )


def test_a_line_holds_a_cases_texts(run, tmp_path):
    (path,) = files(run.folder)
    found = lines(path)
    assert (
        len(found) == CASES
        and len({line["user"] for line in found}) == CASES
        and len(files(run.folder, "valid")) == 1
    )
    for line in found:
        assert sum(line["times"]) == OWN["samples"] and len(set(line["texts"])) == len(
            line["texts"]
        ) == len(line["logprobs"])
        assert (
            line["logprobs"] == sorted(line["logprobs"], reverse=True)
            and line["events"][0] == 0
            and line["reached"] is None
        )


@pytest.mark.parametrize(
    "own",
    [
        {"match": "hierarchical"},
        {"blend": 1.0},
        pytest.param({"epsilon": 0.5}, marks=pytest.mark.slow),
        pytest.param({"texts_kept": 1}, marks=pytest.mark.slow),
        pytest.param({"generate_rows": 8, "pass_tokens": 300}, marks=pytest.mark.slow),
    ],
)
def test_other_matching_of_the_same_texts(run, tmp_path, monkeypatch, own):
    fresh = run_settings(
        settings_for("CALRec", tmp_path, checkpoint_dir=str(tmp_path / "fresh"), **OWN | own)
    )
    refuse(monkeypatch, "sample")
    again = evaluate_run(run.folder, settings_for("CALRec", tmp_path, **OWN | own))
    assert again.values == fresh.row["test"] and again.row["rates"] == fresh.row["rates"] | {
        "read_again": 1.0
    }
    assert (
        fresh.row["rates"]["read_again"] == 0
        and f"test: the texts of {CASES} cases are there already"
        in (again.folder / "log").read_text()
    )
    assert len(files(run.folder)) == 1


WRITING = [
    {"samples": 3},
    {"temperature": 0.3},
    {"max_new_tokens": 3},
    {"max_length": 150},
    {"precision": "bf16"},
    {"seed": 3},
    {"text_fields": {"Title": "title", "Category": "brand"}},
    {"text_words": {"Title": 1}},
]


@pytest.mark.parametrize("own", fast_only(WRITING[::2], WRITING))
def test_other_texts_are_written_anew(run, tmp_path, own):
    (old,) = files(run.folder)
    before = old.read_bytes()
    evaluate_run(run.folder, settings_for("CALRec", tmp_path, **OWN | own))
    (new,) = set(files(run.folder)) - {old}
    assert len(lines(new)) == CASES and lines(new) != lines(old) and old.read_bytes() == before


def test_other_data_and_other_prompts_have_texts_of_their_own(run, tmp_path):
    def key(**own):
        return prepared("CALRec", tmp_path, **OWN | own)[1].writing_key()

    template = {"head": "H", "first": "F", "next": "N", "target": "T"}
    assert len({key(), key(template=template), key(user_sample=0.5)}) == 3
    assert key() == key(epsilon=0.5, blend=1.0) and f"test.{key()}." in files(run.folder)[0].name


def test_a_search_is_kept_too(run, tmp_path, monkeypatch):
    own = OWN | {"decoding": "constrained", "beams": 4}
    first = evaluate_run(run.folder, settings_for("CALRec", tmp_path, **own))
    fresh = run_settings(
        settings_for(
            "CALRec",
            tmp_path,
            checkpoint_dir=str(tmp_path / "fresh"),
            **own | {"blend": 2.0, "valid_samples": 8},
        )
    )
    refuse(monkeypatch, "search")
    again = evaluate_run(
        run.folder, settings_for("CALRec", tmp_path, **own | {"samples": 2})
    )  # samples say nothing to a search
    blended = evaluate_run(run.folder, settings_for("CALRec", tmp_path, **own | {"blend": 2.0}))
    assert again.values == first.values
    assert blended.values == fresh.row["test"]


def test_other_code_writes_anew(run, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folders, "code", lambda: "another")
    evaluate_run(run.folder, settings_for("CALRec", tmp_path, **OWN | {"epsilon": 0.5}))
    assert len(files(run.folder)) == 2


def test_a_damaged_file_gives_what_is_whole(tmp_path, caplog):
    path = tmp_path / "test.0.texts.jsonl.gz"
    answers = {
        (f"u{number}", 0, 3): Answer(["Title: a ñ."], [-0.5 - number], [2], 1)
        for number in range(4)
    }
    for name in answers:
        AnswerLog(path).add({name: answers[name]})
    assert AnswerLog(path).known == answers
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    cut = AnswerLog(path)
    assert (
        cut.known == {name: answers[name] for name in list(answers)[:3]}
        and "is damaged" in caplog.text
    )
    cut.add({("u3", 0, 3): answers["u3", 0, 3]})
    assert AnswerLog(path).known == answers
    path.write_bytes(b"no archive")
    assert AnswerLog(path).known == {}


def test_nothing_is_kept_while_weights_change(tmp_path):
    write_cycle(tmp_path)
    _, model, trainer, (train, valid, test) = prepared("CALRec", tmp_path, epochs=1, **OWN)
    trainer.fit(train, valid)
    trainer.rank(test)
    assert not list(tmp_path.rglob("*.texts.jsonl.gz"))


def test_a_run_that_starts_over_forgets_what_others_wrote(tmp_path):
    (tmp_path / "test.0.texts.jsonl.gz").write_bytes(b"")
    (tmp_path / "test.0.kept.gz").write_bytes(b"")
    kept_module.start_over(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("decoding", fast_only(["sample"], ["sample", "constrained"]))
def test_fewer_texts_are_decoded_at_once_after_memory_ran_out(
    decoding, tmp_path, monkeypatch, caplog
):
    write_cycle(tmp_path)
    _, model, trainer, (_, _, test) = prepared(
        "CALRec", tmp_path, epochs=0, decoding=decoding, **OWN
    )
    expected, _ = trainer.rank(test)
    name = "_search" if decoding == "constrained" else "_sample"
    inner, sizes = getattr(model, name), []

    def decode(prompts, cases, count):
        sizes.append(len(prompts))
        if len(prompts) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(prompts, cases, count)

    monkeypatch.setattr(model, name, decode)
    table, _ = trainer.rank(test)
    assert (table.above == expected.above).all() and sizes[0] > 3 and 1 < max(sizes[-3:]) <= 3
    assert "are decoded at once from here on (generate_rows)" in caplog.text
    monkeypatch.setattr(model, name, lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(UserError, match="^max_length: memory does not hold a prompt and its texts"):
        trainer.rank(test)
