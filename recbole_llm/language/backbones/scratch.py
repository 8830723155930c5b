"""Backbones without a hub: random weights, and a tokenizer trained on what the model is going to read."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence

# width, layers; nano is for tests
SIZES = {"tiny": (128, 3), "small": (256, 4), "base": (512, 8), "nano": (32, 1)}
HEAD_WIDTH = 64  # at most
PAD, END = "<|pad|>", "<|end|>"
PHRASE_USES = (
    10  # a phrase that fewer texts share would be an item's name rather than its description
)


def heads_of(width: int) -> int:
    """Attention heads of a model of this width."""
    return max(1, width // HEAD_WIDTH)


def causal_model(size: str, tokenizer, max_length: int):
    """A LlamaForCausalLM of one of SIZES with random weights, for texts of `max_length` tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers = SIZES[size]
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
            num_attention_heads=heads_of(width), max_position_embeddings=2 * max_length, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip


def sentence_model(size: str, tokenizer, max_length: int):
    """A SentenceTransformer of one of SIZES with random weights: a BERT without token types whose last hidden states are averaged."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import DistilBertConfig, DistilBertModel

    width, layers = SIZES[size]
    bert = DistilBertModel(
        DistilBertConfig(
            vocab_size=len(tokenizer), dim=width, hidden_dim=4 * width, n_layers=layers, n_heads=heads_of(width),
            max_position_embeddings=2 * max_length, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:  # its module of a transformer reads one
        bert.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return SentenceTransformer(modules=[Transformer(folder), Pooling(width)], device="cpu")


def fusion_model(size: str, tokenizer):
    """A T5Model of one of SIZES with random weights, as many layers in its encoder as in its decoder.

    T5 normalises its last states so that the product of two of them is up to their width; theirs begin at its root, as a softmax can learn from.
    """
    from transformers import T5Config, T5Model

    width, layers = SIZES[size]
    model = T5Model(
        T5Config(
            vocab_size=len(tokenizer), d_model=width, d_kv=min(width, HEAD_WIDTH), d_ff=4 * width, num_layers=layers, num_heads=heads_of(width),
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, decoder_start_token_id=tokenizer.pad_token_id, dropout_rate=0.0,
        )
    )  # fmt: skip
    model.decoder.final_layer_norm.weight.data.fill_(width**-0.25)
    return model


def train_tokenizer(texts: Iterable[str], vocabulary: int):
    """Byte-level BPE whose tokens may be phrases (SuperBPE, Liu et al. 2025): any text can be written in it.

    Half of the vocabulary is ordinary BPE within words; the rest are merges across words, so that the sentences of a
    template and a catalogue's categories and brands are one token each: half the tokens and less for item texts.

    Parameters
    ----------
    texts : what the model reads, piece by piece, each as often as it is to count.
    vocabulary : most tokens, the 256 bytes and two special ones included.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = Counter(texts)
    special, alphabet = [PAD, END], pre_tokenizers.ByteLevel.alphabet()
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fewest = len(special) + len(alphabet)
    trainer = trainers.BpeTrainer(
        vocab_size=(fewest + vocabulary) // 2,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    words.train_from_iterator(texts.elements(), trainer)
    vocab, merges = _model(words)
    for left, right in _phrases(
        [(words.encode(text).ids, count) for text, count in texts.items()], vocab, vocabulary
    ):
        merges.append((left, right))
        vocab.setdefault(left + right, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)


def _model(tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(tokenizer.to_str())["model"]
    return dict(model["vocab"]), [tuple(pair) for pair in model["merges"]]


def _phrases(
    texts: Sequence[tuple[list[int], int]], vocab: dict[str, int], vocabulary: int
) -> list[tuple[str, str]]:
    """The merges across words, most frequent first: BPE again, over texts whose letters are the tokens of words."""
    from tokenizers import Tokenizer, models, trainers

    first = 0x10000  # no code point from here on is taken apart or put together by anything
    letters = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, min_frequency=PHRASE_USES, show_progress=False
    )
    letters.train_from_iterator(
        (
            "".join(chr(first + token) for token in ids)
            for ids, count in texts
            for _ in range(count)
        ),
        trainer,
    )
    names = {index: token for token, index in vocab.items()}
    merges = [
        tuple("".join(names[ord(letter) - first] for letter in part) for part in pair)
        for pair in _model(letters)[1]
    ]
    return merges[: max(0, vocabulary - len(vocab))]
