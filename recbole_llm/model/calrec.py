"""CALRec: a causal LM writes the next item's text, and BM25 finds the items that read like it (RecSys '24)."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..backbone import Backbone, load_causal, load_folder
from ..collate import IGNORED, Encoder, Tokens, by_length
from ..data.splits import Cases
from ..generation import sample, stream_key
from ..prompts import Example, Template
from ..retrieval.bm25 import BM25Index
from ..retrieval.round_robin import keep_best, quasi_round_robin
from .base import TextModel


class CALRec(TextModel):
    """Next-item generation with quasi-round-robin BM25 retrieval."""

    saved_apart = ("backbone.",)
    max_cases = 128  # per call of `score`: enough to sort by length, few enough for a progress bar

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
        self.bundle.save(folder / "backbone")

    def load(self, folder: Path) -> None:
        """The backbone with its tokenizer: on other data a scratch tokenizer would be another one."""
        self._use(load_folder(str(folder / "backbone")))

    def _use(self, bundle: Backbone) -> None:
        self.bundle, self.backbone = bundle, bundle.model.to(self.device)
        self.encoder = Encoder(bundle.tokenizer, self.config["max_length"])

    def example(self, case: int, cases: Cases, with_target: bool) -> Example:
        items = tuple(self.sentences[item] for item in self.history(case, cases))
        target = self.sentences[self.tables.item[cases.end[case]]] if with_target else None
        return Example(self.template, items, target)

    def training_examples(self, cases: Cases, epoch: int) -> list[Tokens]:
        """One epoch's examples.

        With `nig_targets: last`, one per user: up to four events are cut off the end (the paper's augmentation).
        With `all`, a user's whole training sequence in windows of as many whole items as fit.
        """
        last = np.flatnonzero(np.diff(cases.user, append=-1))  # each user's longest history
        rng = np.random.default_rng([self.config["seed"], epoch])
        if self.config["nig_targets"] == "last":
            shortest = np.maximum(cases.begin[last] + 1, cases.end[last] - 4)
            ends = rng.integers(shortest, cases.end[last] + 1)
            cut = Cases(cases.user[last], cases.begin[last], ends)
            return [self.encoder.encode(self.example(row, cut, True)) for row in range(len(cut))]
        examples = []
        for row in last:
            begin, end = cases.begin[row], cases.end[row]
            while end > begin:
                window = Cases(cases.user[[row]], np.array([begin]), np.array([end]))
                tokens = self.encoder.encode(self.example(0, window, True), learn="all")
                examples.append(tokens)
                end = begin + tokens.cut  # the oldest item of this window is the last target of the one before
                if tokens.cut == 0:
                    break
        return examples

    def loss(self, batch) -> torch.Tensor:
        """Sum of -log P over the learned tokens of a batch padded on the right (the paper's L_NIG times the number of users)."""
        hidden = self.backbone.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state  # causal: no token sees the padding, and no mask is faster
        labels = batch.labels[:, 1:]
        learned = labels != IGNORED
        logits = self.backbone.get_output_embeddings()(hidden[:, :-1][learned])
        return F.cross_entropy(logits.float(), labels[learned], reduction="sum")

    def generate(self, cases: Cases) -> list[tuple[list[str], np.ndarray]]:
        """Per case the kept texts and their log-probabilities, best first."""
        config, tokenizer = self.config, self.bundle.tokenizer
        count = config["samples"] if not self.validating else config["valid_samples"]
        prompts = [self.encoder.encode(self.example(case, cases, False), reserve=config["max_new_tokens"]).ids for case in range(len(cases))]
        names = zip(self.tables.users[cases.user], cases.end - cases.begin, strict=True)
        keys = np.array([stream_key(config["seed"], user, str(length)) for user, length in names])
        results: list = [None] * len(cases)
        for chosen in by_length([len(prompt) for prompt in prompts], config["pass_tokens"], most=max(1, config["generate_rows"] // count)):
            drawn = sample(
                self.backbone, tokenizer, [prompts[row] for row in chosen], keys[chosen], samples=count,
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
        self.fallback = ~scores.any(axis=1)
        self.counts.update(cases=len(cases), unmatched=int(self.fallback.sum()))
        return scores

    def rates(self):
        texts, cases = max(1, self.counts["texts"]), max(1, self.counts["cases"])
        return {
            "formatted": self.counts["formatted"] / texts, "ended": self.counts["ended"] / texts, "unmatched": self.counts["unmatched"] / cases,
            "items_cut": self.encoder.cut_items / max(1, self.encoder.seen_items),
        }  # fmt: skip
