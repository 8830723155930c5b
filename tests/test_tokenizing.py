"""Texts joined from pieces have the tokens of the whole text, with any kind of tokenizer."""

import random

import numpy as np
import pytest
import torch
from tokenizers_of import CHAT, KINDS, texts
from transformers import LlamaConfig, LlamaForCausalLM
from worlds import prepared, write_cycle

from recbole_llm.language.backbones.encoder_decoder import SegmentEncoder
from recbole_llm.language.backbones.scratch import train_tokenizer
from recbole_llm.language.prompts.chat import ASSISTANT, answer_markup, tokenize_turn, turn_markup
from recbole_llm.language.prompts.instructions import Instructions
from recbole_llm.language.prompts.templates import (
    ST5SEQ_INSTRUCTION,
    TASTE_PROMPT,
    Example,
    Template,
    TextForm,
    item_prefix,
)
from recbole_llm.language.summaries.prompt import prompt_parts
from recbole_llm.language.summaries.schedules import Request
from recbole_llm.language.tokens.batches import AttributeEncoder, HistoryEncoder, SentenceEncoder
from recbole_llm.language.tokens.judge import JudgeEncoder, answer_tokens
from recbole_llm.language.tokens.tokenizing import TextTokenizer

SHOPPING = Instructions.of_domain("shopping")
CALREC = Template(
    head="This is the summary of a user's purchase history.",
    first="The first item bought is as follows.",
    next="\n\nThe next item bought is as follows.",
    target="\n\nThe next item bought is as follows.",
)
GPT4REC = Template("Previously, the customer has bought:", "", "", "\n\nThe customer wants to buy")
CORPUS = [
    *texts(300),
    *[SHOPPING.judge, SHOPPING.judge_history, SHOPPING.block, *SHOPPING.judge_heads] * 5,
    *[*vars(CALREC).values(), *vars(GPT4REC).values(), *TASTE_PROMPT, ST5SEQ_INSTRUCTION] * 5,
    *["[INST] Yes [/INST]", "### User: No", "### Assistant: Yes", "id: 12 title: TITLE"] * 9,
]


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: make(CORPUS) for kind, make in KINDS.items()}


@pytest.fixture(params=KINDS)
def tokenizer(request, tokenizers):
    return tokenizers[request.param]


def whole(tokenizer, text, special=True, **own):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=not special, **own)[
        "input_ids"
    ]


def histories(count=12):
    rng = random.Random(7)
    items = texts(60, seed=5)
    return [rng.sample(items, rng.randint(1, 8)) for _ in range(count)]


# --- judges ---------------------------------------------------------------------------------------


def judge(tokenizer, **own):
    return JudgeEncoder(tokenizer, 4000, instructions=SHOPPING, **own).for_candidates(texts(40))


@pytest.mark.parametrize("summarised", [True, False])
def test_a_judges_prompt_is_the_whole_texts(tokenizer, summarised):
    own = judge(tokenizer, summarised=summarised)
    before, _ = turn_markup(tokenizer)
    heads = SHOPPING.judge_heads
    for items in histories():
        opening = (
            f"{SHOPPING.judge}\n\n{heads[0]}\nlikes dogs" if summarised else SHOPPING.judge_history
        )
        said = "\n".join(
            [f"{opening}\n\n{heads[1]}", *(items[1:] or ["NULL"]), f"\n{heads[2]}", items[0]]
        )
        found = np.concatenate(
            [own.shared_prefix("likes dogs", items[1:]).tokens, own.candidate_suffix(items[0])]
        )
        for answer, token in zip(("Yes", "No"), own.frame[2], strict=True):
            expected = whole(tokenizer, before + said + answer_markup(tokenizer, answer))
            assert expected[: len(found)] == found.tolist() and expected[len(found)] == token
        assert own.spelling.count_differences(found) == 0


