"""Rules for any file: no secrets, versions as in constraints.txt, one Python, no open ports, the right wheel."""

import re
from collections.abc import Iterable, Mapping

from cluster.document import Fault, without_comments
from cluster.rules.facts import PYTHON, VOLTA, WHEELS

# What is found is never repeated: the report of a check is pasted into tickets.
SECRETS = (
    ("an AWS access key id", re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b")),
    ("an AWS secret key", re.compile(r"(?i)aws_secret_access_key\s*['\"]?\s*[:=]\s*['\"]?[^\s$'\"]")),
    ("a private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")),
    ("a GitHub token", re.compile(r"\b(gh[pousr]_|github_pat_)\w{20,}")),
    ("a Hugging Face token", re.compile(r"\bhf_[A-Za-z0-9]{20,}")),
    ("a password in an address", re.compile(r"://[^/\s:@$]+:[^/\s:@$]+@")),
    (
        "a password or token",
        re.compile(r"(?i)\b[\w-]*(password|passwd|secret|token|api_?key)\b['\"]?\s*[:=]\s*['\"]?[^\s'\"${}<~/,]{6,}"),
    ),
    (
        "a password or token",
        re.compile(r"(?i)name:\s*['\"]?\w*(password|secret|token|api_?key)\w*['\"]?\s*,\s*value:\s*['\"]?[^\s'\"${}<]"),
    ),
)

Command = tuple[int, str]
"""(line, text) of something that a shell runs."""


def secrets(text: str) -> list[Fault]:
    """Credentials, in comments as well."""
    return [
        Fault(
            "secret",
            f"{what} stands here; take it out and make it invalid. Machines of AWS get rights from their instance "
            "profile, pods from a Secret (secretKeyRef), Ray's token is a file (~/.ray/auth_token)",
            number,
        )
        for number, line in enumerate(text.splitlines(), 1)
        for what in dict.fromkeys(what for what, pattern in SECRETS if pattern.search(line))
    ]


def versions(text: str, pinned: Mapping[str, str]) -> list[Fault]:
    """Packages pinned to what constraints.txt doesn't say.

    Args:
        text: of the file.
        pinned: versions by canonical name.
    """
    faults = []
    for number, line in enumerate(text.splitlines(), 1):
        for name, version in re.findall(r"([A-Za-z][\w.-]*)(?:\[[\w,-]*\])?==([\w.]+)", without_comments(line)):
            known = pinned.get(re.sub(r"[-_.]+", "-", name).lower())
            if known is None:
                faults.append(
                    Fault("versions", f"{name}=={version}: constraints.txt has no {name}; add it there", number)
                )
            elif known != version:
                faults.append(Fault("versions", f"{name} must be {known} as in constraints.txt, got {version}", number))
    return faults


def python(text: str) -> list[Fault]:
    """Another Python than the one the constraints are for."""
    pattern = r"(?:python|python:|--python[ =])(3\.\d+)|[-_]py(3\d+)\b"
    faults = []
    for number, line in enumerate(text.splitlines(), 1):
        for dotted, joined in re.findall(pattern, without_comments(line)):
            found = dotted or f"3.{joined[1:]}"
            if found != PYTHON:
                faults.append(
                    Fault("python", f"Python must be {PYTHON} on every machine, got {found}; use {PYTHON}", number)
                )
    return faults


def binds(text: str) -> list[Fault]:
    """Servers that listen on every address: dashboard and MLflow know no users, and run what they are told."""
    return [
        Fault(
            "open-port",
            "0.0.0.0 listens on every address; use 127.0.0.1 and a tunnel (ray dashboard FILE, kubectl port-forward)",
            number,
        )
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(r"(?<![\d.])0\.0\.0\.0(?![\d./])", without_comments(line))
    ]


def installs(commands: Iterable[Command]) -> list[Fault]:
    """Installations that take whatever version is newest on the day."""
    return [
        Fault("pins", "pip install without -c constraints.txt takes the newest of everything; add it", line)
        for line, text in commands
        if re.search(r"\bpip3? install\b", text) and not re.search(r"(-c|--constraint)[ =]\S*constraints\.txt", text)
    ]


def wheels(commands: Iterable[Command], sm: int | None, gpu: str = "the GPU") -> list[Fault]:
    """Builds of torch that have no kernels for a GPU.

    Args:
        commands: those that run on one kind of machine.
        sm: its GPU's architecture, 70 for 7.0; 0 for a machine without, None where nobody knows.
        gpu: its name.
    """
    faults = []
    for line, text in commands:
        if not re.search(r"\bpip3? install\b.*\btorch\b", text):
            continue
        index = re.search(r"download\.pytorch\.org/whl/(\w+)", text)
        build = re.search(r"torch==[\d.]+\+(\w+)", text)
        name = index[1] if index else ""
        if not index or not build or build[1] != name:
            faults.append(
                Fault(
                    "wheel",
                    f"torch must name its build and the index of it, got index {name or 'none'} and build "
                    f"{build[1] if build else 'none'}; --extra-index-url https://download.pytorch.org/whl/cu126 "
                    "'torch==VERSION+cu126'",
                    line,
                )
            )
        elif name == "cpu":
            if sm:
                faults.append(Fault("wheel", f"the cpu build can't use {gpu} (sm_{sm}); take cu126", line))
        elif name not in WHEELS:
            faults.append(Fault("wheel", f"unknown build {name}; known: {', '.join(WHEELS)}, cpu", line))
        elif (VOLTA if sm is None else sm or 999) < WHEELS[name]:
            whom = f"{gpu} (sm_{sm})" if sm else "a V100 (sm_70), should there be one"
            faults.append(
                Fault("wheel", f"the {name} build has no kernels for {whom}; take cu126", line, warning=sm is None)
            )
    return faults
