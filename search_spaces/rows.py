"""Rows by the values of fields: all combinations, or one field at a time."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces.study import NOTHING, Row


def grid(
    fields: Mapping[str, Sequence[Any]] = NOTHING, /, *, training: str = "", **values: Sequence[Any]
) -> tuple[Row, ...]:
    """A row for every combination: `grid(encoder_layers=(1, 3), dropout=(0, 0.1))` has four, the last field changing
    fastest.

    Args:
        fields: values of fields whose dotted names no keyword can have, such as "data.pe.frames".
        training: of all rows, as `Row.training`.
        values: of fields by unambiguous short names.

    Raises:
        ValueError: no field, one without values, or one that is given twice.
    """
    every = _checked(fields, values)
    return tuple(
        _row(dict(zip(every, combination, strict=True)), training) for combination in itertools.product(*every.values())
    )


def one_at_a_time(
    fields: Mapping[str, Sequence[Any]] = NOTHING, /, *, base: str = "base", training: str = "", **values: Sequence[Any]
) -> tuple[Row, ...]:
    """The base as a row, then a row for every value of every field, all else as in the base:
    `one_at_a_time(encoder_layers=(1, 5), dropout=(0.1,))` has four.

    Args:
        fields: as of `grid`.
        base: label of the base's row.
        training: of all rows, as `Row.training`.
        values: other ones than the base has, by field.

    Raises:
        ValueError: as of `grid`.
    """
    every = _checked(fields, values)
    varied = (_row({name: value}, training) for name, options in every.items() for value in options)
    return (Row(base, training=training), *varied)


def _checked(fields: Mapping[str, Sequence[Any]], values: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    if twice := fields.keys() & values.keys():
        raise ValueError(f"field {sorted(twice)[0]!r} is given twice; keep one")
    every = {**fields, **values}
    for name, options in every.items():
        if isinstance(options, str) or not isinstance(options, Sequence) or not options:
            raise ValueError(f"{name} needs a list of values, got {options!r}; write {name}=(1, 2)")
    if not every:
        raise ValueError("rows need at least one field with values, such as encoder_layers=(1, 3)")
    return every


def _row(changes: Mapping[str, Any], training: str) -> Row:
    label = ", ".join(f"{name.rsplit('.', 1)[-1]}={_text(value)}" for name, value in changes.items())
    return Row(label, dict(changes), training)


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
