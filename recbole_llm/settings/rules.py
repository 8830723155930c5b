"""What a value may be: told by the comment of its line in our YAML files, and refused in one line where it is not that.

# (int, >= 1)   (float, > 0, <= 1)   (int, 0 to 10)     whole numbers and numbers with their bounds
# (str: last | all)   (str)   (text)   (bool)           one of these words; a text, which only `text` lets be empty
# (list of int, >= 1)   (dict of str)   (dict)          a single value is taken for a list of one; lines below a dict name its keys
# (group of text)                                       a dict with the names of its default, no more and no less
# (dict or null)                                        null is allowed where the default is ~, and here
"""

import difflib
import functools
import operator
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from ..contracts.metrics import LIST_METRICS, RANK_METRICS
from ..contracts.model_spec import ModelSpec
from ..errors import UserError
from . import files as resources
from .spellings import Loader

# Settings of RecBole that crash, or that are silently misread, when they are not this. Our files come after.
RECBOLE = """
USER_ID_FIELD: user_id          # (str)
ITEM_ID_FIELD: item_id          # (str)
TIME_FIELD: timestamp           # (str)
RATING_FIELD: rating            # (str)
data_path: dataset/             # (str)
checkpoint_dir: saved           # (str)
benchmark_filename: ~           # (list of str)
rm_dup_inter: ~                 # (str: first | last)
val_interval: ~                 # (dict)
threshold: ~                    # (dict of float)
seq_len: ~                      # (dict of int, >= 1)
load_col:                       # (dict or null)
MAX_ITEM_LIST_LENGTH: 50        # (int, >= 1)
embedding_size: 64              # (int, >= 1)
hidden_size: 64                 # (int, >= 1)
epochs: 300                     # (int, >= 0)
train_batch_size: 2048          # (int, >= 1)
eval_step: 1                    # (int, >= 0)
learner: adam                   # (str)
learning_rate: 0.001            # (float, > 0)
weight_decay: 0.0               # (float, >= 0)
loss_decimal_place: 4           # (int, >= 0)
worker: 0                       # (int, >= 0)
numerical_features: []          # (list of str)
normalize_field: ~              # (list of str)
normalize_all: ~                # (bool)
discretization: ~               # (dict)
preload_weight: ~               # (dict)
unused_col: ~                   # (dict)
clip_grad_norm:                 # (dict or null)
  max_norm: 1.0                 # (float, > 0)
  norm_type: 2.0                # (float, > 0)
train_neg_sample_args:          # (dict or null)
  distribution: uniform         # (str: uniform | popularity or null)
  sample_num: 1                 # (int, >= 1)
  alpha: 1.0                    # (float)
  dynamic: false                # (bool)
  candidate_num: 0              # (int, >= 0)
"""

_LINE = re.compile(r"( *)(\w+):.*?(?:# \(([^)]*)\)|$)")
_RULE = re.compile(
    r"(?P<kind>int|float|bool|str|text|(?:list|dict|group)(?: of (?P<of>int|float|str|text))?|str or dict)"
    r"(?:: (?P<words>\w+(?: \| \w+)*))?(?P<bounds>(?:, (?:[<>]=? -?[\d.]+|-?[\d.]+ to -?[\d.]+))*)(?P<null> or null)?"
)
_FITS = {
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    ),  # and so no NaN
    "bool": lambda value: isinstance(value, bool),
    "str": lambda value: isinstance(value, str | os.PathLike) and str(value).strip() != "",
    "text": lambda value: isinstance(value, str),
    "list": lambda value: isinstance(value, list),
    "dict": lambda value: isinstance(value, dict),
    "group": lambda value: isinstance(value, dict),
    "str or dict": lambda value: isinstance(value, str | dict),
}
_MANY = {"int": "whole numbers", "float": "numbers", "str": "texts", "text": "texts"}
_ONE = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "text": "a text", "list": "a list such as [a, b]",
    "dict": "a group such as {name: value}", "group": "a group such as {name: value}", "str or dict": "a text or a group",
}  # fmt: skip
_COMPARED = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
_SAID = {">=": "from {} up", ">": "above {}", "<=": "up to {}", "<": "below {}"}