def test_a_summarisers_prompt_is_the_whole_texts(tokenizer):
    spelling, (opening, space, closing, _) = TextTokenizer(tokenizer), tokenize_turn(tokenizer)
    before, after = turn_markup(tokenizer)
    for items in histories():
        request = Request(
            "block", items=tuple((("Title", text.replace(";", ",")),) for text in items)
        )
        pieces = prompt_parts(request, SHOPPING, spelling.encode, 4000, 100, space)
        said = "".join(prompt_parts(request, SHOPPING, str, 40000, 100))
        found = np.concatenate([opening, *pieces, closing]).tolist()
        assert found == whole(tokenizer, before + said + after)


def test_the_answers_are_those_of_the_chat_template(tokenizers):
    """Behind ` [/INST]` the template writes ` Yes`; behind a line break, `Yes`."""
    for kind in ("Llama 2", "Mistral", "always"):
        tokenizer = tokenizers[kind]
        _, closing, answers = judge(tokenizer).frame
        assert answer_markup(tokenizer, "Yes") == " [/INST] Yes"
        assert tokenizer.convert_ids_to_tokens(list(answers))[0].startswith("▁Y")
        assert tokenizer.decode(closing) == "[/INST]"
        assert answers[0] != answer_tokens(tokenizer, f"{ASSISTANT}Yes", f"{ASSISTANT}No")[1][0]
    _, closing, answers = judge(tokenizers["byte-level BPE"]).frame
    text = tokenizers["byte-level BPE"].decode([*closing, answers[1]])
    assert text.startswith("<|im_end|>\n<|im_start|>assistant\nN")


THOUGHT = CHAT["chatml"].replace(
    "assistant\n{% endif %}", "assistant\n<think>\n</think>\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "behind"),
    [
        (
            THOUGHT,
            "<|im_end|>\n<|im_start|>assistant\n<think>\n</think>\nYes",
        ),  # a prompt that no answer repeats
        ("{% for m in messages %}{{ m.content }}|{% endfor %}", "|Yes"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}:{% endfor %}", ":Yes"),
    ],
)
def test_an_answer_follows_what_the_model_is_asked_with(tokenizers, template, behind):
    tokenizer = KINDS["byte-level BPE"](CORPUS)
    tokenizer.chat_template = template
    assert answer_markup(tokenizer, "Yes") == behind


# --- writers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [CALREC, GPT4REC])
def test_a_writers_prompt_is_the_whole_text_with_end_tokens(tokenizer, template):
    own = HistoryEncoder(tokenizer, 4000)
    for items in histories():
        tokens = own.encode(Example(template, tuple(items[1:]), items[0]))
        sentences = [item_prefix(template, number) for number in range(len(items) - 1)] + [
            template.target
        ]
        pairs = zip(sentences, [*items[1:], items[0]], strict=True)
        text = template.head + "".join(f"{sentence} {item}" for sentence, item in pairs)
        ends = tokens.ids == tokenizer.eos_token_id
        assert ends.sum() == len(items)
        bare = tokens.ids[len(own.opening) :]
        assert bare[bare != tokenizer.eos_token_id].tolist() == whole(
            tokenizer, text, special=False
        )
        alone = own.encode_item(items[0])
        assert tokens.ids[tokens.target :].tolist() == alone.ids.tolist()
        assert own.spelling.count_differences(tokens.ids) == 0


# --- TASTE and sentence encoders ------------------------------------------------------------------


def test_a_segment_is_the_whole_text(tokenizer):
    """`Car,` in place of `Car ,`."""
    own = SegmentEncoder(tokenizer, 4000, item_length=2000)
    opening, closing = own.special_affixes
    for items in histories():
        text = f"{TASTE_PROMPT[0]}{', '.join(items[::-1])}{TASTE_PROMPT[1]}"
        found = own.history(items)
        assert found.ids.tolist() == [*opening, *whole(tokenizer, text), *closing]
        assert own.spelling.count_differences(found.ids) == 0
        short = SegmentEncoder(tokenizer, own.min_length + 40, item_length=2000, segments=9)
        short.max_length = max(len(short.history(items[-1:])), 60)
        tokens = short.history(items)
        for number in range(2, tokens.roles[0].max() + 1):
            own_ids = tokens.ids[tokens.roles[0] == number]
            text = tokenizer.decode(own_ids, skip_special_tokens=True)
            assert short.spelling.count_differences(own_ids) == 0, text


