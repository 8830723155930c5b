"""What one value may be, and the one line that refuses another."""

import difflib
import operator
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from ..errors import UserError
from .spellings import Loader


def _is_number(value: object) -> bool:
    """Whether a value is a finite number: NaN compares as False with everything."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max


_IS_KIND: dict[str, Callable[[Any], bool]] = {
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": _is_number,
    "bool": lambda value: isinstance(value, bool),
    "str": lambda value: isinstance(value, str | os.PathLike) and str(value).strip() != "",
    "text": lambda value: isinstance(value, str),
    "list": lambda value: isinstance(value, list),
    "dict": lambda value: isinstance(value, dict),
    "group": lambda value: isinstance(value, dict),
    "str or dict": lambda value: isinstance(value, str | dict),
}
_PLURALS = {"int": "whole numbers", "float": "numbers", "str": "texts", "text": "texts"}
_SINGULARS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "text": "a text",
    "list": "a list such as [a, b]",
    "dict": "a group such as {name: value}",
    "group": "a group such as {name: value}",
    "str or dict": "a text or a group",
}
_COMPARISONS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
_LIMITS = {">=": "from {} up", ">": "above {}", "<=": "up to {}", "<": "below {}"}


@dataclass(frozen=True)
class Rule:
    """What one value may be.

    Attributes
    ----------
    kind : str
        int, float, bool, str, list, dict, "str or dict"; text is a str that may be empty, group a
        dict that has to name all of `names`.
    of : Rule or None
        Of every value of a list or dict.
    words : tuple of str
        The texts that a str may be, any where there are none; those that may stand in place of an
        int or float.
    bounds : tuple of (str, str)
        Comparison and limit of a number, as in (">=", "1").
    names : tuple of str
        Of a group.
    nullable : bool

    Examples
    --------
    >>> rule = Rule("list", of=Rule("int", bounds=((">=", "1"),)), nullable=True)
    >>> str(rule)
    'list of int, >= 1, or null'
    """

    kind: str
    of: "Rule | None" = None
    words: tuple[str, ...] = ()
    bounds: tuple[tuple[str, str], ...] = ()
    names: tuple[str, ...] = ()
    nullable: bool = False

    def __str__(self) -> str:
        if self.words and self.kind == "str":
            return " | ".join([*self.words, *(["null"] if self.nullable else [])])
        if self.words:
            return f"{replace(self, words=())}, or {' | '.join(self.words)}"
        parts = [f"{self.kind} of {self.of}" if self.of else self.kind]
        if self._is_range:
            parts.append("{} to {}".format(*(limit for _, limit in self.bounds)))
        else:
            parts += [f"{sign} {limit}" for sign, limit in self.bounds]
        has_comma = len(parts) > 1 or (self.of is not None and "," in str(self.of))
        null = ", or null" if has_comma else " or null"
        return ", ".join(parts) + (null if self.nullable else "")

    @property
    def _is_range(self) -> bool:
        return [sign for sign, _ in self.bounds] == [">=", "<="]

    def holds(self, value: Any) -> bool:
        """Whether a value that is not null is as this says; the values inside it are not read."""
        if self.words and isinstance(value, str):
            return value in self.words
        if not _IS_KIND[self.kind](value):
            return False
        return all(_COMPARISONS[sign](value, float(limit)) for sign, limit in self.bounds)

    def expected(self, value: object, many: bool = False) -> str:
        """Say what is expected in place of a value.

        A value that is no number at all need not hear of limits.
        """
        if self.words and self.kind == "str":
            return _either(self.words)
        if self.words:
            return f"{replace(self, words=()).expected(0)}, or {_either(self.words)}"
        if self.kind in ("int", "float") and not isinstance(value, int | float | None):
            return "numbers" if many else "a number"
        if many and (self.kind, self.bounds) == ("int", ((">=", "1"),)):
            return "positive integers"
        if self._is_range:
            limits = "from {} to {}".format(*(limit for _, limit in self.bounds))
        else:
            limits = " and ".join(_LIMITS[sign].format(limit) for sign, limit in self.bounds)
        return f"{(_PLURALS if many else _SINGULARS)[self.kind]} {limits}".rstrip()


def _either(names: Iterable[str]) -> str:
    """`a, b or c`."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _as_word(value: Any, words: tuple[str, ...]) -> Any:
    """A switch as the word that YAML read it from, where it may be one: true, false."""
    if isinstance(value, bool) and str(value).lower() in words:
        return str(value).lower()
    return value