@dataclass(frozen=True)
class Rule:
    """What one value may be."""

    kind: str
    of: "Rule | None" = None  # every value of a list, dict or group
    words: tuple[str, ...] = ()
    bounds: tuple[tuple[str, str], ...] = ()  # (comparison, number as it is written)
    names: tuple[str, ...] = ()  # of a group
    nullable: bool = False

    def holds(self, value) -> bool:
        if not _FITS[self.kind](value):
            return False
        return (not self.words or value in self.words) and all(
            _COMPARED[sign](value, float(bound)) for sign, bound in self.bounds
        )

    def expected(self, value, many: bool = False) -> str:
        """What is said to a value that is not this; what is no number at all need not hear of bounds."""
        if self.words:
            return _either(self.words)
        if self.kind in ("int", "float") and not isinstance(value, int | float | None):
            return "numbers" if many else "a number"
        if many and (self.kind, self.bounds) == ("int", ((">=", "1"),)):
            return "positive integers"
        if [sign for sign, _ in self.bounds] == [">=", "<="]:
            said = "from {} to {}".format(*(bound for _, bound in self.bounds))
        else:
            said = " and ".join(_SAID[sign].format(bound) for sign, bound in self.bounds)
        return f"{(_MANY if many else _ONE)[self.kind]} {said}".rstrip()


def _either(names) -> str:
    """`a, b or c`."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def parse(text: str, default=None) -> Rule:
    """The rule that a comment's parentheses spell; ValueError if they do not."""
    found = _RULE.fullmatch(text)
    if not found:
        raise ValueError(f"({text}) is no rule for a value, see {__name__}")
    kind, _, of = found["kind"].partition(" of ")
    bounds: list[tuple[str, str]] = []
    for bound in found["bounds"].split(", ")[1:]:
        first, _, last = bound.partition(" to ")
        bounds += [(">=", first), ("<=", last)] if last else [tuple(bound.split())]
    own = {
        "words": tuple(found["words"].split(" | ")) if found["words"] else (),
        "bounds": tuple(bounds),
    }
    names = tuple(default) if kind == "group" else ()
    return Rule(
        kind,
        of=Rule(of, **own) if of else None,
        **({} if of else own),
        names=names,
        nullable=default is None or bool(found["null"]),
    )


@functools.lru_cache
def parse_file(text: str) -> dict[str, Rule]:
    """Key (dotted inside a group) -> rule, of every line that tells one."""
    content, rules, above = yaml.safe_load(text) or {}, {}, ""
    for line in text.splitlines():
        if not (found := _LINE.match(line)):
            continue
        space, name, rule = found.groups()
        above = above if space else name
        if rule:
            inside = content[above] if space else content
            rules[f"{above}.{name}" if space else name] = parse(rule, inside[name])
    return rules


def rules(spec: ModelSpec) -> dict[str, Rule]:
    """The rules for a model's settings: RecBole's, the harness's, the model's own."""
    folder = resources.properties()
    files = [
        path
        for path in (folder / "overall.yaml", folder / "model" / f"{spec.key}.yaml")
        if path.is_file()
    ]
    texts = [RECBOLE, *(path.read_text(encoding="utf-8") for path in files)]
    return functools.reduce(operator.or_, [*map(parse_file, texts), dict(spec.rules)])


def checked(key: str, value, known: Mapping[str, Rule], default=None):
    """A value as it is used: a single one of a list, and `1,5,10`, as a list.

    Where no rule is written, a default that is a number or a switch asks for one.

    Raises
    ------
    UserError : if it cannot be.
    """
    if key in known:
        return _checked(key, value, known[key], known)
    if isinstance(default, int | float):
        return _checked(key, value, Rule("bool" if isinstance(default, bool) else "float"), known)
    return value


def _checked(key: str, value, rule: Rule, known: Mapping[str, Rule]):
    if value is None and rule.nullable:
        return None
    if value is None and rule.kind == "list":
        return []
    if isinstance(value, str) and rule.kind in ("int", "float", "bool"):  # as in gpu_id: '0'
        number = _read(value)
        value = number if rule.holds(number) else value
    if rule.kind == "list" and value is not None and not isinstance(value, dict):
        values = list(value) if isinstance(value, list | tuple) else _parted(value, rule.of)
        for one in values if rule.of else []:
            if not rule.of.holds(one):
                raise _wrong(key, rule.of, one, many=True)
        return values
    if not rule.holds(value):
        raise _wrong(key, rule, value)
    if isinstance(value, dict):
        _check_inside(key, value, rule, known)
    return value


def _parted(value, of: Rule | None) -> list:
    """A value that is no list as one: a text at its commas."""
    if not isinstance(value, str) or "," not in value:
        return [value]
    parts = [part.strip() for part in value.split(",")]
    return parts if of and of.kind in ("str", "text") else list(map(_read, parts))


def _read(text: str):
    """A value as YAML reads it inside a list; what is no YAML stays a text."""
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError:
        return text


