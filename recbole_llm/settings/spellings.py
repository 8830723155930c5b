"""Other spellings of a value that mean the same, and keys of older versions of RecBole."""

import functools
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from ..storage.screen import say

# Keys of RecBole 0.1 to 0.2 that RecBole 1.2.1 no longer has, and what says the same today.
_NEGATIVES = "say --train_neg_sample_args='{distribution: uniform, sample_num: 1}'"
OLD = {
    "eval_setting": "say --eval_args.split, --eval_args.mode, such as "
    "--eval_args.split='{LS: valid_and_test}' --eval_args.mode=full; the order is always by time",
    "split_ratio": "say --eval_args.split='{RS: [0.8, 0.1, 0.1]}'",
    "leave_one_num": "say --eval_args.split='{LS: valid_and_test}'",
    "real_time_process": "leave it out: data is always read as it is needed",
    "training_neg_sample_num": _NEGATIVES,
    "neg_sampling": _NEGATIVES,
    "min_user_inter_num": "say --user_inter_num_interval='[5,inf)'",
    "max_user_inter_num": "say --user_inter_num_interval='[0,5]'",
    "min_item_inter_num": "say --item_inter_num_interval='[5,inf)'",
    "max_item_inter_num": "say --item_inter_num_interval='[0,5]'",
    "lowest_val": "say --val_interval.COLUMN='[3,inf)'",
    "highest_val": "say --val_interval.COLUMN='(-inf,3]'",
    "equal_val": "say --val_interval.COLUMN='[3,3]'",
    "not_equal_val": "say --val_interval.COLUMN='(-inf,3);(3,inf)'",
    "drop_filter_field": "leave it out: columns that only a filter reads are not read by models",
    "fill_nan": "leave it out: missing numbers are filled as RecBole 1.2.1 fills them",
    "tensorboard": "leave it out: every run's folder has a tensorboard log",
}
INTERVALS = ("user_inter_num_interval", "item_inter_num_interval")
PATHS = ("data_path", "checkpoint_dir")


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader that reads `1e-4` as a number, as RecBole does."""


_NUMBER = re.compile(
    r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)$"  # 1e-4
    r"|^[-+]?\d[\d_]*\.[\d_]*$"  # 1_000.5
    r"|^[-+]?\.(inf|Inf|INF)$"
    r"|^\.(nan|NaN|NAN)$"
)
Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789."))


def of_value(key: str, value: Any) -> Any:
    """Return a value as the rest of the settings knows it.

    The text `None` is null, `[5, 10]` is the interval "[5,10]", and `~/data` is in the home folder.
    """
    if isinstance(value, str) and value == "None":
        return None
    if key in INTERVALS and isinstance(value, list) and len(value) == 2:
        return "[{},{}]".format(*value)
    if key in PATHS and isinstance(value, str) and value.startswith("~"):
        return str(Path(value).expanduser())
    if key == "group_by_user" and value is True:
        warn(
            "group_by_user: metrics are means over users of the means over their cases; a split is "
            "always made within users, which is what RecBole before 1.0 meant by this key"
        )
    return value


def without_ties(metric: str) -> str:
    """Return the name of a metric without how it treats ties (`_opt`, `_pes`)."""
    return re.sub("(?i)_(opt|pes)$", "", metric)


@functools.lru_cache
def warn(line: str) -> None:
    """Say a line on stderr, once in a process: settings are resolved for each model of a table."""
    say(f"warning: {line}", sys.stderr)
