"""Rules for batch scripts of SLURM: directives that exist and are read, and a way on when the time is up."""

import re
import subprocess

from cluster.document import Fault, logical_lines, near, words
from cluster.rules import text as text_rules
from cluster.rules.facts import PREEMPTION_SECONDS

# Long options of sbatch (24.11) that make sense in a script, from its manual.
DIRECTIVES = words(
    "account array begin chdir comment constraint cpus-per-gpu cpus-per-task dependency error exclude exclusive "
    "export gpu-bind gpus gpus-per-node gpus-per-task gres hint hold input job-name kill-on-invalid-dep licenses "
    "mail-type mail-user mem mem-per-cpu mem-per-gpu mincpus network nice no-kill no-requeue nodefile nodelist nodes "
    "ntasks ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket open-mode output overcommit partition "
    "prefer priority profile qos reboot requeue reservation signal spread-job switches threads-per-core time time-min "
    "tmp use-min-nodes verbose wait-all-nodes wckey"
)
REQUIRED = {
    "nodes": "--nodes=2",
    "time": "--time=12:00:00",
    "requeue": "--requeue: the study goes on when the time is up",
    "open-mode": "--open-mode=append, or the requeued job overwrites the log",
    "signal": "--signal=B:USR1@120: units save before the end",
}


def check(text: str) -> list[Fault]:
    """All rules of a batch script."""
    given, faults = _directives(text)
    if not any(name in given for name in ("gpus-per-node", "gres", "gpus", "gpus-per-task")):
        faults.append(Fault("gpus", "no GPUs are asked for; #SBATCH --gpus-per-node=8", None))
    for name, way in REQUIRED.items():
        if name not in given:
            faults.append(Fault("directives", f"#SBATCH --{name} is missing; {way}", None))
    commands = list(logical_lines(text))
    return [*faults, *_syntax(text), *_notice(given, commands), *_ray(commands), *text_rules.wheels(commands, None)]


def _directives(text: str) -> tuple[dict[str, tuple[int, str]], list[Fault]]:
    """(line, value) by name of the directives that SLURM reads, and what is wrong with any."""
    given: dict[str, tuple[int, str]] = {}
    faults, begun = [], 0
    for number, line in enumerate(text.splitlines(), 1):
        found = re.match(r"#SBATCH\s+--([\w-]+)(?:[= ]\s*([^#]*))?", line)
        if line.startswith("#SBATCH") and not found:
            faults.append(Fault("directives", f"{line.strip()!r}: write directives as #SBATCH --name=value", number))
        elif found and begun:
            faults.append(
                Fault(
                    "directives",
                    f"#SBATCH --{found[1]} comes after the first command (line {begun}), where SLURM reads no more",
                    number,
                )
            )
        elif found and found[1] not in DIRECTIVES:
            faults.append(Fault("directives", f"sbatch knows no --{found[1]}; {near(found[1], DIRECTIVES)}", number))
        elif found:
            given[found[1]] = (number, (found[2] or "").strip())
        elif line.strip() and not line.startswith("#"):
            begun = begun or number
    return given, faults


def _syntax(text: str) -> list[Fault]:
    """What bash says without running anything."""
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode == 0:
        return []
    said = done.stderr.strip().splitlines()[0]
    line = re.search(r"line (\d+)", said)
    return [Fault("syntax", f"bash can't read it: {said.partition(': ')[2]}", int(line[1]) if line else None)]


def _notice(given: dict[str, tuple[int, str]], commands: list[text_rules.Command]) -> list[Fault]:
    faults = []
    line, value = given.get("signal", (None, ""))
    found = re.fullmatch(r"B:(\w+)@(\d+)", value)
    if line and not found:
        faults.append(
            Fault("notice", f"--signal must be B:USR1@120 (B: to this script, not to its steps), got {value}", line)
        )
    elif found:
        if int(found[2]) < PREEMPTION_SECONDS:
            faults.append(
                Fault("notice", f"units need {PREEMPTION_SECONDS} s to save, got {found[2]}; B:{found[1]}@120", line)
            )
        if not any(re.search(rf"\btrap\b.*\b{found[1]}\b", text) for _, text in commands):
            faults.append(
                Fault("notice", f"nothing traps {found[1]}, which would kill the script; trap leave USR1", line)
            )
    text = "\n".join(command for _, command in commands)
    if not re.search(r"export UPS_PREEMPTION_FILE=", text) or not re.search(r"touch .*UPS_PREEMPTION_FILE", text):
        faults.append(
            Fault(
                "notice", "export UPS_PREEMPTION_FILE=... and touch it when the signal comes, or units don't save", None
            )
        )
    if "scontrol requeue" not in text:
        faults.append(Fault("notice", "scontrol requeue must follow, or the study stops when the time is up", None))
    return faults


def _ray(commands: list[text_rules.Command]) -> list[Fault]:
    faults = []
    starts = [(line, text) for line, text in commands if re.search(r"\bray start\b", text)]
    if not any("--head" in text for _, text in starts):
        faults.append(Fault("ray-start", "no head is started; srun ... ray start --head --block", None))
    for line, text in starts:
        if "--block" not in text:
            faults.append(Fault("ray-start", "without --block SLURM ends the step, and Ray with it; add --block", line))
    whole = "\n".join(text for _, text in commands)
    if "RAY_AUTH_MODE=token" not in whole:
        faults.append(Fault("token", "other users of the node could run code in it; export RAY_AUTH_MODE=token", None))
    if "cluster.node_check" not in whole:
        faults.append(Fault("node-check", "srun python -m cluster.node_check must come before ray start", None))
    return faults
