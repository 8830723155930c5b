"""RecFormer: one encoder embeds items, as keys and values, and sequences of them.

It is the model of Li et al. (KDD 2023).
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..contracts.models import ContrastiveTrainable
from ..data.texts.text import ItemText
from ..errors import UserError
from ..language.backbones.sources import EncoderBackbone
from ..language.prompts.templates import LazyTexts
from ..language.tokens.batches import (
    IGNORED,
    AttributeEncoder,
    Batch,
    Item,
    Tokens,
    attribute_corpus,
)
from ..language.vectors import embed
from ..storage.content_cache import name_of
from ..training.corpora import Corpus, LazyExamples, chosen_cases, drawn_users, load_corpora
from ..training.losses import in_batch_contrast, over_catalogue
from .base.backbone_model import BackboneModel
from .base.vector_model import VectorModel, check_datasets


class RecFormer(VectorModel, BackboneModel, ContrastiveTrainable):
    """Language representations of items and sequences; an item is encoded as a sequence of one.

    `phase: pretrain` contrasts sequences with their next items and predicts masked tokens.
    `finetune` is a softmax over the catalogue. The vectors of its items are constants: they are
    encoded before each epoch (`item_table: epoch`), or are those of the initial weights (`fixed`).
    The weights are trained against these vectors, so that they are stored with the weights and rank
    the items.

    Attributes
    ----------
    corpora : list of Corpus
        The datasets that the model trains on, the run's own first.
    items : list of list of Item
        The attributes of each item, for each corpus.
    names : list of bytes
        Digest of each distinct text of the run's own dataset.
    table : Tensor of float32 [texts, width]
        Vectors of length 1. A text that is not in the table, such as one of another dataset, is
        encoded when it is needed.
    table_names : Tensor of uint8 [texts, 16]
        The digests of the texts in `table`.
    table_epoch : Tensor of int64 []
        The epoch before which the table was encoded, so that a run which is resumed in an epoch
        keeps the table of this epoch; -1 for a table of another run.
    """

    backbone_kind = EncoderBackbone
    externally_saved = ("backbone.", "table_epoch")
    other_parameter_name = ("table", "table_names")
    bundle: EncoderBackbone
    encoder: AttributeEncoder
    table: torch.Tensor
    table_names: torch.Tensor
    table_epoch: torch.Tensor

    @classmethod
    def check(cls, config, inputs):
        """See `TextModel.check`."""
        super().check(config, inputs)
        if config["attention_window"] % 2:
            raise UserError(
                "attention_window: expected an even number, half of it on each side of a token, "
                f"found {config['attention_window']}"
            )
        check_datasets(config, "[pretrain, first, second]")

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.contrastive = config["phase"] == "pretrain"
        self.corpora = load_corpora(
            self.inputs, Corpus(self.interactions, self.text, dataset.split.train)
        )
        self.items = [_attributes(corpus.text) for corpus in self.corpora]
        self.names = [name_of(repr(self.items[0][item]).encode()) for item in self.first]
        self.register_buffer("table_epoch", torch.tensor(-1))
        self.load_backbone(attribute_corpus(chain.from_iterable(self.items)))
        width, words = self.bundle.width, self.bundle.core.get_input_embeddings().num_embeddings
        # zeros do not change the states of a pretrained encoder
        self.token_type = nn.Embedding.from_pretrained(torch.zeros(3, width), freeze=False)
        self.item_position = nn.Embedding.from_pretrained(
            torch.zeros(config["max_items"] + 1, width), freeze=False
        )
        self.word_bias = nn.Parameter(torch.zeros(words))

    def make_encoder(self, bundle):
        """Make the encoder, and forget the vectors of items by earlier weights."""
        self.item_vectors = None
        self.forget_table(bundle)
        bundle.use_window(self.config["attention_window"])
        limits = {key: self.config[key] for key in ("max_length", "attribute_tokens", "max_items")}
        encoder = AttributeEncoder(bundle.tokenizer, **limits, marks=bundle.marks)
        attributes = chain.from_iterable(chain.from_iterable(self.items))
        self.tokenise_items(encoder, [value for _, value in attributes])
        return encoder

    def examples(self, epoch: int) -> LazyExamples:
        """Make the examples of an epoch, and encode the table of items where it is due.

        Parameters
        ----------
        epoch : int
            Number of the epoch, which decides the sample.

        Returns
        -------
        LazyExamples of tuple of Tokens
            `pretrain`: a sequence, its next item, and both with masked tokens. `finetune`: a
            sequence whose first token has the number of the next item as its label.
        """
        if torch.device(self.device).type != "meta" and self.table_epoch != epoch:
            if self.contrastive or self.config["item_table"] == "epoch":
                self.forget_table(self.bundle)
            if not self.contrastive:
                self.fill_table()
            self.table_epoch.fill_(epoch)
        samples = drawn_users(self.corpora, self.config, epoch)
        rows = chosen_cases(self.corpora, samples, self.config, epoch)
        return LazyExamples(rows, self._group, [self.config["seed"], epoch])

    def _group(self, number: int, row: int, rng: np.random.Generator) -> tuple[Tokens, ...]:
        """Make the example of one case of one corpus."""
        corpus = self.corpora[number]
        end = corpus.cases.end[row]
        sequence = self.sequence(number, corpus.interactions.item[corpus.cases.begin[row] : end])
        target = corpus.interactions.item[end]
        if self.contrastive:
            texts = (sequence, self.sequence(number, [target]))
            share = self.config["mask_share"]
            return (*texts, *(self.encoder.masked(text, share, rng) for text in texts))
        labelled = replace(
            sequence,
            learned=np.arange(len(sequence)) == 0,
            items=1,
            labels=np.full(len(sequence), target, dtype=np.int64),
        )
        return (labelled,)

    def sequence(self, number: int, items: Sequence[int] | np.ndarray) -> Tokens:
        """Encode a sequence of items.

        Parameters
        ----------
        number : int
            Number of the corpus.
        items : sequence of int
            Item numbers, oldest first.

        Returns
        -------
        Tokens
            The encoded sequence.
        """
        return self.encoder.sequence(LazyTexts(self.items[number], items))

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Compute the last hidden states.

        The backbone adds its position embeddings to the sum of the other three embeddings, and
        normalises it (equation 2).

        Parameters
        ----------
        batch : Batch
            Texts of an AttributeEncoder.

        Returns
        -------
        Tensor of float [rows, length, width]
            Hidden states; anything at padding.
        """
        assert batch.roles is not None
        types, items = batch.roles.unbind(dim=1)
        words = self.bundle.core.get_input_embeddings()(batch.input_ids)
        embeddings = words + self.token_type(types) + self.item_position(items)
        return self.bundle.states(embeddings, batch.lengths)

    def loss_and_vectors(self, batch: Batch, with_loss: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the loss of masked tokens or of next items, and the vectors of texts.

        Parameters
        ----------
        batch : Batch
            Texts.
        with_loss : bool
            Whether the loss is computed; it is 0 otherwise.

        Returns
        -------
        loss : Tensor of float []
            `pretrain`: weighted sum of -log P over masked tokens. `finetune`: sum of -log P over
            next items.
        vectors : Tensor of float [rows, width]
            States of the first token.
        """
        states, learned = self.hidden(batch), batch.labels != IGNORED
        vectors = states[:, 0]
        if not with_loss or not learned.any():
            return vectors.sum() * 0.0, vectors
        if self.contrastive:
            weight = self.bundle.core.get_input_embeddings().weight
            logits = F.linear(states[learned], weight, self.word_bias)
            loss = F.cross_entropy(logits.float(), batch.labels[learned], reduction="sum")
            return self.config["mlm_weight"] * loss, vectors
        same, temperature = torch.from_numpy(self.same), self.config["contrast_temperature"]
        loss = over_catalogue(
            states[learned],
            self.table,
            same.to(self.device),
            batch.labels[learned],
            temperature,
        )
        return loss, vectors

    def pair_loss(
        self, vectors: torch.Tensor, examples: Sequence[tuple[Tokens, ...]]
    ) -> torch.Tensor:
        """Compute the item-item contrast of sequences and next items (equation 6).

        Parameters
        ----------
        vectors : Tensor of float [examples, 4, width]
            The vectors of each example's texts.
        examples : sequence of tuple of Tokens
            The examples of the step. The next items of the others are negatives, except equal ones.

        Returns
        -------
        Tensor of float32 []
            The loss.
        """
        names = [_digest(target) for _, target, *_ in examples]
        numbers = np.unique(names, return_inverse=True)[1]
        equal = torch.from_numpy(numbers[:, None] == numbers).to(vectors.device)
        return in_batch_contrast(
            vectors[:, 1], vectors[:, 0], self.config["contrast_temperature"], equal
        )

    def vectors(self, tokens: Sequence[Tokens]) -> np.ndarray:
        """Embed encoded texts.

        Parameters
        ----------
        tokens : sequence of Tokens
            The texts.

        Returns
        -------
        ndarray of float32 [texts, width]
            Vectors of length 1.
        """
        vectors = embed(
            tokens,
            lambda batch: self.hidden(batch)[:, 0],
            self.bundle,
            self.passes,
            self.device,
        )
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def encode(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Embed distinct texts by the current weights.

        Parameters
        ----------
        rows : sequence of int
            Numbers of distinct texts.

        Returns
        -------
        ndarray of float32 [rows, width]
            Vectors of length 1.
        """
        training = self.training
        self.eval()
        with self.autocast():
            vectors = self.vectors([self.sequence(0, [self.first[row]]) for row in rows])
        self.train(training)
        return vectors

    def forget_table(self, bundle: EncoderBackbone) -> None:
        """Empty the table of item vectors.

        Parameters
        ----------
        bundle : EncoderBackbone
            The language model, whose width the table has.
        """
        self.table = torch.zeros(0, bundle.width, device=self.device)
        self.table_names = torch.zeros(0, 16, dtype=torch.uint8)

    def fill_table(self) -> None:
        """Give the table one row for each distinct text of the catalogue, in their order."""
        known = {name.tobytes(): row for row, name in enumerate(self.table_names.cpu().numpy())}
        missing = [row for row, name in enumerate(self.names) if name not in known]
        if missing and known:
            self.logger.info(
                f"{len(missing)} of {len(self.names)} item texts have no stored vector: they are "
                "encoded now"
            )
        known |= {self.names[row]: len(known) + number for number, row in enumerate(missing)}
        table = self.table
        if missing:
            table = torch.cat([table, torch.from_numpy(self.encode(missing)).to(self.device)])
        self.table = table[[known[name] for name in self.names]]
        self.table_names = torch.from_numpy(
            np.frombuffer(b"".join(self.names), dtype=np.uint8).reshape(-1, 16).copy()
        )

    def encode_items(self, items):
        """Return the vectors of items, from the table in phase `finetune`."""
        rows = self.same[items]
        if self.contrastive:
            return self.encode(rows)
        self.fill_table()
        return self.table[rows]

    def encode_users(self, cases):
        """Embed the histories of cases."""
        tokens = [self.sequence(0, history) for history in cases.histories(self.interactions)]
        self.count_cut(cases, [text.cut for text in tokens])
        return self.vectors(tokens)


def _attributes(text: ItemText) -> list[Item]:
    """Names and values of the attributes of each item."""
    return [tuple(zip(text.names, row, strict=True)) for row in text.values]


def _digest(tokens: Tokens) -> bytes:
    """A digest of a text's tokens and their roles."""
    assert tokens.roles is not None
    return name_of(tokens.ids.tobytes() + tokens.roles.tobytes())
