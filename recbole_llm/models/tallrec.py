"""TALLRec: a causal LM judges candidates by the history itself (Bao et al., RecSys 2023)."""

from .base.pointwise_model import CandidateJudge


class TALLRec(CandidateJudge):
    """Judges candidates by the newest items alone; its prompts have no summary."""

    summarised = False
