"""Text models that write: a causal LM generates item texts, and texts find items."""

from functools import cached_property

import numpy as np
import torch

from ...contracts.cases import Cases
from ...errors import UserError
from ...evaluation.ranks import UNNAMED, in_front, names_nothing
from ...evaluation.rerank_lists import StoredLists
from ...language.decoding.answer_log import Answer, AnswerLog
from ...language.decoding.compatibility import check_backbone
from ...language.decoding.constrained_search import Catalogue, search
from ...language.decoding.sampling import sample, stream_key
from ...language.matching.matching import BM25Match, HierarchicalMatch
from ...language.matching.round_robin import distinct_texts
from ...language.prompts.templates import Example, LazyTexts, Template
from ...language.tokens.batches import Tokens, by_length, pad, tokenizer_corpus
from ...settings.layers import digest
from ...settings.run_record import finished_run
from ...storage import run_folders
from ...training.corpora import Corpus, load_corpora
from .backbone_model import BackboneModel

STEP_COST = 512  # what a decoding step costs beside its rows, in tokens


class GenerativeModel(BackboneModel):
    """Generates texts for a history and finds the items they mean."""

    inference_settings = (
        *BackboneModel.inference_settings, "decoding", "beams", "match", "blend", "rerank_from", "samples", "valid_samples", "valid_users", "temperature",
        "max_new_tokens", "texts_kept", "epsilon", "bm25_k1", "bm25_b", "generate_rows",
    )  # fmt: skip
    names_all = False
    unmatched_reason = "no text it wrote agrees with an item"
    max_cases = 128  # per call of `score`: enough to sort by length, few enough for a progress bar

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.corpora = load_corpora(
            self.inputs, Corpus(self.tables, self.text, dataset.split.train)
        )
        self.template = Template.from_config(config["template"])
        self.first, self.same = self.text.unique
        self.agreement = HierarchicalMatch(self.text)
        self.match = (
            self.agreement if config["match"] == "hierarchical" else BM25Match(self.text, config)
        )
        self.lists: StoredLists | None = None
        self.written: AnswerLog | None = None
        self.load_backbone(
            tokenizer_corpus(
                self.template, [text for corpus in self.corpora for text in corpus.sentences]
            )
        )

    @property
    def constrained(self) -> bool:
        return self.config["decoding"] == "constrained"

    @property
    def sentences(self) -> list[str]:
        return self.corpora[0].sentences

    def use(self, bundle):
        super().use(bundle)
        check_backbone(bundle, self.config["backbone"])
        self.__dict__.pop("catalogue", None)  # of the tokenizer before

    @property
    def longest(self) -> int:
        """Tokens, of what may be written."""
        return self.catalogue.depth if self.constrained else self.config["max_new_tokens"]

    def prompts(self, cases: Cases) -> list[Tokens]:
        """The encoded history of each case, with room for what is written after it."""
        histories = [LazyTexts(self.sentences, history) for history in cases.histories(self.tables)]
        return [
            self.encoder.encode(Example(self.template, items), reserve=self.longest)
            for items in histories
        ]

    def generate(self, cases: Cases, prompts: list[Tokens]) -> list[Answer]:
        """What the model writes for each case, or has written already."""
        config, start = self.config, self.tables.start[cases.user]
        names = list(
            zip(
                self.tables.users[cases.user].tolist(),
                (cases.begin - start).tolist(),
                (cases.end - start).tolist(),
                strict=True,
            )
        )
        answers = [self.written and self.written.get(name) for name in names]
        self.counts["read_again"] += sum(answer is not None for answer in answers)
        missing = np.array(
            [row for row, answer in enumerate(answers) if answer is None], dtype=np.int64
        )
        count = (
            config["beams"]
            if self.constrained
            else config["valid_samples"]
            if self.selecting
            else config["samples"]
        )
        decode = self._search if self.constrained else self._sample
        most, longest = max(1, config["generate_rows"] // count), self.longest
        for chosen in by_length(
            [len(prompts[row]) for row in missing],
            most * count * longest,
            most,
            cost=STEP_COST * longest,
        ):
            rows = missing[chosen]
            for row, answer in zip(
                rows, decode([prompts[row].ids for row in rows], cases[rows], count), strict=True
            ):
                answers[row] = answer
        if self.written and len(missing):
            self.written.add({names[row]: answers[row] for row in missing})
        return answers

    def _sample(self, prompts: list[np.ndarray], cases: Cases, count: int) -> list[Answer]:
        config, tokenizer = self.config, self.bundle.tokenizer
        names = zip(self.tables.users[cases.user], cases.end - cases.begin, strict=True)
        keys = np.array([stream_key(config["seed"], user, str(length)) for user, length in names])
        answers, budget = [], config["pass_tokens"]
        for drawn in sample(
            self.bundle,
            prompts,
            keys,
            samples=count,
            temperature=config["temperature"],
            max_new=self.longest,
            budget=budget,
        ):
            texts = [
                text.strip() for text in tokenizer.batch_decode([ids.tolist() for ids in drawn.ids])
            ]
            answers.append(Answer(*distinct_texts(texts, drawn.logprobs), int(drawn.ended.sum())))
        return answers

    def _search(self, prompts: list[np.ndarray], cases: Cases, count: int) -> list[Answer]:
        answers = []
        for reached in search(
            self.bundle, prompts, self.catalogue, count, self.config["pass_tokens"]
        ):
            texts = [self.sentences[item] for item in self.first[reached.sequences]]
            answers.append(
                Answer(
                    texts,
                    reached.logprobs.tolist(),
                    [1] * len(texts),
                    len(texts),
                    reached.sequences.tolist(),
                )
            )
        return answers

    def _count(self, cases: Cases, prompts: list[Tokens], answers: list[Answer]) -> None:
        self.count_cut(cases, [one.cut for one in prompts])
        self.count_borders([one.ids for one in prompts])
        for answer in (answer for answer in answers if answer.reached is None):
            self.counts.update(
                texts=sum(answer.times),
                ended=answer.ended,
                **self.agreement.tally(answer.texts, answer.times),
            )

    @cached_property
    def catalogue(self) -> Catalogue:
        return Catalogue([self.encoder.item(self.sentences[item]) for item in self.first])

    def score(self, cases):
        prompts, kept = self.prompts(cases), self.config["texts_kept"]
        answers = self.generate(cases, prompts)
        self._count(cases, prompts, answers)
        scores = np.stack(
            [self.match.scores(answer.texts[:kept], answer.logprobs[:kept]) for answer in answers]
        )
        silent = names_nothing(scores)
        scores[silent] = UNNAMED
        reached = np.full((len(answers), len(self.first)), UNNAMED)
        for row, answer in enumerate(answers):
            if answer.reached is not None:
                reached[row, answer.reached] = answer.logprobs
        reached = reached[:, self.same]
        self.unmatched = silent & names_nothing(reached)
        if blend := self.config["blend"]:
            cosine = blend * (self.vectors(prompts, 0) @ self.item_vectors[self.same].T)
            scores = in_front(scores + cosine, cosine)
            reached += cosine
        scores = in_front(reached, scores)
        if self.inputs.lists:
            if self.lists is None:
                raise UserError(
                    "rerank_from ranks the cases again that a run has stored; for anything else, "
                    "set rerank_from: ~"
                )
            scores = self.lists.keep(
                scores, self.tables.users[cases.user], cases.end - self.tables.start[cases.user]
            )
        return scores

    def probed(self, cases):
        """Logits of the first token to be written: what is written would take many passes."""
        found = []
        for prompt in self.prompts(cases):
            states = self.hidden(pad([prompt], pad_id=self.pad_id).to(self.device))
            found.append(self.bundle.logits(states[:, len(prompt) - 1]).float().cpu())
        return torch.cat(found)

    @cached_property
    def item_vectors(self) -> np.ndarray:
        """float32 [texts, width]: v^T of every distinct item text, of length 1."""
        return self.vectors(
            [self.encoder.encode_item(self.sentences[item]) for item in self.first], 1
        )

    def start_ranking(self, part, selecting, folder=None):
        super().start_ranking(part, selecting, folder)
        self.__dict__.pop("item_vectors", None)  # the weights may have changed
        self.written = folder and AnswerLog(
            folder / run_folders.TEXTS.format(part=part, key=self.writing_key())
        )
        if self.written and self.written.known:
            self.logger.info(
                f"{part}: the texts of {len(self.written.known)} cases are there already, in "
                f"{self.written.lines.path}"
            )
        if run := self.inputs.lists:
            self.lists = StoredLists(run, part, finished_run(run)["row"])

    def writing_key(self) -> str:
        """8 hex digits over everything that decides what is written by one run's weights, the libraries that compute it included."""
        own = (
            ("beams",) if self.constrained else ("seed", "samples", "temperature", "max_new_tokens")
        )
        keys = (
            "decoding",
            "precision",
            "max_length",
            "template",
            "text_fields",
            "text_words",
            *own,
        )
        versions = [run_folders.versions()[name] for name in ("code", "torch", "transformers")]
        return digest(
            [
                *versions,
                torch.device(self.device).type,
                self.tables.fingerprint,
                {key: self.config[key] for key in keys},
            ]
        )

    def rates(self):
        shares = dict.fromkeys(("formatted", "ended", "matched_all", "matched_first"), "texts") | {
            "read_again": "cases"
        }
        return {
            name: self.counts[name] / self.counts[of]
            for name, of in shares.items()
            if self.counts[of]
        } | super().rates()
