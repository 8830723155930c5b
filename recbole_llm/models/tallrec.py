"""TALLRec: a causal LM tuned to say Yes or No to a candidate, by the history itself (Bao et al., RecSys 2023)."""

from .base.pointwise_model import CandidateJudge


class TALLRec(CandidateJudge):
    """The judge without a summary: its prompt says nothing of one."""

    summarised = False