def test_a_t5_reads_commas_as_it_has_learned_them(tokenizers):
    own = SegmentEncoder(tokenizers["T5"], 400)
    tokens = tokenizers["T5"].convert_ids_to_tokens(own.history(["Toy", "Food"]).ids)
    assert (
        "▁," not in tokens
        and "," in tokens
        and "▁" not in tokens[tokens.index(",") - 1 : tokens.index(",")]
    )


@pytest.mark.parametrize("name", ["unstructured", "instruction_unstructured"])
def test_a_sequence_without_marks_is_the_whole_text(tokenizer, name):
    form = TextForm.named(name)
    own = SentenceEncoder(tokenizer, 4000, form=form, marks=(0,) * 4)
    opening, closing = own.special_affixes
    for items in histories():
        text = form.instruction + ", ".join(items)
        found = own.sequence(items)
        assert (
            found.ids.tolist() == [*opening, *whole(tokenizer, text), *closing] and found.cut == 0
        )
        one = own.item(items[0]).ids.tolist()
        assert one == [*opening, *whole(tokenizer, items[0]), *closing]


@pytest.mark.parametrize("limit", range(60, 400, 31))
def test_a_sequence_is_cut_to_as_many_items_as_fit(tokenizer, limit):
    """The oldest go first, and one more would be too many."""
    form = TextForm.named("instruction_unstructured")
    items = histories(1)[0] + texts(9, seed=8)
    own, wide = (
        SentenceEncoder(tokenizer, size, form=form, marks=(0,) * 4) for size in (limit, 9000)
    )
    found = own.sequence(items)
    kept = items[found.cut :]
    assert len(found) <= limit
    if len(kept) > 1:
        assert found.ids.tolist() == wide.sequence(kept).ids.tolist()
    if found.cut:
        assert len(wide.sequence(items[found.cut - 1 :])) > limit


def test_marked_sequences_of_a_t5_are_the_plain_strings(tokenizers):
    """As sentence-transformers would tokenise a text with its sentinels."""
    tokenizer = tokenizers["T5"]
    marks = [f"<extra_id_{number}>" for number in range(4)]
    ids = tuple(tokenizer.convert_tokens_to_ids(marks))
    own = SentenceEncoder(tokenizer, 4000, form=TextForm(), marks=ids)
    for items in histories():
        told = "".join(f"{marks[1]}{item}{marks[2]}" for item in items)
        found = own.sequence(items)
        assert found.ids.tolist() == tokenizer(f"{marks[0]}{told}{marks[3]}")["input_ids"]
        assert own.spelling.count_differences(found.ids) == 0


def test_attributes_are_words_of_one_text(tokenizer):
    own = AttributeEncoder(tokenizer, 4000, marks=(0, 1), attribute_tokens=2000)
    item = (("Title", "Dog Food"), ("Brand", "Bo (2-Pack)"))
    text = "x Title Dog Food Brand Bo (2-Pack)"
    assert own.item(item)[0].tolist() == whole(tokenizer, text)[len(whole(tokenizer, "x")) :]


# --- the tokenizer itself -------------------------------------------------------------------------


def test_what_does_not_look_around_stays_as_it_was(tokenizers):
    """Byte-level BPE and WordPiece tokenise a piece alike everywhere.

    A scratch tokenizer, whose tokens are phrases, keeps its pieces.
    """
    scratch = train_tokenizer(CORPUS, 500)
    for tokenizer in (tokenizers["byte-level BPE"], tokenizers["WordPiece"], scratch):
        spelling = TextTokenizer(tokenizer)
        for text in [*texts(50, seed=3), "\n\nThe next", " Title", ", ", "", " "]:
            expected = whole(tokenizer, text, special=False)
            assert spelling.encode(text).tolist() == expected
            assert spelling.encode(text, opens=True).tolist() == expected
    assert TextTokenizer(scratch).split_space(", ") == (", ", "")


