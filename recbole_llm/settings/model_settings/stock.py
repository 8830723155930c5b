"""What we add to the settings of models of RecBole."""

from typing import Any, ClassVar

from pydantic import Field

from ..groups import NegativeSampling
from ..schema import ModelSettings


class PopSettings(ModelSettings):
    """Popularity: an item's number of events in training."""

    example: ClassVar[str] = "--model=Pop --dataset=ml-100k"
    train_neg_sample_args: NegativeSampling | None = Field(
        None, description="None: a negative is no event and must not be counted."
    )


class RepeatNetSettings(ModelSettings):
    """RepeatNet says POINTWISE but learns by cross-entropy."""

    example: ClassVar[str] = "--model=RepeatNet --dataset=ml-100k"
    train_neg_sample_args: NegativeSampling | None = Field(
        None, description="RecBole's default would teach it random negatives as targets."
    )


class S3RecSettings(ModelSettings):
    """S3-Rec is pre-trained and then fine-tuned."""

    example: ClassVar[str] = "--model=S3Rec --dataset=ml-100k"
    stages: list[str] | None = Field(
        ["pretrain", "finetune"], description="The paper's, each a run of its own."
    )
    stage_settings: dict[str, Any] | None = Field(
        {"pretrain": {"train_stage": "pretrain"}, "finetune": {"train_stage": "finetune"}},
        description="Stage name: settings of that stage.",
    )
