"""Backbones without a hub: random weights, and a tokenizer trained on what the model will read."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

# width, layers; nano is for tests
SIZES = {"tiny": (128, 3), "small": (256, 4), "base": (512, 8), "nano": (32, 1)}
HEAD_WIDTH = 64  # at most
PAD, END = "<|pad|>", "<|end|>"
# A phrase that fewer texts share would be the name of an item rather than its description.
PHRASE_USES = 10


def heads_of(width: int) -> int:
    """Compute the attention heads of a model.

    Parameters
    ----------
    width : int
        Width of its hidden states.

    Returns
    -------
    int
        Number of heads.
    """
    return max(1, width // HEAD_WIDTH)


def causal_model(size: str, tokenizer: Any, max_length: int) -> Any:
    """Make a causal LM with random weights.

    Parameters
    ----------
    size : str
        One of SIZES.
    tokenizer : PreTrainedTokenizerBase
        The tokenizer of the model.
    max_length : int
        Most tokens of its texts.

    Returns
    -------
    LlamaForCausalLM
        The model.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers = SIZES[size]
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads_of(width),
            max_position_embeddings=2 * max_length,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def sentence_model(size: str, tokenizer: Any, max_length: int) -> Any:
    """Make a sentence encoder with random weights: a BERT without token types, and mean pooling.

    Parameters
    ----------
    size : str
        One of SIZES.
    tokenizer : PreTrainedTokenizerBase
        The tokenizer of the model.
    max_length : int
        Most tokens of its texts.

    Returns
    -------
    SentenceTransformer
        The model.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import DistilBertConfig, DistilBertModel

    width, layers = SIZES[size]
    bert = DistilBertModel(
        DistilBertConfig(
            vocab_size=len(tokenizer),
            dim=width,
            hidden_dim=4 * width,
            n_layers=layers,
            n_heads=heads_of(width),
            max_position_embeddings=2 * max_length,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with tempfile.TemporaryDirectory() as folder:  # the Transformer module reads a folder
        bert.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return SentenceTransformer(modules=[Transformer(folder), Pooling(width)], device="cpu")


def fusion_model(size: str, tokenizer: Any) -> Any:
    """Make an encoder-decoder with random weights, with as many encoder as decoder layers.

    T5 normalises its last states so that the product of two of them is up to their width. Here the
    products begin at the root of the width, from which a softmax can learn.

    Parameters
    ----------
    size : str
        One of SIZES.
    tokenizer : PreTrainedTokenizerBase
        The tokenizer of the model.

    Returns
    -------
    T5Model
        The model.
    """
    from transformers import T5Config, T5Model

    width, layers = SIZES[size]
    options: dict[str, Any] = {"decoder_start_token_id": tokenizer.pad_token_id}
    model = T5Model(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=min(width, HEAD_WIDTH),
            d_ff=4 * width,
            num_layers=layers,
            num_heads=heads_of(width),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            dropout_rate=0.0,
            **options,
        )
    )
    model.decoder.final_layer_norm.weight.data.fill_(width**-0.25)
    return model


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """Train byte-level BPE whose tokens may be phrases (SuperBPE, Liu et al. 2025).

    Half of the vocabulary is ordinary BPE within words; the rest are merges across words, so that
    the sentences of a template and the categories and brands of a catalogue are one token each:
    item texts have half the tokens, or fewer. Any text can be written in it.

    Parameters
    ----------
    texts : iterable of str
        What the model reads, piece by piece, each as often as it is to count.
    vocabulary : int
        Most tokens, the 256 bytes and two special ones included.

    Returns
    -------
    PreTrainedTokenizerFast
        The tokenizer.
    """
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    counts = Counter(texts)
    special, alphabet = [PAD, END], pre_tokenizers.ByteLevel.alphabet()
    words = FastTokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fewest = len(special) + len(alphabet)
    trainer = trainers.BpeTrainer(
        vocab_size=(fewest + vocabulary) // 2,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    words.train_from_iterator(counts.elements(), trainer)
    vocab, merges = _vocabulary_and_merges(words)
    encoded = [(words.encode(text).ids, count) for text, count in counts.items()]
    for left, right in _phrase_merges(encoded, vocab, vocabulary):
        merges.append((left, right))
        vocab.setdefault(left + right, len(vocab))
    tokenizer = FastTokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)


def _vocabulary_and_merges(tokenizer: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(tokenizer.to_str())["model"]
    return dict(model["vocab"]), [(left, right) for left, right in model["merges"]]


def _phrase_merges(
    texts: Sequence[tuple[list[int], int]], vocab: dict[str, int], vocabulary: int
) -> list[tuple[str, str]]:
    """Find the merges across words, most frequent first.

    This is BPE again, over texts whose letters are the tokens of words. `texts` are the token ids
    of each text and how often it counts.
    """
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import models, trainers

    first = 0x10000  # no code point from here on is taken apart or put together by anything
    phrases = FastTokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, min_frequency=PHRASE_USES, show_progress=False
    )

    def as_letters() -> Iterator[str]:
        for ids, count in texts:
            letters = "".join(chr(first + token) for token in ids)
            for _ in range(count):
                yield letters

    phrases.train_from_iterator(as_letters(), trainer)
    names = {index: token for token, index in vocab.items()}

    def as_tokens(letters: str) -> str:
        return "".join(names[ord(letter) - first] for letter in letters)

    _, merges = _vocabulary_and_merges(phrases)
    named = [(as_tokens(left), as_tokens(right)) for left, right in merges]
    return named[: max(0, vocabulary - len(vocab))]
