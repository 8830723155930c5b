"""Settings of ST5-Seq."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..groups import (
    BackboneSettings,
    ClipGradNorm,
    ContrastSettings,
    Fraction,
    LoraSettings,
    MultiDatasetSettings,
    NegativeSampling,
    PassTokens,
    TargetSettings,
    TrainingSettings,
)
from ..schema import Group, Pretrained, Trait


class Augmentation(Group):
    """Shares of a sequence's items that an augmented sequence keeps, reorders and drops."""

    is_complete: ClassVar[bool] = True
    crop: Fraction = Field(default=0.6, description="eta")
    reorder: Fraction = Field(default=0.6, description="beta")
    drop: Fraction = Field(default=0.4, description="delta")


class ST5SeqSettings(
    TargetSettings,
    ContrastSettings,
    BackboneSettings,
    LoraSettings,
    TrainingSettings,
    MultiDatasetSettings,
):
    """ST5-Seq (Edinburgh, 2024).

    Its paper's: --backbone=sentence-transformers/sentence-t5-base --train_batch_size=64
    """

    example: ClassVar[str] = "--model=ST5Seq --dataset=Pet"
    text_fields: dict[str, str] = Field(
        {"Title": "title"},
        description="What an item's text says; {Title: title, Description: description} adds the "
        "description.",
    )
    description_fields: Annotated[dict[str, str], Trait.ABOUT_DATA] = Field(
        {"Description": "description"},
        description="What an item's title is paired with in phase `item`.",
    )
    text_form: Literal[
        "structured", "unstructured", "instruction_structured", "instruction_unstructured"
    ] = Field("structured", description="Marks, or titles with commas.")
    variant: Annotated[Literal["only", "finetune", "itempre", "final"] | None, Trait.WHOLE_RUN] = (
        Field(None, description="The paper's choices of `stages`.")
    )
    variants: Annotated[dict[str, Any], Trait.WHOLE_RUN] = Field(
        {
            "only": ["untrained"],
            "finetune": ["next"],
            "itempre": ["item", "next"],
            "final": ["item", "sequence", "next"],
        },
        description="Variant: its stages.",
    )
    stage_settings: dict[str, Any] = Field(
        {
            "untrained": {"epochs": 0},
            "item": {"phase": "item"},
            "sequence": {"phase": "sequence"},
            "next": {"phase": "next"},
        },
        description="Stage name: settings of that stage.",
    )
    phase: Literal["item", "sequence", "next"] = Field(
        "next",
        description="What is paired: title and description, sequence and its augmentation, history "
        "and next item.",
    )
    targets: Literal["one", "all"] = Field(
        "all",
        description="Phase `next`: one training case of each user, drawn anew in each epoch, or "
        "all.",
    )
    augmentation: Augmentation = Field(
        Augmentation(), description="Shares of a sequence's items: eta, beta, delta."
    )
    contrast_temperature: float = Field(0.05, description="1 / scale of the loss.")

    backbone: str = Field(
        "scratch:tiny",
        description="A sentence encoder: hub id, folder, minilm, run:<id>, or "
        "scratch:tiny|small|base.",
    )
    max_length: int = Field(
        256, description="Tokens of a text; of a sequence, the oldest items are left out first."
    )

    epochs: int = 10
    train_batch_size: int = Field(
        64, description="Pairs per step, which are each other's negatives."
    )
    pass_tokens: PassTokens = 16384
    learning_rate: Annotated[float, Pretrained(0.00002, "The paper's.")] = 0.001
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip_grad_norm: ClipGradNorm | None = ClipGradNorm(max_norm=1.0)
    train_neg_sample_args: NegativeSampling | None = Field(
        None, description="No negatives but those of a step."
    )
    valid_users: int = 2000
