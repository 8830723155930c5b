"""Settings of UniSRec."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from ..groups import (
    ContrastSettings,
    Fraction,
    HistorySettings,
    MultiDatasetSettings,
    PassTokens,
    TextEncoderSettings,
    TrainingSettings,
)


class UniSRecSettings(
    TextEncoderSettings,
    HistorySettings,
    ContrastSettings,
    TrainingSettings,
    MultiDatasetSettings,
):
    """UniSRec (KDD 2022).

    Pre-training on several datasets: --stages=[pretrain, finetune] --datasets=[…]
    """

    example: ClassVar[str] = "--model=UniSRec --dataset=ml-100k --text_fields.Title=movie_title"
    text_encoder: str = Field(
        "minilm",
        description="Frozen sentence encoder of the item texts: hub id, folder, minilm or "
        "run:<id>; the paper's is BERT.",
    )
    item_features: Literal["text", "both"] = Field(
        "text",
        description="Items known by their texts alone (inductive), or by an embedding of their own "
        "too (transductive).",
    )
    n_experts: int = Field(8, ge=1, description="Whitening experts of the adaptor.")
    adaptor_dropout: float = Field(0.2, ge=0, lt=1, description="Of the adaptor's input.")
    hidden_size: int = Field(300, ge=1, description="Width of the vectors.")
    inner_size: int = Field(
        256, ge=1, description="Width between the layers of a feed-forward net."
    )
    n_layers: int = Field(2, ge=1, description="Layers of the transformer.")
    n_heads: int = Field(2, ge=1, description="Heads of each of its layers.")
    hidden_act: Literal["gelu", "relu", "swish", "tanh", "sigmoid"] = Field(
        "gelu", description="Activation of its feed-forward nets."
    )
    hidden_dropout_prob: float = Field(0.5, ge=0, lt=1, description="Of its hidden states.")
    attn_dropout_prob: float = Field(0.5, ge=0, lt=1, description="Of its attention.")
    stage_settings: dict[str, Any] = Field(
        {
            "pretrain": {"phase": "pretrain"},
            "finetune": {
                "phase": "finetune",
                "datasets": None,
                "whole": None,
                "select_on": None,
                "freeze_encoder": True,
            },
        },
        description="Stage name: settings of that stage.",
    )
    phase: Literal["pretrain", "finetune"] = Field(
        "finetune",
        description="Contrast of sequences with items and with augmented sequences, or a softmax "
        "over the catalogue.",
    )
    freeze_encoder: bool = Field(
        False,
        description="Only the adaptor and the embeddings of items are trained, as the paper does "
        "after pre-training.",
    )
    contrast_temperature: float = Field(0.07, description="Of both phases.")
    sequence_weight: float = Field(
        0.001, ge=0, description="Weight of the contrast of sequences with augmented ones."
    )
    item_drop: Fraction = Field(
        0.2, description="Most items that an augmented sequence lacks, as a share."
    )
    word_drop: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="Share of the words that the texts of an augmented sequence lack.",
    )

    epochs: int = Field(20, description="Each learns every case once.")
    train_batch_size: int = Field(
        128, description="Users per step; pairs per step in phase pretrain."
    )
    pass_tokens: PassTokens = Field(65536, description="Items per forward pass.")

    datasets: list[str] | None = Field(
        None,
        description="Datasets to pre-train on together, by their training parts, each drawn in "
        "proportion to users^mixture_exponent.",
    )
