"""Settings of TASTE-LoRA."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..groups import (
    BackboneSettings,
    ClipGradNorm,
    LoraSettings,
    NegativeSampling,
    NegativesSettings,
    PassTokens,
    TargetSettings,
    TrainingSettings,
)
from ..schema import Pretrained


class TASTELoRASettings(
    TargetSettings, NegativesSettings, BackboneSettings, LoraSettings, TrainingSettings
):
    """TASTE-LoRA (UMass x Spotify, 2024).

    As in the paper:
    --backbone=t5-base --max_length=256 --segments=2 --train_batch_size=8 --epochs=30
    Other than in TASTE's released code, which the paper builds on: an item of a history is cut at
    item_length tokens like a candidate (there it is whole), and its end token comes on top (there
    it is among the 32); Yelp's place is `address: A city: B state: C` (there `address: A B C`);
    texts are cut at text_words words; negatives are drawn anew from items met in training (there
    100 fixed ones a case, from all items), and copies of a target among the in-batch items are
    masked; the checkpoint is chosen by NDCG@10 on at most valid_users cases (there Recall@20,
    patience 0); the learning rate falls by a cosine (there linearly), and weight_decay is not 0.
    Nearer: --valid_metric=Recall@20 --valid_users=0 --weight_decay=0
    """

    example: ClassVar[str] = "--model=TASTELoRA --dataset=Pet"
    segments: int = Field(
        1,
        ge=1,
        description="Most segments of a history, the newest items first; each is read on its own.",
    )
    item_length: int = Field(32, ge=1, description="Most tokens of an item.")
    item_number: bool = Field(
        True, description="An item's text begins with its number, its row in .item."
    )
    text_fields: dict[str, str] = Field({"Title": "title"}, description="What an item's text says.")
    targets: Literal["one", "all"] = Field(
        "all", description="Training cases of each user: one, drawn anew in each epoch, or all."
    )
    negatives: int = Field(
        9,
        ge=0,
        description="Items per case that its user has not met, drawn anew in each epoch; those of "
        "a step are negatives of all its cases.",
    )

    backbone: str = Field(
        "scratch:tiny",
        description="An encoder-decoder: hub id (t5-base), folder, run:<id>, or "
        "scratch:tiny|small|base.",
    )
    max_length: int = Field(
        128, description="Tokens of a segment of a history, which is cut between items."
    )
    lora_rank: int = 32
    lora_alpha: float = 64
    lora_dropout: float = 0.05

    epochs: int = 10
    train_batch_size: int = Field(64, description="Cases per step.")
    pass_tokens: PassTokens = 16384
    learning_rate: Annotated[float, Pretrained(0.0001, "The paper's.")] = 0.001
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip_grad_norm: ClipGradNorm | None = ClipGradNorm(max_norm=1.0)
    train_neg_sample_args: NegativeSampling | None = Field(
        None, description="Negatives are `negatives`."
    )
    valid_users: int = 2000
