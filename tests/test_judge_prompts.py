"""LLMTRSR and TALLRec prompt by the case, and count what does not fit into the prompt."""

import numpy as np
import pytest
from test_llmtrsr import made, small, verdicts, whole
from worlds import write_cycle

from recbole_llm.language.prompts.marks import neutralize_marks
from recbole_llm.language.summaries.schedules import WrittenText
from recbole_llm.runs.commands import run_settings


def test_a_prompt_without_summary_or_items_says_so(tmp_path):
    write_cycle(tmp_path)
    for own, said in (
        ({"summary": "none"}, "[Preference Summary]\nNULL"),
        ({"recent_items": 0}, "[Historical Items]\nNULL"),
    ):
        _, model, _, (_, _, test) = made("LLMTRSR", tmp_path, **own)
        (found,) = model.prefixes(test._dataset.cases[[0]])
        text = model.bundle.tokenizer.decode(found.tokens)
        assert said in text and text.count("NULL") == 1 and found.left_out == 0


GOLDEN = {
    "LLMTRSR": """### User:
You are given a summary of a reader's long-term preferences, the news that the reader has read \
last, and a candidate to be read next. \
Weigh the long-term preferences and the recent news together, and say whether the reader will \
read the candidate. Answer with 'Yes' or 'No' alone.

[Preference Summary]
%s

[Historical News]
%s
%s

[Next News]
%s

### Assistant:
""",
    "TALLRec": """### User:
You are given the news that a reader has read, the earliest first, and a candidate to be read \
next. \
Say whether the reader will read the candidate. Answer with 'Yes' or 'No' alone.

[Historical News]
%s
%s

[Next News]
%s

### Assistant:
""",
}


@pytest.mark.parametrize("model", GOLDEN)
def test_the_prompt_of_a_case(tmp_path, model):
    """A prompt is worded by its domain, and lists the newest items, oldest first.

    That of TALLRec has no word of a summary.
    """
    write_cycle(tmp_path)
    _, judge, _, (_, _, test) = made(model, tmp_path, domain="news", epochs=0)
    cases = test._dataset.cases[[3]]
    judge.eval()
    told, seen = [], []
    encode = judge.encoder.row
    judge.encoder.row = lambda before, candidates, *rest: (
        seen.append(np.concatenate([before, candidates[0]])) or encode(before, candidates, *rest)
    )
    verdicts(judge, cases, np.array([[5]]))
    *_, older, newest = cases.histories(judge.interactions)[0]
    if model == "LLMTRSR":
        told = [neutralize_marks(judge.summarizer.of(cases.histories(judge.interactions))[0].text)]
    assert judge.bundle.tokenizer.decode(seen[0]) == GOLDEN[model] % (
        *told,
        judge.lines[older],
        judge.lines[newest],
        judge.lines[5],
    )


@pytest.mark.parametrize("model", ["LLMTRSR", "TALLRec"])
@pytest.mark.parametrize("kind", ["hierarchical", "recurrent"])
def test_a_case_without_history_is_judged(tmp_path, model, kind):
    """Pre-split files may contain such cases."""
    write_cycle(tmp_path)
    _, judge, _, (_, _, test) = made(
        model, tmp_path, **({"summary": kind} if model == "LLMTRSR" else {})
    )
    cases = test._dataset.cases[[0, 1]]
    cases.end[0] = cases.begin[0]
    judge.eval()
    assert np.isfinite(verdicts(judge, cases, whole(judge, cases))).all()
    text = judge.bundle.tokenizer.decode(judge.prefixes(cases)[0].tokens)
    assert text.count("NULL") == (2 if model == "LLMTRSR" else 1)


def test_what_is_cut_and_replaced_is_counted(tmp_path, monkeypatch):
    write_cycle(tmp_path)
    own = {"max_length": 120, "recent_items": 7}
    run = run_settings(small("LLMTRSR", tmp_path, epochs=0, **own))
    rates = run.row["rates"]
    assert (
        0 < rates["cut_items"] < 1
        and rates["cut_users"] > 0
        and rates["cut_summaries"] == 1
        and rates["summaries_replaced"] == 0
    )
    assert run_settings(small("LLMTRSR", tmp_path, epochs=0)).row["rates"] == rates | dict.fromkeys(
        ["cut_items", "cut_users", "cut_summaries"], 0
    )
    monkeypatch.setattr(
        "recbole_llm.language.summaries.engines.make_engine",
        lambda config, instructions, extractive: Mute(),
    )
    assert (
        run_settings(small("LLMTRSR", tmp_path, epochs=0, summarizer_length=2047)).row["rates"][
            "summaries_replaced"
        ]
        == 1
    )


class Mute:
    """The engine writes nothing."""

    name, paid = "mute", True
    max_new, max_length = 100, 2048

    def size(self, request):
        return 10

    def write(self, requests, take, again=False):
        for number in range(len(requests)):
            take(number, WrittenText(""))
