"""Whether another commit's ups_model trains and measures bit for bit as the present one, and the digests of both.

    python benchmarks/same_training.py COMMIT

Trains preset tiny on synthetic clips (joint, then pose estimation fine-tuned) with both sources, and compares the
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
RUNS = {"joint": ["--set", "evaluate_every=12"], "finetune": ["--task", "pe", "--set", "freeze_routes=true"]}
COMMON = ["--preset", "tiny", "--set", "steps=32", "--checkpoint-every", "10"]
DIGESTS = "import json; from ups_model.source import source_identity; print(json.dumps(source_identity()))"


def extract(commit: str, folder: Path) -> Path:
    """The `ups_model` of a commit, in a folder that is made."""
    archive = subprocess.run(["git", "archive", commit, "ups_model"], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def python(source: Path, *arguments: str) -> str:
    """What Python prints with a source tree first on its path."""
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=source, env=environment, check=True, text=True, stdout=subprocess.PIPE).stdout


def trained(source: Path, out: Path) -> dict[str, str]:
    """SHA-256 of each tensor file, and the results, of both runs."""
    results = {}
    for name, options in RUNS.items():
        parent = sorted((out / "joint" / "best").glob("step-*"))[-1:] if name == "finetune" else []
        more = [text for path in parent for text in ("--parent", str(path))]
        python(source, "-m", "ups_model.train", *COMMON, *options, *more, "--out", str(out / name))
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
