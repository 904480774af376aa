"""Digests of source code: what changes them, and what doesn't."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.support.source_copy import SourceCopy
from ups_model import source
from ups_model.source import source_digest, source_files, source_identity

TRAINING = """data/batching/augment data/batching/batch data/batching/batches data/batching/class_loader
data/batching/configured data/batching/device_clips data/batching/pose_loader data/batching/windows
data/format/cameras data/format/clip_data data/format/clip_set data/format/info data/format/splits
data/readers/fill_missing model/chunks model/decoder model/encoder model/fused model/host model/inputs
model/layers model/text_features model/tokenizer model/ups model/vocabulary skeletons tasks
training/base_run training/build training/finite training/losses training/parallel/group training/result
training/run training/run_state training/schedule"""
EVALUATION = (
    "evaluation/measure evaluation/metric_names evaluation/metrics evaluation/outcomes model/decoding model/stepwise"
)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the package, which is what is digested."""
    yield SourceCopy.make(tmp_path, monkeypatch)
    source.forget()


@pytest.mark.parametrize(("part", "modules"), [("training", TRAINING), ("evaluation", EVALUATION)])
def test_these_modules_and_no_others_are_digested(part, modules):
    """A module that is missed here could change results unseen; one too many makes finished units look outdated."""
    assert source_files(part) == [f"{module}.py" for module in modules.split()]


@pytest.mark.slow
def test_the_digest_does_not_depend_on_where_the_package_lies(copy):
    moved = source_identity()
    assert all(len(digest) == 16 for digest in moved.values())
    source.ROOT = copy.root.parent / "elsewhere"
    shutil.copytree(copy.root, source.ROOT)
    assert source_identity() == moved


TRAINS = {
    "an activation": ("model/layers.py", "gelu(", "relu("),
    "a weight of the loss": ("training/losses.py", "optim.bin_sigma, optim", "2 * optim.bin_sigma, optim"),
    "the loop": (
        "training/base_run.py",
        "optimizer.zero_grad(set_to_none=True)",
        "optimizer.zero_grad(set_to_none=False)",
    ),
    "augmentation": ("data/batching/augment.py", "(high - low) *", "(high + low) *"),
    "splits": ("data/format/splits.py", "validation_subjects / 10", "validation_subjects / 5"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", TRAINS)
def test_a_change_of_what_trains_changes_the_training_digest_alone(case, copy):
    before = source_identity()
    name, old, new = TRAINS[case]
    copy.edit(name, old, new)
    after = source_identity()
    assert after["training"] != before["training"]
    assert after["evaluation"] == before["evaluation"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evaluation/measure.py", "evaluation/metrics.py", "model/decoding.py"])
def test_a_change_of_what_measures_changes_the_evaluation_digest_alone(name, copy):
    before = source_identity()
    (copy.root / name).write_text((copy.root / name).read_text() + "\nEXTRA = 1\n")
    source.forget()
    after = source_identity()
    assert after["evaluation"] != before["evaluation"]
    assert after["training"] == before["training"]


@pytest.mark.slow
def test_a_change_of_a_measure_that_the_loop_calls_changes_the_evaluation_digest_alone(copy):
    before = source_identity()
    copy.edit("evaluation/measure.py", "return sum(parts) / len(parts)", "return min(parts)")
    after = source_identity()
    assert after["evaluation"] != before["evaluation"]
    assert after["training"] == before["training"]


@pytest.mark.slow
def test_a_new_module_that_training_imports_is_digested(copy):
    before = source_digest("training")
    (copy.root / "extra.py").write_text("FACTOR = 1\n")
    copy.edit(
        "training/losses.py",
        "from ups_model.tasks import",
        "from ups_model.extra import FACTOR\nfrom ups_model.tasks import",
    )
    imported = source_digest("training")
    copy.edit("extra.py", "1", "2")
    assert len({before, imported, source_digest("training")}) == 3


SAME = {
    "a comment": ("training/losses.py", "\n\n\ndef ", "\n\n\n# A remark.\ndef "),
    "a docstring": ("model/layers.py", "Linear, GELU, linear", "Two linear maps"),
    "the command that trains": ("train.py", "\n\n\ndef ", "\n\n\nUNUSED = 1\n\n\ndef "),
    "a reader": ("data/readers/ntu/files.py", "\n\n\ndef ", "\n\n\nUNUSED = 1\n\n\ndef "),
    "another command": ("predict.py", "\n\n\ndef ", "\n\n\nUNUSED = 1\n\n\ndef "),
    "the picture": ("inference/visualize.py", "\n\n\ndef ", "\n\n\nUNUSED = 1\n\n\ndef "),
    "a default": ("config/config.py", "label_smoothing: float = 0.0", "label_smoothing: float = 0.1"),
    "an annotation": ("training/losses.py", "target_tokens(model: UPS,", "target_tokens(model: object,"),
    "how lines are broken": ("training/losses.py", "target_tokens(model: UPS,", "target_tokens(\n    model: UPS,"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", SAME)
def test_what_changes_no_result_changes_no_digest(case, copy):
    before = source_identity()
    name, old, new = SAME[case]
    copy.edit(name, old, new)
    assert source_identity() == before


@pytest.mark.slow
def test_where_the_loop_imports_a_name_from_counts(copy):
    before = source_digest("training")
    copy.edit(
        "training/run.py",
        "from ups_model.training.losses import sequence_loss",
        "from ups_model.training.schedule import sequence_loss",
    )
    assert source_digest("training") != before


@pytest.mark.slow
def test_a_module_may_move_and_its_definitions_be_divided(copy):
    before = source_identity()
    schedule = (copy.root / "training" / "schedule.py").read_text()
    start = schedule.index("def warmup(")
    (copy.root / "elsewhere").mkdir()
    (copy.root / "elsewhere" / "__init__.py").write_text('"""Training."""\n')
    (copy.root / "elsewhere" / "warmup.py").write_text(
        "from ups_model.config import Config, OptimConfig\n" + schedule[start : schedule.index("\n\n\n", start)]
    )
    (copy.root / "elsewhere" / "schedule.py").write_text(
        schedule.replace(
            "from ups_model.config", "from ups_model.elsewhere.warmup import warmup\nfrom ups_model.config"
        ).replace(schedule[start : schedule.index("\n\n\n", start)], "")
    )
    (copy.root / "training" / "schedule.py").unlink()
    copy.edit("training/run.py", "from ups_model.training.schedule import", "from ups_model.elsewhere.schedule import")
    assert source_identity() == before


@pytest.mark.slow
def test_a_definition_of_the_same_name_elsewhere_is_another(copy):
    before = source_digest("training")
    copy.edit("tasks.py", "\n\n\n", "\n\n\ndef sequence_loss():\n    return 0\n\n\n")
    both = source_digest("training")
    copy.edit(
        "training/run.py",
        "from ups_model.training.losses import sequence_loss, target_tokens",
        "from ups_model.training.losses import target_tokens\nfrom ups_model.tasks import sequence_loss",
    )
    assert len({before, both, source_digest("training")}) == 3


def test_the_digest_needs_no_torch():
    program = "import sys; from ups_model.source import source_identity as s; s(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
