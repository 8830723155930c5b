"""CALRec learns the targets that its settings name, and reports on its texts."""

from itertools import product

import numpy as np
import pytest
import torch
from worlds import FRUIT, prepared, settings_for, write_cycle

from recbole_llm.language.backbones.sources import load_folder
from recbole_llm.runs.commands import run_settings


def encoded_cases(model, epoch, monkeypatch):
    """Return (first, last) event rows of each example, as the model encodes them."""
    cases, inner = [], model._group

    def watched(number, row, rng):
        corpus = model.corpora[number]
        cases.append((corpus.cases.begin[row], corpus.cases.end[row]))
        return inner(number, row, rng)

    with monkeypatch.context() as patch:
        patch.setattr(model, "_group", watched)
        list(model.examples(epoch))
    return cases


def learned_texts(model, tokens):
    """Return the texts whose tokens have a loss."""
    edges = np.flatnonzero(np.diff(np.r_[0, tokens.learned.astype(int), 0])).reshape(-1, 2)
    decode = model.bundle.tokenizer.decode
    return [decode(tokens.ids[begin:end]).strip().removesuffix("<|end|>") for begin, end in edges]


@pytest.fixture
def learned_rows(monkeypatch):
    """Return learned_rows(model, epoch): rows of the learned events, with repetitions.

    A text stands for the last event of its example with that text.
    """

    def rows_of(model, epoch=0):
        rows = []
        cases = encoded_cases(model, epoch, monkeypatch)
        for (tokens, *_), (first, last) in zip(model.examples(epoch), cases, strict=True):
            row_of = {}
            for row in range(first, last + 1):
                row_of[model.sentences[model.interactions.item[row]]] = row
            rows += [row_of[text] for text in learned_texts(model, tokens)]
        return rows

    return rows_of


SPLITS = {
    "leave one out": {},
    "ratios": {"eval_args.split": {"RS": [5, 2, 3]}},
    "the later part of a temporal split": {
        "eval_args.split": {"temporal": [0.4, 0.3, 0.3]},
        "eval_args.part": "continue",
    },
    "both parts": {"eval_args.split": {"temporal": [0.5, 0.3, 0.2]}, "eval_args.part": "both"},
}


@pytest.mark.parametrize("length", [60, 512])
@pytest.mark.parametrize("name", SPLITS)
def test_every_training_case_is_learned_once_and_nothing_else(tmp_path, learned_rows, name, length):
    write_cycle(tmp_path)
    _, model, _, (train, *_) = prepared(
        "CALRec", tmp_path, nig_targets="all", max_length=length, **SPLITS[name]
    )
    assert sorted(learned_rows(model)) == sorted(train._dataset.cases.end)


def test_files_that_are_split_already_are_learned_once_in_any_order(tmp_path, learned_rows):
    folder = tmp_path / "cut"
    folder.mkdir()
    items = [f"i{number}" for number in range(len(FRUIT))]
    head = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
    train = [
        f"u{user}\t{' '.join(items[user : user + size])}\t{items[user + size]}\n"
        for size, user in product((5, 2, 4, 1, 3), (3, 0, 2, 1))
    ]
    (folder / "cut.train.inter").write_text(head + "".join(train))
    for part, size in (("valid", 6), ("test", 7)):
        rows = [
            f"u{user}\t{' '.join(items[user : user + size])}\t{items[user + size]}\n"
            for user in range(4)
        ]
        (folder / f"cut.{part}.inter").write_text(head + "".join(rows))
    (folder / "cut.item").write_text(
        "item_id:token\ttitle:token_seq\n"
        + "".join(f"{items[at]}\t{word}\n" for at, word in enumerate(FRUIT))
    )
    _, model, _, (loader, *_) = prepared(
        "CALRec", tmp_path, "cut", benchmark_filename=["train", "valid", "test"]
    )
    assert len(train) == 20 and sorted(learned_rows(model)) == sorted(loader._dataset.cases.end)


