"""Settings of the harness: the same for every model, RecBole's own included."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from .groups import (
    AtLeastOne,
    EvaluationArguments,
    RankingSettings,
    Seed,
    TextEncoderSettings,
)
from .schema import ModelSettings, Trait


class DataSettings(TextEncoderSettings):
    """What is read of a data set."""

    section: ClassVar[str] = "Data"
    data_name: str | None = Field(
        None, description="Base name of the atomic files; the dataset's name where not set."
    )
    text_fields: dict[str, str] = Field(
        {"Title": "title", "Category": "categories", "Brand": "brand", "Price": "price"},
        description="Attribute name: column of .item. A column that is not there is left out and "
        "logged.",
    )
    text_words: dict[str, AtLeastOne] = Field(
        {"Title": 25, "Category": 15, "Brand": 15, "Price": 15},
        description="Most words of an attribute.",
    )
    dedup: Literal["event", "consecutive", "consecutive_item", "none"] = Field(
        "event",
        description="What is left out at load. event: an event that equals another of its user in "
        "item, time and rating. consecutive: one that equals the event before it in item, time, "
        "rating and `review`, where there is such a column. consecutive_item: one of the same item "
        "as the event before it, whenever that was.",
    )
    catalogue: Literal["met", "all"] = Field(
        "met", description="Items with an event in any part, or every row of .item."
    )
    user_sample: float = Field(
        1.0,
        gt=0,
        description="Users kept, drawn before the filters by number of events: a fraction up to 1, "
        "a number above it.",
    )
    sample_seed: int = Field(0, ge=0, description="Seed of that draw.")
    need_item_row: bool = Field(
        False, description="Leave out events of items that .item does not list."
    )
    selected_features: Annotated[list[str] | None, Trait.PER_MODEL] = Field(
        None, description="Columns of .item that feature models read."
    )
    item_attribute: Annotated[str | None, Trait.PER_MODEL] = Field(
        None, description="The column of .item that S3Rec pre-trains with."
    )
    item_features: Annotated[Literal["id", "text", "both"], Trait.PER_MODEL] = Field(
        "id",
        description="SASRec, GRU4Rec, NARM, CORE, NeuMF, DIN, DIEN: ids, projected text vectors, "
        "or their sum.",
    )
    text_encoder: Annotated[str, Trait.PER_MODEL] = Field(
        "minilm",
        description="Frozen sentence encoder of item_features: hub id, folder, minilm or run:<id>.",
    )
    trust_remote_code: Annotated[bool, Trait.PER_MODEL, Trait.CAME_LATER] = Field(
        False,
        description="Run the Python files that come with a language model: backbone, text_encoder "
        "or summarizer.",
    )


class EvaluationSettings(RankingSettings):
    """How models are measured."""

    section: ClassVar[str] = "Evaluation"
    eval_args: Annotated[EvaluationArguments, Trait.MERGED] = Field(
        EvaluationArguments(), description="Split, and the candidates of a case."
    )
    repeatable: Annotated[bool, Trait.PER_MODEL] = Field(
        True, description="RecBole asks it of sequential models. Masking is mask_history's."
    )
    mask_history: bool = Field(
        False,
        description="Leave the items of the user's history out of the ranking, for every model.",
    )
    history_at_test: Literal["all", "training"] = Field(
        "all",
        description="General models that compute users from a matrix (docs/compatibility.md) get "
        "all events before the target, or as in RecBole those of training.",
    )
    candidates_exclude: Literal["user", "target"] = Field(
        "user",
        description="Negatives of uniK: no item that the user ever met, or only not the target.",
    )
    candidate_seed: int = Field(
        2020,
        ge=0,
        description="Seed of the negatives, apart from `seed` so that all seeds rank the same "
        "candidates.",
    )
    test_users: int = Field(
        0, ge=0, description="Most test cases, drawn once, for a first look; 0: all."
    )
    valid_metric: str = Field(
        "NDCG@10",
        description="What early stopping and the choice of the checkpoint look at.",
    )
    group_by_user: bool = Field(
        False, description="Mean over users of their means, in place of the mean over cases."
    )
    stopping_step: Annotated[int, Trait.PER_MODEL] = Field(
        10,
        ge=0,
        description="Training stops after stopping_step + 1 validations in a row without a strict "
        "improvement (RecBole's count).",
    )
    topk_saved: int = Field(1000, ge=1, description="Length of the stored top-k lists.")
    eval_memory: Annotated[float, Trait.OUTSIDE_IDENTITY] = Field(
        128, gt=0, description="MiB of scores held at once in evaluation."
    )


class RunSettings(ModelSettings):
    """What a run is and what stands beside it."""

    section: ClassVar[str] = "Runs"
    gpu_id: Annotated[int, Trait.OUTSIDE_IDENTITY] = Field(
        0, ge=0, description="The GPU to use where there is one."
    )
    seed: Seed = Field(2020, description="Seed of everything random in training.")
    overwrite: Annotated[bool, Trait.PER_MODEL, Trait.OUTSIDE_IDENTITY] = Field(
        False, description="Train and evaluate again what is already there."
    )
    seeds: Annotated[list[Seed] | None, Trait.WHOLE_RUN, Trait.OUTSIDE_IDENTITY] = Field(
        None, description="compare: one run per seed."
    )
    precision: Annotated[Literal["fp32", "bf16", "fp16"], Trait.PER_MODEL] = Field(
        "fp32", description="Of LLM backbones; stock models stay fp32."
    )
    beside: Annotated[list[str], Trait.WHOLE_RUN, Trait.OUTSIDE_IDENTITY] = Field(
        ["Pop", "LIR"], description="Models whose rows stand beside a run's own."
    )
    stages: Annotated[list[str] | None, Trait.WHOLE_RUN, Trait.PER_MODEL] = Field(
        None, description="Names of stages, each a run of its own handed to the next."
    )
    stage_settings: Annotated[
        dict[str, Any] | None, Trait.MERGED, Trait.WHOLE_RUN, Trait.PER_MODEL
    ] = Field(None, description="Stage name: settings of that stage.")
    init_from: Annotated[str | None, Trait.PER_MODEL] = Field(
        None, description="Run whose weights this one starts from."
    )


class HarnessSettings(DataSettings, EvaluationSettings, RunSettings):
    """Settings of the harness, the same for every model, stock ones included.

    They come after RecBole's own properties and before properties/model/<Model>.yaml and
    properties/dataset/<Dataset>.yaml.
    """

    example: ClassVar[str] = "--model=LIR --dataset=ml-100k"
