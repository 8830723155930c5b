"""A history of 10,000 events costs what its newest items cost.

It is truncated before it is looked up, tokenised and encoded.
"""

import logging

import numpy as np
import pytest
from shops import write_shop

from recbole_llm.language.backbones.encoder_decoder import SegmentEncoder
from recbole_llm.language.backbones.scratch import train_tokenizer
from recbole_llm.language.prompts.templates import TASTE_PROMPT, Example, LazyTexts, Template
from recbole_llm.language.tokens.batches import (
    AttributeEncoder,
    HistoryEncoder,
    PieceTokenizer,
    SentenceEncoder,
    attribute_corpus,
)
from recbole_llm.runs.runner import Runner
from recbole_llm.runs.spec import describe
from recbole_llm.settings import layers

LONG = 10_000
TEMPLATE = Template("A history.", "First.", " Next.", " Next.")
ITEMS = [f"item {number} of {'red ' * (number % 7)}wood" for number in range(40)]
TOKENIZER = train_tokenizer([*ITEMS, *TASTE_PROMPT, *vars(TEMPLATE).values()], 400)


class Counted(list):
    """The texts count how often one is read."""

    read = 0

    def __getitem__(self, index):
        self.read += 1
        return super().__getitem__(index)


def causal(texts):
    return HistoryEncoder(TOKENIZER, 120).encode(Example(TEMPLATE, texts, ITEMS[0]))


def sentences(texts):
    return SentenceEncoder(TOKENIZER, 120, marks=(1, 2, 3, 4)).sequence(texts)


def segments(texts):
    return SegmentEncoder(TOKENIZER, 60, segments=3).history(texts)


def attributes(texts):
    return ATTRIBUTES.sequence(texts)


PARTED = [(("Title", text),) for text in ITEMS]
ATTRIBUTES = AttributeEncoder(
    train_tokenizer(attribute_corpus(PARTED), 400), 100, marks=(0, 1), max_items=8
)
ENCODERS = {causal: ITEMS, sentences: ITEMS, segments: ITEMS, attributes: PARTED}


@pytest.mark.parametrize("encode", ENCODERS)
def test_no_more_is_read_than_fits(encode):
    table = Counted(ENCODERS[encode])
    history = np.random.default_rng(0).integers(0, len(table), LONG)
    tokens = encode(LazyTexts(table, history))
    kept = LONG - tokens.cut
    # the item that does not fit is read too, of each segment
    assert 1 < kept < 60 and kept <= table.read <= kept + 3


@pytest.mark.parametrize("encode", ENCODERS)
@pytest.mark.parametrize("seed", range(20))
def test_texts_that_are_looked_up_late_are_the_same_texts(encode, seed):
    rng = np.random.default_rng(seed)
    table = ENCODERS[encode]
    history = rng.integers(0, len(table), rng.integers(1, 30))
    late, whole = encode(LazyTexts(table, history)), encode([table[item] for item in history])
    assert late.ids.tolist() == whole.ids.tolist() and late.cut == whole.cut
    longer = np.concatenate([rng.integers(0, len(table), 500), history])
    if late.cut:  # what is older than what was left out changes nothing
        older = encode(LazyTexts(table, longer))
        assert older.ids.tolist() == late.ids.tolist() and older.cut == late.cut + 500


@pytest.mark.parametrize("seed", range(20))
def test_a_prompt_holds_the_most_newest_items_that_fit(seed):
    """The oracle adds up the lengths of whole prompts."""
    rng = np.random.default_rng(seed)
    own = HistoryEncoder(TOKENIZER, int(rng.integers(20, 200)))
    items = [ITEMS[item] for item in rng.integers(0, len(ITEMS), rng.integers(1, 25))]
    whole = HistoryEncoder(TOKENIZER, 10**6)
    fitting = [
        count
        for count in range(1, len(items) + 1)
        if len(whole.encode(Example(TEMPLATE, items[-count:], ITEMS[0]))) <= own.max_length
    ]
    most = max(fitting, default=1)
    learned = rng.random(len(items)) < 0.5
    tokens = own.encode(Example(TEMPLATE, items, ITEMS[0], learned))
    expected = whole.encode(Example(TEMPLATE, items[-most:], ITEMS[0], learned[-most:]))
    assert tokens.cut == len(items) - most and tokens.ids.tolist() == expected.ids.tolist()
    assert tokens.learned.tolist() == expected.learned.tolist() and tokens.items == expected.items


def test_texts_are_a_sequence():
    texts = LazyTexts(["a", "b", "c"], np.array([2, 0, 1, 1]))
    assert list(texts) == ["c", "a", "b", "b"] and list(texts[1:-1]) == ["a", "b"]
    assert list(reversed(texts[:-1])) == ["b", "a", "c"] and texts[-1] == "b" and len(texts) == 4


