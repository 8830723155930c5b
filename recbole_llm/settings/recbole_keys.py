"""Keys of RecBole: what they may be, which have no effect here, and which RecBole lists nowhere."""

from typing import Annotated, Any, Literal

from pydantic import Field

from .groups import AtLeastOne, RecBoleTrainingSettings
from .schema import Trait

# Keys that RecBole reads but lists in none of its YAML files.
UNLISTED = {
    *("MASK_ITEM_SEQ", "POS_ITEMS", "NEG_ITEMS", "MASK_INDEX", "INVERSE_ITEM_SEQ"),
    *("CROP_ITEM_SEQ", "CROP_ITEM_SEQ_LEN", "REORDER_ITEM_SEQ", "norm", "feature_num", "cin"),
    *("has_residual", "contrast", "sim", "use_filter", "tail_ratio", "xgb_early_stopping_rounds"),
    *("eta", "encoding", "token_num_threshold", "loss_type", "embedding_size"),
}
# Keys that our loading, evaluation and checkpoints replace, with the reason: setting them would do
# nothing.
REPLACED = {
    "save_dataset": "data is read afresh",
    "dataset_save_path": "data is read afresh",
    "save_dataloaders": "data is read afresh",
    "dataloaders_save_path": "data is read afresh",
    "filter_inter_by_user_or_item": "use need_item_row",
    "metric_decimal_place": "scores are not rounded",
    "valid_metric_bigger": "it follows from valid_metric",
    "seq_separator": "sequences are separated by spaces",
    "alias_of_item_id": "lists and targets share one numbering",
    "alias_of_user_id": "not used",
    "additional_feat_suffix": "not read",
    "unload_col": "use load_col",
    "encoding": "atomic files are UTF-8",
    "eval_batch_size": "use eval_memory",
    "nproc": "one process trains",
    "world_size": "one process trains",
    "ip": "one process trains",
    "port": "one process trains",
    "group_offset": "one process trains",
    "saved": "every run is stored",
}
# Keys without a rule that decide where and how a run is made, not what it computes.
OUTSIDE_IDENTITY = {"use_gpu", "state", "show_progress", "log_wandb", "wandb_project"}
# Keys of the data and the place that the models of a table share, beside the harness's settings.
SHARED = {
    *("data_path", "checkpoint_dir", "show_progress", "seed", "use_gpu"),
    *("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "RATING_FIELD"),
    *("val_interval", "rm_dup_inter", "user_inter_num_interval", "item_inter_num_interval"),
    *("benchmark_filename", "field_separator", "MAX_ITEM_LIST_LENGTH"),
}


class RecBoleSettings(RecBoleTrainingSettings):
    """Keys of RecBole that crash it, or that it misreads silently, where they are something else.

    All other keys of RecBole can be set too. The defaults here are RecBole's own; a model's or a
    data set's file may have others.
    """

    USER_ID_FIELD: str = Field("user_id", description="Column of users.")
    ITEM_ID_FIELD: str = Field("item_id", description="Column of items.")
    TIME_FIELD: str = Field("timestamp", description="Column of times.")
    RATING_FIELD: str = Field("rating", description="Column of ratings.")
    data_path: Annotated[str, Trait.OUTSIDE_IDENTITY] = Field(
        "dataset/", description="Folder of the data sets."
    )
    checkpoint_dir: Annotated[str, Trait.OUTSIDE_IDENTITY] = Field(
        "saved", description="Folder of the runs."
    )
    benchmark_filename: list[str] | None = Field(
        None, description="Parts of a data set that is split already, such as [train, valid, test]."
    )
    rm_dup_inter: Literal["first", "last"] | None = Field(
        None, description="Which of several events of a user with one item stays."
    )
    val_interval: dict[str, Any] | None = Field(
        None, description="Column: values of the events that are read, such as '[3,inf)'."
    )
    threshold: dict[str, float] | None = Field(
        None, description="Column: least value of a positive label, such as {rating: 4}."
    )
    seq_len: dict[str, AtLeastOne] | None = Field(
        None, description="Column of sequences: its longest sequence."
    )
    load_col: dict[str, Any] | None = Field(
        None, description="Kind of file: the columns of it that models of RecBole are given."
    )
    MAX_ITEM_LIST_LENGTH: int = Field(
        50, ge=1, description="Newest items of a history that models of RecBole read."
    )
    embedding_size: int = Field(64, ge=1, description="Length of an embedding.")
    hidden_size: int = Field(64, ge=1, description="Width of hidden layers.")
    loss_decimal_place: int = Field(4, ge=0, description="Decimals of a loss in RecBole's log.")
    worker: int = Field(0, ge=0, description="Processes that load batches.")
    numerical_features: list[str] = Field(
        [], description="Columns of numbers that context-aware models read."
    )
    normalize_field: list[str] | None = Field(
        None, description="Columns of numbers that are scaled to 0 to 1."
    )
    normalize_all: bool | None = Field(None, description="Scale all columns of numbers so.")
    discretization: dict[str, Any] | None = Field(
        None, description="Column of numbers: {method: ED, bucket: 10} or {method: LD}."
    )
    preload_weight: dict[str, Any] | None = Field(
        None, description="No model of this harness reads it."
    )
    unused_col: dict[str, Any] | None = Field(
        None, description="Kind of file: columns that only filters read."
    )
