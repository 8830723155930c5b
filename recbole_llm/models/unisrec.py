"""UniSRec: whitened text vectors of items under a causal transformer (Hou et al., KDD 2022)."""

from collections.abc import Sequence
from functools import cached_property, partial
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from recbole.model.layers import TransformerEncoder
from torch import nn

from ..contracts.models import ContrastiveTrainable
from ..data.cases.augmentation import drop, drop_words
from ..data.texts.text import ItemText
from ..language.tokens.batches import IGNORED, Batch, Tokens
from ..language.vectors import frozen_vectors
from ..training.corpora import Corpus, LazyExamples, Windows, drawn_users, load_corpora
from ..training.losses import in_batch_contrast, over_catalogue
from .base.token_training import TokenTrainable
from .base.vector_model import VectorModel, check_datasets
from .whitening import WhiteningExperts

ROWS = 8192  # items that go through the experts at once where there are no gradients


class UniSRec(VectorModel, TokenTrainable, ContrastiveTrainable):
    """Universal sequence representations.

    With `item_features: text` items have the vectors of their texts alone, and a model can be
    transferred to any dataset; `both` adds an embedding of each item. `phase: pretrain` contrasts
    sequences with their next items and with augmented sequences over several datasets. `finetune`
    is a softmax over the catalogue.

    A token stands for an item of one of the corpora; token 0 is padding. In `pretrain` there is a
    second token for each item, which stands for its text with some words dropped.

    Attributes
    ----------
    corpora : list of Corpus
        The datasets that the model trains on, the run's own first.
    offsets : ndarray of int64 [corpora + 1]
        The token of each corpus's first item.
    words_dropped : int
        Difference between an item's second token and its first.
    kinds : ndarray of int64 [tokens]
        The number of the distinct text of each first token; -1 for padding.
    table : Tensor of float32 [tokens, width]
        The frozen text vector of each token.
    scale : Tensor of float32 []
        Factor of the text vectors, by which their numbers have a mean square of 1.
    """

    cost_unit = "items"
    transfer_excludes = ("by_id.",)  # another stage may have other items
    table: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def transferable(cls, settings):
        """Return whether items have the vectors of their texts alone."""
        return settings["item_features"] == "text"

    @classmethod
    def check(cls, config, inputs):
        """See `TextModel.check`."""
        super().check(config, inputs)
        check_datasets(config, "[pretrain, finetune]")

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.contrastive = config["phase"] == "pretrain"
        self.corpora = load_corpora(
            self.inputs, Corpus(self.interactions, self.text, dataset.split.train)
        )
        texts = list(chain.from_iterable(_plain_texts(corpus.text) for corpus in self.corpora))
        self.offsets = np.cumsum([1, *(len(corpus.text) for corpus in self.corpora)])
        self.pad_id, self.words_dropped = 0, len(texts)
        self.kinds = np.r_[-1, np.unique(texts, return_inverse=True)[1]]
        if self.contrastive:
            rng = np.random.default_rng([config["seed"], 3])
            texts += [drop_words(text, config["word_drop"], rng) for text in texts]
        table = frozen_vectors(config["text_encoder"], texts, config)
        padded_table = F.pad(torch.from_numpy(table), (0, 0, 1, 0))
        self.register_buffer("table", padded_table, persistent=False)
        # The paper chose its learning rates and initial weights for BERT's vectors, whose numbers
        # are about 1. Vectors of length 1, as many encoders give them, learn slowly.
        scale = 1 / np.sqrt((table**2).mean())
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.by_id: nn.Embedding | None = None
        if config["item_features"] == "both" and not self.contrastive:
            self.by_id = nn.Embedding(len(self.text) + 1, config["hidden_size"], padding_idx=0)
            # items of equal texts have different vectors
            self.first = self.same = np.arange(len(self.text))
        self.pass_cost = len(self.text)  # each pass computes the item vectors of the catalogue
        self.experts = WhiteningExperts(
            table.shape[1], config["hidden_size"], config["n_experts"], config["adaptor_dropout"]
        )
        self.position = nn.Embedding(config["max_items"], config["hidden_size"])
        self.norm = nn.LayerNorm(config["hidden_size"], eps=1e-12)
        self.dropout = nn.Dropout(config["hidden_dropout_prob"])
        self.layers = TransformerEncoder(
            n_layers=config["n_layers"],
            n_heads=config["n_heads"],
            hidden_size=config["hidden_size"],
            inner_size=config["inner_size"],
            hidden_dropout_prob=config["hidden_dropout_prob"],
            attn_dropout_prob=config["attn_dropout_prob"],
            hidden_act=config["hidden_act"],
            layer_norm_eps=1e-12,
        )
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        if config["freeze_encoder"]:
            for module in (self.position, self.norm, self.layers):
                module.requires_grad_(False)

    def examples(self, epoch: int) -> LazyExamples:
        """Make the examples of an epoch.

        Parameters
        ----------
        epoch : int
            Number of the epoch, which decides the sample.

        Returns
        -------
        LazyExamples of tuple of Tokens
            `pretrain`: a sequence with its target, and an augmented sequence with the same target.
            `finetune`: a window of a sequence.
        """
        samples, seed = drawn_users(self.corpora, self.config, epoch), [self.config["seed"], epoch]
        if self.contrastive:
            pairs = zip(self.corpora, samples, strict=True)
            rows = [corpus.by_user.rows(users) for corpus, users in pairs]
            return LazyExamples(rows, self._pair, seed)
        rows = [windows.of(users) for windows, users in zip(self.windows, samples, strict=True)]
        return LazyExamples(rows, self._window, seed)

    @cached_property
    def windows(self) -> list[Windows]:
        """For each corpus, windows of `max_items` items that cover every training case."""
        windows = []
        for corpus in self.corpora:
            one_each = np.ones(len(corpus.text), dtype=np.int64)
            most = partial(np.full_like, fill_value=self.config["max_items"])
            windows.append(Windows(corpus, one_each, most))
        return windows

    def _window(self, number: int, row: int, rng: np.random.Generator) -> tuple[Tokens, ...]:
        """Encode the newest items of one case, with its target.

        All targets of training cases in the window are learned, except its first item.
        """
        corpus = self.corpora[number]
        begin, end = corpus.cases.begin[row], corpus.cases.end[row]
        cut = max(0, end - begin - self.config["max_items"])
        flags = corpus.learned[begin + cut : end + 1].copy()
        flags[0] = False
        items = corpus.interactions.item[begin + cut : end + 1]
        ids = items.astype(np.int64) + self.offsets[number]
        return (Tokens(ids, flags, len(ids), int(flags.sum()), cut),)

    def _pair(self, number: int, row: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Encode a sequence with its target, and an augmented sequence with the same target.

        Either items are left out of the augmented sequence, or words of all its texts.
        """
        corpus = self.corpora[number]
        begin, end = corpus.cases.begin[row], corpus.cases.end[row]
        begin = max(begin, end - self.config["max_items"])
        ids = corpus.interactions.item[begin : end + 1].astype(np.int64) + self.offsets[number]
        if rng.random() < 0.5:
            history = drop(ids[:-1], self.config["item_drop"], rng)
        else:
            history = ids[:-1] + self.words_dropped
        return _with_target(ids), _with_target(np.append(history, ids[-1]))

    def hidden(self, ids: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """Compute the states of the transformer.

        Parameters
        ----------
        ids : Tensor of int64 [rows, length]
            Tokens, padded on the right with 0.
        vectors : Tensor of float [rows, length, size]
            Their item vectors.

        Returns
        -------
        Tensor of float [rows, length, size]
            States.
        """
        length = ids.shape[1]
        # the last position is repeated for padding alone, by which a batch may exceed `max_items`
        place = torch.arange(length, device=ids.device).clamp(max=self.config["max_items"] - 1)
        states = vectors + self.position(place)
        if self.by_id is not None:
            states = states + self.by_id(ids)
        later = torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)
        hidden_from = later | (ids == 0)[:, None]
        return self.layers(
            self.dropout(self.norm(states)),
            hidden_from[:, None] * -10000.0,
            output_all_encoded_layers=False,
        )[-1]

    def of_texts(self, ids: torch.Tensor) -> torch.Tensor:
        """Compute the item vectors of tokens, once for each distinct token.

        Parameters
        ----------
        ids : Tensor of int64 [rows, length]
            Tokens.

        Returns
        -------
        Tensor of float [rows, length, size]
            Their item vectors.
        """
        distinct, place = ids.unique(return_inverse=True)
        return F.embedding(place, self.experts(self.scale * self.table[distinct]))

    def catalogue(self, items: np.ndarray) -> torch.Tensor:
        """Compute the vectors of items of the run's own dataset by their texts.

        Parameters
        ----------
        items : ndarray of int [n]
            Item numbers.

        Returns
        -------
        Tensor of float [n, size]
            Their vectors, without `by_id`.
        """
        return self.experts(self.scale * self.table[torch.from_numpy(items).to(self.device) + 1])

    def loss_and_vectors(self, batch: Batch, with_loss: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the loss in `finetune`, and the vectors to be contrasted in `pretrain`.

        Parameters
        ----------
        batch : Batch
            Sequences of tokens.
        with_loss : bool
            Not used.

        Returns
        -------
        loss : Tensor of float []
            Sum of -log P over the learned items; 0 in `pretrain`.
        vectors : Tensor of float
            `pretrain`: vectors of sequences and targets, [rows, 2, size]. `finetune`: states that
            are not used.
        """
        if self.contrastive:
            vectors = self._sequences_and_targets(batch)
            return vectors.sum() * 0.0, vectors
        texts = self.catalogue(self.first)
        ids, labels = batch.input_ids[:, :-1], batch.labels[:, 1:]
        same = torch.from_numpy(self.same).to(self.device)
        states = self.hidden(ids, F.embedding(F.pad(same, (1, 0))[ids], texts))
        learned = labels != IGNORED
        items = texts if self.by_id is None else texts + self.by_id.weight[1:]
        temperature = self.config["contrast_temperature"]
        loss = over_catalogue(states[learned], items, same, labels[learned] - 1, temperature)
        return loss, states[:, 0]

    def _sequences_and_targets(self, batch: Batch) -> torch.Tensor:
        """The vectors of sequences and of their targets, [rows, 2, size]."""
        rows = torch.arange(len(batch.target), device=self.device)
        place = torch.arange(batch.input_ids.shape[1], device=self.device)
        vectors = self.of_texts(batch.input_ids)
        states = self.hidden(batch.input_ids * (place < batch.target[:, None]), vectors)
        sequences, targets = states[rows, batch.target - 1], vectors[rows, batch.target]
        return torch.stack([sequences, targets], dim=1)

    def pair_loss(
        self, vectors: torch.Tensor, examples: Sequence[tuple[Tokens, ...]]
    ) -> torch.Tensor:
        """Compute the sequence-item and sequence-sequence contrast (equations 6 and 7).

        Parameters
        ----------
        vectors : Tensor of float [pairs, 2, 2, size]
            Sequence and target (axis 2) of the original and the augmented sequence (axis 1).
        examples : sequence of tuple of Tokens
            The pairs. Pairs whose targets have the same text are no negatives of each other.

        Returns
        -------
        Tensor of float32 []
            The loss.
        """
        targets = torch.from_numpy(self.kinds[[pair[0].ids[-1] for pair in examples]])
        targets = targets.to(vectors.device)
        equal, temperature = targets[:, None] == targets, self.config["contrast_temperature"]
        sequence, item = vectors[:, 0].unbind(dim=1)
        augmented, _ = vectors[:, 1].unbind(dim=1)
        item_loss = in_batch_contrast(item, sequence, temperature, equal)
        sequence_loss = in_batch_contrast(augmented, sequence, temperature, equal)
        return item_loss + self.config["sequence_weight"] * sequence_loss

    def encode_items(self, items):
        """Compute the vectors of items, of length 1."""
        parts = [
            self.catalogue(items[begin : begin + ROWS]).float()
            for begin in range(0, len(items), ROWS)
        ]
        vectors = torch.cat(parts)
        if self.by_id is not None:
            vectors = vectors + self.by_id.weight[torch.from_numpy(items).to(self.device) + 1]
        return F.normalize(vectors, dim=1).cpu().numpy()

    def encode_users(self, cases):
        """Compute the vectors of histories, of length 1."""
        most = self.config["max_items"]
        histories = []
        for history in cases.histories(self.interactions):
            histories.append(history[-most:].astype(np.int64) + 1)
        lengths = [len(history) for history in histories]
        whole_lengths = (cases.end - cases.begin).tolist()
        self.count_cut(
            cases, [whole - size for whole, size in zip(whole_lengths, lengths, strict=True)]
        )
        vectors = np.zeros((len(cases), self.config["hidden_size"]), dtype=np.float32)

        def compute(rows: np.ndarray) -> None:
            ids = _padded([histories[row] for row in rows]).to(self.device)
            states = self.hidden(ids, self.of_texts(ids))
            last = states[torch.arange(len(rows)), (ids > 0).sum(dim=1) - 1]
            vectors[rows] = F.normalize(last.float(), dim=1).cpu().numpy()

        self.passes.run(lengths, compute)
        return vectors


def _plain_texts(text: ItemText) -> list[str]:
    return [text.plain(item) for item in range(len(text))]


def _with_target(ids: np.ndarray) -> Tokens:
    """A sequence of tokens whose last one is the target; nothing is learned in it."""
    return Tokens(ids, np.zeros(len(ids), dtype=bool), target=len(ids) - 1, items=0, cut=0)


def _padded(rows: list[np.ndarray]) -> torch.Tensor:
    """Sequences of tokens, padded on the right with 0: int64 [rows, length]."""
    length = max(map(len, rows))
    return torch.from_numpy(np.stack([np.pad(row, (0, length - len(row))) for row in rows]))
