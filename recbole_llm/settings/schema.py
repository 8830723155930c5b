"""Settings that belong to a model's class.

A pydantic class says their names, types, ranges, defaults and help.
"""

import types
import typing
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

from ..errors import UserError
from .rules import Rule

SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
KINDS = {int: "int", float: "float", bool: "bool", str: "str", dict: "dict"}


class ModelSettings(BaseModel):
    """Base of a model's settings. Each field is one setting.

    A field has a type (int, float, bool, str, a Literal of texts, a list of one of these, dict, or
    one of them `| None`), a default, and in `Field` its range (`ge`, `gt`, `le`, `lt`) and its
    `description`, which `--print_config` and the documentation show.

    Examples
    --------
    >>> from pydantic import Field
    >>> class Settings(ModelSettings):
    ...     width: int = Field(64, ge=1, description="Length of the vectors.")
    >>> defaults(Settings)
    {'width': 64}
    >>> rules(Settings)["width"].expected("wide")
    'a number'
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def defaults(settings: type[ModelSettings]) -> dict:
    """Default value of each setting.

    Raises
    ------
    UserError
        For a setting without a default, or with one that its own type forbids.
    """
    values = {}
    for name, field in settings.model_fields.items():
        if field.is_required():
            raise UserError(f"{settings.__qualname__}.{name}: expected a default value, found none")
        value = field.get_default(call_default_factory=True)
        rule = _rule(settings, name, field)
        if not (value is None and rule.nullable) and not _fits(rule, value):
            raise UserError(
                f"{settings.__qualname__}.{name}: expected {rule.expected(value)} as its default, "
                f"found {value!r}"
            )
        values[name] = value
    return values


def rules(settings: type[ModelSettings]) -> Mapping[str, Rule]:
    """Rule of each setting, by which values from the command line and from YAML are checked."""
    return {name: _rule(settings, name, field) for name, field in settings.model_fields.items()}


def _fits(rule: Rule, value) -> bool:
    if rule.kind == "list":
        return isinstance(value, list) and all(
            rule.of is None or rule.of.holds(one) for one in value
        )
    return rule.holds(value)


def _rule(settings: type[ModelSettings], name: str, field: FieldInfo) -> Rule:
    kinds = (
        typing.get_args(field.annotation) if _is_union(field.annotation) else (field.annotation,)
    )
    plain = [kind for kind in kinds if kind is not types.NoneType]
    bounds = tuple(
        (sign, str(getattr(limit, attribute)))
        for limit in field.metadata
        for attribute, sign in SIGNS.items()
        if hasattr(limit, attribute)
    )
    if len(plain) == 1 and (rule := _of_type(plain[0], bounds, len(kinds) > 1)):
        return rule
    raise UserError(
        f"{settings.__qualname__}.{name}: expected int, float, bool, str, Literal, list or dict as "
        f"its type, found {field.annotation!r}"
    )


def _is_union(annotation) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _of_type(kind, bounds: tuple, nullable: bool) -> Rule | None:
    origin = typing.get_origin(kind) or kind
    if origin is typing.Literal:
        return Rule("str", words=typing.get_args(kind), nullable=nullable)
    if origin is list:
        inner = [_of_type(one, bounds, False) for one in typing.get_args(kind)]
        return Rule("list", of=inner[0] if inner else None, nullable=nullable)
    if origin in KINDS:
        return Rule(KINDS[origin], bounds=bounds, nullable=nullable)
    return None
