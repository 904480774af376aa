"""`python -m cluster.node_check`: what is said of machines whose facts are given, no GPU needed."""

import dataclasses
import re
import subprocess
import sys

import pytest

from cluster.node_check import CONSTRAINTS, Facts, Gpu, constraints, has_kernels, judge, look

V100, A100, A10G = Gpu("Tesla V100-SXM2-16GB", (7, 0)), Gpu("NVIDIA A100", (8, 0)), Gpu("NVIDIA A10G", (8, 6))
# What torch.cuda.get_arch_list() says of the builds.
CU126 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
CU128 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
PINNED = {"torch": "2.13.0", "ray": "2.60.0", "numpy": "2.4.6"}
GOOD = Facts((3, 11), {"torch": "2.13.0+cu126", "ray": "2.60.0", "numpy": "2.4.6"}, CU126, (V100,) * 8, "580.95")


def told(count=None, **changes):
    return judge(dataclasses.replace(GOOD, **changes), PINNED, count)


def test_eight_v100s_with_the_cu126_build_pass():
    assert told(8) == []


def test_a_build_without_kernels_for_a_v100_is_refused_with_the_command_that_helps():
    faults = told(8, torch_archs=CU128, packages={**GOOD.packages, "torch": "2.13.0+cu128"})
    assert len(faults) == 8
    assert "GPU 0, Tesla V100-SXM2-16GB, is sm_70; torch 2.13.0+cu128 has kernels for sm_75" in faults[0]
    assert "--extra-index-url https://download.pytorch.org/whl/cu126 'torch==2.13.0+cu126'" in faults[0]


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        (CU126, (7, 0), True),
        (CU128, (7, 0), False),
        (CU128, (8, 0), True),
        (("sm_80",), (8, 6), True),  # Same major number, older minor one.
        (("sm_86",), (8, 0), False),
        (("sm_80",), (9, 0), False),
        (("compute_70",), (9, 0), True),  # The driver compiles it.
        (("compute_90",), (8, 0), False),
        (("sm_120",), (12, 0), True),
        (("sm_90a",), (9, 0), True),
        ((), (7, 0), False),
    ],
)
def test_kernels_run_where_nvidia_says(archs, capability, runs):
    assert has_kernels(archs, capability) is runs


def test_a_cpu_build_on_a_gpu_machine_is_refused():
    faults = told(8, torch_archs=(), gpus=(), packages={**GOOD.packages, "torch": "2.13.0+cpu"}, driver="580.95")
    assert "there must be 8 GPUs, torch sees 0 (driver: 580.95)" in faults[0]


def test_a_driver_that_has_dropped_volta_is_named_as_a_reason():
    assert "a V100 needs a driver before 590" in told(8, gpus=(), driver="595.71")[0]


def test_a_gpu_that_fails_a_multiplication_is_named():
    broken = dataclasses.replace(A100, failure="CUDA error: uncorrectable ECC error encountered")
    assert told(gpus=(A100, broken)) == [
        "GPU 1, NVIDIA A100, can't multiply (CUDA error: uncorrectable ECC error encountered); look at nvidia-smi -q, "
        "restart the machine"
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"python": (3, 12)}, "Python must be 3.11 on all machines, got 3.12"),
        ({"packages": {**GOOD.packages, "ray": "2.59.0"}}, "ray must be 2.60.0 as in constraints.txt, got 2.59.0"),
        ({"packages": {**GOOD.packages, "torch": "2.13.1+cu126"}}, "torch must be 2.13.0"),
        ({"packages": {"torch": "2.13.0+cu126", "numpy": "2.4.6"}}, "ray is not installed"),
    ],
)
def test_other_versions_are_refused(changes, words):
    (fault,) = told(**changes)
    assert words in fault


def test_a_mixed_machine_passes_when_the_build_has_kernels_for_all():
    assert told(3, gpus=(V100, A100, A10G)) == []


def test_constraints_are_read_by_canonical_names():
    assert constraints("# a note\nPyYAML==6.0.3\nmpmath==1.3.0  # why\nsix>=1\n") == {
        "pyyaml": "6.0.3",
        "mpmath": "1.3.0",
    }
    assert constraints(CONSTRAINTS.read_text())["torch"] == re.search(r"(?m)^torch==(.+)$", CONSTRAINTS.read_text())[1]


def test_the_facts_of_this_machine_are_torchs():
    import torch

    facts = look()
    assert facts.packages["torch"] == torch.__version__
    assert len(facts.gpus) == torch.cuda.device_count()
    assert all(gpu.failure == "" for gpu in facts.gpus)


@pytest.mark.slow
def test_the_command_ends_with_1_and_the_reason_where_gpus_are_missing(repo_root):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "cluster.node_check", *arguments], cwd=repo_root, capture_output=True, text=True
        )

    missing = run("--gpus", "99")
    assert missing.returncode == 1
    assert "error: there must be 99 GPUs, torch sees" in missing.stderr
    assert run("--gpus", "many").returncode == 2
