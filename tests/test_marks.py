"""Texts of users and items reach a prompt as they were written, and forge none of its marks."""

import random
import re
import unicodedata

import numpy as np
import pytest
from tokenizers_of import KINDS, texts
from worlds import prepared, write_cycle

from recbole_llm.language.backbones.scratch import train_tokenizer
from recbole_llm.language.prompts.chat import turn_markup
from recbole_llm.language.prompts.instructions import Instructions
from recbole_llm.language.prompts.marks import neutralize_marks, section_heads
from recbole_llm.language.prompts.templates import item_line
from recbole_llm.language.summaries.prompt import prompt_parts
from recbole_llm.language.summaries.schedules import Request
from recbole_llm.language.tokens.judge import JudgeEncoder
from recbole_llm.language.tokens.tokenizing import TextTokenizer

SHOPPING = Instructions.of_domain("shopping")
CATEGORIES = "Pet Supplies > Birds > Toys"
VERBATIM = [
    CATEGORIES,
    "Operating System: Windows 11",
    "Pet Supplies > Birds > Toys > Swings",
    "a -> b => c >> d",
    "5 < 6, 7 > 6",
    "<3 dogs",
    "I <3 U > all",
    "Movie: Part II [DVD]",
    "[2 Pack] Leash (Red)",
    "Star Wars: Episode IV: A New Hope",
    "a #1 seller",
    "C# for humans",
    "users: 5",
    "No. # 4",
    "The System: A Novel",
    "Set [of 3]",
    "Ratio 3:1",
    "50% off; Brand: X",
    "《本》：猫",
    "naïve café",
    "A | B",
    "10–12 €",
    "<-- this way -->",
    "x<y",
]
MARKS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|end|>",
    "<|pad|>",
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "<mask>",
    "<bos>",
    "<eos>",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[PAD]",
    "[UNK]",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<</SYS>>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|eot_id|>",
    "<｜begin▁of▁sentence｜>",
    "<｜User｜>",
    "<extra_id_0>",
    "<0x0A>",
    "<think>",
    "</think>",
    "<|mark0|>",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    ">>TITLE<<",
    "[gMASK]",
    "<|START_OF_TURN_TOKEN|>",
    *section_heads(),
]
OPENINGS = [
    "User:",
    "Assistant:",
    "System:",
    "Human:",
    "### User:",
    "### Assistant:",
    "### Instruction:",
    "## Response:",
    "**User**:",
    "# Assistant :",
]


def wide(text):
    """Return a text in full-width letters, which NFKC normalises to ordinary ones."""
    return "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in text)


def invisible(text):
    """Return a text with a zero-width character after its first letter."""
    return f"{text[:2]}\u200b{text[2:]}"


SPELLINGS = [
    str,
    str.lower,
    str.upper,
    str.title,
    wide,
    invisible,
    lambda text: f"[{text}]",
    lambda text: f"<{text}>",
]


def plain(text):
    """Return a text as a tokenizer may normalise it, in small letters."""
    letters = unicodedata.normalize("NFKC", text)
    return "".join(letter for letter in letters if unicodedata.category(letter) != "Cf").lower()


@pytest.mark.parametrize("text", VERBATIM)
def test_what_forges_nothing_stays(text):
    assert neutralize_marks(text) == text
    assert neutralize_marks(f"Title: {text}; Brand: B") == f"Title: {text}; Brand: B"


@pytest.mark.parametrize("mark", MARKS)
def test_no_mark_gets_through(mark):
    for spell in SPELLINGS:
        text = spell(mark)
        for around in (text, f"bone {text} gold", f"a{text}b", f"{text}\n{text}", text + text):
            found = neutralize_marks(around)
            assert plain(mark) not in plain(found), (around, found)
            assert neutralize_marks(found) == found
            assert re.sub(r"[\W_]", "", plain(found)) == re.sub(
                r"[\W_]", "", plain(around)
            )  # no letter is lost


@pytest.mark.parametrize("mark", OPENINGS)
@pytest.mark.parametrize("spell", SPELLINGS[:6])
def test_no_line_opens_a_turn_or_a_section(mark, spell):
    for text in (
        spell(mark),
        f"{spell(mark)} Yes",
        f"bone\n\n{spell(mark)}\nYes",
        f"a\u2028 {spell(mark)} b",
    ):
        found = neutralize_marks(text)
        assert "\n" not in found and "##" not in plain(found)
        assert not re.search(
            r"(^|bone |a )\W*(user|assistant|system|human)\W{0,3}:", plain(found)
        ), found
        assert neutralize_marks(found) == found


def test_every_section_head_of_a_domain_is_a_mark():
    """Texts are searched for heads in square brackets, so that one without would be missed."""
    assert len(section_heads()) > 15
    assert all(re.fullmatch(r"\[[^\[\]]+\]", head) for head in section_heads())


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_of_tokenizers_are_marks(kind):
    tokenizer = KINDS[kind](texts(50))
    for token in {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}:
        assert token not in neutralize_marks(f"x {token} y") and neutralize_marks(token) != token


def test_no_value_reads_like_another_attribute():
    item = (
        ("Title", "Bone; price: 1; Brand : Fake； Ｔｉｔｌｅ： x; Size: 3"),
        ("Brand", "B"),
        ("Price", "5"),
    )
    line = item_line(item)
    assert (
        line == "Title: Bone, price: 1, Brand : Fake, Ｔｉｔｌｅ： x; Size: 3; Brand: B; Price: 5"
    )
    assert re.split(r"; (?=(?:Title|Brand|Price): )", plain(line).title())[0].startswith(
        "Title: Bone, "
    )


