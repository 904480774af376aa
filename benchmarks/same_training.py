"""Whether another commit's UPS and baselines train and measure bit for bit as the present ones, and their digests.

    python benchmarks/same_training.py COMMIT

Trains preset tiny on synthetic clips (UPS: joint, then pose estimation fine-tuned) with both sources, and compares the
SHA-256 of all tensors and the metrics. Where they agree, the commit's digest may be added to `ups_model.source.FORMER`.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMON = ["--preset", "tiny", "--set", "steps=32"]
UPS = ["ups_model.train", *COMMON, "--checkpoint-every", "10"]
RUNS = {
    "joint": [*UPS, "--set", "evaluate_every=12"],
    "finetune": [*UPS, "--task", "pe", "--set", "freeze_routes=true"],
    **{
        system: ["baselines", system, *COMMON, "--set", "validation_subjects=1"]
        for system in ("residual_mlp", "videopose3d", "dd_net", "st_gcn", "multitask")
    },
}
DIGESTS = """
from baselines.multitask.project import MULTITASK
from baselines.project import DD_NET, RESIDUAL_MLP, ST_GCN, VIDEOPOSE3D
from ups_model.source import FORMER
FORMER.clear()  # What is compared here is not yet, or no longer, taken as the same.
for project in (RESIDUAL_MLP, VIDEOPOSE3D, DD_NET, ST_GCN, MULTITASK):
    print(project.name, vars(project.identity()))
"""


def extract(commit: str, folder: Path) -> Path:
    """The packages of a commit, in a folder that is made."""
    packages = ["ups_model", "baselines", "search_spaces", "orchestrator"]
    archive = subprocess.run(["git", "archive", commit, *packages], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def python(source: Path, *arguments: str) -> str:
    """What Python prints with a source tree first on its path."""
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=source, env=environment, check=True, text=True, stdout=subprocess.PIPE).stdout


def trained(source: Path, out: Path) -> dict[str, str]:
    """SHA-256 of each tensor file, and the results, of all runs."""
    results = {}
    for name, options in RUNS.items():
        parent = sorted((out / "joint" / "best").glob("step-*"))[-1:] if name == "finetune" else []
        more = [text for path in parent for text in ("--parent", str(path))]
        python(source, "-m", *options, *more, "--out", str(out / name))
        for file in sorted((out / name).rglob("*.safetensors")):
            results[str(file.relative_to(out))] = hashlib.sha256(file.read_bytes()).hexdigest()
        result = json.loads((out / name / "result.json").read_text("utf-8"))
        results[f"{name} metrics, routes, health"] = json.dumps(
            [result[key] for key in ("metrics", "routes", "health")]
        )
    return results


def main(commit: str) -> int:
    """0 where both agree."""
    with tempfile.TemporaryDirectory() as folder:
        sources = {commit: extract(commit, Path(folder) / "source"), "present": ROOT}
        results = {name: trained(source, Path(folder) / name) for name, source in sources.items()}
        for name, source in sources.items():
            print(f"{name}: {python(source, '-c', DIGESTS).strip()}")
    theirs, ours = results.values()
    differing = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    print(f"{len(ours) - len(differing)} of {len(ours)} files and results equal")
    for name in differing:
        print(f"  differs: {name}")
    return int(bool(differing))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