def test_the_papers_augmentation_cuts_up_to_four_off(tmp_path, learned_rows):
    write_cycle(tmp_path, users=400, length=9)
    _, model, _, (train, *_) = prepared("CALRec", tmp_path, nig_targets="last")
    cases = train._dataset.cases
    last = {user: max(cases.end[cases.user == user]) for user in np.unique(cases.user)}
    rows = learned_rows(model)
    cut = [last[model.interactions.user[row]] - row for row in rows]
    counts = np.bincount(cut, minlength=5)
    assert (
        len(rows) == 400 and len(counts) == 5 and counts.min() > 50
    )  # uniform over 0 .. 4: 80 each
    assert rows != learned_rows(model, epoch=1) and rows == learned_rows(model)


def test_rates_are_of_one_ranking(tmp_path):
    write_cycle(tmp_path)
    _, model, trainer, (_, valid, test) = prepared(
        "CALRec", tmp_path, max_length=100, max_new_tokens=8
    )
    trainer.rank(test)
    alone = model.rates()
    trainer.rank(valid)
    trainer.rank(test)
    assert model.rates() == alone
    assert (
        0 < alone["cut_items"] < 1 and alone["cut_users"] == 1
    )  # the untrained model's texts are garbage, its prompts too long


def test_what_a_search_reached_stands_above_the_rest(tmp_path):
    write_cycle(tmp_path)
    _, model, _, (_, _, test) = prepared("CALRec", tmp_path, decoding="constrained", beams=3)
    cases = test._dataset.cases[:6]
    answers, scores = model.eval().generate(cases, model.prompts(cases)), model.score(cases)
    for answer, row in zip(answers, scores, strict=True):
        assert np.argsort(-row, kind="stable")[:3].tolist() == model.first[answer.reached].tolist()
        assert np.diff(np.sort(row)[-3:]) == pytest.approx(
            -np.diff(answer.logprobs)[::-1], abs=1e-6
        )


@torch.no_grad()
def test_blend_adds_the_cosine_of_history_and_item(tmp_path):
    write_cycle(tmp_path)
    _, model, _, (_, _, test) = prepared("CALRec", tmp_path, max_new_tokens=16)
    cases = test._dataset.cases[:3]
    plain = model.eval().double().score(cases)
    model.config["blend"] = 0.5
    added = (model.score(cases) - plain) / 0.5
    alone = [
        model.backbone.base_model(torch.from_numpy(model.encoder.encode_item(text).ids)[None])
        .last_hidden_state[0]
        .mean(0)
        for text in model.sentences
    ]
    for tokens, row in zip(model.prompts(cases), added, strict=True):
        prompt = (
            model.backbone.base_model(torch.from_numpy(tokens.ids)[None])
            .last_hidden_state[0]
            .mean(0)
        )
        assert row == pytest.approx(
            [torch.cosine_similarity(prompt, item, dim=0).item() for item in alone], abs=1e-5
        )


def test_garbage_names_no_item_and_is_said_loudly(tmp_path, caplog):
    """Untrained weights generate no text that resembles an item."""
    write_cycle(tmp_path)
    run = run_settings(settings_for("CALRec", tmp_path, epochs=0, max_new_tokens=3))
    assert (
        run.row["rates"]["formatted"] == 0
        and "no text it wrote has the format of an item" in caplog.text
    )
    ranks = run.ranks()
    assert (
        ranks.fallback.any()
        and (ranks.above[ranks.fallback] == len(FRUIT) - 1).all()
        and (ranks.tied[ranks.fallback] == 0).all()
    )


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from recbole_llm.errors import UserError

    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
    ).save_pretrained(tmp_path)
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    ).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its tokenizer has no end token"):
        load_folder(str(tmp_path))


def test_a_hub_id_goes_to_the_hub(monkeypatch, tmp_path):
    """`org/name` contains a slash but is no folder."""
    import transformers

    from recbole_llm.language.backbones.sources import check_model_name

    asked = []

    def ask(name, **kwargs):
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", ask)
    check_model_name("Qwen/Qwen2.5-0.5B", tmp_path)
    with pytest.raises(Exception, match="cannot be loaded: no network"):
        load_folder("Qwen/Qwen2.5-0.5B")
    assert asked == ["Qwen/Qwen2.5-0.5B"]