def _check_inside(key: str, group: dict, rule: Rule, known: Mapping[str, Rule]) -> None:
    inner = {
        name.removeprefix(f"{key}."): own
        for name, own in known.items()
        if name.startswith(f"{key}.")
    }
    names = rule.names or tuple(inner)
    for name, value in group.items():
        if not isinstance(name, str):
            raise UserError(
                f"{key}: expected names that are texts, found {name!r}; put it in quotes"
            )
        if names and name not in names:
            raise UserError(
                f"unknown key '{key}.{name}': expected one of {', '.join(sorted(names))}"
            )
        if own := inner.get(name, rule.of):
            _checked(f"{key}.{name}", value, own, known)
    if missing := [name for name in rule.names if name not in group]:
        raise UserError(
            f"{key}: expected {', '.join(rule.names)}, found no {', '.join(missing)}; to change "
            f"one and keep the rest: --{key}.{missing[0]}=…"
        )


def _wrong(key: str, rule: Rule, value, many: bool = False) -> UserError:
    found = "null" if value is None else repr(value)
    quote = (
        "; put it in quotes"
        if rule.kind in ("str", "text") and not rule.words and isinstance(value, int | float)
        else ""
    )
    return UserError(f"{key}: expected {rule.expected(value, many)}, found {found}{quote}")


def check_name(name: str, key: str = "dataset") -> None:
    """Raise UserError for a name of files that would lead out of their folder."""
    if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise UserError(
            f"{key} {name!r}: expected the name of a folder below data_path, without / or \\; set "
            "--data_path to where that folder is"
        )


def check_log(settings: dict) -> None:
    """Raise UserError for a log that nothing would be written to."""
    if settings["log_wandb"]:
        raise UserError(
            "log_wandb: nothing is logged to Weights & Biases here; leave it out: every run's "
            "folder has a log, tensorboard files and run.json"
        )


def check_evaluation(settings: dict) -> None:
    """Raise UserError for evaluation settings that do not fit each other."""
    args, topk, metrics = settings["eval_args"], settings["topk"], settings["metrics"]
    mode = args["mode"]
    if isinstance(mode, dict) and (not mode or mode.keys() - {"valid", "test"}):
        raise UserError(
            f"eval_args.mode: expected one mode, or one for valid and one for test, found {mode!r}"
        )
    for part in mode.values() if isinstance(mode, dict) else [mode]:
        if not re.fullmatch(r"full|uni[1-9]\d*", str(part)):
            raise UserError(f"eval_args.mode: expected full or uniK such as uni20, found {part!r}")
    if (args["order"], args["group_by"]) != ("TO", "user"):
        raise UserError(
            f"eval_args: order is always TO and group_by always user here, found {args['order']} "
            f"and {args['group_by']}"
        )
    for key in ("topk", "metrics"):
        if not settings[key]:
            raise UserError(f"{key}: expected one at least, found []")
    for metric in metrics:
        if metric.lower() not in RANK_METRICS + LIST_METRICS:
            raise UserError(
                "metrics: expected some of Recall, Hit, NDCG, MRR, Precision, MAP, found "
                f"{metric!r}"
            )
    ranked = {metric.lower() for metric in metrics} - set(LIST_METRICS)
    if not ranked:
        raise UserError(f"metrics: expected one of {', '.join(RANK_METRICS)} at least, found none")
    computed = {f"{metric}@{k}" for metric in ranked for k in topk} | ranked & {"mrr"}
    if re.sub("_(opt|pes)$", "", settings["valid_metric"].lower()) not in computed:
        raise UserError(
            f"valid_metric: expected one of {', '.join(sorted(computed))}, found "
            f"{settings['valid_metric']!r}; change it, metrics or topk"
        )


def check_columns(settings: dict, default: dict) -> None:
    """Raise UserError for names of texts and columns that nothing would read."""
    fields = settings["text_fields"]
    if not fields:
        raise UserError(
            "text_fields: expected attribute names with their columns, such as {Title: title}, "
            "found none"
        )
    for name, words in settings[
        "text_words"
    ].items():  # a default may be about a dataset with more attributes
        if name not in fields and default["text_words"].get(name) != words:
            raise UserError(
                f"text_words.{name}: expected a name of text_fields, which has "
                f"{', '.join(fields)}{nearest(name, fields)}"
            )
    if settings["threshold"] is not None and len(settings["threshold"]) != 1:
        raise UserError(
            f"threshold: expected one column with its least value, such as {{rating: 4}}, found "
            f"{settings['threshold']!r}"
        )
    for suffix, columns in (settings["load_col"] or {}).items():
        if columns not in (None, "*") and not (
            isinstance(columns, list) and all(isinstance(column, str) for column in columns)
        ):
            raise UserError(
                f"load_col.{suffix}: expected a list of columns such as [user_id, item_id], or "
                f"'*', found {columns!r}"
            )


def nearest(name: str, names) -> str:
    """`; did you mean a or b?`, or nothing."""
    near = difflib.get_close_matches(name, list(names), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""
