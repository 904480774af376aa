"""Cluster files as YAML with line numbers, and the tables of rules (check_rules.json) that are held against them."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

RULES = json.loads(Path(__file__).with_name("check_rules.json").read_text())
UBUNTU = "resolve:ssm:/aws/service/canonical/ubuntu/server/22.04/stable/current/amd64/hvm/ebs-gp2/ami-id"
Key = str | int
Command = tuple[int, str]
"""(line, text) of something that a shell runs."""


@dataclass(frozen=True)
class Fault:
    """A rule that a file breaks, with the value and the way out; a warning is no reason to refuse the file."""

    rule: str
    message: str
    line: int | None = None
    warning: bool = False


class Document:
    """One YAML document of a file: what a loader makes of it, aliases resolved, and the line of each entry."""

    def __init__(self, root: yaml.Node) -> None:
        self.data: Any = _Loader("").construct_document(root)
        self._lines: dict[tuple[Key, ...], int] = {}
        self._index(root, (), root.start_mark.line + 1)

    def _index(self, node: yaml.Node, path: tuple[Key, ...], line: int) -> None:
        self._lines[path] = line
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                self._index(value, (*path, key.value), key.start_mark.line + 1)
        elif isinstance(node, yaml.SequenceNode):
            for i, item in enumerate(node.value):
                # The text of a folded scalar (>-) begins a line further down.
                folded = isinstance(item, yaml.ScalarNode) and item.style in (">", "|")
                self._index(item, (*path, i), item.start_mark.line + 1 + folded)

    def line(self, *path: Key) -> int:
        """Line (from 1) of the entry at a path, or of the deepest part of the path that there is."""
        while path not in self._lines:
            path = path[:-1]
        return self._lines[path]

    def get(self, *path: Key, default: Any = None) -> Any:
        """The value at a path; the default where there is none or it is of another type than the default."""
        value = self.data
        for key in path:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                return default
        return value if default is None or isinstance(value, type(default)) else default

    def fault(self, rule: str, message: str, *path: Key, warning: bool = False) -> Fault:
        """A fault at the line of an entry."""
        return Fault(rule, message, self.line(*path), warning)

    def commands(self, *path: Key) -> list[Command]:
        """The strings of a list, each with its line; empty where the file has none."""
        items = enumerate(self.get(*path, default=[]))
        return [(self.line(*path, i), text) for i, text in items if isinstance(text, str)]

    def values(self, table: str, *at: Key, **names: Any) -> Iterator[Fault]:
        """Faults of the values below a path by a table of rules."""
        import jsonschema

        for rule, where, schema, message in RULES["values"][table]:
            path = (*at, *(int(key) if key.isdigit() else key for key in where.split(".")))
            value = self.get(*path)
            if not jsonschema.Draft202012Validator(schema).is_valid(value):
                yield self.fault(rule, message.format(value=value, ubuntu=UBUNTU, **names), *path)


class _Loader(yaml.SafeLoader):
    """Takes tags of others (CloudFormation's !Ref) for their names."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: f"!{suffix}")


def read_yaml(text: str) -> list[Document]:
    """The documents that are mappings; raises yaml.YAMLError."""
    return [Document(node) for node in yaml.compose_all(text, yaml.SafeLoader) if isinstance(node, yaml.MappingNode)]


def required(table: str, text: str, line: int | None = None, **names: Any) -> Iterator[Fault]:
    """Faults of a text by a table of expressions that must occur; their line is the one given or the anchor's."""
    for rule, pattern, message, *anchor in RULES["required"].get(table, ()):
        if not re.search(pattern, text):
            at = re.search(anchor[0], text) if anchor else None
            yield Fault(rule, message.format(**names), text.count("\n", 0, at.start()) + 1 if at else line)


def forbidden(table: str, commands: Iterable[Command], **names: Any) -> Iterator[Fault]:
    """Faults of commands or lines by a table of expressions that must not occur."""
    for line, text in commands:
        for rule, pattern, message in RULES["forbidden"].get(table, ()):
            if found := re.search(pattern, text):
                yield Fault(rule, message.format(found=found, **names), line)


def without_comments(text: str) -> str:
    """A file of YAML or shell, each line up to its comment; SLURM's directives stay."""
    return re.sub(r"(?m)(^|[ \t])#(?!SBATCH).*$", "", text)


def joined(commands: Iterable[Command]) -> str:
    """The texts of commands, one a line."""
    return "\n".join(text for _, text in commands)


def logical_lines(text: str) -> Iterator[Command]:
    """Commands of a shell script or Dockerfile with their first lines: continued lines are one."""
    code = without_comments(text)
    for match in re.finditer(r"(.*\\\n)*.*", code):
        if match[0].strip() and not match[0].startswith("#"):
            yield code.count("\n", 0, match.start()) + 1, match[0].replace("\\\n", " ")


def memory_note(gpus: int, model: str, gigabytes: float) -> str:
    """How a unit of preset `paper` fits GPUs of so many GB."""
    paper = RULES["paper"]
    share = -(-paper["batch"] // gpus)
    room = gigabytes * (1 - paper["margin"]) - paper["fixed_gb"]
    clips = min(paper["batch"], int(room / paper["clip_gb"]))
    have = f"{gpus} {model} of {gigabytes:g} GB"
    if clips < 1:
        return f"{have}: preset paper does not fit"
    if clips == paper["batch"]:
        return f"{have}: preset paper fits as it is"
    together = f"; with --gpus-per-unit {gpus} each GPU has {share}" if gpus > 1 else ""
    return (
        f"{have}: preset paper fits with --micro-batch auto, about {clips} of {paper['batch']} clips of "
        f"{paper['task']} at once{together}"
    )