# ---- models ----


def write_long(folder, length: int):
    """Write the shop of every test, and a user with `length` more events."""
    write_shop(folder)
    path = folder / "dataset" / "tiny" / "tiny.inter"
    rng = np.random.default_rng(0)
    rows = [
        f"long\ti{item}\t5\t{1_500_000_000 + time}"
        for time, item in enumerate(rng.integers(0, 20, length))
    ]
    path.write_text(path.read_text() + "\n".join(rows) + "\n")


MODELS = {
    "CALRec": {"max_length": 100, "scratch_vocabulary": 400, "nig_targets": "last"},
    "CALRec all": {"max_length": 100, "scratch_vocabulary": 400, "nig_targets": "all"},
    "ST5Seq": {"max_length": 100, "backbone": "scratch:tiny", "targets": "one"},
    "TASTELoRA": {"max_length": 100, "backbone": "scratch:tiny", "targets": "one"},
    "RecFormer": {"max_length": 100, "backbone": "scratch:tiny", "targets": "one"},
    "TALLRec": {"max_length": 300, "scratch_vocabulary": 400, "targets": "one"},
    "LLMTRSR": {"max_length": 400, "scratch_vocabulary": 400, "targets": "one", "summary": "none"},
}


def pieces_read(model: str, folder, length: int, monkeypatch) -> tuple[int, int]:
    """Return the numbers of training examples and of pieces that are looked up.

    The pieces are those of the examples and of all test cases.
    """
    write_long(folder, length)
    monkeypatch.chdir(folder)
    own = {"use_gpu": False, "show_progress": False, "eval_args.mode": "uni5"} | MODELS[model]
    built, _, (_, _, test) = Runner(
        describe(layers.resolve(model.split()[0], "tiny", [], own))
    ).build()
    counted, piece = 0, PieceTokenizer.piece

    def counting(self, text, end=False, opens=False):
        nonlocal counted
        counted += 1
        return piece(self, text, end, opens)

    with monkeypatch.context() as patch:
        patch.setattr(PieceTokenizer, "piece", counting)
        examples, cases = built.examples(0), test._dataset.cases
        if hasattr(built, "prompts"):
            built.prompts(cases)
        elif hasattr(built, "prefixes"):
            built.prefixes(cases)
        else:
            patch.setattr(built, "vectors", lambda tokens, saved=None: tokens)
            built.encode_users(cases)
    return len(examples), counted


@pytest.mark.parametrize("model", MODELS)
def test_a_model_reads_the_newest_items_alone(model, tmp_path, monkeypatch):
    """3,000 events need as many pieces as 300.

    Where all events are learned, each needs as many.
    """
    found = [
        pieces_read(model, tmp_path / str(length), length, monkeypatch) for length in (300, 3_000)
    ]
    (few, read), (many, read_long) = found
    assert few == many == 41 or model == "CALRec all" and many > 3 * few
    assert 0 < read_long / many <= 1.5 * read / few


def test_a_summary_reads_the_newest_blocks_alone(tmp_path, monkeypatch):
    """A history and a longer one share their blocks.

    No summary is therefore paid twice.
    """
    from recbole_llm.data.texts.text import ItemText
    from recbole_llm.language.summaries.schedules import run_plans
    from recbole_llm.language.summaries.summarizer import Summarizer

    write_shop(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings = layers.resolve("LLMTRSR", "tiny", [], {"use_gpu": False})
    prepared = describe(settings)
    text = ItemText.from_interactions(
        prepared.interactions, settings["text_fields"], settings["text_words"]
    )
    history = np.random.default_rng(0).integers(0, len(text), LONG)

    def blocks(summarizer, own):
        asked = []

        def write(requests, level):
            asked.extend(request.items for request in requests if request.items)
            return [("text", False)] * len(requests)

        run_plans([summarizer.plan(own)], write)
        return asked

    for kind in ("hierarchical", "recurrent"):
        for most in (3, 50, 1000):
            prepared.config["summary"], prepared.config["summary_items"] = kind, most
            summarizer = Summarizer(prepared.config, text, logging.getLogger())
            found = [blocks(summarizer, history[:length]) for length in (LONG - 7, LONG)]
            for own in found:
                assert most <= sum(map(len, own)) < most + settings["block_size"]
            if most > 50:
                shared = {one for one in found[0] if len(one) == settings["block_size"]}
                assert len(shared - set(found[1])) <= 2  # those that are too old now
            short = history[: min(most, 40)]
            assert sum(map(len, blocks(summarizer, short))) == len(short)
