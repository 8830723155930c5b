"""CALRec: a causal LM writes the next item's text, and BM25 finds the items that read like it (RecSys '24)."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..backbone import FOLDER, Backbone, check_name, load_causal, load_folder
from ..collate import IGNORED, Encoder, Tokens, by_length
from ..data.splits import Cases
from ..generation.cache import check as check_decoding
from ..generation.sampling import sample, stream_key
from ..losses import in_batch_contrast
from ..prompts import Example, Template
from ..retrieval.bm25 import BM25Index
from ..retrieval.round_robin import keep_best, quasi_round_robin
from .base import TextModel


class CALRec(TextModel):
    """Next-item generation with quasi-round-robin BM25 retrieval."""

    saved_apart = ("backbone.",)
    answer_keys = (
        "seed", "samples", "valid_samples", "valid_users", "temperature", "max_new_tokens", "texts_kept", "epsilon", "bm25_k1", "bm25_b", "generate_rows",
        "pass_tokens", "max_length",
    )  # fmt: skip
    max_cases = 128  # per call of `score`: enough to sort by length, few enough for a progress bar

    @classmethod
    def check(cls, config):
        check_name(config["backbone"], Path(config["checkpoint_dir"]))

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.sentences = [self.text.sentence(item) for item in range(len(self.text))]
        self.template = Template.from_config(config["template"])
        parts = [*self.sentences, *vars(self.template).values()]
        loaded = load_causal(
            config["backbone"], parts, saved=Path(config["checkpoint_dir"]), max_length=config["max_length"], vocabulary=config["scratch_vocabulary"]
        )
        self._use(loaded)
        self.index = BM25Index([self.text.plain(item) for item in range(len(self.text))], config["bm25_k1"], config["bm25_b"])

    def save(self, folder: Path) -> None:
        self.bundle.save(folder / FOLDER)

    def load(self, folder: Path) -> None:
        """The backbone with its tokenizer: on other data a scratch tokenizer would be another one."""
        self._use(load_folder(str(folder / FOLDER)))

    def _use(self, bundle: Backbone) -> None:
        check_decoding(bundle.model.config)
        self.bundle, self.backbone = bundle, bundle.model.to(self.device)
        self.encoder = Encoder(bundle.tokenizer, self.config["max_length"])

    @property
    def contrastive(self) -> bool:
        return bool(self.config["alpha"] or self.config["beta"])

    def example(self, case: int, cases: Cases, with_target: bool, learned: np.ndarray | None = None) -> Example:
        """learned : bool [events], which events' texts are training targets."""
        items = tuple(self.sentences[item] for item in self.history(case, cases))
        target = self.sentences[self.tables.item[cases.end[case]]] if with_target else None
        flags = None if learned is None else tuple(learned[cases.begin[case] : cases.end[case]].tolist())
        return Example(self.template, items, target, flags)

    def training_examples(self, cases: Cases, epoch: int) -> list[tuple[Tokens, ...]]:
        """One epoch's groups: a history with its target, and the target alone if there are contrastive terms.

        With `nig_targets: last`, one per user: up to four of the user's last cases are passed over (the paper's
        augmentation). With `all`, every case is learned once, in windows of as many whole items as fit.
        """
        order = np.lexsort([cases.end, cases.user])
        users = np.split(order, np.flatnonzero(np.diff(cases.user[order])) + 1)
        if self.config["nig_targets"] == "last":
            rng = np.random.default_rng([self.config["seed"], epoch])
            chosen = cases[np.array([own[-1 - rng.integers(min(5, len(own)))] for own in users])]
            return [self._group(self.encoder.encode(self.example(row, chosen, True)), chosen.end[row]) for row in range(len(chosen))]
        learned = np.zeros(len(self.tables.item), dtype=bool)
        learned[cases.end] = True
        groups = []
        for own in users:
            done = len(learned)  # every case whose target is at or behind this event is learned
            for row in own[::-1]:
                if cases.end[row] < done:
                    tokens = self.encoder.encode(self.example(row, cases, True, learned))
                    groups.append(self._group(tokens, cases.end[row]))
                    done = cases.begin[row] + tokens.cut + 1
        return groups

    def _group(self, tokens: Tokens, target: int) -> tuple[Tokens, ...]:
        return (tokens, self.encoder.alone(self.sentences[self.tables.item[target]])) if self.contrastive else (tokens,)

    def run_batch(self, batch, own: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(weighted sum of -log P over the learned tokens, [rows, 2, width] mean last hidden states of history and target).

        No token of a causal model sees the padding on its right, and without a mask attention is faster.
        """
        hidden = self.backbone.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        vectors = batch.means(hidden)
        labels = batch.labels[:, 1:]
        learned = labels != IGNORED
        if not own or not learned.any():
            return vectors.sum() * 0.0, vectors
        logits = self.bundle.logits(hidden[:, :-1][learned])
        loss = F.cross_entropy(logits.float(), labels[learned], reduction="sum")
        return (1 - self.config["alpha"] - self.config["beta"]) * loss, vectors

    def contrast(self, vectors: torch.Tensor) -> torch.Tensor:
        """alpha L_TT + beta L_UT from vectors [groups, 2, 2, width]: sequence and lone target, each history and target means."""
        user, user_target, target = vectors[:, 0, 0], vectors[:, 0, 1], vectors[:, 1, 1]
        alpha, beta, temperature = (self.config[key] for key in ("alpha", "beta", "contrast_temperature"))
        return alpha * in_batch_contrast(user_target, target, temperature) + beta * in_batch_contrast(user, target, temperature)

    def generate(self, cases: Cases) -> list[tuple[list[str], np.ndarray]]:
        """Per case the kept texts and their log-probabilities, best first."""
        config, tokenizer = self.config, self.bundle.tokenizer
        count = config["samples"] if not self.validating else config["valid_samples"]
        encoded = [self.encoder.encode(self.example(case, cases, False), reserve=config["max_new_tokens"]) for case in range(len(cases))]
        self.counts.update(cut_items=sum(tokens.cut for tokens in encoded), items=int((cases.end - cases.begin).sum()))
        self.counts.update(cut_users=sum(tokens.cut > 0 for tokens in encoded))
        prompts = [tokens.ids for tokens in encoded]
        names = zip(self.tables.users[cases.user], cases.end - cases.begin, strict=True)
        keys = np.array([stream_key(config["seed"], user, str(length)) for user, length in names])
        results: list = [None] * len(cases)
        for chosen in by_length([len(prompt) for prompt in prompts], config["pass_tokens"], most=max(1, config["generate_rows"] // count)):
            drawn = sample(
                self.bundle, [prompts[row] for row in chosen], keys[chosen], samples=count,
                temperature=config["temperature"], max_new=config["max_new_tokens"],
            )  # fmt: skip
            for row, generated in zip(chosen, drawn, strict=True):
                texts = [text.strip() for text in tokenizer.batch_decode([ids.tolist() for ids in generated.ids])]
                self.counts.update(texts=len(texts), ended=int(generated.ended.sum()), formatted=sum(map(self.formatted, texts)))
                results[row] = keep_best(texts, generated.logprobs, config["texts_kept"])
        return results

    def formatted(self, text: str) -> bool:
        """Whether a text has all attributes in their order."""
        places = [text.find(f"{name}: ") for name in self.text.names]
        return places[0] == 0 and places == sorted(places) and min(places) >= 0 and text.endswith(".")

    def values(self, text: str) -> str:
        """A generated text without the attribute names, as the corpus has it."""
        for name in self.text.names:
            text = text.replace(f"{name}: ", " ")
        return text

    def score(self, cases):
        scores = np.zeros((len(cases), len(self.text)))
        for row, (texts, logprobs) in enumerate(self.generate(cases)):
            scores[row] = quasi_round_robin(self.index.scores([self.values(text) for text in texts]), logprobs, self.config["epsilon"])
        return scores

    def rates(self):
        shares = {"formatted": "texts", "ended": "texts", "cut_users": "cases", "cut_items": "items"}
        return {name: self.counts[name] / max(1, self.counts[of]) for name, of in shares.items()} | super().rates()
