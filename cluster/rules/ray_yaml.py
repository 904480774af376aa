"""Rules for the files of `ray up`: Ray's own schema, and what it lets pass."""

import contextlib
import copy
import io
import logging
import re
from pathlib import Path

from cluster.document import Document, Fault, near
from cluster.rules import text as text_rules
from cluster.rules.facts import IDLE_MINUTES

COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
PROVIDERS = ("aws", "local")


def check(document: Document) -> list[Fault]:
    """Everything but what is AWS's alone."""
    provider = document.get("provider", "type")
    if provider not in PROVIDERS:
        return [
            Fault(
                "provider",
                f"provider.type must be one that this project has been run on, got {provider!r}; "
                + near(str(provider), PROVIDERS),
                document.line("provider", "type"),
            )
        ]
    return [
        *schema(document),
        *_limits(document),
        *_starts(document),
        *_mounts(document),
        *text_rules.installs(command for name in COMMANDS for command in commands(document, name)),
        *([] if provider == "aws" else _local(document)),
    ]


def commands(document: Document, *path: str) -> list[text_rules.Command]:
    """(line, command) of a list of commands; empty where the file has none."""
    found = document.get(*path, default=[])
    if not isinstance(found, list):
        return []  # The schema says so.
    return [(document.line(*path, i), text) for i, text in enumerate(found) if isinstance(text, str)]


def schema(document: Document) -> list[Fault]:
    """What Ray itself would refuse when told to start this, read on this machine alone."""
    import click
    import jsonschema

    # Private, and the only offline reader of these files that Ray has; `ray up` begins with the same two calls.
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    config = copy.deepcopy(document.data)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as told:
            validate_config(prepare_config(config))
    except jsonschema.ValidationError as error:
        path = list(error.absolute_path)
        way = ""
        if error.validator == "additionalProperties":
            unknown = [key for key in error.instance if key not in error.schema.get("properties", {})]
            path += unknown[:1]
            way = f"; {near(unknown[0], error.schema.get('properties', {}))}" if unknown else ""
        return [
            Fault("ray-schema", f"{'.'.join(map(str, path)) or 'file'}: {error.message}{way}", document.line(*path))
        ]
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, click.ClickException) as error:
        said = str(error) or told.getvalue().strip() or type(error).__name__
        return [Fault("ray-schema", f"Ray can't read it ({said}); see docs.ray.io/en/latest/cluster/vms", None)]
    return []


def _limits(document: Document) -> list[Fault]:
    faults = []
    minutes = document.get("idle_timeout_minutes")
    low, high = IDLE_MINUTES
    if not isinstance(minutes, int | float) or not low <= minutes <= high:
        faults.append(
            Fault(
                "idle-timeout",
                f"idle_timeout_minutes must be {low} to {high}, got {minutes}; idle machines cost until then, try 10",
                document.line("idle_timeout_minutes"),
            )
        )
    if not isinstance(document.get("max_workers"), int):
        faults.append(
            Fault("max-workers", "max_workers must be given: it bounds what a study can cost; try 8", document.line())
        )
    return faults


def _starts(document: Document) -> list[Fault]:
    """What the commands that start Ray have to say."""
    faults = []
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        found = commands(document, name)
        start = next(((line, text) for line, text in found if re.search(r"\bray start\b", text)), None)
        if start is None:
            faults.append(
                Fault(
                    "ray-start",
                    f"{name} must hold `ray start`: Ray's own default would be used, which sets none of what is needed",
                    document.line(name),
                )
            )
            continue
        line, text = start
        if "RAY_AUTH_MODE=token" not in text:
            faults.append(
                Fault("token", "ray start without RAY_AUTH_MODE=token: all who reach it run code; export it", line)
            )
        if name.startswith("worker"):
            continue
        if "RAY_enable_autoscaler_v2=0" not in text:
            faults.append(
                Fault(
                    "autoscaler",
                    "the head must export RAY_enable_autoscaler_v2=0: v2 of Ray 2.60 leaves out machines of provider "
                    "local and knows no scorer",
                    line,
                )
            )
        if "--autoscaling-config" not in text:
            faults.append(
                Fault(
                    "autoscaler",
                    "no worker would be started: add --autoscaling-config=~/ray_bootstrap_config.yaml",
                    line,
                )
            )
    return faults


def _mounts(document: Document) -> list[Fault]:
    faults = []
    mounts = document.get("file_mounts", default={})
    for remote, local in mounts.items() if isinstance(mounts, dict) else ():
        path, line = Path(str(local)).expanduser(), document.line("file_mounts", remote)
        if str(local) in (".", "./", "..", "~", "~/"):
            faults.append(
                Fault(
                    "file-mounts",
                    f"{local}: Ray reads all of it, .git and .venv included, before each start; name the packages",
                    line,
                )
            )
        elif not path.exists():
            way = (
                "ray get-auth-token --generate makes it"
                if path.name == "auth_token"
                else f"mkdir -p {local}, or run this from the root of the project"
            )
            # Not a fault of the file: it may be checked on another machine than the one that runs `ray up`.
            faults.append(
                Fault("file-mounts", f"{local} is not on this machine, ray up would stop; {way}", line, warning=True)
            )
    if not any("auth_token" in str(remote) for remote in mounts):
        faults.append(
            Fault(
                "token",
                "no machine would have the token; file_mounts: ~/.ray/auth_token: ~/.ray/auth_token",
                document.line("file_mounts"),
            )
        )
    return faults


def _local(document: Document) -> list[Fault]:
    """Own machines: any GPUs, so a wheel that V100s can use is only advised."""
    faults = text_rules.wheels(
        [*commands(document, "setup_commands"), *commands(document, "worker_setup_commands")], None
    )
    workers = document.get("provider", "worker_ips", default=[])
    head = document.get("provider", "head_ip")
    if isinstance(workers, list) and (head in workers or len(set(map(str, workers))) != len(workers)):
        faults.append(
            Fault(
                "addresses",
                "every machine stands once, as head_ip or in worker_ips; take the second one out",
                document.line("provider", "worker_ips"),
            )
        )
    if not document.get("auth", "ssh_private_key"):
        faults.append(
            Fault(
                "ssh-key",
                "auth.ssh_private_key must be given: the head logs in to the workers with it; ssh-keygen -t ed25519",
                document.line("auth"),
            )
        )
    if not any("cluster.node_check" in text for _, text in commands(document, "setup_commands")):
        faults.append(
            Fault(
                "node-check",
                "setup_commands must run python -m cluster.node_check: a wrong wheel shows itself only in a unit",
                document.line("setup_commands"),
            )
        )
    return faults
