"""A copy of the package's source that is digested in place of the package, for tests that edit code."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ups_model import source


class SourceCopy:
    """What runs is the package; what is digested is this copy."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def make(cls, folder: Path, monkeypatch: Any) -> SourceCopy:
        """A copy below a folder, digested until `monkeypatch` ends; `source.forget` must be called then."""
        made = cls(folder / "ups_model")
        shutil.copytree(source.ROOT, made.root, ignore=shutil.ignore_patterns("__pycache__"))
        monkeypatch.setattr(source, "ROOT", made.root)
        source.forget()
        return made

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace a text in a file that has it."""
        file = self.root / name
        text = file.read_text()
        assert old in text, f"{name} has no {old!r}"
        file.write_text(text.replace(old, new))
        source.forget()

    def edit_training(self) -> None:
        """GELU replaced by ReLU in the blocks of the transformer."""
        self.edit("model/layers.py", "F.gelu(", "F.relu(")

    def edit_evaluation(self) -> None:
        """Another unit in the metrics."""
        self.edit("evaluation/measure.py", "MM = 1000.0", "MM = 1001.0")
