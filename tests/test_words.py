"""Words of every script, matched alike however they are encoded, and texts cut by them."""

import itertools
import re
import unicodedata

import numpy as np
import pytest
from worlds import prepared, settings_for

from recbole_llm.data.texts.words import count, cut, words
from recbole_llm.runs.commands import run_settings


@pytest.mark.parametrize(
    "text,expected",
    [
        ("Don't STOP_it, 3/4\"!", "don t stop_it 3 4"),
        ("Ströme ™ Größe № 5", "ströme größe 5"),
        ("Cafe\u0301 NAI\u0308VE", "café naïve"),
        ("हिन्दी किताब", "हिन्दी किताब"),  # vowel signs and a virama are marks
        ("שָׁלוֹם", "שָׁלוֹם"),
        ("한국어 책", "한국어 책"),
        ("\u1112\u1161\u11ab\u1100\u116e\u11a8", "한국"),
        ("不锈钢杯", "不锈 锈钢 钢杯"),
        ("杯", "杯"),
        ("保温杯500ml蓝色 New", "保温 温杯 500ml 蓝色 new"),
        ("【新品】杯（蓝色）", "新品 杯 蓝色"),
        ("ミルク・カフェ", "ミル ルク カフ フェ"),
        ("กาแฟ ๒๕๐", "กา าแ แฟ ๒๕๐"),
        ("น้ำดื่ม", "น้ำ ำดื่ ดื่ม"),  # tone marks and vowels above stay with their consonant
        ("ကော်ဖီ", "ကော်ဖီ"),
        ("3\ufe0f\u20e3 pack \u2764\ufe0f", "3 pack"),
        ("می\u200cخواهم", "میخواهم"),
        ("co\u00adoperate", "cooperate"),
        ("re\u200busable", "reusable"),  # a place to break the line, where words have spaces
        ("zero\u2060width and\ufeff more\u200e", "zerowidth and more"),
        ("\ufeffcup \u00ad \u200b-\u2060", "cup"),
        ("cafe\u00ad\u0301", "café"),
        ("क्\u200dष क्\u200cष", "क्ष क्ष"),
        ("کتاب\u200cها", "کتابها"),
        ("กาแฟ\u200bเย็น", "กา าแ แฟ เย็ ย็น"),  # it ends a word there
        ("กา\u2060แฟ", "กา าแ แฟ"),
        ("杯\u200b子 cup\u200b子", "杯 子 cup 子"),
        ("", ""),
        ("… — 。", ""),
    ],
)
def test_words(text, expected):
    assert words(text) == unicodedata.normalize("NFC", expected).split()


def any_text(rng, alphabet, size=30):
    return "".join(rng.choice(list(alphabet), size=size))


LATIN = "abcDEF_ 09-'.éÜßñ½™"
HAN = "不锈钢保温杯蓝色木制台灯卧室用"
KANA = "ちいさなマグカップー"
MARKS = "aek\u0301\u0308\u0327हनदकि्ी"


@pytest.mark.parametrize("seed", range(20))
def test_texts_with_spaces_and_without_marks_have_the_words_of_a_plain_pattern(seed):
    text = any_text(np.random.default_rng(seed), LATIN)
    assert words(text) == re.findall(r"\w+", text.lower())
    assert cut(text, 3) == " ".join(text.split()[:3])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("alphabet", [LATIN + MARKS, HAN, KANA + HAN + "ab ", HAN + MARKS + " "])
def test_the_encoding_of_a_text_and_its_case_do_not_change_its_words(alphabet, seed):
    text = unicodedata.normalize("NFC", any_text(np.random.default_rng(seed), alphabet))
    expected = words(text)
    assert words(unicodedata.normalize("NFD", text)) == expected
    assert words(" ".join(expected[:1])) == expected[:1]
    assert all(word[0] == "_" or word[0].isalnum() for word in expected)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("limit", [1, 2, 7, 100])
def test_a_text_is_cut_behind_so_many_words(seed, limit):
    rng = np.random.default_rng(seed)
    unspaced = any_text(rng, HAN + KANA)
    assert words(cut(unspaced, limit)) == words(unspaced)[:limit]
    mixed = any_text(rng, HAN + MARKS + LATIN + "（）")
    plain = " ".join(mixed.split())
    shorter = cut(mixed, limit)
    assert plain.startswith(shorter) and cut(mixed) == cut(mixed, 10**6) == plain
    behind = plain[len(shorter) :]
    assert not behind or not unicodedata.category(behind[0]).startswith("M")


def test_a_title_without_spaces_is_cut_as_it_is_written():
    assert cut("不锈钢保温杯蓝色", 3) == "不锈钢保"
    assert cut("新しい e\u0301le\u0300ve  マグカップ", 4) == "新しい e\u0301le\u0300ve マグ"
    assert cut("保温杯500ml蓝色", 3) == "保温杯500ml"


def write_shop(folder, name, titles):
    """A shop whose users buy all items of one kind in turn, so the next one is of that kind."""
    target = folder / name
    target.mkdir()
    rng, kinds = np.random.default_rng(3), len(titles) // 4
    events = []
    for user in range(40):
        kind = int(rng.integers(kinds))
        items = enumerate(rng.permutation(4))
        events += [(f"u{user}", 4 * kind + int(item), place) for place, item in items]
    (target / f"{name}.inter").write_text(
        "user_id:token\titem_id:token\ttimestamp:float\n"
        + "".join(f"{user}\ti{item}\t{time}\n" for user, item, time in events)
    )
    (target / f"{name}.item").write_text(
        "item_id:token\ttitle:token_seq\n"
        + "".join(f"i{number}\t{title}\n" for number, title in enumerate(titles))
    )


