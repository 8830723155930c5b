"""Small tokenizers of the kinds that language models have, trained on given texts."""

import random

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CHAT = {
    "llama": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
        "[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
    ),
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}
WORDS = (
    "Dog Food, Toy (2-Pack) Brand: Bo; Price: $5.99 > & Birds Ünï 猫 ¡salt! it's Title Category"
).split()


def texts(count: int, seed: int = 0) -> list[str]:
    """Item texts of random words, without white space at their ends."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(count)]


def _trained(tokenizer, kind, corpus, **own):
    trainer = getattr(trainers, f"{kind}Trainer")(vocab_size=700, show_progress=False, **own)
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def byte_level(corpus):
    """GPT-2's and Qwen's kind."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    _trained(
        made,
        "Bpe",
        corpus,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<|pad|>",
        eos_token="<|endoftext|>",
        chat_template=CHAT["chatml"],
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )


def _bytes():
    return [f"<0x{byte:02X}>" for byte in range(256)]


def _sentencepiece_bpe(corpus, scheme):
    """A BPE that falls back to bytes and begins with <s>; words begin with ▁.

    scheme : first, always, or legacy: a normalizer in place of a pre-tokenizer, as Llama 2's.
    """
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always")
    learned = Tokenizer(models.BPE(unk_token="<unk>"))
    learned.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\n"), "removed"),
            metaspace,
            pre_tokenizers.Split(Regex("[0-9]"), "isolated"),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *_bytes()]
    _trained(learned, "Bpe", corpus, special_tokens=special)
    import json

    state = json.loads(learned.to_str())["model"]
    merges = [tuple(pair) for pair in state["merges"]]
    made = Tokenizer(
        models.BPE(
            vocab=state["vocab"],
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    if scheme == "legacy":
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        chat_template=CHAT["llama"],
    )


def llama(corpus):
    return _sentencepiece_bpe(corpus, "legacy")


def mistral(corpus):
    return _sentencepiece_bpe(corpus, "first")


def always(corpus):
    return _sentencepiece_bpe(corpus, "always")


def t5(corpus):
    """A Unigram that reads NFKC, any white space as one space, and ends with </s>."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(left=False, right=True),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    marks = [f"<extra_id_{number}>" for number in range(4)]
    _trained(
        made,
        "Unigram",
        corpus,
        special_tokens=["<pad>", "</s>", "<unk>", *marks],
        unk_token="<unk>",
    )
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=marks,
    )


def wordpiece(corpus):
    """BERT's kind."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    _trained(
        made, "WordPiece", corpus, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        eos_token="[SEP]",
    )


KINDS = {
    "byte-level BPE": byte_level,
    "Llama 2": llama,
    "Mistral": mistral,
    "always": always,
    "T5": t5,
    "WordPiece": wordpiece,
}
