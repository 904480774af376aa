"""Can this machine run units? python -m cluster.node_check: packages, GPUs, and whether torch has kernels for them.

Runs on every machine during its set-up: otherwise a wrong wheel fails in the first unit, after minutes of starting at
24 $ an hour, with "no kernel image is available for execution on the device".
"""

import importlib.metadata
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.cli import command_parser

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"

EXAMPLES = """examples:
  python -m cluster.node_check                   every GPU that torch sees, none included
  python -m cluster.node_check --gpus 8          exactly eight
exit status: 0 units can run, 1 they can't (each reason with the way out), 2 usage"""


@dataclass(frozen=True)
class Gpu:
    """One GPU as torch sees it."""

    name: str
    capability: tuple[int, int]
    """(7, 0) for a V100."""
    failure: str = ""
    """Error of a small multiplication on it; empty where the result was right."""


@dataclass(frozen=True)
class Facts:
    """All that is judged about a machine."""

    python: tuple[int, int]
    packages: Mapping[str, str]
    """Installed version by canonical name."""
    torch_archs: Sequence[str]
    """Architectures that the wheel has kernels for, e.g. sm_70; compute_90 is compiled when loaded."""
    gpus: Sequence[Gpu]
    driver: str = ""
    """Version of NVIDIA's driver, or why there is none; for the message alone."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = command_parser("cluster.node_check", "Say whether units can run on this machine.", EXAMPLES)
    parser.add_argument("--gpus", type=int, metavar="N", help="how many there must be (as many as there are)")
    options = parser.parse_args(arguments)
    facts = look()
    faults = judge(facts, constraints(CONSTRAINTS.read_text()), options.gpus)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if not faults:
        names = ", ".join(sorted({gpu.name for gpu in facts.gpus})) or "no GPU"
        print(f"node check: {len(facts.gpus)} GPUs ({names}), torch {facts.packages['torch']}: units can run")
    return 1 if faults else 0


def constraints(text: str) -> dict[str, str]:
    """Version by canonical name, of the lines `name==version`."""
    pins = re.findall(r"(?m)^([\w.-]+)==([^\s;#]+)", text)
    return {canonical(name): version for name, version in pins}


def canonical(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def judge(facts: Facts, pinned: Mapping[str, str], gpus: int | None = None) -> list[str]:
    """Why units can't run, each with the rule, the value and the way out; empty if they can.

    Args:
        facts: of the machine.
        pinned: versions by canonical name; a build (2.13.0+cu126) is its version.
        gpus: how many there must be; None for any number.
    """
    faults = []
    if facts.python != (3, 11):
        faults.append(
            f"Python must be 3.11 on all machines, got {facts.python[0]}.{facts.python[1]}; make the environment "
            "again: uv venv --seed --python 3.11 ~/.venv"
        )
    for name in ("torch", "ray", "numpy"):
        if name not in facts.packages:
            faults.append(f"{name} is not installed; pip install -c constraints.txt -e '.[orchestrator,aws]'")
    for name, version in sorted(facts.packages.items()):
        if name in pinned and version.partition("+")[0] != pinned[name]:
            faults.append(
                f"{name} must be {pinned[name]} as in constraints.txt, got {version}; "
                f"pip install -c constraints.txt '{name}=={pinned[name]}'"
            )
    if gpus is not None and len(facts.gpus) != gpus:
        faults.append(
            f"there must be {gpus} GPUs, torch sees {len(facts.gpus)} (driver: {facts.driver or 'unknown'}); a torch "
            "without CUDA sees none: install it from https://download.pytorch.org/whl/cu126; a V100 needs a driver "
            "before 590"
        )
    for number, gpu in enumerate(facts.gpus):
        major, minor = gpu.capability
        if not has_kernels(facts.torch_archs, gpu.capability):
            faults.append(
                f"GPU {number}, {gpu.name}, is sm_{major}{minor}; torch {facts.packages.get('torch', '')} has kernels "
                f"for {', '.join(facts.torch_archs) or 'no GPU'}; pip install -c constraints.txt --extra-index-url "
                f"https://download.pytorch.org/whl/cu126 'torch=={pinned.get('torch', '')}+cu126'"
            )
        elif gpu.failure:
            faults.append(
                f"GPU {number}, {gpu.name}, can't multiply ({gpu.failure}); look at nvidia-smi -q, restart the machine"
            )
    return faults


def has_kernels(archs: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether code for one of `archs` runs on a device: same major number and no newer minor one (sm_80 runs on 8.6),
    or an older architecture in the intermediate form (compute_70), which the driver compiles."""
    for arch in archs:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)a?f?", arch)
        if not match:
            continue
        built_for = int(match[2]), int(match[3])
        if built_for <= capability and (match[1] == "compute" or built_for[0] == capability[0]):
            return True
    return False


def look() -> Facts:
    """The facts of this machine; multiplies on each GPU."""
    packages = {canonical(item.metadata["Name"]): item.version for item in importlib.metadata.distributions()}
    try:
        import torch
    except ImportError:  # `judge` says so.
        return Facts(sys.version_info[:2], packages, (), ())
    gpus = [
        Gpu(torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i), multiplied(i))
        for i in range(torch.cuda.device_count())
    ]
    return Facts(sys.version_info[:2], packages, torch.cuda.get_arch_list(), gpus, driver())


def multiplied(device: int) -> str:
    """Error of a product of two matrices of ones on a GPU; empty if there is none."""
    import torch

    try:
        ones = torch.ones(64, 64, device=f"cuda:{device}")
        entry = (ones @ ones).sum().item()
    except RuntimeError as error:
        return str(error).strip().splitlines()[0]
    return "" if entry == 64.0**3 else f"64 cubed came out as {entry:g}"


def driver() -> str:
    """Version of the kernel's NVIDIA driver, or that there is none."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "none is loaded"
    match = re.search(r"Kernel Module\D*([\d.]+)", text)
    return match[1] if match else text.splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
