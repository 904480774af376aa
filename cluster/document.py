"""A file to be checked, with the line of each of its entries, and what is wrong with it."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Key = str | int


@dataclass(frozen=True)
class Fault:
    """One rule that a file breaks."""

    rule: str
    message: str
    """What is wrong, with the value, and the way out."""
    line: int | None = None
    warning: bool = False
    """Told, but no reason to refuse the file."""


class Document:
    """One YAML document of a file. `data` is what a loader makes of it, aliases resolved."""

    def __init__(self, node: yaml.Node, text: str) -> None:
        self._root = node
        self._lines = text.splitlines()
        self.data: Any = _constructed(node)

    def line(self, *path: Key) -> int:
        """Line (from 1) of the entry at a path, or of the deepest part of the path that there is."""
        node, line = self._root, self._root.start_mark.line
        for key in path:
            found = _child(node, key)
            if found is None:
                break
            node, line = found
        return line + 1

    def comment(self, *path: Key) -> str:
        """What stands behind a # on the line of an entry, and of its value where an alias puts that elsewhere."""
        lines, node = {self.line(*path)}, self._root
        for key in path:
            found = _child(node, key)
            if found is None:
                return ""
            node = found[0]
        lines.add(node.start_mark.line + 1)
        return " ".join(self._lines[line - 1].partition("#")[2].strip() for line in sorted(lines))

    def get(self, *path: Key, default: Any = None) -> Any:
        """The value at a path; the default where there is none or a part of the path holds no entries."""
        value = self.data
        for key in path:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                return default
        return default if value is None else value

    def strings(self) -> Iterator[tuple[int, str]]:
        """(line, text) of every string value, each once even if aliases repeat it."""
        seen: set[int] = set()
        waiting = [self._root]
        while waiting:
            node = waiting.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, yaml.ScalarNode):
                yield node.start_mark.line + 1, node.value
            elif isinstance(node, yaml.SequenceNode):
                waiting.extend(node.value)
            elif isinstance(node, yaml.MappingNode):
                waiting.extend(value for _, value in node.value)

    def duplicates(self) -> list[Fault]:
        """Keys that stand twice in one mapping: YAML takes the last and says nothing."""
        faults, seen, waiting = [], set(), [self._root]
        while waiting:
            node = waiting.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, yaml.MappingNode):
                first: dict[str, int] = {}
                for key, value in node.value:
                    line = key.start_mark.line + 1
                    if key.value in first:
                        faults.append(
                            Fault(
                                "duplicate-key",
                                f"{key.value} stands in line {first[key.value]} already; only the last would count, "
                                "leave one",
                                line,
                            )
                        )
                    first.setdefault(key.value, line)
                    waiting.append(value)
            elif isinstance(node, yaml.SequenceNode):
                waiting.extend(node.value)
        return faults


def read_yaml(text: str) -> list[Document]:
    """Its documents, empty ones left out.

    Raises:
        ValueError: it isn't YAML; the line is the second argument.
    """
    try:
        return [Document(node, text) for node in yaml.compose_all(text, yaml.SafeLoader) if node is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ValueError(
            str(getattr(error, "problem", None) or error).strip(), mark.line + 1 if mark else None
        ) from error


def without_comments(line: str) -> str:
    """A line of YAML or shell up to its comment."""
    return re.sub(r"(^|\s)#.*$", "", line)


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """(first line, command) of a shell script or Dockerfile: continued lines are one, comments left out."""
    start, whole = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        kept = without_comments(line)
        start = start if whole else number
        if kept.endswith("\\"):
            whole += kept[:-1] + " "
            continue
        if (whole + kept).strip():
            yield start, whole + kept
        whole = ""


def near(name: str, known: Iterable[str]) -> str:
    """ "; did you mean ...?" for a name that looks like known ones, else what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.7)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}"


def words(text: str) -> frozenset[str]:
    """The names of a table that is written as prose."""
    return frozenset(text.split())


def repository_file(name: str) -> Path:
    """A file of the project's root."""
    return Path(__file__).resolve().parent.parent / name


class _Loader(yaml.SafeLoader):
    """Takes tags of others (CloudFormation's !Ref) for what stands behind them."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: f"!{suffix}")


def _constructed(node: yaml.Node) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _child(node: yaml.Node, key: Key) -> tuple[yaml.Node, int] | None:
    """The entry of a node, and the line it begins on."""
    if isinstance(node, yaml.MappingNode):
        for name, value in reversed(node.value):
            if name.value == str(key):
                return value, name.start_mark.line
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        found = node.value[key]
        # The text of a folded scalar (>-) begins a line further down.
        folded = isinstance(found, yaml.ScalarNode) and found.style in (">", "|")
        return found, found.start_mark.line + folded
    return None


def render(file: str, faults: Sequence[Fault]) -> list[str]:
    """One line for each fault, in the order of the file."""
    return [
        f"{file}:{fault.line}: " * (fault.line is not None)
        + f"{file}: " * (fault.line is None)
        + f"{'warning: ' * fault.warning}{fault.rule}: {fault.message}"
        for fault in sorted(faults, key=lambda one: (one.line or 0, one.rule))
    ]
