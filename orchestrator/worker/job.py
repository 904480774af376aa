"""A worker's job and its outcome: plain data at the border between processes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from orchestrator.planning.plan import Unit
from orchestrator.project import Request, import_from
from orchestrator.storage.source_check import Policy
from orchestrator.worker.environment import Environment

if TYPE_CHECKING:  # It imports torch, which whoever plans needs not.
    from ups_model.device import Precision
    from ups_model.training.options import Switch


@dataclass(frozen=True)
class Rung:
    """A step after which a unit pauses, as soon as it has been measured there."""

    step: int
    metric: str
    """Name in progress lines, e.g. "validation/score"."""


@dataclass(frozen=True)
class Job:
    """A unit, and how it is run; nothing but the unit can change its result."""

    unit: Unit
    parent: Unit | None
    storage: str
    paths: Mapping[str, str]
    """Folder of each clip set."""
    cache: str
    """Folder of text features."""
    threads: int = 1
    """Of all its processes together."""
    device: str = "auto"
    precision: "Precision" = "auto"
    test: bool = True
    """Measure the test split, also of a unit that finished without."""
    remake: bool = False
    """Its weights are needed: where they are gone or damaged, a finished unit makes them again."""
    site: Environment | None = None
    """What this node must share with the driver; None checks nothing. The field's name is that of the JSON."""
    gpus: float = 0.0
    """Share of a GPU, or GPUs."""
    too_small: tuple[float, ...] = ()
    """Shares of a GPU in which the unit ran out of memory before."""
    other_code: Policy = "refuse"
    """What becomes of weights that other code has trained."""
    wanted: tuple[str, ...] = ()
    """Metrics that tables want of the unit."""
    processes: int = 1
    """That train it together, each on a GPU of its own if it has GPUs."""
    micro_batch: int | Literal["auto"] = 0
    """As `RunOptions.micro_batch`."""
    activation_checkpointing: "Switch" = "auto"
    import_path: tuple[str, ...] = ()
    """Folders in which the unit's project may lie, beside where modules are always looked for."""
    rung: "Rung | None" = None
    """Where the unit pauses; None trains it to its end."""

    def request(self, folder: Path, **more: Any) -> Request:
        """What its unit's project is asked for.

        Args:
            folder: that the unit is trained in.
            more: fields of `Request` that the job doesn't name.
        """
        same = ("test", "device", "precision", "threads", "processes", "micro_batch", "activation_checkpointing")
        unit = self.unit
        paths = {name: Path(self.paths[name]) for name in unit.trainer.sets(unit.config)}
        own = {name: getattr(self, name) for name in same} | {"cache": Path(self.cache)}
        return Request(unit.config, unit.key, paths, folder, **own | more)

    def to_json(self) -> str:
        """`from_json` is its inverse."""
        nested = {
            "unit": self.unit.to_plain(),
            "parent": self.parent and self.parent.to_plain(),
            "paths": dict(self.paths),
            "site": self.site and vars(self.site),
            "rung": self.rung and vars(self.rung),
        }
        return json.dumps(vars(self) | nested)

    @classmethod
    def from_json(cls, text: str) -> Self:
        plain = json.loads(text)
        import_from(plain["import_path"])
        nested = {
            "unit": Unit.from_plain(plain["unit"]),
            "parent": plain["parent"] and Unit.from_plain(plain["parent"]),
            "site": plain["site"] and Environment(**plain["site"]),
            "too_small": tuple(plain["too_small"]),
            "wanted": tuple(plain["wanted"]),
            "import_path": tuple(plain["import_path"]),
            "rung": plain["rung"] and Rung(**plain["rung"]),
        }
        return cls(**plain | nested)


@dataclass(frozen=True)
class Outcome:
    """How a call to `run_unit` ended, where it didn't raise."""

    status: Literal["finished", "paused", "stopped", "busy", "failed", "parent_unreadable", "refused", "out_of_memory"]
    error: str = ""
    sure: bool = True
    """Of a failure: another node would fail as well; of "out_of_memory": another try would, too."""
    value: float | None = None
    """Of the rung's metric, of a unit that has paused."""
