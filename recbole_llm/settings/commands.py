"""Settings of the commands that make many runs."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from .groups import Fraction
from .schema import ModelSettings, Pretrained


class RaySettings(ModelSettings):
    """Of a command that works on several processes by Ray."""

    ray_address: str | None = Field(
        None,
        description="Of a running cluster whose machines share data_path and checkpoint_dir; "
        "without it Ray starts on this machine, and ends with the command.",
    )
    dashboard: bool = Field(False, description="Ray's, on this machine alone.")


class PersonalizeSettings(RaySettings):
    """The personalization spectrum (UMass x Spotify, 2024).

    TASTELoRA as one model for all, with an adapter for each cohort, with an adapter for each user.
    Any setting of TASTELoRA goes beside these. As in the paper: its settings, and
    --adapter_batch_size=8.
    """

    example: ClassVar[str] = "personalize --dataset=ml-100k"
    run: dict[str, Any] = Field(
        {
            "eval_args.split": {"temporal": [0.6, 0.2, 0.2]},
            "user_inter_num_interval": "[15,inf)",
            "topk": [5, 10, 20],
            "metrics": ["Recall", "NDCG"],
        },
        description="Of the models themselves, over the defaults of TASTELoRA and of the dataset.",
    )
    models: list[Any] = Field(
        [1, 2, 3, "4.text", "6.text", "4.feat", "6.feat", 5, 7],
        description="1 to 3, 5 and 7; 4 and 6 with their cohorts: text, feat, attr, file.",
    )
    cohorts: list[Any] = Field(
        ["low+5", "low+10", 5, "low+high"],
        description="How many; low: users of low activity apart. The first is that of the table of "
        "models.",
    )
    low_activity: int = Field(
        10,
        ge=0,
        description="Of low activity are users with fewer interactions in Continue Train.",
    )
    item_clusters: int = Field(
        20,
        ge=1,
        description="Clusters of item texts, by which a user of the text cohorts is known.",
    )
    feature_columns: list[str] = Field(
        ["categories", "brand", "class"],
        description="Columns of .item for the feature cohorts; one that is not there is left out.",
    )
    user_columns: list[str] = Field(
        ["age", "gender", "occupation"],
        description="Columns of .user for the attribute cohorts.",
    )
    cohort_file: str | None = Field(None, description="Lines `user<TAB>cohort`, for 4.file.")
    activity_borders: list[Any] = Field(
        [5, 10, 20],
        description="Most Future-Test cases of a user of very low, low and high activity (the "
        "paper names low: 6 to 10); quartiles: of the users.",
    )
    own_users: int = Field(
        0,
        ge=0,
        description="Most users with an adapter of their own, as many of each group by activity "
        "(the paper: 340); 0: all.",
    )
    frequent: Fraction = Field(
        0.2,
        description="Share of users, the most active ones, who have their own adapter in Model 7.",
    )
    threshold: float = Field(
        0.0,
        ge=0,
        description="A user's difference up to it counts as none in wins and losses (one of 1e-9 "
        "always does).",
    )
    cohort_rank: int = Field(32, ge=1, description="Of the adapters of Models 3, 4 and 6.")
    cohort_alpha: float = Field(64, gt=0, description="Their updates are scaled by alpha / rank.")
    user_rank: int = Field(8, ge=1, description="Of a user's own adapter.")
    user_alpha: float = Field(16, gt=0, description="Its updates are scaled by alpha / rank.")
    adapter_dropout: float = Field(0.05, ge=0, lt=1, description="Of the updates' input.")
    adapter_epochs: int = Field(3, ge=0, description="Passes over a user's or a cohort's cases.")
    adapter_patience: int = Field(
        1,
        ge=0,
        description="Validations in a row that are no better, after which an adapter stops; the "
        "best is kept.",
    )
    adapter_batch_size: int = Field(32, ge=1, description="Cases per step.")
    adapter_learning_rate: Annotated[float, Pretrained(0.00001, "The paper's.")] = Field(
        0.001, gt=0, description="Peak."
    )
    jobs: Literal["ray", "serial"] = Field(
        "ray",
        description="Adapters trained in parallel by Ray Tune, or one unit after another in this "
        "process: the same result. Without the extra ray: serial.",
    )
    ray_address: str | None = Field(
        None,
        description="Of a running cluster; without it Ray starts on this machine, and ends with "
        "the command.",
    )
    unit_users: int = Field(64, ge=1, description="Users of one unit of work.")
    unit_cpus: float = Field(1, gt=0, description="Cores of a unit.")
    unit_gpus: float | None = Field(
        None,
        ge=0,
        description="Share of a GPU of a unit; not set: one where there are any, none elsewhere.",
    )


class TuneSettings(RaySettings):
    """Settings of any model, searched by Ray Tune.

    Each trial is a run like any other, and the best is the one of the best validation.
    """

    example: ClassVar[str] = "tune --model=SASRec --dataset=ml-100k --space.hidden_size='[32, 64]'"
    space: dict[str, Any] = Field(
        {},
        description="Setting: values [a, b], or a range {uniform: [low, high]}, {log: [low, high]} "
        "or {int: [low, high]}.",
    )
    search: Literal["asha", "random", "grid"] = Field(
        "asha",
        description="asha stops the worse trials early (Li et al., MLSys 2020); grid: all values, "
        "no ranges.",
    )
    trials: int = Field(8, ge=1, description="Settings drawn; not of grid.")
    grace: int = Field(2, ge=1, description="Validations of a trial before asha may stop it.")
    reduction: int = Field(3, ge=2, description="asha lets one of so many go on.")
    search_seed: int = Field(0, ge=0, description="Of the draw.")
    trial_cpus: float = Field(1, gt=0, description="Cores of a trial.")
    trial_gpus: float | None = Field(
        None,
        ge=0,
        description="Share of a GPU of a trial; not set: one where there are any, none elsewhere.",
    )


class PlanSettings(ModelSettings):
    """What a run is going to take, reckoned without the weights of its language models.

    Any setting of the model goes beside these.
    """

    example: ClassVar[str] = "plan --model=CALRec --dataset=Pet --hardware=rtx-4090"
    hardware: str | None = Field(
        None, description="A GPU such as rtx-4090 or a100-80gb; without it, this machine's device."
    )
    price_in: float | None = Field(
        None, ge=0, description="Of a million tokens that a summarizer reads."
    )
    price_out: float | None = Field(None, ge=0, description="Of a million tokens that it writes.")


COMMANDS: dict[str, type[ModelSettings]] = {
    "personalize": PersonalizeSettings,
    "tune": TuneSettings,
    "plan": PlanSettings,
}
