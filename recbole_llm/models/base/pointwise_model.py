"""Text models that say Yes or No to a candidate: the contract `score`, pair by pair, and what LLMTRSR and TALLRec share."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ...contracts.cases import Cases
from ...data.cases.candidates import draw_unmet
from ...errors import UserError
from ...evaluation.rerank_lists import StoredLists
from ...language.decoding import shared_candidates as shared
from ...language.decoding.compatibility import check_backbone
from ...language.prompts.instructions import Instructions
from ...language.prompts.templates import item_line
from ...language.tokens.batches import IGNORED, Tokens, pad
from ...language.tokens.judge import JudgeEncoder, SharedPrefix
from ...language.vectors import embed
from ...settings.run_record import finished_run
from ...training.corpora import Corpus
from .backbone_model import BackboneModel

PROBED = 2  # items, of a comparison of weights


class CandidateJudge(BackboneModel):
    """Asks a causal LM whether a user takes a candidate. A subclass with summaries gives them by `told`.

    summarised : whether its prompts have a summary, beside the newest items.
    """

    max_cases = 256  # per call of `judge`
    judges_candidates = True
    summarised = True
    inference_settings = (
        *BackboneModel.inference_settings,
        "score",
        "valid_users",
        "rerank_from",
        "rerank_items",
    )

    @classmethod
    def check(cls, config, inputs):
        super().check(config, inputs)
        Instructions.of_domain(config["domain"])
        if config["quantize"] != "none" and (
            config["adapter"] != "lora" or config["backbone"].startswith("scratch:")
        ):
            raise UserError(
                f"quantize: weights of {config['quantize']} are not trained; set --adapter=lora "
                "and a pretrained backbone, or quantize: none"
            )
        if (
            config["quantize"] == "4bit" and torch.device(config["device"]).type == "cpu"
        ):  # its gradients there are zero
            raise UserError(
                "quantize: bitsandbytes computes no gradients through 4bit on a CPU; set "
                "--quantize=8bit, or train on a GPU"
            )
        if inputs.lists and "full" not in config["eval_args"]["mode"].values():
            raise UserError(
                "rerank_from: lists of the whole catalogue are judged where it is ranked; set "
                "--eval_args.mode=full, or leave it out"
            )
        tables, count = inputs.interactions, config["negatives"]
        if count > (left := len(tables.items) - tables.met.max()):
            raise UserError(
                f"negatives: user {tables.users[tables.met.argmax()]} leaves {left} items to draw "
                f"from, found {count}; set --negatives to no more"
            )

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.corpus = Corpus(self.tables, self.text, dataset.split.train)
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

    def told(self, histories: list[np.ndarray]) -> list[str | None]:
        """The summary of each history, int32 item numbers, or None where there is none."""
        return [None] * len(histories)

    def use(self, bundle):
        super().use(bundle)
        _, self.first, self.same = np.unique(
            self.encoder.token_groups, return_index=True, return_inverse=True
        )
        check_backbone(bundle, self.config["backbone"], shared.logit_deviation)

    def make_encoder(self, bundle):
        encoder = JudgeEncoder(
            bundle.tokenizer,
            self.config["max_length"],
            instructions=self.instructions,
            summarised=self.summarised,
        ).for_candidates(self.lines)
        if encoder.cut_candidates:
            self.logger.info(
                f"{encoder.cut_candidates} of {len(self.lines)} items are cut to "
                f"{encoder.candidate_length} tokens as candidates; set --max_length to more"
            )
        return encoder

    @property
    def names_all(self) -> bool:
        return not self.inputs.lists

    def prefixes(self, cases: Cases) -> list[SharedPrefix]:
        """What stands before the candidates of each case."""
        recent = self.config["recent_items"]
        histories = cases.histories(self.tables)
        newest = [
            [self.lines[item] for item in items[max(0, len(items) - recent) :]]
            for items in histories
        ]
        return [
            self.encoder.shared_prefix(told, items)
            for told, items in zip(self.told(histories), newest, strict=True)
        ]

    def examples(self, epoch: int) -> list[tuple[Tokens]]:
        """A case's target and items that its user had not met until then, behind one prompt."""
        config, cases = self.config, self.corpus.newest(self.config["targets"])
        rng = np.random.default_rng([config["seed"], epoch])
        examples = []
        for user, end, (before, *_) in zip(
            cases.user, cases.end, self.prefixes(cases), strict=True
        ):
            others = draw_unmet(self.tables, user, end, config["negatives"], rng)
            candidates = [
                self.encoder.candidate_suffix(self.lines[item])
                for item in [self.tables.item[end], *others]
            ]
            examples.append(
                (
                    self.encoder.row(
                        before,
                        candidates,
                        [True] + [False] * len(others),
                        config["loss"] == "prompt",
                    ),
                )
            )
        return examples

    def states(self, batch) -> torch.Tensor:
        """Last hidden states [rows, length, width], each token's as in a text of its prompt and its own candidate alone."""
        part, position = batch.roles.unbind(dim=1)
        return shared.read(self.backbone, batch.input_ids, part, position)

    def loss(self, batch) -> torch.Tensor:
        """Sum of -log P over what is learned; what candidates share counts once for each."""
        states, learned = self.states(batch), batch.labels != IGNORED
        part = batch.roles[:, 0]
        weight = torch.where(part == 1, part.amax(dim=1, keepdim=True) - 1, 1)[learned]
        losses = F.cross_entropy(
            self.bundle.logits(states[learned]).float(), batch.labels[learned], reduction="none"
        )
        return (losses * weight).sum()

    def verdicts(self, batch, width: int) -> torch.Tensor:
        """[rows, width]: of each row's candidates, the log of the odds of Yes against No, or the difference of their probabilities; zeros behind them."""
        part = batch.roles[:, 0]
        row, place = ((part > 1) & (part != F.pad(part, (0, 1))[:, 1:])).nonzero(as_tuple=True)
        states = self.states(batch)[row, place]
        with torch.autocast(
            states.device.type, enabled=False
        ):  # of bf16 logits, which have three digits, many tie
            logits = self.bundle.logits(states.float())
        answers = list(self.encoder.frame[2])
        yes, no = (logits if self.config["score"] == "logits" else logits.softmax(dim=-1))[
            :, answers
        ].unbind(dim=-1)
        found = logits.new_zeros(len(part), width)
        found[row, part[row, place] - 2] = yes - no
        return found

    def score_candidates(self, cases: Cases, items: torch.Tensor) -> torch.Tensor:
        """float32 [cases, C]: `judge` of the candidates, int64 [cases, C], in the precision that is set."""
        self.fallback = np.zeros(len(cases), dtype=bool)
        self.counts.update(cases=len(cases))
        with self.autocast():
            return torch.from_numpy(np.stack(self.judge(cases, items.numpy())))

    def judge(self, cases: Cases, items: list[np.ndarray]) -> list[np.ndarray]:
        """float32 verdicts on each case's candidates, int64 item numbers. What is alike for the model is read once, in an order of its own."""
        prompts = self.prefixes(cases)
        self.count_cut(cases, [one.left_out for one in prompts])
        self.counts.update(cut_summaries=sum(one.cut for one in prompts))
        behind = {
            text: self.encoder.candidate_suffix(self.lines[self.first[text]])
            for text in np.unique(self.same[np.concatenate(items)])
        }
        self.count_borders(
            [
                np.concatenate([before, behind[self.same[own[0]]]])
                for (before, *_), own in zip(prompts, items, strict=True)
            ]
        )
        rows, asked = [], []
        for case, (before, *_) in enumerate(prompts):
            for texts in self._passes(np.unique(self.same[items[case]]), behind, len(before)):
                rows.append(self.encoder.row(before, [behind[text] for text in texts]))
                asked.append((case, texts))
        width = max(len(texts) for _, texts in asked)
        found = embed(
            rows,
            lambda batch: self.verdicts(batch, width),
            self.bundle,
            self.config["pass_tokens"],
            self.device,
            width,
        )
        scores = np.zeros((len(cases), len(self.first)), dtype=np.float32)
        for (case, texts), values in zip(asked, found, strict=True):
            scores[case, texts] = values[: len(texts)]
        return [scores[case, self.same[own]] for case, own in enumerate(items)]

    def probed(self, cases):
        """Verdicts on a few items without summaries, which would have to be written first."""
        recent, few = self.config["recent_items"], min(PROBED, len(self.lines))
        candidates = [self.encoder.candidate_suffix(line) for line in self.lines[:few]]
        found = []
        for items in cases.histories(self.tables):
            newest = [self.lines[item] for item in items[max(0, len(items) - recent) :]]
            before, *_ = self.encoder.shared_prefix(None, newest)
            row = self.encoder.row(before, candidates)
            batch = pad([row], pad_id=self.pad_id).to(self.device)
            found.append(self.verdicts(batch, few)[0].float().cpu().numpy())
        return np.stack(found)

    def _passes(
        self, texts: np.ndarray, behind: dict[int, np.ndarray], shared: int
    ) -> list[np.ndarray]:
        """Candidates in parts that fill a pass behind the `shared` tokens of their prompt."""
        room = max(1, self.config["pass_tokens"] - shared)
        filled = np.cumsum([len(behind[text]) + 1 for text in texts])
        return np.split(
            texts,
            np.unique(
                np.searchsorted(filled, np.arange(room, filled[-1], room), side="right").clip(1)
            ),
        )

    def score(self, cases):
        """Of the whole catalogue; with `rerank_from`, of what another run has listed, see StoredLists.judged."""
        if not self.inputs.lists:
            return np.stack(self.judge(cases, np.tile(np.arange(len(self.lines)), (len(cases), 1))))
        if self.lists is None:
            raise UserError(
                "rerank_from ranks the cases again that a run has stored; for anything else, set "
                "rerank_from: ~"
            )
        positions, most = cases.end - self.tables.start[cases.user], self.config["rerank_items"]
        return self.lists.judged(
            self.tables.users[cases.user],
            positions,
            most,
            len(self.lines),
            lambda asked, items: self.judge(cases[asked], items),
        )

    def start_ranking(self, part, selecting, folder: Path | None = None):
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
