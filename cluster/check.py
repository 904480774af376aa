"""Read cluster files and say all that is wrong with them, offline: python -m cluster.check FILE ..."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.document import Document, Fault, logical_lines, read_yaml, render, repository_file
from cluster.node_check import constraints
from cluster.rules import text as text_rules

EXAMPLES = """examples:
  python -m cluster.check cluster/v100.yaml                   before `ray up`: starts nothing, asks no network
  python -m cluster.check cluster/*.yaml cluster/slurm.sh cluster/Dockerfile

Knows files of `ray up` (provider aws, local), batch scripts of SLURM, manifests of KubeRay, templates of
CloudFormation, Dockerfiles.
exit status: 0 nothing wrong (warnings may be told), 1 faults, 2 usage"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.check",
        description="Say what is wrong with cluster files before they cost money.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    bad = False
    for file in given.files:
        try:
            faults = list(dict.fromkeys(check(file)))  # Two node types may share one faulty line.
        except (OSError, UnicodeDecodeError, UnknownFile) as error:
            print(f"error: {file}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
            return 2
        except ModuleNotFoundError as error:  # Ray has the schema, botocore knows EC2.
            print(f"error: {file}: {error.name} is missing; pip install -e '.[orchestrator,aws]'", file=sys.stderr)
            return 2
        for line in render(str(file), faults):
            print(line)
        serious = sum(not fault.warning for fault in faults)
        print(f"{file}: {serious} faults" if serious else f"{file}: good")
        bad = bad or serious > 0
    return int(bad)


class UnknownFile(ValueError):
    """Not of a kind that this command knows."""


def check(file: Path) -> list[Fault]:
    """All faults of a file.

    Raises:
        OSError: it can't be read.
        UnknownFile: it is of no kind that is known.
    """
    text = file.read_text(encoding="utf-8")
    pinned = constraints(repository_file("constraints.txt").read_text())
    common = [
        *text_rules.secrets(text),
        *text_rules.versions(text, pinned),
        *text_rules.python(text),
        *text_rules.binds(text),
    ]
    if "Dockerfile" in file.name:
        commands = list(logical_lines(text))
        return [*common, *text_rules.installs(commands), *text_rules.wheels(commands, None)]
    if text.startswith("#!") or file.suffix == ".sh":
        if "#SBATCH" not in text:
            raise UnknownFile("a script without #SBATCH lines; this checks batch scripts of SLURM")
        from cluster.rules import slurm

        return [*common, *text_rules.installs(logical_lines(text)), *slurm.check(text)]
    if file.suffix in (".yaml", ".yml"):
        return [*common, *_yaml(text, pinned)]
    raise UnknownFile("must be FILE.yaml, a batch script or a Dockerfile")


def _yaml(text: str, pinned: Mapping[str, str]) -> list[Fault]:
    try:
        documents = read_yaml(text)
    except ValueError as error:
        message, line = error.args
        return [Fault("yaml", f"not YAML: {message}", line)]
    documents = [document for document in documents if isinstance(document.data, dict)]
    faults = [fault for document in documents for fault in document.duplicates()]
    return [*faults, *_by_kind(documents, pinned)]


def _by_kind(documents: list[Document], pinned: Mapping[str, str]) -> list[Fault]:
    if any(document.get("kind") == "RayCluster" for document in documents):
        from cluster.rules import kubernetes

        return kubernetes.check(documents, pinned["ray"])
    if any(document.get("AWSTemplateFormatVersion") for document in documents):
        return []  # `aws cloudformation` refuses a wrong one, and nothing of it costs anything.
    if len(documents) != 1 or not documents[0].get("provider"):
        raise UnknownFile("holds no provider (ray up), RayCluster (KubeRay) or AWSTemplateFormatVersion")
    from cluster.rules import aws, ray_yaml

    document = documents[0]
    faults = ray_yaml.check(document)
    return [*faults, *aws.check(document)] if document.get("provider", "type") == "aws" else faults


if __name__ == "__main__":
    sys.exit(main())
