"""Settings of CALRec."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..groups import (
    BackboneSettings,
    ClipGradNorm,
    ContrastSettings,
    GenerationSettings,
    MultiDatasetSettings,
    PassTokens,
    QuantizedLoraSettings,
    TrainingSettings,
)
from ..schema import Pretrained, Trait


class CALRecSettings(
    ContrastSettings,
    BackboneSettings,
    QuantizedLoraSettings,
    TrainingSettings,
    MultiDatasetSettings,
    GenerationSettings,
):
    """CALRec (RecSys '24).

    A hub backbone: --backbone=Qwen/Qwen2.5-0.5B --precision=bf16
    """

    example: ClassVar[str] = "--model=CALRec --dataset=Pet"
    nig_targets: Literal["last", "all"] = Field(
        "all",
        description="last: the paper's loss on the target alone; all: on every item after the "
        "first.",
    )
    alpha: float = Field(
        0.125,
        description="Weight of L_TT: the target read after its history against the target read "
        "alone.",
    )
    beta: float = Field(
        -0.025,
        description="Weight of L_UT: the history against the target read alone; negative in the "
        "paper, 0 for Games.",
    )
    contrast_temperature: float = 0.5
    stage_settings: dict[str, Any] = Field(
        {"joint": {}, "target": {"datasets": None, "whole": None, "select_on": None}},
        description="--stages=[joint, target] --datasets=[…]: on several datasets together, then "
        "on the run's own.",
    )

    mixture_exponent: float = Field(0.3, description="The paper's.")
    quantize: Annotated[Literal["none", "8bit", "4bit"], Trait.CAME_LATER] = "none"
    lora_dropout: float = 0.0
    epochs: int = Field(10, description="Passes over the users.")
    train_batch_size: int = Field(16, description="Sequences per step.")
    pass_tokens: PassTokens = Field(
        8192,
        description="Most tokens per forward pass, of prompts too; a step is several passes if "
        "need be. auto, or more than fits: as many as fit in memory.",
    )
    learner: str = Field(
        "adam",
        description="adam: AdamW. muon (torch 2.9 or later): orthogonalised steps, faster from "
        "random weights.",
    )
    learning_rate: Annotated[
        float,
        Pretrained(
            0.0001,
            "The paper's; what begins at random learns faster by more, which ruins trained "
            "weights.",
        ),
    ] = 0.003
    weight_decay: float = 0.01
    clip_grad_norm: ClipGradNorm | None = ClipGradNorm(max_norm=1.0)
    eval_step: int = 5
    valid_metric: str = Field("NDCG@10_pes", description="Pessimistic, as in the paper.")
    valid_users: int = 2000

    blend: float = Field(
        0,
        description="Weight of cos(v^U, v^T), added to an item's score (to its log-probability "
        "where a beam reached it).",
    )
