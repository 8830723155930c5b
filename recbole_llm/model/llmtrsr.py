"""LLM-TRSR: a language model that is not trained condenses a long history, another is tuned to judge candidates by it (Zheng et al., WWW 2024)."""

from ..summaries import engines
from ..summaries.summarizer import Summarizer
from .judge import JudgeModel


class LLMTRSR(JudgeModel):
    """The judge with a summary of the whole history and its newest items."""

    @classmethod
    def check(cls, config, tables):
        super().check(config, tables)
        engines.check(config)

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.summarizer = None if config["summary"] == "none" else Summarizer(config, self.tables, self.text, self.logger)

    def told(self, cases):
        return [summary.text for summary in self.summarizer.of(cases)] if self.summarizer else [None] * len(cases)

    def training_examples(self, epoch):
        examples = super().training_examples(epoch)
        if self.summarizer and epoch == 0:
            self.logger.info(self.summarizer.texts.told())
        return examples

    def rates(self):
        if not self.summarizer:
            return super().rates()
        counts = self.summarizer.texts.counts
        return super().rates() | {"summaries_replaced": counts["replaced"] / max(1, counts["asked"])}
