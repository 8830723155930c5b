"""Settings as pydantic classes: each field says a setting's name, type, range, default and help.

Everything else follows from the fields: the rules by which values are checked, the YAML files below
`properties/`, `recbole-llm help` and docs/settings.md.
"""

import copy
import functools
import inspect
import itertools
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

from ..errors import UserError
from .rules import Rule

SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
KINDS = {int: "int", float: "float", bool: "bool", str: "str", dict: "dict"}


class Trait(Enum):
    """What is special about a setting. It stands in the `Annotated` type of its field."""

    MAY_BE_EMPTY = "a text that may be empty"
    MERGED = "a group that is given in part; any other group is replaced as a whole"
    WHOLE_RUN = "it is of a run with stages, never of one stage"
    PER_MODEL = "the models of a table may differ in it"
    ABOUT_DATA = "it says what the data are, and changes with the data set"
    OUTSIDE_IDENTITY = "it says where, how fast or beside whom a run is made, not what it computes"
    CAME_LATER = "its default changes nothing that was computed before there was such a setting"


@dataclass(frozen=True)
class Pretrained:
    """The default where a language model begins with pretrained weights.

    It stands in the `Annotated` type of a field.

    Attributes
    ----------
    value : object
    help : str
        Why it differs.
    """

    value: object
    help: str = ""


Text = Annotated[str, Trait.MAY_BE_EMPTY]


class ModelSettings(BaseModel):
    """Base of a class of settings. Each field is one setting.

    A field has a type (int, float, bool, str, a Literal of texts, a list or dict of one of these, a
    :class:`Group`, a number `| Literal` of texts, or one of them `| None`), a default, and in
    `Field` its range (`ge`, `gt`, `le`, `lt`) and its `description`, which help and documentation
    show. A field that a base class has too keeps that one's range and description, unless it gives
    others.

    Attributes
    ----------
    section : str
        Title above the settings that a class and its bases without a title declare.
    example : str
        Arguments of a command with these settings.

    Examples
    --------
    >>> from pydantic import Field
    >>> class Settings(ModelSettings):
    ...     width: int = Field(64, ge=1, description="Length of the vectors.")
    >>> class Wide(Settings):
    ...     width: int = 512
    >>> defaults(Wide)
    {'width': 512}
    >>> str(rules(Wide)["width"])
    'int, >= 1'
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), defer_build=True
    )
    section: ClassVar[str] = ""
    example: ClassVar[str] = ""

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Fill in what a redeclared field leaves to its base class."""
        super().__pydantic_init_subclass__(**options)
        for name in inspect.get_annotations(cls):
            field = cls.model_fields.get(name)
            bases = [
                base
                for base in cls.__mro__[1:]
                if issubclass(base, ModelSettings) and name in base.model_fields
            ]
            if field is not None and bases:
                _inherit(field, bases[0].model_fields[name])


class Group(ModelSettings):
    """Settings inside a setting.

    A default that sets some of them holds these alone; one that sets none of them holds all.

    Attributes
    ----------
    is_complete : bool
        Whether a value has to name all of them.
    """

    is_complete: ClassVar[bool] = False


@dataclass(frozen=True)
class Setting:
    """One setting as the field of its class describes it.

    Attributes
    ----------
    name : str
    rule : Rule
        What a value may be.
    default : object
        As YAML has it.
    help : str
    section : str
        Title above it; empty for what is particular to its class.
    traits : frozenset of Trait
    pretrained : Pretrained or None
    inner : tuple of Setting
        Settings of a :class:`Group`.
    """

    name: str
    rule: Rule
    default: Any
    help: str
    section: str
    traits: frozenset[Trait]
    pretrained: Pretrained | None
    inner: tuple["Setting", ...] = ()

    @property
    def spelled_out(self) -> tuple["Setting", ...]:
        """The settings inside, where the default holds them all: then each is shown by itself."""
        names = {one.name for one in self.inner}
        is_complete = isinstance(self.default, dict) and self.default.keys() == names
        return self.inner if is_complete else ()