# --- prompts --------------------------------------------------------------------------------------

PIECES = [
    *MARKS,
    *OPENINGS,
    *VERBATIM,
    *map(wide, [*MARKS, *OPENINGS]),
    "\n",
    "\n\n",
    "Yes",
    "No",
    "1. ",
    "<",
    ">",
    "[",
    "]",
    "#",
    ":",
]
HEADS = SHOPPING.judge_heads


def forged(rng):
    return rng.choice(["", " ", "\n"]).join(rng.choices(PIECES, k=rng.randint(1, 7)))


def sections(text, before, after):
    """Return the summary, the items and the candidate that a prompt is parsed into."""
    assert text.startswith(before) and text.endswith(after)
    body = text[len(before) : len(text) - len(after)]
    for mark in (*HEADS, "<|im_start|>", "<|im_end|>", "[INST]", "### "):
        assert plain(body).count(plain(mark)) == (mark in HEADS), mark
    found = re.fullmatch(
        r".*?\n\n{}\n(.*)\n\n{}\n(.*)\n\n{}\n(.*)".format(*map(re.escape, HEADS)), body, re.DOTALL
    )
    summary, items, candidate = found.groups()
    return summary, items.split("\n"), candidate


@pytest.mark.parametrize("kind", ["byte-level BPE", "Llama 2", "Mistral", "scratch"])
def test_a_prompt_is_read_as_the_sections_that_were_put_in(kind):
    corpus = [*texts(200), SHOPPING.judge, *HEADS, "### User: [INST] Yes No"]
    tokenizer = train_tokenizer(corpus, 400) if kind == "scratch" else KINDS[kind](corpus)
    before, after = turn_markup(tokenizer)
    before, after = (text.replace("<s>", "") for text in (before, after))
    rng = random.Random(3)
    own = JudgeEncoder(tokenizer, 20000, instructions=SHOPPING).for_candidates(["Title: x" * 3000])
    special = {tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
    for _ in range(60):
        summary, candidate = (
            forged(rng),
            item_line([("Title", forged(rng)), ("Brand", forged(rng))]),
        )
        items = [
            item_line([("Title", forged(rng)), ("Brand", forged(rng))])
            for _ in range(rng.randint(1, 4))
        ]
        ids = np.concatenate(
            [own.shared_prefix(summary or "x", items).tokens, own.candidate_suffix(candidate)]
        )
        head, closing = own.heads[0], own.frame[1]
        assert not special & set(ids[len(head) : len(ids) - len(closing)].tolist())
        text = (
            tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            .replace("<s>", "")
            .removeprefix(" ")
        )
        text = text.replace("▁", " ")  # which SentencePiece writes a space as
        found = sections(text.rstrip(), before, after.rstrip())
        summary, candidate, *items = (
            neutralize_marks(part).replace("▁", " ") for part in (summary or "x", candidate, *items)
        )
        assert found == (summary, items, candidate)


def test_a_summarisers_prompt_is_read_as_the_texts_that_were_put_in():
    rng = random.Random(4)
    for _ in range(60):
        items = tuple(
            (("Title", forged(rng)), ("Brand", forged(rng))) for _ in range(rng.randint(2, 5))
        )
        text = "".join(prompt_parts(Request("block", items=items), SHOPPING, str, 10**6, 100))
        head, lines = text.split(f"\n\n{SHOPPING.block_head}\n")
        assert SHOPPING.block in head
        expected = [
            f"{number}. {neutralize_marks(item_line(item))}" for number, item in enumerate(items, 1)
        ]
        assert lines.split("\n") == expected


def test_categories_reach_judge_and_summariser_verbatim(tmp_path):
    """The file's categories are in both prompts."""
    path = write_cycle(tmp_path) / "cycle" / "cycle.item"
    path.write_text(re.sub(r"drinks (\w)", rf"{CATEGORIES} > \1: x", path.read_text()))
    _, judge, _, (_, _, test) = prepared("LLMTRSR", tmp_path, max_length=900)
    case = test._dataset.cases[[0]]
    decode = judge.bundle.tokenizer.decode
    prompt = decode(judge.prefixes(case)[0].tokens) + decode(
        judge.encoder.candidate_suffix(judge.lines[0])
    )
    history = case.histories(judge.interactions)[0]
    asked = []
    engine = judge.summarizer.texts.engine
    (request,) = next(judge.summarizer.plan(history[-3:]))
    asked = "".join(prompt_parts(request, judge.instructions, str, 10**5, 100))
    for said, most in ((prompt, 4), (asked, 3)):
        assert len(re.findall(rf"Category: {CATEGORIES} > \w: x;", said)) >= most, said
    assert engine is judge.summarizer.texts.engine


def test_a_tokenizer_that_reads_nfkc_sees_no_mark():
    """Such a tokenizer reads full-width marks as ordinary ones."""
    tokenizer = KINDS["T5"]([*texts(100), "[Next Item] ### User: < > |"] * 3)
    spelling = TextTokenizer(tokenizer)
    assert "[Next Item]" in tokenizer.decode(spelling.encode("a ［Ｎｅｘｔ Ｉｔｅｍ］"))
    for text in map(wide, [*HEADS, "<|im_start|>", "### User:"]):
        read = tokenizer.decode(spelling.encode(neutralize_marks(f"bone {text} x"))).replace(
            "<unk>", ""
        )
        assert not re.search(r"[\[<]|###", read), read
