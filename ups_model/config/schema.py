"""Frozen groups of typed fields, checked when built, with one canonical form and values read from text."""

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

NEUTRAL: Mapping[str, bool] = types.MappingProxyType({"neutral": True})
"""Metadata of a field that was added later, with a default that changes nothing: at its default it stays out of the
canonical form, so that earlier runs keep their keys."""


class Section:
    """A frozen group of fields that checks itself when built and knows its canonical form."""

    if TYPE_CHECKING:  # Its subclasses are dataclasses.
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __post_init__(self) -> None:
        faults = [f"{type(self).__name__}: {fault}" for fault in [*type_faults(self), *self.faults()]]
        if faults:
            raise ValueError("; ".join(faults))

    def faults(self) -> list[str]:
        """The rules that this section breaks, each with the value and the way out."""
        return []

    def replace(self, **changes: Any) -> Self:
        """A copy with `changes`; an unknown field is an error that names near ones."""
        require_fields(type(self), changes)
        return replace(self, **changes)


class RootSection(Section):
    """A whole configuration: fields by dotted name, a canonical form that names its recipe, and a fingerprint."""

    CODE_RECIPE: ClassVar[int]
    """Number of the recipe that this code trains; a change of it makes earlier configurations another thing."""

    @classmethod
    def field_path(cls, name: str) -> str:
        """The dotted name of a field given by it or by an unambiguous end of it: "steps" is "optim.steps".

        Raises:
            ValueError: no field has the name (near names or what there is are listed), or several have.
        """
        return field_path(cls, name)

    def with_fields(self, changes: Mapping[str, Any]) -> Self:
        """A copy with dotted or unambiguous short field names changed, e.g. {"seed": 2, "data.pe.frames": 27}.

        Values may be strings, as on a command line: they are read as JSON where the field is not a string.

        Raises:
            ValueError: a name that no field has (near names are listed) or several have, or a value out of range.
        """
        return with_fields(self, changes)

    def canonical(self) -> dict[str, Any]:
        """Plain JSON data that equal configurations share; raises ValueError where a value has no canonical form."""
        return {"recipe": self.CODE_RECIPE, **canonical(self)}

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the canonical form."""
        return digest(self.canonical())

    @classmethod
    def from_canonical(cls, data: Mapping[str, Any]) -> Self:
        """The configuration whose `canonical()` is `data`; a recipe other than this code's is an error."""
        data = dict(data)
        recipe = data.pop("recipe", None)
        if recipe != cls.CODE_RECIPE:
            raise ValueError(
                f"configuration was made with recipe {recipe}, this code trains recipe {cls.CODE_RECIPE}; retrain"
            )
        return build(cls, data)


T = TypeVar("T")


def canonical(value: Any) -> Any:
    """`value` as plain JSON data with one form for equal values; ValueError for what has none (NaN, objects)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = hints_of(type(value))
        plain = {
            item.name: getattr(value, item.name)
            for item in dataclasses.fields(value)
            if not item.metadata.get("neutral") or getattr(value, item.name) != item.default
        }
        # 1 and 1.0 are equal configurations but different JSON.
        return {name: canonical(_as_hinted(item, hints[name])) for name, item in plain.items()}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError(f"canonical form needs text keys, got {sorted(map(repr, value))}")
        return {key: canonical(value[key]) for key in sorted(value)}
    if isinstance(value, tuple | list):
        return [canonical(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"canonical form needs finite numbers, got {value}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"{type(value).__name__} has no canonical form: {value!r}; use numbers, text, lists or dataclasses"
    )


def _as_hinted(value: Any, hint: Any) -> Any:
    if hint is float:
        return float(value) + 0.0  # -0.0 equals 0.0
    if typing.get_origin(hint) is tuple:
        return [_as_hinted(item, typing.get_args(hint)[0]) for item in value]
    return value


def digest(plain: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of plain JSON data."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def hints_of(cls: type) -> Mapping[str, Any]:
    """Types of a class's fields; resolving them takes longer than all else that is done with a field."""
    return types.MappingProxyType(typing.get_type_hints(cls))


@functools.cache
def leaf_fields(cls: type, prefix: str = "") -> Mapping[str, Any]:
    hints = hints_of(cls)
    types_by_path: dict[str, Any] = {}
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[item.name]):
            types_by_path |= leaf_fields(hints[item.name], f"{prefix}{item.name}.")
        else:
            types_by_path[prefix + item.name] = hints[item.name]
    return types_by_path


def field_path(cls: type, name: str) -> str:
    """The dotted name of a field of a dataclass, or of a dataclass in it, given by an unambiguous end of it.

    Raises:
        ValueError: no field has the name (near names or what there is are listed), or several have.
    """
    paths = leaf_fields(cls)
    if name in paths:
        return name
    matches = [path for path in paths if path.endswith("." + name)]
    if not matches:
        near = difflib.get_close_matches(name, [*paths, *(path.rsplit(".", 1)[-1] for path in paths)], n=3)
        there = ", ".join(one.name for one in dataclasses.fields(cls))
        way = f"near: {', '.join(dict.fromkeys(near))}" if near else f"{cls.__name__} has {there}"
        raise ValueError(f"unknown field {name!r}; {way}")
    if len(matches) > 1:
        raise ValueError(f"field {name!r} is ambiguous: write one of {', '.join(matches)}")
    return matches[0]


