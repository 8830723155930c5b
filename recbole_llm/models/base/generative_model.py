"""The base class of models whose causal LM generates item texts, which are matched to items."""

from collections.abc import Sequence
from functools import cached_property, partial
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F

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
from ...language.passes import fits
from ...language.prompts.templates import Example, LazyTexts, Template
from ...language.tokens.batches import (
    IGNORED,
    Batch,
    HistoryEncoder,
    Tokens,
    by_length,
    pad,
    padded_size,
    tokenizer_corpus,
)
from ...language.vectors import embed
from ...settings.layers import digest
from ...settings.run_record import finished_run
from ...storage import run_folders
from ...training.corpora import Corpus, LazyExamples, load_corpora
from .backbone_model import BackboneModel

STEP_COST = 512  # fixed cost of a decoding step, in tokens


class GenerativeModel(BackboneModel):
    """Generates texts for a history, and ranks the items that match them.

    Attributes
    ----------
    corpora : list of Corpus
        The datasets that the model trains on, the run's own first.
    template : Template
        The sentences around the items of a history.
    first : ndarray of int64 [texts]
        One item of each distinct text.
    same : ndarray of int64 [items]
        The number of each item's text.
    agreement : HierarchicalMatch
        Counts the attributes on which texts and items agree.
    match : BM25Match or HierarchicalMatch
        Scores items by generated texts.
    lists : StoredLists or None
        Lists of another run that are ranked again.
    decoded_tokens : int
        Most tokens of prompts and their texts that are decoded at once; a limit after memory ran
        out.
    written : AnswerLog or None
        The log of the texts that the current weights have generated for a part of the data.
    """

    inference_settings = (
        *BackboneModel.inference_settings,
        "decoding",
        "beams",
        "match",
        "blend",
        "rerank_from",
        "samples",
        "valid_samples",
        "valid_users",
        "temperature",
        "max_new_tokens",
        "texts_kept",
        "epsilon",
        "bm25_k1",
        "bm25_b",
        "generate_rows",
    )
    encoder: HistoryEncoder
    names_all = False
    unmatched_reason = "no text it wrote agrees with an item"
    max_cases = 128  # enough to sort cases by length, and few enough for a progress bar

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.corpora = load_corpora(
            self.inputs, Corpus(self.interactions, self.text, dataset.split.train)
        )
        self.template = Template.from_config(config["template"])
        self.first, self.same = self.text.unique
        self.agreement = HierarchicalMatch(self.text)
        self.match: HierarchicalMatch | BM25Match = self.agreement
        if config["match"] != "hierarchical":
            self.match = BM25Match(self.text, config)
        self.decoded_tokens = 2**62
        self.lists: StoredLists | None = None
        self.written: AnswerLog | None = None
        sentences = list(chain.from_iterable(corpus.sentences for corpus in self.corpora))
        self.load_backbone(tokenizer_corpus(self.template, sentences))

    @property
    def constrained(self) -> bool:
        """Whether only texts of the catalogue can be generated."""
        return self.config["decoding"] == "constrained"

    @property
    def sentences(self) -> list[str]:
        """The text of each item."""
        return self.corpora[0].sentences

    def use(self, bundle):
        """Make a language model that of this model, after a check that it can be decoded."""
        super().use(bundle)
        check_backbone(bundle, self.config["backbone"])
        self.__dict__.pop("catalogue", None)  # its tokens were those of another tokenizer

    def make_encoder(self, bundle):
        """Make the encoder of histories and items."""
        encoder = super().make_encoder(bundle)
        sentences = chain.from_iterable(corpus.sentences for corpus in self.corpora)
        self.tokenise_items(encoder, list(sentences))
        return encoder

    @property
    def longest(self) -> int:
        """Most tokens of a generated text."""
        return self.catalogue.depth if self.constrained else self.config["max_new_tokens"]

    def examples(self, epoch: int) -> LazyExamples:
        """Make a text of each training case, see `texts_of`; the same in each epoch."""
        return self.texts_of(self.split.train)

    def texts_of(self, cases: Cases) -> LazyExamples:
        """Make a text of each case: its history, and its target, which is learned.

        Parameters
        ----------
        cases : Cases
            Cases for training.

        Returns
        -------
        LazyExamples of tuple of Tokens
            An example for each case, of one text.
        """
        items, sentences = self.interactions.item, self.sentences

        def text(number: int, row: int, rng: np.random.Generator) -> tuple[Tokens]:
            history = LazyTexts(sentences, items[cases.begin[row] : cases.end[row]])
            target = sentences[items[cases.end[row]]]
            return (self.encoder.encode(Example(self.template, history, target)),)

        return LazyExamples([np.arange(len(cases))], text, [self.config["seed"]])

    def loss(self, batch: Batch) -> torch.Tensor:
        """Compute the sum of -log P over the learned tokens.

        Parameters
        ----------
        batch : Batch
            Texts.

        Returns
        -------
        Tensor of float []
            The loss.
        """
        hidden = self.hidden(batch)
        loss = self.generation_loss(hidden, batch)
        return hidden.sum() * 0.0 if loss is None else loss

    def generation_loss(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor | None:
        """Compute the sum of -log P over the learned tokens from hidden states.

        Only the hidden states before learned tokens are multiplied with the vocabulary.

        Parameters
        ----------
        hidden : Tensor of float [rows, length, width]
            Last hidden states of the batch.
        batch : Batch
            Its texts.

        Returns
        -------
        Tensor of float [] or None
            The loss; None if no token is learned.
        """
        labels = batch.labels[:, 1:]
        learned = labels != IGNORED
        if not learned.any():
            return None
        place = learned.flatten().nonzero()[:, 0]
        spare = (0, int(padded_size(len(place))) - len(place))
        states = hidden[:, :-1].flatten(0, 1)[F.pad(place, spare)]
        padded = F.pad(labels[learned], spare, value=IGNORED)
        return self.bundle.token_losses(states, padded, reduction="sum")

    def prompts(self, cases: Cases) -> list[Tokens]:
        """Encode the history of each case, with room for a generated text.

        Parameters
        ----------
        cases : Cases
            The cases.

        Returns
        -------
        list of Tokens
            One prompt for each case.
        """
        histories = [
            LazyTexts(self.sentences, history) for history in cases.histories(self.interactions)
        ]
        return [
            self.encoder.encode(Example(self.template, items), reserve=self.longest)
            for items in histories
        ]

    def generate(self, cases: Cases, prompts: list[Tokens]) -> list[Answer]:
        """Generate texts for each case, or read them from the log.

        Parameters
        ----------
        cases : Cases
            The cases.
        prompts : list of Tokens
            Their prompts.

        Returns
        -------
        list of Answer
            The texts of each case.
        """
        start = self.interactions.start[cases.user]
        users = self.interactions.users[cases.user].tolist()
        begins, ends = (cases.begin - start).tolist(), (cases.end - start).tolist()
        names = list(zip(users, begins, ends, strict=True))
        answers: dict[int, Answer] = {}
        for row, name in enumerate(names):
            answer = self.written.get(name) if self.written else None
            if answer is not None:
                answers[row] = answer
        self.counts["read_again"] += len(answers)
        missing = [row for row in range(len(names)) if row not in answers]
        answers |= self._decode(cases, prompts, np.array(missing, dtype=np.int64))
        if self.written and missing:
            self.written.add({names[row]: answers[row] for row in missing})
        return [answers[row] for row in range(len(names))]

    @property
    def _texts_per_case(self) -> int:
        """Number of beams or samples."""
        if self.constrained:
            return self.config["beams"]
        return self.config["valid_samples"] if self.selecting else self.config["samples"]

    def _decode(
        self, cases: Cases, prompts: list[Tokens], missing: np.ndarray
    ) -> dict[int, Answer]:
        """Generate texts for the cases of some rows, int64 [n]; returns row -> answer."""
        count, longest = self._texts_per_case, self.longest
        decode = self._search if self.constrained else self._sample
        sizes = np.array([len(prompts[row]) + count * longest for row in missing])
        answers: dict[int, Answer] = {}

        def compute(places: np.ndarray) -> None:
            rows = missing[places]
            decoded = decode([prompts[row].ids for row in rows], cases[rows], count)
            answers.update(zip(rows.tolist(), decoded, strict=True))

        waiting, most = np.arange(len(missing)), max(1, self.config["generate_rows"] // count)
        while len(waiting):
            budget = min(self.decoded_tokens, 2 * most * count * longest)
            for batch in by_length(sizes[waiting], budget, most, cost=STEP_COST * longest):
                places = waiting[batch]
                if not fits(partial(compute, places)):
                    self._decode_less(len(places), int(sizes[places].max()))
                    break
            waiting = np.array([place for place in waiting if missing[place] not in answers], int)
        return answers

    def _decode_less(self, cases: int, largest: int) -> None:
        """Decode half as many tokens at once from here on, after memory ran out.

        `largest` are the tokens of the longest prompt among the cases, and of its texts.
        """
        if cases == 1:
            raise UserError(
                f"max_length: memory does not hold a prompt and its texts, {largest} tokens "
                f"together; set {'--beams' if self.constrained else '--samples'} or --max_length "
                "to less, or take a smaller model"
            )
        self.decoded_tokens = max(largest, cases * largest // 2)
        self.logger.warning(
            f"memory ran out: prompts and texts of {self.decoded_tokens} tokens are decoded at "
            "once from here on (generate_rows)"
        )

    def _sample(self, prompts: list[np.ndarray], cases: Cases, count: int) -> list[Answer]:
        """Sample `count` texts for each prompt, by random numbers that depend on its case alone."""
        config, tokenizer = self.config, self.bundle.tokenizer
        names = zip(self.interactions.users[cases.user], cases.end - cases.begin, strict=True)
        keys = np.array([stream_key(config["seed"], user, str(length)) for user, length in names])
        answers = []
        for samples in sample(
            self.bundle,
            prompts,
            keys,
            samples=count,
            temperature=config["temperature"],
            max_new=self.longest,
            budget=self.passes.tokens,
        ):
            decoded = tokenizer.batch_decode([ids.tolist() for ids in samples.ids])
            texts, logprobs, times = distinct_texts(
                [text.strip() for text in decoded], samples.logprobs
            )
            answers.append(Answer(texts, logprobs, times, ended=int(samples.ended.sum())))
        return answers

    def _search(self, prompts: list[np.ndarray], cases: Cases, count: int) -> list[Answer]:
        """Search the `count` most probable item texts of each prompt."""
        budget = self.passes.tokens
        answers = []
        for beams in search(self.bundle, prompts, self.catalogue, count, budget):
            texts = [self.sentences[item] for item in self.first[beams.sequences]]
            answers.append(
                Answer(
                    texts,
                    beams.logprobs.tolist(),
                    times=[1] * len(texts),
                    ended=len(texts),
                    reached=beams.sequences.tolist(),
                )
            )
        return answers

    def _count(self, cases: Cases, prompts: list[Tokens], answers: list[Answer]) -> None:
        self.count_cut(cases, [prompt.cut for prompt in prompts])
        self.count_borders([prompt.ids for prompt in prompts])
        for answer in answers:
            if answer.reached is None:
                tallies = self.agreement.tally(answer.texts, answer.times)
                self.counts.update(texts=sum(answer.times), ended=answer.ended, **tallies)

    @cached_property
    def catalogue(self) -> Catalogue:
        """The tokens of the distinct item texts, which constrained decoding is limited to."""
        return Catalogue([self.encoder.item(self.sentences[item]) for item in self.first])

    def score(self, cases):
        """Score every item by generated texts, and the items that they do not name by a blend.

        Items that a constrained search has reached come first, by their log-probabilities. The
        items that match texts come next.
        """
        prompts = self.prompts(cases)
        answers = self.generate(cases, prompts)
        self._count(cases, prompts, answers)
        scores = np.stack([self._match_scores(answer) for answer in answers])
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
                scores,
                self.interactions.users[cases.user],
                cases.end - self.interactions.start[cases.user],
            )
        return scores

    def _match_scores(self, answer: Answer) -> np.ndarray:
        """Scores of all items, float64 [items], by the most probable texts of an answer."""
        most = self.config["texts_kept"]
        return self.match.scores(answer.texts[:most], np.array(answer.logprobs[:most]))

    def probed(self, cases):
        """Compute the logits of the first generated token: whole texts would take many passes."""
        logits = []
        for prompt in self.prompts(cases):
            states = self.hidden(pad([prompt], pad_id=self.pad_id).to(self.device))
            logits.append(self.bundle.logits(states[:, len(prompt) - 1]).float().cpu())
        return torch.cat(logits)

    def vectors(self, tokens: Sequence[Tokens], part: int) -> np.ndarray:
        """Embed encoded texts by the mean of their last hidden states.

        Parameters
        ----------
        tokens : sequence of Tokens
            The texts.
        part : int
            0 for the means over the histories, 1 for those over the targets.

        Returns
        -------
        ndarray of float32 [texts, width]
            Vectors of length 1.
        """
        vectors = embed(
            tokens,
            lambda batch: batch.means(self.hidden(batch))[:, part],
            self.bundle,
            self.passes,
            self.device,
        )
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    @cached_property
    def item_vectors(self) -> np.ndarray:
        """The vector v^T of every distinct item text, float32 [texts, width], of length 1."""
        tokens = [self.encoder.encode_item(self.sentences[item]) for item in self.first]
        return self.vectors(tokens, 1)

    def start_ranking(self, part, selecting, folder=None):
        """Open the log of generated texts, and forget the vectors of earlier weights."""
        super().start_ranking(part, selecting, folder)
        self.__dict__.pop("item_vectors", None)
        self.written = None
        if folder:
            name = run_folders.TEXTS.format(part=part, key=self.writing_key())
            self.written = AnswerLog(folder / name)
        if self.written and self.written.known:
            self.logger.info(
                f"{part}: the texts of {len(self.written.known)} cases are there already, in "
                f"{self.written.lines.path}"
            )
        if run := self.inputs.lists:
            self.lists = StoredLists(run, part, finished_run(run)["row"])

    def writing_key(self) -> str:
        """Hash what decides the texts that one run's weights generate.

        Returns
        -------
        str
            8 hex digits over settings, data, the kind of device and library versions.
        """
        keys = ["decoding", "precision", "max_length", "template", "text_fields", "text_words"]
        if self.constrained:
            keys.append("beams")
        else:
            keys += ["seed", "samples", "temperature", "max_new_tokens"]
        installed = run_folders.versions()
        return digest(
            [
                *[installed[name] for name in ("code", "torch", "transformers")],
                torch.device(self.device).type,
                self.interactions.fingerprint,
                {key: self.config[key] for key in keys},
            ]
        )

    def rates(self):
        """Return the shares of the last ranking, see `TextModel.rates`."""
        totals = dict.fromkeys(("formatted", "ended", "matched_all", "matched_first"), "texts")
        totals["read_again"] = "cases"
        shares = {
            name: self.counts[name] / self.counts[total]
            for name, total in totals.items()
            if self.counts[total]
        }
        return shares | super().rates()
