"""Text models that write: a causal LM generates item texts, and texts find items."""

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..collate import by_length, pad, pieces
from ..data.mixture import Corpus, load_corpora
from ..data.splits import Cases
from ..errors import UserError
from ..evaluation.stored import StoredLists
from ..generation.beam import Catalogue, Reached, search
from ..generation.probe import check as check_decoding
from ..generation.sampling import sample, stream_key
from ..prompts import Example, Template
from ..retrieval.matching import BM25Match, HierarchicalMatch
from ..retrieval.round_robin import keep_best
from .lm import BackboneModel


class Answer(NamedTuple):
    """What was generated for one case: the kept texts with their log-probabilities, best first.

    prompt: float32 [width], mean last hidden state of the history (v^U). reached: what a constrained search found.
    """

    texts: list[str]
    logprobs: np.ndarray
    prompt: np.ndarray
    reached: Reached | None = None


class WriterModel(BackboneModel):
    """Generates texts for a history and finds the items they mean."""

    answer_keys = (
        *BackboneModel.answer_keys, "decoding", "beams", "match", "blend", "rerank_from", "samples", "valid_samples", "valid_users", "temperature",
        "max_new_tokens", "texts_kept", "epsilon", "bm25_k1", "bm25_b", "generate_rows",
    )  # fmt: skip
    max_cases = 128  # per call of `score`: enough to sort by length, few enough for a progress bar

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.corpora = load_corpora(config, Corpus(self.tables, self.text, dataset.split.train))
        self.template = Template.from_config(config["template"])
        self.first, self.same = self.text.unique
        self.agreement = HierarchicalMatch(self.text)
        self.match = self.agreement if config["match"] == "hierarchical" else BM25Match(self.text, config)
        self.lists: StoredLists | None = None
        self.load_backbone(pieces(self.template, [text for corpus in self.corpora for text in corpus.sentences]))

    @property
    def sentences(self) -> list[str]:
        return self.corpora[0].sentences

    def use(self, bundle):
        super().use(bundle)
        check_decoding(bundle, self.config["backbone"])
        self.__dict__.pop("catalogue", None)  # of the tokenizer before

    def hidden(self, batch) -> torch.Tensor:
        """Last hidden states [rows, length, width]. No token of a causal model sees the padding on its right, and without a mask attention is faster."""
        return self.backbone.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state

    def generate(self, cases: Cases) -> list[Answer]:
        """What the model writes for each case."""
        config = self.config
        longest = self.catalogue.depth if config["decoding"] == "constrained" else config["max_new_tokens"]
        histories = ([self.sentences[item] for item in self.history(case, cases)] for case in range(len(cases)))
        encoded = [self.encoder.encode(Example(self.template, tuple(items)), reserve=longest) for items in histories]
        self.counts.update(cut_items=sum(tokens.cut for tokens in encoded), items=int((cases.end - cases.begin).sum()))
        self.counts.update(cut_users=sum(tokens.cut > 0 for tokens in encoded))
        prompts = [tokens.ids for tokens in encoded]
        count = config["beams"] if config["decoding"] == "constrained" else config["valid_samples"] if self.choosing else config["samples"]
        decode = self._search if config["decoding"] == "constrained" else self._sample
        answers: list = [None] * len(cases)
        for chosen in by_length([len(prompt) for prompt in prompts], config["pass_tokens"], most=max(1, config["generate_rows"] // count)):
            for row, answer in zip(chosen, decode([prompts[row] for row in chosen], cases[chosen], count), strict=True):
                answers[row] = answer
        return answers

    def _sample(self, prompts: list[np.ndarray], cases: Cases, count: int) -> list[Answer]:
        config, tokenizer = self.config, self.bundle.tokenizer
        names = zip(self.tables.users[cases.user], cases.end - cases.begin, strict=True)
        keys = np.array([stream_key(config["seed"], user, str(length)) for user, length in names])
        answers = []
        for drawn in sample(self.bundle, prompts, keys, samples=count, temperature=config["temperature"], max_new=config["max_new_tokens"]):
            texts = [text.strip() for text in tokenizer.batch_decode([ids.tolist() for ids in drawn.ids])]
            self.counts.update(texts=len(texts), ended=int(drawn.ended.sum()), **self.agreement.tally(texts))
            answers.append(Answer(*keep_best(texts, drawn.logprobs, config["texts_kept"]), drawn.prompt))
        return answers

    def _search(self, prompts: list[np.ndarray], cases: Cases, count: int) -> list[Answer]:
        answers = []
        for reached in search(self.bundle, prompts, self.catalogue, count):
            best = reached.sequences[: self.config["texts_kept"]]
            texts = [self.sentences[item] for item in self.first[best]]
            answers.append(Answer(texts, reached.logprobs[: len(best)], reached.prompt, reached))
        return answers

    @cached_property
    def catalogue(self) -> Catalogue:
        return Catalogue([self.encoder.item(self.sentences[item]) for item in self.first])

    def score(self, cases):
        answers = self.generate(cases)
        scores = np.stack([self.match.scores(answer.texts, answer.logprobs) for answer in answers])
        self.unmatched = np.array([answer.reached is None and not row.any() for answer, row in zip(answers, scores, strict=True)])
        if blend := self.config["blend"]:
            prompts = np.stack([answer.prompt for answer in answers])
            cosine = prompts / np.linalg.norm(prompts, axis=1, keepdims=True) @ self.item_vectors[self.same].T
            scores += blend * cosine
        for row, answer in enumerate(answers):
            if answer.reached is not None:  # above every item that no beam reached
                value = np.full(len(self.first), np.nan)
                value[answer.reached.sequences] = answer.reached.logprobs
                own, place = value[self.same], np.flatnonzero(~np.isnan(value[self.same]))
                own = own[place] + (blend * cosine[row, place] if blend else 0)
                scores[row, place] = own - own.min() + scores[row].max() + 1
        if self.config["rerank_from"]:
            if self.lists is None:
                raise UserError("rerank_from ranks the cases again that a run has stored; for anything else, set rerank_from: ~")
            positions = cases.end - self.tables.start[cases.user]
            users = self.tables.users[cases.user]
            scores = np.stack([self.lists.keep(*one) for one in zip(scores, users.tolist(), positions.tolist(), strict=True)])
        return scores

    @cached_property
    def item_vectors(self) -> np.ndarray:
        """float32 [texts, width]: v^T of every distinct item text, of length 1."""
        tokens = [self.encoder.alone(self.sentences[item]) for item in self.first]
        vectors = np.zeros((len(tokens), self.backbone.config.get_text_config().hidden_size), dtype=np.float32)
        for chosen in by_length([len(one) for one in tokens], self.config["pass_tokens"]):
            batch = pad([tokens[row] for row in chosen], pad_id=self.bundle.tokenizer.pad_token_id).to(self.device)
            vectors[chosen] = batch.means(self.hidden(batch))[:, 1].float().cpu().numpy()
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def start_ranking(self, part, choosing):
        super().start_ranking(part, choosing)
        self.__dict__.pop("item_vectors", None)  # the weights may have changed
        if folder := self.config["rerank_from"]:
            self.lists = StoredLists(Path(folder), part)

    def rates(self):
        shares = dict.fromkeys(("formatted", "ended", "matched_all", "matched_first"), "texts") | {"cut_users": "cases", "cut_items": "items"}
        return {name: self.counts[name] / self.counts[of] for name, of in shares.items() if self.counts[of]} | super().rates()
