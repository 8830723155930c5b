"""LLM-TRSR: a language model that is not trained condenses a long history, another is tuned to judge candidates by it (Zheng et al., WWW 2024)."""

from ..summaries import engines
from ..summaries.summarizer import Summarizer
from .judge import JudgeModel


class LLMTRSR(JudgeModel):
    """The judge with a summary of the whole history and its newest items."""

    @classmethod
    def check(cls, config, tables):
        super().check(config, tables)
        if config["summary"] != "none":
            engines.check(config)

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

    def training_examples(self, epoch):
        if self.summarizer:
            if epoch == 0:
                self.summarizer.prepare(
                    self.corpus.newest(self.config["targets"]).histories(self.tables)
                )
            self.summarizer.release()
        return super().training_examples(epoch)

    def rates(self):
        own = ("cut_summaries", "summaries_replaced") if self.summarizer else ()
        return super().rates() | {
            name: self.counts[name] / max(1, self.counts["cases"]) for name in own
        }