@functools.lru_cache
def settings_of(settings: type[ModelSettings]) -> tuple[Setting, ...]:
    """Read the settings of a class, its own first and then those of its bases in their order.

    Raises
    ------
    UserError
        For a setting without a default, with one that its own type forbids, or of a type that no
        setting can have.
    """
    described: dict[str, list[Setting]] = {"": []}
    for name, section in _sections(settings).items():
        setting = _setting(settings, name, settings.model_fields[name], section)
        described.setdefault(section, []).append(setting)
    return tuple(itertools.chain.from_iterable(described.values()))


def defaults(settings: type[ModelSettings]) -> dict[str, Any]:
    """Return a new dict with the default value of each setting; see :func:`settings_of`."""
    return {one.name: copy.deepcopy(one.default) for one in settings_of(settings)}


def layer(settings: type[ModelSettings]) -> dict[str, Any]:
    """Return :func:`defaults`, with those for pretrained weights in a group `pretrained`."""
    pretrained = {one.name: one.pretrained.value for one in settings_of(settings) if one.pretrained}
    return defaults(settings) | ({"pretrained": pretrained} if pretrained else {})


def rules(settings: type[ModelSettings]) -> dict[str, Rule]:
    """Return the rule of each setting; one inside a group has a dotted name."""
    return dict(_flat(settings_of(settings), ""))


def names_with(trait: Trait, *classes: type[ModelSettings]) -> frozenset[str]:
    """Names of the settings of some classes that have a trait."""
    names: set[str] = set()
    for settings in classes:
        names.update(one.name for one in settings_of(settings) if trait in one.traits)
    return frozenset(names)


def _flat(described: tuple[Setting, ...], above: str) -> Iterator[tuple[str, Rule]]:
    for one in described:
        yield above + one.name, one.rule
        yield from _flat(one.inner, f"{above}{one.name}.")


def _inherit(field: FieldInfo, base: FieldInfo) -> None:
    """Complete a field by that of a base class with the same name."""
    field.description = field.description or base.description
    has_range = bool(_bounds(field.metadata))
    has_pretrained = any(isinstance(one, Pretrained) for one in field.metadata)
    for one in base.metadata:
        if isinstance(one, Pretrained):
            is_missing = not has_pretrained
        elif _bounds([one]):
            is_missing = not has_range
        else:
            is_missing = one not in field.metadata
        if is_missing:
            field.metadata = [*field.metadata, one]


def _classes(settings: type[ModelSettings]) -> list[type[ModelSettings]]:
    return [base for base in settings.__mro__ if issubclass(base, ModelSettings)]


def _sections(settings: type[ModelSettings]) -> dict[str, str]:
    """Title of each setting's section, in the order in which settings are shown.

    It is the title of the class which brings the setting. A class without one of its own lends its
    settings to the class that derives from it.
    """
    classes = _classes(settings)
    owners: dict[str, type[ModelSettings]] = {}
    for place, base in enumerate(classes):
        heirs = [heir for heir in reversed(classes[: place + 1]) if issubclass(heir, base)]
        owner = next((heir for heir in heirs if "section" in vars(heir)), settings)
        owners |= dict.fromkeys(base.model_fields, owner)  # the last one that has it brings it
    titles: dict[str, str] = {}
    for owner in classes:
        for base in _classes(owner):
            for name in inspect.get_annotations(base):
                if owners.get(name) is owner:
                    titles[name] = vars(owner).get("section", "")
    return titles


