"""UniSRec: frozen text vectors, adapted by whitening experts, under a causal transformer (Hou et al., KDD 2022)."""

import numpy as np
import torch
import torch.nn.functional as F
from recbole.model.layers import TransformerEncoder
from torch import nn

from ..contracts.models import ContrastiveTrainable
from ..data.cases.augmentation import drop, drop_words
from ..language.tokens.batches import IGNORED, Tokens, by_length
from ..language.vectors import frozen_vectors
from ..training.corpora import Corpus, draw_users, every_case_once, load_corpora
from ..training.losses import in_batch_contrast, over_catalogue
from .base.token_training import TokenTrainable
from .base.vector_model import VectorModel, check_datasets
from .whitening import WhiteningExperts

ROWS = 8192  # items that go through the experts at once where nothing is learned


class UniSRec(VectorModel, TokenTrainable, ContrastiveTrainable):
    """Universal sequence representations.

    `item_features: text` knows items by their texts alone and moves to any dataset; `both` adds an embedding of each item.
    `phase: pretrain` contrasts sequences with their next items and with augmented sequences over several datasets; `finetune` is a softmax over the catalogue.
    """

    cost_unit = "items"
    transfer_excludes = ("by_id.",)  # to another stage, whose items may be others

    @classmethod
    def transferable(cls, settings):
        return settings["item_features"] == "text"

    @classmethod
    def check(cls, config, inputs):
        check_datasets(config, "[pretrain, finetune]")

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.contrastive = config["phase"] == "pretrain"
        self.corpora = load_corpora(
            self.inputs, Corpus(self.tables, self.text, dataset.split.train)
        )
        texts = [
            corpus.text.plain(item) for corpus in self.corpora for item in range(len(corpus.text))
        ]
        self.offsets = np.cumsum(
            [1, *(len(corpus.text) for corpus in self.corpora)]
        )  # token 0 is padding
        self.pad_id, self.words_dropped = (
            0,
            len(texts),
        )  # how far a token of an item is from the one of its text with words dropped
        self.kinds = np.r_[
            -1, np.unique(texts, return_inverse=True)[1]
        ]  # of tokens: which text theirs is
        if self.contrastive:
            rng = np.random.default_rng([config["seed"], 3])
            texts += [drop_words(text, config["word_drop"], rng) for text in texts]
        table = frozen_vectors(config["text_encoder"], texts, config)
        self.register_buffer(
            "table", F.pad(torch.from_numpy(table), (0, 0, 1, 0)), persistent=False
        )
        # BERT's vectors, for which the paper chose its rates and initial weights, have numbers of about 1; of length 1, as many encoders', they learn slowly
        self.register_buffer(
            "scale", torch.tensor(1 / np.sqrt((table**2).mean()), dtype=torch.float32)
        )
        numbered = config["item_features"] == "both" and not self.contrastive
        self.by_id = (
            nn.Embedding(len(self.text) + 1, config["hidden_size"], padding_idx=0)
            if numbered
            else None
        )
        first, same = self.text.unique
        self.first, self.same = (np.arange(len(self.text)),) * 2 if self.by_id else (first, same)
        self.pass_cost = len(self.text)  # the whole catalogue goes through the experts in each pass
        self.experts = WhiteningExperts(
            table.shape[1], config["hidden_size"], config["n_experts"], config["adaptor_dropout"]
        )
        self.position = nn.Embedding(config["max_items"], config["hidden_size"])
        self.norm, self.dropout = (
            nn.LayerNorm(config["hidden_size"], eps=1e-12),
            nn.Dropout(config["hidden_dropout_prob"]),
        )
        self.layers = TransformerEncoder(
            n_layers=config["n_layers"], n_heads=config["n_heads"], hidden_size=config["hidden_size"], inner_size=config["inner_size"],
            hidden_dropout_prob=config["hidden_dropout_prob"], attn_dropout_prob=config["attn_dropout_prob"], hidden_act=config["hidden_act"],
            layer_norm_eps=1e-12,
        )  # fmt: skip
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for module in (self.position, self.norm, self.layers) if config["freeze_encoder"] else ():
            module.requires_grad_(False)

    def examples(self, epoch: int) -> list[tuple[Tokens, ...]]:
        groups = []
        for number, users in enumerate(
            draw_users([len(corpus.by_user) for corpus in self.corpora], self.config["seed"], epoch)
        ):
            corpus, rng = (
                self.corpora[number],
                np.random.default_rng([self.config["seed"], epoch, number]),
            )
            if self.contrastive:
                groups += [
                    self._pair(number, row, rng) for user in users for row in corpus.by_user[user]
                ]
            else:
                groups += every_case_once(
                    corpus,
                    users,
                    lambda row, learned, corpus=corpus: self._window(corpus, row, learned),
                )
        return groups

    def _window(self, corpus: Corpus, row: int, learned: np.ndarray) -> tuple[tuple[Tokens], int]:
        """The newest items of a case's history and its target, all of which but the first are predicted if they are targets."""
        begin, end = corpus.cases.begin[row], corpus.cases.end[row]
        cut = max(0, end - begin - self.config["max_items"])
        flags = learned[begin + cut : end + 1].copy()
        flags[0] = False
        ids = corpus.tables.item[begin + cut : end + 1].astype(np.int64) + self.offsets[0]
        return (Tokens(ids, flags, len(ids), int(flags.sum()), cut),), cut

    def _pair(self, number: int, row: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """A history with its target, and again with items left out or with words left out of their texts."""
        corpus = self.corpora[number]
        begin, end = corpus.cases.begin[row], corpus.cases.end[row]
        ids = (
            corpus.tables.item[max(begin, end - self.config["max_items"]) : end + 1].astype(
                np.int64
            )
            + self.offsets[number]
        )
        history = (
            drop(ids[:-1], self.config["item_drop"], rng)
            if rng.random() < 0.5
            else ids[:-1] + self.words_dropped
        )
        return tuple(
            Tokens(one, np.zeros(len(one), dtype=bool), len(one) - 1, 0, 0)
            for one in (ids, np.append(history, ids[-1]))
        )

    def hidden(self, ids: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """[rows, length, size] for items int64 [rows, length], 0 at the end of short rows, with their vectors [rows, length, size]."""
        length = ids.shape[1]
        place = torch.arange(length, device=ids.device).clamp(
            max=self.config["max_items"] - 1
        )  # behind that, there is padding alone
        states = vectors + self.position(place)
        if self.by_id is not None:
            states = states + self.by_id(ids)
        hidden_from = (
            torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)
            | (ids == 0)[:, None]
        )
        return self.layers(
            self.dropout(self.norm(states)),
            hidden_from[:, None] * -10000.0,
            output_all_encoded_layers=False,
        )[-1]

    def of_texts(self, ids: torch.Tensor) -> torch.Tensor:
        """[rows, length, size] of items int64 [rows, length], each of which goes through the experts once."""
        distinct, place = ids.unique(return_inverse=True)
        return F.embedding(place, self.experts(self.scale * self.table[distinct]))

    def catalogue(self, items: np.ndarray) -> torch.Tensor:
        """[items, size]: the texts of some of the run's own items."""
        return self.experts(self.scale * self.table[torch.from_numpy(items).to(self.device) + 1])

    def loss_and_vectors(self, batch, with_loss: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum of -log P over the learned items, no vectors), or in phase pretrain (no loss, [rows, 2, size] vectors of sequence and target)."""
        if self.contrastive:
            rows = torch.arange(len(batch.target), device=self.device)
            vectors = self.of_texts(batch.input_ids)
            inside = batch.input_ids * (
                torch.arange(batch.input_ids.shape[1], device=self.device) < batch.target[:, None]
            )
            states = self.hidden(inside, vectors)
            found = torch.stack(
                [states[rows, batch.target - 1], vectors[rows, batch.target]], dim=1
            )
            return found.sum() * 0.0, found
        texts, ids, labels = (
            self.catalogue(self.first),
            batch.input_ids[:, :-1],
            batch.labels[:, 1:],
        )
        same = torch.from_numpy(self.same).to(self.device)
        states = self.hidden(ids, F.embedding(F.pad(same, (1, 0))[ids], texts))
        learned = labels != IGNORED
        items = texts if self.by_id is None else texts + self.by_id.weight[1:]
        return over_catalogue(
            states[learned], items, same, labels[learned] - 1, self.config["contrast_temperature"]
        ), states[:, 0]

    def pair_loss(self, vectors: torch.Tensor, groups: list) -> torch.Tensor:
        """Sequence-item and sequence-sequence contrast (equations 6 and 7) of vectors [pairs, 2, 2, size]; pairs of one target are no negatives."""
        targets = torch.from_numpy(self.kinds[[pair[0].ids[-1] for pair in groups]]).to(
            vectors.device
        )
        equal, temperature = targets[:, None] == targets, self.config["contrast_temperature"]
        (sequence, item), (augmented, _) = (vectors[:, side].unbind(dim=1) for side in range(2))
        whole = in_batch_contrast(item, sequence, temperature, equal)
        return whole + self.config["sequence_weight"] * in_batch_contrast(
            augmented, sequence, temperature, equal
        )

    def encode_items(self, items):
        parts = [
            self.catalogue(items[begin : begin + ROWS]).float()
            for begin in range(0, len(items), ROWS)
        ]
        vectors = torch.cat(parts)
        if self.by_id is not None:
            vectors = vectors + self.by_id.weight[torch.from_numpy(items).to(self.device) + 1]
        return F.normalize(vectors, dim=1).cpu().numpy()

    def encode_users(self, cases):
        histories = [
            history[-self.config["max_items"] :].astype(np.int64) + 1
            for history in cases.histories(self.tables)
        ]
        self.count_cut(
            cases,
            [
                max(0, cases.end[case] - cases.begin[case] - len(histories[case]))
                for case in range(len(cases))
            ],
        )
        found = np.zeros((len(cases), self.config["hidden_size"]), dtype=np.float32)
        for chosen in by_length([len(one) for one in histories], self.config["pass_tokens"]):
            length = max(len(histories[row]) for row in chosen)
            ids = torch.from_numpy(
                np.stack(
                    [np.pad(histories[row], (0, length - len(histories[row]))) for row in chosen]
                )
            ).to(self.device)
            states = self.hidden(ids, self.of_texts(ids))
            last = states[torch.arange(len(chosen)), (ids > 0).sum(dim=1) - 1]
            found[chosen] = F.normalize(last.float(), dim=1).cpu().numpy()
        return found
