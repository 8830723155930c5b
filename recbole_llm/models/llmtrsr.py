"""LLM-TRSR: a language model that is not trained condenses a long history, another is tuned to judge candidates by it (Zheng et al., WWW 2024)."""

from ..language.summaries import engines
from ..language.summaries.summarizer import Summarizer
from .base.pointwise_model import CandidateJudge


class LLMTRSR(CandidateJudge):
    """The judge with a summary of the whole history and its newest items."""

    inference_settings = (*CandidateJudge.inference_settings, "summaries")

    @classmethod
    def check(cls, config, inputs):
        super().check(config, inputs)
        if config["summary"] != "none":
            engines.check_summarizer(config)

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.summarizer = (
            None if config["summary"] == "none" else Summarizer(config, self.text, self.logger)
        )

    def told(self, histories):
        if not self.summarizer:
            return super().told(histories)
        found = self.summarizer.of(histories)
        self.counts.update(summaries_replaced=sum(one.replaced for one in found))
        return [one.text or None for one in found]

    def prepare_texts(self, parts):
        """Write the summaries of cases, by part of the data, before anything is trained; those of "train" are the model's own."""
        if not self.summarizer:
            return
        if "train" in parts:
            parts = parts | {"train": self.corpus.newest(self.config["targets"])}
        try:
            self.summarizer.prepare(
                {part: cases.histories(self.tables) for part, cases in parts.items()}
            )
        finally:
            self.summarizer.release()

    def costs(self):
        """What summaries cost, see Summarizer.costs."""
        return self.summarizer.costs() if self.summarizer else {}

    def examples(self, epoch):
        examples = super().examples(epoch)
        if self.summarizer:
            self.summarizer.release()
        return examples

    def rates(self):
        own = ("cut_summaries", "summaries_replaced") if self.summarizer else ()
        return super().rates() | {
            name: self.counts[name] / max(1, self.counts["cases"]) for name in own
        }
