"""The tokens of many texts lie in a mapped file, and are those of each text alone."""

import json

import numpy as np
import pytest
from tokenizers_of import KINDS, texts
from worlds import prepared, write_cycle

from recbole_llm.language.tokens import batches
from recbole_llm.language.tokens.store import BOUNDS, NAMES, SUMMARY, WORDS, TokenStore, open_store
from recbole_llm.language.tokens.tokenizing import TextTokenizer

ODD = ["", " ", "  a", "<|endoftext|>", "</s> x", "a\nb", "▁", "ünï 猫", "x" * 300]


@pytest.fixture(scope="module", params=KINDS)
def spelling(request):
    return TextTokenizer(KINDS[request.param](texts(300)))


@pytest.mark.parametrize("opens", [False, True])
def test_texts_tokenised_together_are_those_tokenised_alone(spelling, opens):
    pieces = [" " + text for text in texts(40, seed=5)] + texts(20, seed=6) + ODD
    ids, lengths = spelling.encode_all(pieces, opens)
    alone = [spelling.encode(piece, opens).tolist() for piece in pieces]
    assert np.split(ids, np.cumsum(lengths)[:-1])[0].tolist() == alone[0]
    assert [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] == alone


def test_a_store_has_every_form_of_every_text(spelling, tmp_path, monkeypatch):
    monkeypatch.setattr("recbole_llm.language.tokens.store.AT_ONCE", 7)
    some = texts(30, seed=2) + ODD
    empty = open_store(spelling, [""], [("", True)], tmp_path)
    assert empty.find("", True).tolist() == spelling.encode("", True).tolist()
    forms = [(" ", False), ("", True), (" ", False)]
    store = open_store(spelling, [*some, *some[:5]], forms, tmp_path)
    assert len(store) == 2 * len(set(some)) and store.ids.dtype == np.int32
    for text in some:
        assert store.find(" " + text, False).tolist() == spelling.encode(" " + text).tolist()
        assert store.find(text, True).tolist() == spelling.encode(text, True).tolist()
    assert store.find("another text", True) is None and store.find(some[0], False) is None


def test_texts_whose_hashes_begin_alike_are_told_apart(tmp_path, monkeypatch):
    spelling = TextTokenizer(next(iter(KINDS.values()))(texts(300)))
    some = texts(20, seed=3)
    numbers = {text: number for number, text in enumerate(dict.fromkeys(some))}
    monkeypatch.setattr(
        "recbole_llm.language.tokens.store._name",
        lambda text, opens: (np.uint64(7), np.uint64(numbers[text])),
    )
    store = open_store(spelling, some, [("", True)], tmp_path)
    for text in some:
        assert store.find(text, True).tolist() == spelling.encode(text, True).tolist()


class Counting:
    """A spelling that counts the texts that it tokenises."""

    def __init__(self, spelling):
        self.spelling, self.count = spelling, 0
        self.fingerprint = spelling.fingerprint

    def encode_all(self, some, opens):
        self.count += len(some)
        return self.spelling.encode_all(some, opens)


@pytest.mark.parametrize("damage", [WORDS, BOUNDS, NAMES, SUMMARY, "gone"])
def test_a_store_is_made_once_and_again_where_it_is_damaged(tmp_path, damage):
    spelling = Counting(TextTokenizer(next(iter(KINDS.values()))(texts(300))))
    some = list(dict.fromkeys(texts(30)))
    first = open_store(spelling, some, [(" ", False)], tmp_path)
    assert spelling.count == len(some)
    open_store(spelling, some, [(" ", False)], tmp_path)
    assert spelling.count == len(some)
    if damage == "gone":
        (first.folder / WORDS).unlink()
    else:
        data = bytearray((first.folder / damage).read_bytes())
        data[len(data) // 2] ^= 1
        (first.folder / damage).write_bytes(data)
    again = open_store(spelling, some, [(" ", False)], tmp_path)
    assert spelling.count == 2 * len(some)
    expected = spelling.spelling.encode(" " + some[0]).tolist()
    assert again.find(" " + some[0], False).tolist() == expected
    open_store(spelling, some[1:], [(" ", False)], tmp_path)  # another key
    assert len(list(tmp_path.glob("[!.]*"))) == 2


def test_a_build_that_fails_leaves_nothing(tmp_path):
    spelling = Counting(TextTokenizer(next(iter(KINDS.values()))(texts(300))))
    spelling.encode_all = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        open_store(spelling, texts(9), [("", True)], tmp_path)
    assert all(path.name.endswith(".lock") for path in tmp_path.iterdir())


MODELS = ["CALRec", "ST5Seq", "RecFormer", "TASTELoRA", "TALLRec"]


@pytest.mark.parametrize("model", MODELS)
def test_examples_are_the_same_with_a_store(tmp_path, model, monkeypatch):
    write_cycle(tmp_path)
    _, plain, _, _ = prepared(model, tmp_path)
    assert plain.encoder.store is None
    monkeypatch.setattr(batches, "STORED_TEXTS", 1)
    _, built, _, _ = prepared(model, tmp_path)
    assert isinstance(built.encoder.store, TokenStore)
    found = [0]
    inner = TokenStore.find

    def watched(self, text, opens):
        ids = inner(self, text, opens)
        found[0] += ids is not None
        return ids

    monkeypatch.setattr(TokenStore, "find", watched)
    for one, other in zip(plain.examples(0), built.examples(0), strict=True):
        assert [a.ids.tolist() for a in one] == [b.ids.tolist() for b in other]
    assert found[0] > 10
    assert len(built.encoder.pieces) < len(plain.encoder.pieces)  # the fixed sentences alone
    summary = json.loads((built.encoder.store.folder / SUMMARY).read_text())
    assert summary["texts"] == len(built.encoder.store)