SPECIAL = [
    "<s>",
    "</s>",
    "<pad>",
    "[PAD]",
    "[CLS]",
    "[MASK]",
    "<|im_start|>",
    "<|endoftext|>",
    "<extra_id_0>",
]


def test_no_piece_becomes_a_special_token(tokenizer):
    spelling = TextTokenizer(tokenizer)
    known = [token for token in SPECIAL if token in tokenizer.get_vocab()]
    assert len(known) > 1
    for token in known:
        number = tokenizer.convert_tokens_to_ids(token)
        for text in (token, f" {token}", f"a{token} b", f"\n{token}"):
            for opens in (True, False):
                assert number not in spelling.encode(text, opens=opens), (token, text)


def test_tokens_that_reach_over_a_border_are_counted():
    """A vocabulary with a token for the end of one piece and the beginning of the next."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {
        token: number for number, token in enumerate(["▁", "a", "b", "\n", ".", "a\n", "</s>"])
    }
    made = Tokenizer(models.BPE(vocab=letters, merges=[("a", "\n")]))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")
    spelling = TextTokenizer(tokenizer)
    pieces = [spelling.encode("ba", opens=True), *map(spelling.encode, ("\n", "ba", "\n", "b"))]
    ids = np.concatenate(pieces)
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁", "b", "a", "\n", "b", "a", "\n", "b"]
    assert tokenizer.convert_ids_to_tokens(whole(tokenizer, "ba\nba\nb")) == [
        "▁",
        "b",
        "a\n",
        "b",
        "a\n",
        "b",
    ]
    assert spelling.count_differences(ids) == 4
    assert spelling.count_differences(np.append(ids, 6)) == 4  # an end token is no text


def test_an_anchor_that_would_grow_into_the_piece_is_passed_over():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(["▁", "b", ".", "x", ".b", "▁b"])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[(".", "b"), ("▁", "b")]))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    spelling = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=made))
    assert spelling.encode("b").tolist() == [1] and spelling.encode("b", opens=True).tolist() == [5]


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Llama 2", "Mistral", "byte-level BPE"])
def test_verdicts_are_those_of_plain_passes_over_the_chat(kind, tokenizers, tmp_path):
    """Plain passes give the odds of Yes against No where the template's two chats part.

    They know nothing of pieces.
    """
    tokenizer, folder = tokenizers[kind], str(tmp_path / "model")
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048, **sizes)
    ).eval()
    for parameter in model.parameters():
        parameter.data.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_cycle(tmp_path)
    _, judge, _, (_, _, test) = prepared("TALLRec", tmp_path, backbone=folder, max_length=1500)
    judge.eval()
    cases, items = test._dataset.cases[[0, 5]], [1, 4, 7]
    with torch.no_grad():
        found = judge.judge(cases, [np.array(items)] * 2)
        for history, row in zip(cases.histories(judge.interactions), found, strict=True):
            lines = "\n".join(judge.lines[item] for item in history)
            _, head, candidate = SHOPPING.judge_heads
            for item, value in zip(items, row, strict=True):
                said = (
                    f"{SHOPPING.judge_history}\n\n{head}\n{lines}\n\n"
                    f"{candidate}\n{judge.lines[item]}"
                )
                question = {"role": "user", "content": said}
                chats = (
                    [question, {"role": "assistant", "content": word}] for word in ("Yes", "No")
                )
                yes, no = (
                    whole(tokenizer, tokenizer.apply_chat_template(chat, tokenize=False))
                    for chat in chats
                )
                place = next(at for at, pair in enumerate(zip(yes, no)) if pair[0] != pair[1])
                logits = model(input_ids=torch.tensor([yes[:place]])).logits[0, -1]
                assert value == pytest.approx(
                    (logits[yes[place]] - logits[no[place]]).item(), rel=1e-3, abs=1e-3
                )
    assert judge.counts["compared"] == 2 and judge.counts["border_tokens"] == 0
