"""Settings of RecFormer."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..groups import (
    BackboneSettings,
    ClipGradNorm,
    ContrastSettings,
    HistorySettings,
    LoraSettings,
    MultiDatasetSettings,
    NegativeSampling,
    PassTokens,
    TargetSettings,
    TrainingSettings,
)
from ..schema import Pretrained


class RecFormerSettings(
    HistorySettings,
    TargetSettings,
    ContrastSettings,
    BackboneSettings,
    LoraSettings,
    TrainingSettings,
    MultiDatasetSettings,
):
    """RecFormer (KDD 2023).

    Its paper's: --backbone=allenai/longformer-base-4096 --max_length=1024 --targets=one
    --stages=[pretrain, first, second] --datasets=[…]
    """

    example: ClassVar[str] = "--model=RecFormer --dataset=Pet"
    attention_window: int = Field(
        64,
        ge=2,
        description="Tokens around each that Longformer's local attention sees; the paper's. Other "
        "encoders see all.",
    )
    attribute_tokens: int = Field(
        32, ge=1, description="Most tokens of an attribute, with its name."
    )
    stage_settings: dict[str, Any] = Field(
        {
            "pretrain": {"phase": "pretrain"},
            "first": {
                "phase": "finetune",
                "item_table": "epoch",
                "datasets": None,
                "whole": None,
                "select_on": None,
            },
            "second": {
                "phase": "finetune",
                "item_table": "fixed",
                "datasets": None,
                "whole": None,
                "select_on": None,
            },
        },
        description="--stages=[pretrain, first, second]: the paper's pre-training and its two "
        "stages of fine-tuning.",
    )
    phase: Literal["pretrain", "finetune"] = Field(
        "finetune",
        description="Masked tokens and contrast of sequences with next items, or a softmax over "
        "the catalogue.",
    )
    item_table: Literal["epoch", "fixed"] = Field(
        "epoch",
        description="Item vectors of phase `finetune`: encoded before each epoch, or those that "
        "the run starts from.",
    )
    contrast_temperature: float = Field(0.05, description="Of both phases.")
    mlm_weight: float = Field(0.1, ge=0, description="Weight of the masked tokens' loss.")
    mask_share: float = Field(0.15, ge=0, lt=1, description="Share of tokens to be found again.")

    backbone: str = Field(
        "scratch:tiny",
        description="An encoder: hub id, folder, minilm, run:<id>, or scratch:tiny|small|base.",
    )
    max_length: int = Field(
        512,
        description="Tokens of a sequence; the oldest items are left out first. The paper's is "
        "1024.",
    )

    epochs: int = 10
    train_batch_size: int = Field(
        64,
        description="Sequences per step, whose next items are each other's negatives in phase "
        "`pretrain`.",
    )
    pass_tokens: PassTokens = 4096
    learning_rate: Annotated[float, Pretrained(0.00005, "The paper's.")] = 0.001
    warmup: float = 0.1
    clip_grad_norm: ClipGradNorm | None = ClipGradNorm(max_norm=1.0)
    train_neg_sample_args: NegativeSampling | None = Field(
        None, description="No negatives but those of a step or the whole catalogue."
    )
    valid_users: int = 2000

    datasets: list[str] | None = Field(
        None,
        description="Datasets to pre-train on together, by their training parts, each drawn in "
        "proportion to users^mixture_exponent.",
    )
