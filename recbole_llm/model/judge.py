"""Text models that say Yes or No to a candidate: the contract `score`, pair by pair, and what LLMTRSR and TALLRec share."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..attention import attending, unmasked
from ..collate import IGNORED, Tokens
from ..data.mixture import Corpus
from ..data.splits import Cases
from ..embedding import embed
from ..errors import UserError
from ..evaluation.stored import StoredLists
from ..generation.probe import check as check_backbone
from ..judging import shared
from ..judging.prompts import JudgeEncoder
from ..judging.shared import Layout
from ..prompts import in_line
from ..wording import Wording
from .lm import BackboneModel


class JudgeModel(BackboneModel):
    """Asks a causal LM whether a user takes a candidate. A subclass gives `told`, what the prompt says of a user beside the newest items."""

    max_cases = 256  # per call of `judge`
    contrastive = False
    answer_keys = (*BackboneModel.answer_keys, "score", "valid_users", "rerank_from", "rerank_items")

    @classmethod
    def check(cls, config, tables):
        super().check(config, tables)
        Wording.named(config["domain"])
        if config["quantize"] != "none" and (config["adapter"] != "lora" or config["backbone"].startswith("scratch:")):
            raise UserError(f"quantize: weights of {config['quantize']} are not trained; set --adapter=lora and a pretrained backbone, or quantize: none")
        if config["quantize"] == "4bit" and torch.device(config["device"]).type == "cpu":  # its gradients there are zero
            raise UserError("quantize: bitsandbytes computes no gradients through 4bit on a CPU; set --quantize=8bit, or train on a GPU")

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.corpus = Corpus(self.tables, self.text, dataset.split.train)
        self.wording = Wording.named(config["domain"])
        self.first, self.same = self.text.unique
        self.lines = [in_line(zip(self.text.names, values, strict=True)) for values in self.text.values]
        self.lists: StoredLists | None = None
        self.load_backbone([*self.lines, *[self.wording.judge] * len(self.lines)])

    def told(self, cases: Cases) -> list[str | None]:
        """The summary of each case's history, or None for a prompt without one."""
        raise NotImplementedError(f"{type(self).__name__}.told")

    def use(self, bundle):
        super().use(bundle)
        check_backbone(bundle, self.config["backbone"], shared.error)

    def make_encoder(self, bundle):
        encoder = JudgeEncoder(bundle.tokenizer, self.config["max_length"], wording=self.wording).for_candidates(self.lines)
        if encoder.shortened:
            self.logger.info(f"{encoder.shortened} of {len(self.lines)} items are cut to {encoder.room} tokens as candidates, a third of a prompt's data: max_length")
        return encoder

    def prefixes(self, cases: Cases) -> list[tuple[np.ndarray, int]]:
        """(tokens before a candidate, items left out) of each case."""
        recent = self.config["recent_items"]
        histories = [self.history(case, cases) for case in range(len(cases))]
        newest = [[self.lines[item] for item in items[max(0, len(items) - recent) :]] for items in histories]
        return [self.encoder.before(told, items) for told, items in zip(self.told(cases), newest, strict=True)]

    def training_examples(self, epoch: int) -> list[tuple[Tokens]]:
        """A case's target and items that its user had not met until then, behind one prompt."""
        config, cases = self.config, self.corpus.newest(self.config["targets"])
        rng = np.random.default_rng([config["seed"], epoch])
        examples = []
        for user, end, (before, cut) in zip(cases.user, cases.end, self.prefixes(cases), strict=True):
            met = np.unique(self.tables.item[self.tables.start[user] : end + 1])
            others = rng.choice(len(self.lines) - len(met), size=config["negatives"], replace=False)
            others += np.searchsorted(met - np.arange(len(met)), others, side="right")
            candidates = [self.encoder.behind(self.lines[item]) for item in [self.tables.item[end], *others]]
            examples.append((self.encoder.row(before, candidates, [True] + [False] * len(others), config["loss"] == "prompt", cut),))
        return examples

    def states(self, batch) -> torch.Tensor:
        """Last hidden states [rows, length, width], each token's as in a text of its prompt and its own candidate alone."""
        part, position = batch.roles.unbind(dim=1)
        layout = Layout([np.bincount(row)[1:].tolist() for row in part.cpu().numpy()], self.device)
        inputs = {"input_ids": batch.input_ids, "position_ids": position, "attention_mask": unmasked(self.device)}
        with attending(self.backbone, layout):
            return self.backbone.base_model(**inputs, use_cache=False).last_hidden_state

    def run_batch(self, batch, own: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum of -log P over what is learned, no vectors); what candidates share counts once for each."""
        states, learned = self.states(batch), batch.labels != IGNORED
        part = batch.roles[:, 0]
        weight = torch.where(part == 1, part.amax(dim=1, keepdim=True) - 1, 1)[learned]
        losses = F.cross_entropy(self.bundle.logits(states[learned]).float(), batch.labels[learned], reduction="none")
        return (losses * weight).sum(), states[:, 0]

    def verdicts(self, batch, width: int) -> torch.Tensor:
        """[rows, width]: of each row's candidates, the log of the odds of Yes against No, or the difference of their probabilities; zeros behind them."""
        part = batch.roles[:, 0]
        row, place = ((part > 1) & (part != F.pad(part, (0, 1))[:, 1:])).nonzero(as_tuple=True)
        states = self.states(batch)[row, place]
        with torch.autocast(states.device.type, enabled=False):  # of bf16 logits, which have three digits, many tie
            logits = self.bundle.logits(states.float())
        answers = list(self.encoder.frame[2])
        yes, no = (logits if self.config["score"] == "logits" else logits.softmax(dim=-1))[:, answers].unbind(dim=-1)
        found = logits.new_zeros(len(part), width)
        found[row, part[row, place] - 2] = yes - no
        return found

    def judged(self, cases: Cases, items: torch.Tensor) -> torch.Tensor:
        """float32 [cases, C]: `judge` of the candidates, int64 [cases, C], in the precision that is set."""
        self.fallback = np.zeros(len(cases), dtype=bool)
        self.counts.update(cases=len(cases))
        with self.autocast():
            return torch.from_numpy(np.stack(self.judge(cases, items.numpy())))

    def judge(self, cases: Cases, items: list[np.ndarray]) -> list[np.ndarray]:
        """float32 verdicts on each case's candidates, int64 item numbers. Equal texts of a case are read once, in an order of their own."""
        prompts = self.prefixes(cases)
        self.count_cut(cases, [cut for _, cut in prompts])
        behind = {text: self.encoder.behind(self.lines[self.first[text]]) for text in np.unique(self.same[np.concatenate(items)])}
        rows, asked = [], []
        for case, (before, _) in enumerate(prompts):
            for texts in self._passes(np.unique(self.same[items[case]]), behind, len(before)):
                rows.append(self.encoder.row(before, [behind[text] for text in texts]))
                asked.append((case, texts))
        width = max(len(texts) for _, texts in asked)
        found = embed(rows, lambda batch: self.verdicts(batch, width), self.bundle, self.config["pass_tokens"], self.device, width)
        scores = np.zeros((len(cases), len(self.first)), dtype=np.float32)
        for (case, texts), values in zip(asked, found, strict=True):
            scores[case, texts] = values[: len(texts)]
        return [scores[case, self.same[own]] for case, own in enumerate(items)]

    def _passes(self, texts: np.ndarray, behind: dict[int, np.ndarray], shared: int) -> list[np.ndarray]:
        """Candidates in parts that fill a pass behind the `shared` tokens of their prompt."""
        room = max(1, self.config["pass_tokens"] - shared)
        filled = np.cumsum([len(behind[text]) + 1 for text in texts])
        return np.split(texts, np.unique(np.searchsorted(filled, np.arange(room, filled[-1], room), side="right").clip(1)))

    def score(self, cases):
        """Of the whole catalogue; with `rerank_from`, of the first `rerank_items` that another run has listed, above the rest of its list as it stands."""
        if not self.config["rerank_from"]:
            return np.stack(self.judge(cases, np.tile(np.arange(len(self.lines)), (len(cases), 1))))
        if self.lists is None:
            raise UserError("rerank_from ranks the cases again that a run has stored; for anything else, set rerank_from: ~")
        listed = self.lists.of(self.tables.users[cases.user], cases.end - self.tables.start[cases.user])
        first = [items[: self.config["rerank_items"]] for items, _ in listed]
        asked = [case for case, items in enumerate(first) if len(items)]
        scores = np.zeros((len(cases), len(self.lines)))
        for case, values in zip(asked, self.judge(cases[asked], [first[case] for case in asked]), strict=True) if asked else ():
            items, stored = listed[case]
            scores[case] = stored.min() - stored.max() - 2
            scores[case, items] = stored - stored.max() - 1
            scores[case, first[case]] = values - values.min()
        return scores

    def start_ranking(self, part, choosing, folder: Path | None = None):
        super().start_ranking(part, choosing, folder)
        self.lists = StoredLists(Path(self.config["rerank_from"]), part) if self.config["rerank_from"] else None
