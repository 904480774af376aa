"""Studies as YAML files: the fields of `search_spaces.study` by name.

    name: depth
    question: Do two layers learn it better than one?
    expectation: They do.
    project: my_package.project:PROJECT
    tables:
      - name: depth
        title: Depth
        varies: Layers
        columns: [{metric: my_model/accuracy, title: Accuracy, unit: "%", higher_is_better: true}]
        rows: {grid: {layers: [1, 2], dropout: [0, 0.1]}}
        baseline: layers=1, dropout=0

`rows` is a list of rows, or `grid` or `one_at_a_time` with the values of fields (`search_spaces.rows`). A search for
each arm's own values (`Tuning`) has ranges by their fields, and choices as lists:

    tuning: {dimensions: {learning_rate: {low: 0.0001, high: 0.01, log: true}, dropout: [0, 0.1]}, trials: 8, seeds: 2}
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from search_spaces.rows import grid, one_at_a_time
from search_spaces.space import Choice, Range
from search_spaces.study import Claim, Column, FineTuning, Reference, Row, Study, Table, Tuning

T = TypeVar("T")
ROW_MAKERS = {"grid": grid, "one_at_a_time": one_at_a_time}


class _UniqueKeys(yaml.SafeLoader):
    """Safe, and a field that is given twice is an error: the first would silently be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_study(path: Path) -> Study:
    """The study of a file.

    Raises:
        ValueError: no such file, not YAML, or a field that is unknown, missing or out of its range; says where.
    """
    try:
        plain = yaml.load(path.read_text("utf-8"), _UniqueKeys)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    try:
        return _study(plain)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _study(plain: Any) -> Study:
    tables = tuple(_table(one, f"table {place}") for place, one in enumerate(_list(plain, "tables"), 1))
    claims = tuple(_build(Claim, one, f"claim {place}") for place, one in enumerate(_list(plain, "claims"), 1))
    changes: dict[str, Any] = {"tables": tables, "claims": claims}
    if isinstance(plain, Mapping) and "fine_tuning" in plain:
        changes["fine_tuning"] = _build(FineTuning, plain["fine_tuning"], "fine_tuning")
    if isinstance(plain, Mapping) and plain.get("tuning") is not None:
        changes["tuning"] = _tuning(plain["tuning"])
    return _build(Study, plain, "the study", **changes)


def _tuning(plain: Any) -> Tuning:
    dimensions = plain.get("dimensions") if isinstance(plain, Mapping) else None
    if not isinstance(dimensions, Mapping):
        raise ValueError(f"tuning: dimensions must be fields and where each is searched, got {dimensions!r}")
    built = {name: _dimension(where, f"tuning, dimension {name!r}") for name, where in dimensions.items()}
    return _build(Tuning, plain, "tuning", dimensions=built)


def _dimension(plain: Any, where: str) -> Range | Choice:
    if isinstance(plain, list):
        return Choice(tuple(plain))
    for name in ("low", "high", "step"):
        value = plain.get(name) if isinstance(plain, Mapping) else None
        if not _is_number(value):  # YAML takes 1e-3 for a text.
            raise ValueError(f"{where}: {name} must be a number, got {value!r}; write 0.001 or 1.0e-3")
    return _build(Range, plain, where)


def _table(plain: Any, where: str) -> Table:
    columns = [_build(Column, one, f"{where}, column {place}") for place, one in enumerate(_list(plain, "columns"), 1)]
    references = [
        _build(Reference, one, f"{where}, reference {place}") for place, one in enumerate(_list(plain, "references"), 1)
    ]
    rows = _rows(plain.get("rows"), where)
    notes = tuple(map(str, _list(plain, "notes")))
    return _build(Table, plain, where, columns=tuple(columns), rows=rows, references=tuple(references), notes=notes)


def _rows(plain: Any, where: str) -> tuple[Row, ...]:
    if isinstance(plain, list):
        return tuple(_build(Row, one, f"{where}, row {place}") for place, one in enumerate(plain, 1))
    if not isinstance(plain, Mapping) or len(plain) != 1 or next(iter(plain)) not in ROW_MAKERS:
        raise ValueError(f"{where}: rows must be a list, or one of {', '.join(ROW_MAKERS)}, got {plain!r}")
    ((maker, fields),) = plain.items()
    if not isinstance(fields, Mapping):
        raise ValueError(f"{where}: {maker} must be fields and their values, got {fields!r}")
    options = {name: str(fields[name]) for name in ("base", "training") if isinstance(fields.get(name), str)}
    return ROW_MAKERS[maker]({name: values for name, values in fields.items() if name not in options}, **options)


def _list(plain: Any, name: str) -> list[Any]:
    if not isinstance(plain, Mapping):
        raise ValueError(f"fields by their names are expected, got {plain!r}")
    value = plain.get(name, [])
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, got {value!r}")
    return value


def _build(kind: type[T], plain: Any, where: str, **built: Any) -> T:
    """A dataclass of these fields; `built` are those that were made already."""
    if not isinstance(plain, Mapping):
        raise ValueError(f"{where}: fields by their names are expected, got {plain!r}")
    fields = {one.name: one for one in dataclasses.fields(kind)}  # type: ignore[arg-type]  # all kinds are dataclasses
    for name in plain:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=3) or fields
            raise ValueError(f"{where}: no field {name!r}; near: {', '.join(near)}")
    needed = [
        name
        for name, one in fields.items()
        if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in needed if name not in plain and not built.get(name)]:
        raise ValueError(f"{where}: {missing[0]} is missing")
    values = {name: _value(name, value, where) for name, value in plain.items()} | built
    try:
        return kind(**values)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{where}: a field has a value of another kind than it takes ({error})") from error


TEXTS = (
    *("name", "question", "expectation", "project", "title", "varies", "baseline", "label", "training"),
    *("metric", "unit", "text", "table", "arm", "column", "kind", "reason", "family"),
)
MAPPINGS = ("base", "changes")


def _value(name: str, value: Any, where: str) -> Any:
    """A field's value; YAML reads `1` as a number where a label may be meant, and that is said."""
    if name in TEXTS and not isinstance(value, str):
        raise ValueError(f'{where}: {name} must be a text, got {value!r}; write it in quotes: "{value}"')
    if name in MAPPINGS and not isinstance(value, Mapping):
        raise ValueError(f"{where}: {name} must be fields and their values, got {value!r}")
    if name == "published" and not (isinstance(value, Sequence) and all(_is_number(one) for one in value)):
        raise ValueError(f"{where}: published must be a list of numbers, null for none, got {value!r}")
    return tuple(value) if isinstance(value, list) else value


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