def with_fields(value: T, changes: Mapping[str, Any]) -> T:
    """A copy of a frozen dataclass with fields changed, by dotted or unambiguous short names.

    Raises:
        ValueError: as `field_path`, a field given twice, or a value of another type or out of its range.
    """
    types = leaf_fields(type(value))  # type: ignore[arg-type]  # mypy sees the instances' __hash__
    tree: dict[str, Any] = {}
    seen = set()
    for name, new in changes.items():
        path = field_path(type(value), name)
        if path in seen:
            raise ValueError(f"field {path} is given twice; keep one")
        seen.add(path)
        node = tree
        *parents, leaf = path.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = parse(path, types[path], new)
    return apply(value, tree)


def apply(value: T, tree: Mapping[str, Any]) -> T:
    changes = {name: apply(getattr(value, name), new) if isinstance(new, dict) else new for name, new in tree.items()}
    if isinstance(value, Section):
        return value.replace(**changes)
    changed = replace(value, **changes)  # type: ignore[type-var]  # a dataclass of a user
    type_faults(changed)
    return changed


def build(cls: type[T], data: Mapping[str, Any]) -> T:
    require_fields(cls, data)
    hints = hints_of(cls)  # type: ignore[arg-type]  # mypy sees the instances' __hash__
    values = {}
    for name, value in data.items():
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise ValueError(f"{cls.__name__}.{name} must be a group of fields, got {value!r}")
            values[name] = build(hints[name], value)
        else:
            values[name] = parse(name, hints[name], value)
    return cls(**values)


def require_fields(cls: type, names: Mapping[str, Any]) -> None:
    own = [item.name for item in dataclasses.fields(cls)]
    unknown = [name for name in names if name not in own]
    if unknown:
        near = difflib.get_close_matches(unknown[0], own, n=3) or own
        raise ValueError(f"{cls.__name__} has no field {unknown[0]!r}; near: {', '.join(near)}")


def parse(name: str, hint: Any, value: Any) -> Any:
    if isinstance(value, str) and hint is not str:
        texts = typing.get_origin(hint) is tuple and typing.get_args(hint)[0] is not float
        try:
            if texts and not value.lstrip().startswith("["):
                raise json.JSONDecodeError("names, not JSON", value, 0)
            value = json.loads(value)
        except json.JSONDecodeError:
            if texts:
                value = [part.strip() for part in value.split(",") if part.strip()]
            elif typing.get_origin(hint) is tuple:
                value = [_number(part) for part in value.split(",") if part.strip()]
        if value in ("on", "off", "True", "False") and hint is bool:
            value = value in ("on", "True")
    if typing.get_origin(hint) is tuple:
        value = tuple(value) if isinstance(value, list | tuple) else (value,)
        inner = typing.get_args(hint)[0]
        return tuple(float(item) if inner is float and type(item) is int else item for item in value)
    if hint is float and type(value) is int:
        return float(value)
    return value


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def type_faults(section: Any) -> list[str]:
    hints = hints_of(type(section))  # type: ignore[arg-type]  # mypy sees the instances' __hash__
    faults = []
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        if not _fits(value, hints[item.name]):
            faults.append(f"{item.name} must be {_describe(hints[item.name])}, got {value!r}")
        elif isinstance(value, float) and not math.isfinite(value):
            faults.append(f"{item.name} must be finite, got {value}")
    if faults:  # Range checks would fail on values of a wrong type.
        raise ValueError("; ".join(f"{type(section).__name__}: {fault}" for fault in faults))
    return faults


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is Literal:
        return value in typing.get_args(hint) and isinstance(value, str)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    if origin is types.UnionType:
        return any(_fits(value, option) for option in typing.get_args(hint))
    if hint is float:
        return type(value) in (int, float)
    if hint in (int, str, bool):
        return type(value) is hint
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if origin is tuple:
        return f"a list of {_describe(typing.get_args(hint)[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(hint, str(hint))


def at_least(section: Any, low: float, *names: str) -> list[str]:
    values = {name: getattr(section, name) for name in names}
    return [f"{name} must be at least {low}, got {value}" for name, value in values.items() if value < low]


def above(section: Any, low: float, *names: str) -> list[str]:
    values = {name: getattr(section, name) for name in names}
    return [f"{name} must be above {low}, got {value}" for name, value in values.items() if value <= low]


def between(section: Any, low: float, high: float, *names: str) -> list[str]:
    values = {name: getattr(section, name) for name in names}
    return [f"{name} must lie in [{low}, {high}], got {v}" for name, v in values.items() if not low <= v <= high]


def next_multiple(value: int, of: int) -> int:
    return -(-value // of) * of