def checked(key: str, value: Any, known: Mapping[str, Rule], default: object = None) -> Any:
    """Return a value as it is used: a single one of a list, and `1,5,10`, as a list.

    Where there is no rule, a default that is a number or a switch asks for one. A number that
    equals the default is the default, 16 for 16.0, so that both are the same run.

    Parameters
    ----------
    key : str
        The setting.
    value : object
    known : mapping
        Rules by key; a key inside a group is dotted.
    default : object

    Raises
    ------
    UserError
        If the setting cannot have this value.
    """
    if key in known:
        used = _checked(key, value, known[key], known)
    elif isinstance(default, bool):
        used = _checked(key, value, Rule("bool"), known)
    elif isinstance(default, int | float):
        number = _checked(key, value, Rule("float"), known)
        is_whole = isinstance(default, int) and number == int(number)
        used = int(number) if is_whole else number
    else:
        used = value
    if type(used) is float and type(default) in (int, float) and used == default:
        return default
    return used


def _checked(key: str, value: Any, rule: Rule, known: Mapping[str, Rule]) -> Any:
    if value is None and rule.nullable:
        return None
    if value is None and rule.kind == "list":
        return []
    if isinstance(value, str) and rule.kind in ("int", "float", "bool"):  # as in gpu_id: '0'
        number = _read(value)
        value = number if rule.holds(number) else value
    if rule.kind == "list" and value is not None and not isinstance(value, dict):
        values = list(value) if isinstance(value, list | tuple) else _parted(value, rule.of)
        for one in values:
            if rule.of and not rule.of.holds(one):
                raise _wrong(key, rule.of, one, many=True)
        return values
    value = _as_word(value, rule.words)
    if not rule.holds(value):
        raise _wrong(key, rule, value)
    if isinstance(value, dict):
        _check_inside(key, value, rule, known)
    if rule.kind == "float":
        value = float(value)  # 3 and 3.0 are one setting, and one run
    return value


def _parted(value: object, of: Rule | None) -> list[Any]:
    """A value that is no list as one: a text at its commas."""
    if not isinstance(value, str) or "," not in value:
        return [value]
    parts = [part.strip() for part in value.split(",")]
    return parts if of and of.kind in ("str", "text") else list(map(_read, parts))


def _read(text: str) -> Any:
    """A value as YAML reads it inside a list; what is no YAML stays a text."""
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError:
        return text


def _check_inside(key: str, group: dict[Any, Any], rule: Rule, known: Mapping[str, Rule]) -> None:
    inner = {
        name.removeprefix(f"{key}."): one
        for name, one in known.items()
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
        if one := inner.get(name, rule.of):
            _checked(f"{key}.{name}", value, one, known)
    if missing := [name for name in rule.names if name not in group]:
        raise UserError(
            f"{key}: expected {', '.join(rule.names)}, found no {', '.join(missing)}; to change "
            f"one and keep the rest: --{key}.{missing[0]}=…"
        )


def _wrong(key: str, rule: Rule, value: object, many: bool = False) -> UserError:
    shown = "null" if value is None else repr(value)
    is_text = rule.kind in ("str", "text") and not rule.words
    quote = "; put it in quotes" if is_text and isinstance(value, int | float) else ""
    return UserError(f"{key}: expected {rule.expected(value, many)}, found {shown}{quote}")


def check_name(name: str, key: str = "dataset") -> None:
    """Refuse a name of files that would lead out of their folder.

    Parameters
    ----------
    name : str
    key : str
        What is named, for the message.

    Raises
    ------
    UserError
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise UserError(
            f"{key} {name!r}: expected the name of a folder below data_path, without / or \\; set "
            "--data_path to where that folder is"
        )


def nearest(name: str, names: Iterable[str]) -> str:
    """Say which names are nearest to one that there is not.

    Returns
    -------
    str
        `; did you mean a or b?`, or an empty text.

    Examples
    --------
    >>> nearest("epoch", ["epochs", "seed"])
    '; did you mean epochs?'
    """
    near = difflib.get_close_matches(name, list(names), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""