SHOPS = {
    "han": (["不锈钢保温杯", "木制台灯卧室", "纯棉短袖上衣"], ["蓝色", "红色", "绿色", "黑"]),
    "thai": (["กาแฟคั่วบด", "น้ำดื่มสะอาด", "เสื้อยืดผ้าฝ้าย"], ["สีฟ้า", "สีแดง", "เขียว", "ดำ"]),
    "kana": (
        ["ステンレスマグ", "きのつくえらんぷ", "コットンシャツ"],
        ["あお", "あか", "みどり", "くろ"],
    ),
}


@pytest.mark.parametrize("script", SHOPS)
def test_items_alike_are_found_as_by_words_with_spaces(tmp_path, script):
    """Each title again with every two neighbouring characters written as a word between spaces."""
    kinds, colours = SHOPS[script]
    titles = ["".join(pair) for pair in itertools.product(kinds, colours)]
    write_shop(tmp_path, "plain", titles)
    write_shop(tmp_path, "spaced", [" ".join(map(latin, words(title))) for title in titles])
    plain, spaced = (
        run_settings(settings_for("LIR", tmp_path, name)).row["test"]
        for name in ("plain", "spaced")
    )
    for metric in ("ndcg@10", "ndcg@10_opt", "ndcg@10_pes"):
        assert plain[metric] == pytest.approx(spaced[metric], rel=0.02)
    assert plain["recall@5"] == pytest.approx(1) and plain["ndcg@10_pes"] > 0.3


def latin(word):
    """Another spelling of a word, for which only letters of Latin are needed."""
    return "".join(chr(ord("a") + int(digit, 16)) for digit in word.encode("utf-16-be").hex())


def test_an_encoding_is_only_matched_and_not_shown(tmp_path):
    """Two items of one text in two encodings tie, and both keep their own."""
    titles = ["Cafe\u0301 noir", "Caf\u00e9 noir", "The vert", "Lait"]
    write_shop(tmp_path, "accents", titles)
    _, model, _, (_, _, test) = prepared("LIR", tmp_path, "accents")
    scores = model.score(test._dataset.cases)
    one, other = (model.text.values.index((title,)) for title in titles[:2])
    assert (scores[:, one] == scores[:, other]).all() and scores[:, one].any()


@pytest.mark.parametrize("titles", [["…", "!!!", "—", "?"], ["", "", "", "only this one"]])
def test_what_cannot_be_matched_is_said_as_it_is(tmp_path, caplog, titles):
    """A model that writes nothing is not told that its texts have no format."""
    write_shop(tmp_path, "wordless", titles)
    events = tmp_path / "wordless" / "wordless.inter"
    rows = [row for row in events.read_text().splitlines() if "\ti3\t" not in row]
    events.write_text("\n".join([*rows, "only\ti3\t0"]) + "\n")
    run = run_settings(settings_for("LIR", tmp_path, "wordless"))
    assert run.row["rates"]["unmatched"] == 1 and "format of an item" not in caplog.text
    assert "the newest items of every history have no word in their texts" in caplog.text
    assert run.row["test"]["mrr_opt"] == pytest.approx(1 / 4)


def test_sentences_without_spaces_are_drawn_apart_and_counted():
    """A description is no title because it has no spaces, and the extract of it ends."""
    from recbole_llm.language.summaries.extractive import SENTENCES, _sentences, nearest

    value = "这个保温杯可以保温十二个小时。杯盖不会漏水！适合办公室和旅行使用？颜色有蓝色和红色"
    assert _sentences(value) == [
        "这个保温杯可以保温十二个小时。",
        "杯盖不会漏水！",
        "适合办公室和旅行使用？",
        "颜色有蓝色和红色.",
    ]
    assert _sentences("不锈钢保温杯蓝色") == ["不锈钢保温杯蓝色."]
    drawn = nearest(_sentences(value * 9))
    assert sum(map(count, drawn)) <= SENTENCES and len(drawn) > 2
    assert count(nearest(["保温杯" * 100])[0]) == SENTENCES
    english = (
        "It keeps warm for hours. The lid is tight! "
        "Good for an office, or for travel? No more to say here at all"
    )
    assert len(_sentences(english)) == 4 and count(english) == len(english.split())


INVISIBLE = "\u00ad\u034f\u061c\u200c\u200d\u200e\u200f\u202a\u202c\u2060\u2066\u2069\ufeff"


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("alphabet", [LATIN, LATIN + MARKS, KANA + HAN + "ab "])
def test_invisible_characters_change_no_word_and_no_count(alphabet, seed):
    rng = np.random.default_rng(seed)
    text = unicodedata.normalize("NFC", any_text(rng, alphabet))
    more = INVISIBLE if alphabet != LATIN else INVISIBLE + "\u200b"
    seen = "".join(
        char + (rng.choice(list(more)) if rng.random() < 0.5 and char != " " else "")
        for char in text
    )
    assert words(seen) == words(text) and seen != text
    assert count(seen) == count(text)
