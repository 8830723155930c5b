"""Settings that several models share, to be included in a model's own settings."""

from typing import Literal

from pydantic import Field

from .schema import ModelSettings


class TrainingSettings(ModelSettings):
    """What our trainer reads."""

    epochs: int = Field(20, ge=0, description="Passes over the training examples.")
    train_batch_size: int = Field(128, ge=1, description="Training examples per step.")
    pass_tokens: int = Field(
        65536, ge=1, description="Cost of the examples in one forward pass, see `cost`."
    )
    learner: Literal["adam", "muon"] = Field(
        "adam", description="adam: AdamW. muon: orthogonalised steps."
    )
    learning_rate: float = Field(0.001, gt=0, description="Peak of the learning rate.")
    weight_decay: float = Field(0.0, ge=0, description="Of AdamW.")
    warmup: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share of all steps with a rising learning rate; a cosine follows.",
    )
    clip_grad_norm: dict | None = Field(
        None, description="{max_norm: 1.0} clips the norm of the gradient."
    )
    eval_step: int = Field(1, ge=0, description="Epochs between validations.")
    valid_users: int = Field(
        0, ge=0, description="Most validation cases that choose a checkpoint; 0: all."
    )


class TextEncoderSettings(ModelSettings):
    """Of a model that reads frozen text vectors."""

    text_encoder: str = Field(
        "minilm", description="Frozen sentence encoder: hub id, folder, minilm or run:<id>."
    )


class BackboneSettings(ModelSettings):
    """Of a model around a language model."""

    backbone: str = Field(
        "scratch:tiny", description="Hub id, folder, run:<id>, or scratch:tiny|small|base."
    )
    scratch_vocabulary: int = Field(
        4096, ge=1, description="Tokens of a scratch backbone's tokenizer."
    )
    max_length: int = Field(
        1024, ge=1, description="Tokens of history and target; the oldest items are left out first."
    )


class LoraSettings(ModelSettings):
    """Of adapters on a language model."""

    adapter: Literal["none", "lora"] = Field(
        "none",
        description="none: all weights are trained; lora: low-rank updates of every linear layer.",
    )
    lora_rank: int = Field(8, ge=1, description="Rank of the updates.")
    lora_alpha: float = Field(16, gt=0, description="Updates are scaled by alpha / rank.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Of the updates' input.")


class GenerationSettings(ModelSettings):
    """Of a model that writes texts and finds the items that they mean."""

    template: dict = Field(
        {
            "head": "This is the summary of a user's purchase history.",
            "first": "The first item bought is as follows.",
            "next": "\n\nThe next item bought is as follows.",
            "target": "\n\nThe next item bought is as follows.",
        },
        description="The sentences around the items.",
    )
    decoding: Literal["sample", "constrained"] = Field(
        "sample",
        description="sample: texts are drawn freely; constrained: a search writes items alone.",
    )
    beams: int = Field(32, ge=1, description="Items that a constrained search reaches.")
    match: Literal["bm25", "hierarchical"] = Field("bm25", description="How texts find items.")
    blend: float = Field(0, description="Weight of cos(history, item), added to an item's score.")
    rerank_from: str | None = Field(None, description="A run whose stored lists are ranked again.")
    samples: int = Field(32, ge=1, description="Texts drawn per user at test time.")
    valid_samples: int = Field(8, ge=1, description="The same while training.")
    temperature: float = Field(0.5, ge=0, description="Of the sampling.")
    max_new_tokens: int = Field(80, ge=1, description="Longest generated item.")
    texts_kept: int = Field(10, ge=1, description="Most probable distinct texts that are matched.")
    epsilon: float = Field(
        0.0002, ge=0, description="Weight of a text's log-probability in the round robin."
    )
    bm25_k1: float = Field(1.5, ge=0, description="Saturation of repeated words.")
    bm25_b: float = Field(0.75, ge=0, le=1, description="Weight of a text's length.")
    generate_rows: int = Field(1024, ge=1, description="Samples decoded at once.")