def _setting(settings: type[ModelSettings], name: str, field: FieldInfo, section: str) -> Setting:
    place = f"{settings.__qualname__}.{name}"
    if field.is_required():
        raise UserError(f"{place}: expected a default value, found none")
    rule = _rule(field.annotation, field.metadata)
    if rule is None:
        raise UserError(
            f"{place}: expected int, float, bool, str, Literal, list or dict as its type, found "
            f"{field.annotation!r}"
        )
    value = _plain(field.get_default(call_default_factory=True))
    if not (value is None and rule.nullable) and not _fits(rule, value):
        raise UserError(f"{place}: expected {rule.expected(value)} as its default, found {value!r}")
    group = _group(field.annotation)
    return Setting(
        name=name,
        rule=rule,
        default=value,
        help=" ".join((field.description or "").split()),
        section=section,
        traits=frozenset(one for one in field.metadata if isinstance(one, Trait)),
        pretrained=next((one for one in field.metadata if isinstance(one, Pretrained)), None),
        inner=settings_of(group) if group else (),
    )


def _plain(value: object) -> object:
    """A default as YAML has it: a dict in place of a :class:`Group`."""
    if not isinstance(value, Group):
        return value
    given = value.model_fields_set
    names = type(value).model_fields if value.is_complete or not given else given
    return {
        name: _plain(getattr(value, name)) for name in type(value).model_fields if name in names
    }


def _fits(rule: Rule, value: object) -> bool:
    if isinstance(value, list) and rule.kind == "list":
        return all(rule.of is None or rule.of.holds(one) for one in value)
    return rule.holds(value)


def _bounds(metadata: list[Any]) -> tuple[tuple[str, str], ...]:
    """(comparison, number) of each limit; a type inside a list or dict has a Field around them."""
    bounds: list[tuple[str, str]] = []
    for one in metadata:
        if isinstance(one, FieldInfo):
            bounds += _bounds(one.metadata)
        for attribute, sign in SIGNS.items():
            if hasattr(one, attribute):
                bounds.append((sign, str(getattr(one, attribute))))
    return tuple(bounds)


def _alternatives(annotation: Any) -> list[Any]:
    """The types of a union, or the one type."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return list(typing.get_args(annotation)) if is_union else [annotation]


def _group(annotation: Any) -> type[Group] | None:
    for kind in _alternatives(annotation):
        if isinstance(kind, type) and issubclass(kind, Group):
            return kind
    return None


def _rule(annotation: Any, metadata: list[Any]) -> Rule | None:
    """What a value of a type may be; None for a type that no setting can have."""
    alternatives = _alternatives(annotation)
    kinds = [kind for kind in alternatives if kind is not types.NoneType]
    nullable = len(kinds) < len(alternatives)
    if sorted(KINDS.get(_origin(kind), "") for kind in kinds) == ["dict", "str"]:
        return Rule("str or dict", nullable=nullable)
    if len(kinds) == 2 and typing.get_origin(kinds[1]) is typing.Literal:
        number, words = _rule(kinds[0], metadata), typing.get_args(kinds[1])
        return number and replace(number, words=words, nullable=nullable)
    if len(kinds) != 1:
        return None
    (kind,) = kinds
    if typing.get_origin(kind) is Annotated:
        kind, *inner = typing.get_args(kind)
        metadata = [*metadata, *inner]
    origin, arguments = _origin(kind), typing.get_args(kind)
    bounds = _bounds(metadata)
    if group := _group(kind):
        names = tuple(group.model_fields) if group.is_complete else ()
        return Rule("group" if names else "dict", names=names, nullable=nullable)
    if origin is typing.Literal:
        return Rule("str", words=arguments, nullable=nullable)
    if origin in (list, dict):
        inside = _rule(arguments[-1], metadata) if arguments else None
        return Rule(origin.__name__, of=inside, nullable=nullable)
    if origin is str and Trait.MAY_BE_EMPTY in metadata:
        return Rule("text", nullable=nullable)
    return Rule(KINDS[origin], bounds=bounds, nullable=nullable) if origin in KINDS else None


def _origin(kind: Any) -> Any:
    return typing.get_origin(kind) or kind
