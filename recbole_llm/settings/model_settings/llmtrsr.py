"""Settings of LLM-TRSR."""

from typing import Annotated, ClassVar

from pydantic import Field

from ..groups import (
    BackboneSettings,
    JudgeTrainingSettings,
    JudgingSettings,
    QuantizedLoraSettings,
    SummarySettings,
)
from ..schema import Pretrained


class LLMTRSRSettings(
    SummarySettings,
    JudgingSettings,
    BackboneSettings,
    QuantizedLoraSettings,
    JudgeTrainingSettings,
):
    """LLM-TRSR (WWW '24).

    Yes or No to a candidate, by a summary of the long history and the newest items.
    As in the paper, but for its LoRA, which is on q, k, v and o and here on every linear layer:
    --summarizer=<instruct model> --backbone=meta-llama/Llama-2-7b-hf --adapter=lora
    --precision=bf16 --epochs=8 --targets=one --max_length=2048
    From scratch, this learns more in a third of the time (experiment trsr-main):
    --learner=muon --negatives=4 --train_batch_size=32 --epochs=3
    """

    example: ClassVar[str] = "--model=LLMTRSR --dataset=Pet"
    recent_items: int = Field(3, description="Newest items of a history that the prompt lists (k).")
    max_length: int = Field(
        1024,
        description="Tokens of a prompt with its candidate; the oldest items are left out first.",
    )
    learning_rate: Annotated[float, Pretrained(0.0001, "The paper's.")] = 0.001
