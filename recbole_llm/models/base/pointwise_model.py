"""The base class of models whose causal LM answers Yes or No to a candidate (LLMTRSR, TALLRec)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ...contracts.cases import Cases
from ...data.cases.candidates import draw_unmet
from ...errors import UserError
from ...evaluation.rerank_lists import StoredLists
from ...language.backbones.footprint import Pass
from ...language.decoding import shared_candidates as shared
from ...language.decoding.compatibility import check_backbone
from ...language.prompts.instructions import Instructions
from ...language.prompts.marks import neutralize_marks
from ...language.prompts.templates import item_line
from ...language.tokens.batches import IGNORED, Batch, Tokens, pad
from ...language.tokens.judge import JudgeEncoder, SharedPrefix
from ...language.vectors import embed
from ...settings.run_record import finished_run
from ...training.corpora import Corpus, LazyExamples
from .backbone_model import BackboneModel

PROBED = 2  # number of items that are judged when weights are compared


class CandidateJudge(BackboneModel):
    """Asks a causal LM whether a user takes a candidate.

    A subclass whose prompts have summaries of histories overrides `summaries`.

    Attributes
    ----------
    summarised : bool
        Whether prompts have a summary beside the newest items.
    corpus : Corpus
        The dataset that the model trains on.
    lines : list of str
        The text of each item.
    first : ndarray of int64 [groups]
        One item of each group. The items of a group have the same tokens as candidates.
    same : ndarray of int64 [items]
        The number of each item's group.
    lists : StoredLists or None
        Lists of another run that are ranked again.
    """

    max_cases = 256
    judges_candidates = True
    summarised = True
    encoder: JudgeEncoder
    inference_settings = (
        *BackboneModel.inference_settings,
        "score",
        "valid_users",
        "rerank_from",
        "rerank_items",
    )

    @classmethod
    def check(cls, config, inputs):
        """See `TextModel.check`."""
        super().check(config, inputs)
        Instructions.of_domain(config["domain"])
        if inputs.lists and "full" not in config["eval_args"]["mode"].values():
            raise UserError(
                "rerank_from: lists of the whole catalogue are judged where it is ranked; set "
                "--eval_args.mode=full, or leave it out"
            )
        interactions, count = inputs.interactions, config["negatives"]
        if count > (left := len(interactions.items) - interactions.met.max()):
            user = interactions.users[interactions.met.argmax()]
            raise UserError(
                f"negatives: user {user} leaves {left} items to draw from, found {count}; "
                "set --negatives to no more"
            )

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.corpus = Corpus(self.interactions, self.text, dataset.split.train)
        self.instructions = Instructions.of_domain(config["domain"])
        self.lines = [
            item_line(zip(self.text.names, values, strict=True)) for values in self.text.values
        ]
        self.lists: StoredLists | None = None
        instruction = (
            self.instructions.judge if self.summarised else self.instructions.judge_history
        )
        self.load_backbone([*self.lines, *[instruction] * len(self.lines)])
        if "full" in config["eval_args"]["mode"].values() and not self.inputs.lists:
            self.logger.warning(
                f"each case is asked of all {len(self.lines)} items; --rerank_from=RUN asks of the "
                "first that another run has listed"
            )

    def summaries(self, histories: list[np.ndarray]) -> list[str | None]:
        """Summarise histories.

        Parameters
        ----------
        histories : list of ndarray of int32
            Item numbers of each history, oldest first.

        Returns
        -------
        list of str or None
            The summary of each history; None where there is none.
        """
        return [None] * len(histories)

    def use(self, bundle):
        """Make a language model that of this model, and group the items with the same tokens."""
        super().use(bundle)
        _, self.first, self.same = np.unique(
            self.encoder.token_groups, return_index=True, return_inverse=True
        )
        check_backbone(bundle, self.config["backbone"], shared.logit_deviation)

    def make_encoder(self, bundle):
        """Make the encoder, with room for the longest candidate."""
        encoder = JudgeEncoder(
            bundle.tokenizer,
            self.config["max_length"],
            instructions=self.instructions,
            summarised=self.summarised,
        )
        self.tokenise_items(encoder, [neutralize_marks(line) for line in self.lines])
        encoder.for_candidates(self.lines)
        if encoder.cut_candidates:
            self.logger.info(
                f"{encoder.cut_candidates} of {len(self.lines)} items are cut to "
                f"{encoder.candidate_length} tokens as candidates; set --max_length to more"
            )
        return encoder

    @property
    def names_all(self) -> bool:  # type: ignore[override]  # it depends on a setting
        """Whether every item gets a score: all do, unless lists of another run are ranked."""
        return not self.inputs.lists

    def prefixes(self, cases: Cases) -> list[SharedPrefix]:
        """Encode what precedes the candidates of each case.

        Parameters
        ----------
        cases : Cases
            The cases.

        Returns
        -------
        list of SharedPrefix
            One prefix for each case.
        """
        histories = cases.histories(self.interactions)
        return [
            self.encoder.shared_prefix(summary, self._newest_lines(history))
            for summary, history in zip(self.summaries(histories), histories, strict=True)
        ]

    def _newest_lines(self, history: np.ndarray) -> list[str]:
        """The texts of the `recent_items` newest items of a history, oldest first."""
        begin = max(0, len(history) - self.config["recent_items"])
        return [self.lines[item] for item in history[begin:]]

    def examples(self, epoch: int) -> LazyExamples:
        """Make an example of each training case: its target and sampled items behind one prompt.

        Parameters
        ----------
        epoch : int
            Number of the epoch, which decides the sample.

        Returns
        -------
        LazyExamples of tuple of Tokens
            One row for each case. The sampled items are not in the user's history up to the target.
        """
        rows = self.corpus.newest_rows(self.config["targets"])
        return LazyExamples([rows], self._example, [self.config["seed"], epoch])

    def _example(self, number: int, row: int, rng: np.random.Generator) -> tuple[Tokens]:
        """Make the example of one training case."""
        config, case = self.config, self.corpus.cases[[row]]
        ((user,), (end,)), (prefix,) = (case.user, case.end), self.prefixes(case)
        negatives = draw_unmet(self.interactions, user, end, config["negatives"], rng)
        items = [self.interactions.item[end], *negatives]
        candidates = [self.encoder.candidate_suffix(self.lines[item]) for item in items]
        answers = [True] + [False] * config["negatives"]
        return (self.encoder.row(prefix.tokens, candidates, answers, config["loss"] == "prompt"),)

    def pass_shape(self, tokens, longest, share):
        """Return one row: candidates of all prompts stand in one sequence."""
        return Pass(1, tokens, int(tokens * share))

    def states(self, batch: Batch) -> torch.Tensor:
        """Compute last hidden states, each as in a text of the prompt and one candidate alone.

        Parameters
        ----------
        batch : Batch
            Rows of a JudgeEncoder.

        Returns
        -------
        Tensor of float [rows, length, width]
            Hidden states; anything at padding.
        """
        assert batch.roles is not None
        part, position = batch.roles.unbind(dim=1)
        return shared.read(self.backbone, batch.input_ids, part, position)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Compute the sum of -log P over the learned tokens.

        Parameters
        ----------
        batch : Batch
            Rows of a JudgeEncoder.

        Returns
        -------
        Tensor of float []
            The loss. A token that candidates share counts once for each of them.
        """
        assert batch.roles is not None
        states, learned = self.states(batch), batch.labels != IGNORED
        part = batch.roles[:, 0]
        weight = torch.where(part == 1, part.amax(dim=1, keepdim=True) - 1, 1)[learned]
        losses = self.bundle.token_losses(states[learned], batch.labels[learned])
        return (losses * weight).sum()

    def verdicts(self, batch: Batch, width: int) -> torch.Tensor:
        """Compare the answers Yes and No to each candidate.

        Parameters
        ----------
        batch : Batch
            Rows of a JudgeEncoder.
        width : int
            Number of columns of the result.

        Returns
        -------
        Tensor of float32 [rows, width]
            For each candidate of a row the log-odds of Yes against No, or with the setting `score:
            probabilities` the difference of their probabilities; zeros behind the last candidate.
        """
        assert batch.roles is not None
        part = batch.roles[:, 0]
        row, place = ((part > 1) & (part != F.pad(part, (0, 1))[:, 1:])).nonzero(as_tuple=True)
        states = self.states(batch)[row, place]
        # in float32: bf16 has three digits, so that many logits would tie
        answers = list(self.encoder.frame[2])
        with torch.autocast(states.device.type, enabled=False):
            if self.config["score"] == "logits":
                values = self.bundle.logits(states.float(), answers)
            else:
                values = self.bundle.logits(states.float()).softmax(dim=-1)[:, answers]
        yes, no = values.unbind(dim=-1)
        verdicts = values.new_zeros(len(part), width)
        verdicts[row, part[row, place] - 2] = yes - no
        return verdicts

    def score_candidates(self, cases: Cases, items: torch.Tensor) -> torch.Tensor:
        """Judge candidates in the precision of the settings, see `Scorer.score_candidates`."""
        self.fallback = np.zeros(len(cases), dtype=bool)
        self.counts.update(cases=len(cases))
        with self.autocast():
            return torch.from_numpy(np.stack(self.judge(cases, items.numpy())))

    def judge(self, cases: Cases, items: Sequence[np.ndarray] | np.ndarray) -> list[np.ndarray]:
        """Judge items for each case.

        Candidates with the same tokens are read once, in an order that does not depend on `items`.

        Parameters
        ----------
        cases : Cases
            The cases.
        items : sequence of ndarray of int64
            Item numbers for each case.

        Returns
        -------
        list of ndarray of float32
            Verdicts on the items of each case.
        """
        prefixes = self.prefixes(cases)
        self.count_cut(cases, [prefix.left_out for prefix in prefixes])
        self.counts.update(cut_summaries=sum(prefix.cut for prefix in prefixes))
        suffixes = {
            group: self.encoder.candidate_suffix(self.lines[self.first[group]])
            for group in np.unique(self.same[np.concatenate(items)])
        }
        prompts = []
        for prefix, candidates in zip(prefixes, items, strict=True):
            prompts.append(np.concatenate([prefix.tokens, suffixes[self.same[candidates[0]]]]))
        self.count_borders(prompts)
        rows: list[Tokens] = []
        contents: list[tuple[int, np.ndarray]] = []  # case and groups of each row
        for case, (prefix, candidates) in enumerate(zip(prefixes, items, strict=True)):
            all_groups = np.unique(self.same[candidates])
            for groups in self._passes(all_groups, suffixes, len(prefix.tokens)):
                behind = [suffixes[group] for group in groups]
                rows.append(self.encoder.row(prefix.tokens, behind))
                contents.append((case, groups))
        width = max(len(groups) for _, groups in contents)
        verdicts = embed(
            rows,
            lambda batch: self.verdicts(batch, width),
            self.bundle,
            self.passes,
            self.device,
            width,
        )
        scores = np.zeros((len(cases), len(self.first)), dtype=np.float32)
        for (case, groups), values in zip(contents, verdicts, strict=True):
            scores[case, groups] = values[: len(groups)]
        return [scores[case, self.same[candidates]] for case, candidates in enumerate(items)]

    def probed(self, cases):
        """Judge a few items without summaries, which would have to be written first."""
        count = min(PROBED, len(self.lines))
        candidates = [self.encoder.candidate_suffix(line) for line in self.lines[:count]]
        verdicts = []
        for history in cases.histories(self.interactions):
            prefix = self.encoder.shared_prefix(None, self._newest_lines(history))
            row = self.encoder.row(prefix.tokens, candidates)
            batch = pad([row], pad_id=self.pad_id).to(self.device)
            verdicts.append(self.verdicts(batch, count)[0].float().cpu().numpy())
        return np.stack(verdicts)

    def _passes(
        self, groups: np.ndarray, suffixes: dict[int, np.ndarray], prefix_size: int
    ) -> list[np.ndarray]:
        """Split candidates so that each part fills a pass behind the tokens of their prefix."""
        room = max(1, self.passes.tokens - prefix_size)
        ends = np.cumsum([len(suffixes[group]) + 1 for group in groups])
        cuts = np.searchsorted(ends, np.arange(room, ends[-1], room), side="right")
        return np.split(groups, np.unique(cuts.clip(1)))

    def score(self, cases):
        """Score every item, or with `rerank_from` the items of another run's lists."""
        if not self.inputs.lists:
            return np.stack(self.judge(cases, np.tile(np.arange(len(self.lines)), (len(cases), 1))))
        if self.lists is None:
            raise UserError(
                "rerank_from ranks the cases again that a run has stored; for anything else, set "
                "rerank_from: ~"
            )
        positions, most = (
            cases.end - self.interactions.start[cases.user],
            self.config["rerank_items"],
        )
        return self.lists.judged(
            self.interactions.users[cases.user],
            positions,
            most,
            len(self.lines),
            lambda rows, items: self.judge(cases[rows], items),
        )

    def start_ranking(self, part, selecting, folder: Path | None = None):
        """Read the lists of another run if they are ranked again."""
        super().start_ranking(part, selecting, folder)
        self.lists = (
            StoredLists(
                self.inputs.lists,
                part,
                finished_run(self.inputs.lists)["row"],
            )
            if self.inputs.lists
            else None
        )
