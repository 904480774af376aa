"""Facts about machines and wheels that the rules compare with. Each table says where its rows come from."""

from dataclasses import dataclass

PYTHON = "3.11"
"""Of every machine; the constraints are resolved for it, and Ray refuses nodes with another minor version."""


@dataclass(frozen=True)
class InstanceType:
    """A machine of EC2."""

    vcpus: int
    gpus: int = 0
    gpu: str = ""
    """Name of one GPU."""
    sm: int = 0
    """Its architecture: 70 for compute capability 7.0."""


# https://aws.amazon.com/ec2/instance-types/: the types that make sense here, not all that there are.
INSTANCE_TYPES = {
    "m5.large": InstanceType(2),
    "m5.xlarge": InstanceType(4),
    "m5.2xlarge": InstanceType(8),
    "m5.4xlarge": InstanceType(16),
    "m6i.xlarge": InstanceType(4),
    "m6i.2xlarge": InstanceType(8),
    "m7i.xlarge": InstanceType(4),
    "m7i.2xlarge": InstanceType(8),
    "p3.2xlarge": InstanceType(8, 1, "V100", 70),
    "p3.8xlarge": InstanceType(32, 4, "V100", 70),
    "p3.16xlarge": InstanceType(64, 8, "V100", 70),
    "p3dn.24xlarge": InstanceType(96, 8, "V100", 70),
    "g4dn.xlarge": InstanceType(4, 1, "T4", 75),
    "g4dn.12xlarge": InstanceType(48, 4, "T4", 75),
    "g4dn.metal": InstanceType(96, 8, "T4", 75),
    "g5.xlarge": InstanceType(4, 1, "A10G", 86),
    "g5.12xlarge": InstanceType(48, 4, "A10G", 86),
    "g5.48xlarge": InstanceType(192, 8, "A10G", 86),
    "p4d.24xlarge": InstanceType(96, 8, "A100", 80),
    "p4de.24xlarge": InstanceType(96, 8, "A100", 80),
    "p5.48xlarge": InstanceType(192, 8, "H100", 90),
}

# torch 2.11 to 2.14: oldest architecture with kernels in the wheels of an index of download.pytorch.org/whl.
WHEELS = {"cu126": 50, "cu128": 75, "cu129": 75, "cu130": 75}
VOLTA = 70
"""The last NVIDIA driver for it is 580; AWS's deep learning images of 2026 have 595."""

ROOT_DEVICES = {"ubuntu": "/dev/sda1", "admin": "/dev/xvda", "ec2-user": "/dev/xvda"}
"""By login name: Ubuntu's, Debian's and Amazon's images. Another name would add a second, empty disk."""

HEAD_DISK_GB, WORKER_DISK_GB = 50, 200
"""Environment 3 and 12 GB (CUDA libraries), prepared sets up to 40, checkpoints of 8 units at 187.5 M parameters
(2.3 GB each, three of a unit) 55, Ray's own files and logs, and as much again."""
IDLE_MINUTES = (1, 60)
PREEMPTION_SECONDS = 60
"""A unit sees a notice within 5 seconds, ends its iteration, writes 2.3 GB."""
