"""LLM-TRSR (Zheng et al., WWW 2024).

A language model that is not trained summarises a long history, and another is tuned to judge
candidates by the summary.
"""

from ..language.summaries import engines
from ..language.summaries.summarizer import Summarizer
from .base.pointwise_model import CandidateJudge


class LLMTRSR(CandidateJudge):
    """Judges candidates by a summary of the history and its newest items.

    Attributes
    ----------
    summarizer : Summarizer or None
        Writes the summaries; None where there are none.
    """

    inference_settings = (*CandidateJudge.inference_settings, "summaries")

    @classmethod
    def check(cls, config, inputs):
        """See `TextModel.check`."""
        super().check(config, inputs)
        if config["summary"] != "none":
            engines.check_summarizer(config)

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.summarizer: Summarizer | None = None
        if config["summary"] != "none":
            self.summarizer = Summarizer(config, self.text, self.logger)

    def summaries(self, histories):
        """Summarise histories, see `CandidateJudge.summaries`."""
        if not self.summarizer:
            return super().summaries(histories)
        summaries = self.summarizer.of(histories)
        self.counts.update(summaries_replaced=sum(summary.replaced for summary in summaries))
        return [summary.text or None for summary in summaries]

    def prepare_texts(self, parts):
        """Write the summaries of all cases before anything is trained.

        Parameters
        ----------
        parts : dict
            Part ("train", "valid" or "test") -> its cases. The cases of "train" are replaced by
            those that the model trains on.
        """
        if not self.summarizer:
            return
        if "train" in parts:
            parts = parts | {"train": self.corpus.newest(self.config["targets"])}
        histories = {part: cases.histories(self.interactions) for part, cases in parts.items()}
        with self.set_aside():
            try:
                self.summarizer.prepare(histories)
            finally:
                self.summarizer.release()

    def costs(self):
        """Return what the summaries cost, see `Summarizer.costs`."""
        return self.summarizer.costs() if self.summarizer else {}

    def examples(self, epoch):
        """Make the examples of an epoch, with summaries that are all written before."""
        if self.summarizer:
            cases = self.corpus.newest(self.config["targets"])
            self.summaries(cases.histories(self.interactions))
            self.summarizer.release()
        return super().examples(epoch)

    def rates(self):
        """Return the shares of the last ranking, see `TextModel.rates`."""
        shares = super().rates()
        if self.summarizer:
            cases = max(1, self.counts["cases"])
            shares["cut_summaries"] = self.counts["cut_summaries"] / cases
            shares["summaries_replaced"] = self.counts["summaries_replaced"] / cases
        return shares
