"""Settings of TALLRec."""

from typing import Annotated, ClassVar

from pydantic import Field

from ..groups import (
    BackboneSettings,
    JudgeTrainingSettings,
    JudgingSettings,
    QuantizedLoraSettings,
)
from ..schema import Pretrained


class TALLRecSettings(
    JudgingSettings, BackboneSettings, QuantizedLoraSettings, JudgeTrainingSettings
):
    """TALLRec (RecSys '23) as LLM-TRSR compares with it.

    Yes or No to a candidate, by the history itself.
    With a hub's backbone: --backbone=Qwen/Qwen2.5-0.5B --adapter=lora --precision=bf16
    From scratch, this learns more in a third of the time (experiment trsr-main):
    --learner=muon --negatives=4 --train_batch_size=32 --epochs=3
    """

    example: ClassVar[str] = "--model=TALLRec --dataset=Pet"
    max_length: int = Field(
        1024,
        description="Tokens of a prompt with its candidate; the oldest items are left out first.",
    )
    learning_rate: Annotated[float, Pretrained(0.0001, "The paper's.")] = 0.001
