"""RecFormer: an encoder that reads items as pairs of keys and values, and sequences of them, into one space (Li et al., KDD 2023)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..contracts.models import ContrastiveTrainable
from ..errors import UserError
from ..language.backbones.sources import EncoderBackbone
from ..language.prompts.templates import LazyTexts
from ..language.tokens.batches import IGNORED, AttributeEncoder, Tokens, attribute_corpus
from ..language.vectors import embed
from ..storage.content_cache import name_of
from ..training.corpora import Corpus, draw_users, load_corpora
from ..training.losses import in_batch_contrast, over_catalogue
from .base.backbone_model import BackboneModel
from .base.vector_model import VectorModel, check_datasets


class RecFormer(VectorModel, BackboneModel, ContrastiveTrainable):
    """Language representations of items and sequences; an item is encoded as a sequence of one.

    `phase: pretrain` contrasts sequences with their next items and finds masked tokens again. `finetune` is a softmax over the catalogue, whose vectors
    are constants: encoded before each epoch (`item_table: epoch`) or those that the run starts from (`fixed`). The weights are trained against them, so
    they are stored with the weights and are what ranks.

    Attributes
    ----------
    table, table_names : float32 [texts, width] of length 1, and uint8 [texts, 16] which texts they are of. A text that is not there yet, such as
        those of another dataset, is encoded when it is needed.
    table_epoch : when the table was encoded, so that a run which is resumed within an epoch keeps the epoch's; -1 for another run's.
    """

    backbone_kind = EncoderBackbone
    externally_saved = ("backbone.", "table_epoch")
    other_parameter_name = ("table", "table_names")

    @classmethod
    def check(cls, config, inputs):
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
            self.inputs, Corpus(self.tables, self.text, dataset.split.train)
        )
        self.items = [
            [tuple(zip(corpus.text.names, row, strict=True)) for row in corpus.text.values]
            for corpus in self.corpora
        ]
        self.names = [name_of(repr(self.items[0][item]).encode()) for item in self.first]
        self.register_buffer("table_epoch", torch.tensor(-1))
        self.load_backbone(attribute_corpus(item for items in self.items for item in items))
        width, words = self.bundle.width, self.bundle.core.get_input_embeddings().num_embeddings
        # zeros leave a pretrained encoder as it is
        self.token_type = nn.Embedding.from_pretrained(torch.zeros(3, width), freeze=False)
        self.item_position = nn.Embedding.from_pretrained(
            torch.zeros(config["max_items"] + 1, width), freeze=False
        )
        self.word_bias = nn.Parameter(torch.zeros(words))

    def make_encoder(self, bundle):
        self.item_vectors = None  # of the weights before
        self.forget_table(bundle)
        bundle.use_window(self.config["attention_window"])
        limits = {key: self.config[key] for key in ("max_length", "attribute_tokens", "max_items")}
        return AttributeEncoder(bundle.tokenizer, **limits, marks=bundle.marks)

    def examples(self, epoch: int) -> list[tuple[Tokens, ...]]:
        """`pretrain`: sequence, next item, and both with masked tokens. `finetune`: a sequence, whose first token learns the number of the next item."""
        if self.table_epoch != epoch:
            if self.contrastive or self.config["item_table"] == "epoch":
                self.forget_table(self.bundle)
            if not self.contrastive:
                self.fill_table()
            self.table_epoch.fill_(epoch)
        seed, groups = self.config["seed"], []
        for number, users in enumerate(
            draw_users([len(corpus.by_user) for corpus in self.corpora], seed, epoch)
        ):
            corpus, rng = self.corpora[number], np.random.default_rng([seed, epoch, number])
            own = (corpus.by_user[user] for user in users)
            chosen = [
                row
                for rows in own
                for row in (rows if self.config["targets"] == "all" else [rng.choice(rows)])
            ]
            groups += [self._group(number, row, rng) for row in chosen]
        return groups

    def _group(self, number: int, row: int, rng: np.random.Generator) -> tuple[Tokens, ...]:
        corpus = self.corpora[number]
        end = corpus.cases.end[row]
        sequence = self.sequence(number, corpus.tables.item[corpus.cases.begin[row] : end])
        target = corpus.tables.item[end]
        if self.contrastive:
            texts = (sequence, self.sequence(number, [target]))
            return (
                *texts,
                *(self.encoder.masked(text, self.config["mask_share"], rng) for text in texts),
            )
        return (
            replace(
                sequence,
                learned=np.arange(len(sequence)) == 0,
                items=1,
                labels=np.full(len(sequence), target, dtype=np.int64),
            ),
        )

    def sequence(self, number: int, items) -> Tokens:
        """Items of one corpus by number, oldest first."""
        return self.encoder.sequence(LazyTexts(self.items[number], items))

    def hidden(self, batch) -> torch.Tensor:
        """Last hidden states [rows, length, width]. The backbone adds its positions to the sum of the other three embeddings and normalises it (equation 2)."""
        types, items = batch.roles.unbind(dim=1)
        words = self.bundle.core.get_input_embeddings()(batch.input_ids)
        return self.bundle.states(
            words + self.token_type(types) + self.item_position(items), batch.lengths
        )

    def loss_and_vectors(self, batch, with_loss: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(weighted sum of -log P over masked tokens, or sum of -log P over next items; [rows, width] states of the first token)."""
        states, learned = self.hidden(batch), batch.labels != IGNORED
        vectors = states[:, 0]
        if not with_loss or not learned.any():
            return vectors.sum() * 0.0, vectors
        if self.contrastive:
            logits = F.linear(
                states[learned], self.bundle.core.get_input_embeddings().weight, self.word_bias
            )
            return self.config["mlm_weight"] * F.cross_entropy(
                logits.float(), batch.labels[learned], reduction="sum"
            ), vectors
        same, temperature = (
            torch.from_numpy(self.same).to(self.device),
            self.config["contrast_temperature"],
        )
        return over_catalogue(
            states[learned], self.table, same, batch.labels[learned], temperature
        ), vectors

    def pair_loss(self, vectors: torch.Tensor, groups: list) -> torch.Tensor:
        """Item-item contrast (equation 6) of vectors [groups, 4, width]: each sequence's next item against the others of its step."""
        targets = np.unique(
            [name_of(group[1].ids.tobytes() + group[1].roles.tobytes()) for group in groups],
            return_inverse=True,
        )[1]
        equal = torch.from_numpy(targets[:, None] == targets).to(vectors.device)
        return in_batch_contrast(
            vectors[:, 1], vectors[:, 0], self.config["contrast_temperature"], equal
        )

    def vectors(self, tokens: list[Tokens]) -> np.ndarray:
        """float32 [texts, width], of length 1."""
        found = embed(
            tokens,
            lambda batch: self.hidden(batch)[:, 0],
            self.bundle,
            self.config["pass_tokens"],
            self.device,
        )
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def encode(self, rows: Sequence[int]) -> np.ndarray:
        """float32 [rows, width]: vectors of distinct texts by number, by the weights as they are."""
        training = self.training
        self.eval()
        with self.autocast():
            found = self.vectors([self.sequence(0, [self.first[row]]) for row in rows])
        self.train(training)
        return found

    def forget_table(self, bundle: EncoderBackbone) -> None:
        self.table = torch.zeros(0, bundle.width, device=self.device)
        self.table_names = torch.zeros(0, 16, dtype=torch.uint8)

    def fill_table(self) -> None:
        """One row for each distinct text of the catalogue, in their order."""
        known = {name.tobytes(): row for row, name in enumerate(self.table_names.cpu().numpy())}
        missing = [row for row, name in enumerate(self.names) if name not in known]
        if missing and known:
            self.logger.info(
                f"{len(missing)} of {len(self.names)} item texts have no stored vector: they are "
                "encoded now"
            )
        known |= {self.names[row]: len(known) + number for number, row in enumerate(missing)}
        table = (
            torch.cat([self.table, torch.from_numpy(self.encode(missing)).to(self.device)])
            if missing
            else self.table
        )
        self.table = table[[known[name] for name in self.names]]
        self.table_names = torch.from_numpy(
            np.frombuffer(b"".join(self.names), dtype=np.uint8).reshape(-1, 16).copy()
        )

    def encode_items(self, items):
        rows = self.same[items]
        if self.contrastive:
            return self.encode(rows)
        self.fill_table()
        return self.table[rows]

    def encode_users(self, cases):
        tokens = [self.sequence(0, history) for history in cases.histories(self.tables)]
        self.count_cut(cases, [one.cut for one in tokens])
        return self.vectors(tokens)
