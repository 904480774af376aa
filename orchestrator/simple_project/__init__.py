"""A user's training function and a dataclass of settings, as a project: see docs/your-model.md.

    PROJECT = simple_project("my_model", train, Settings, metrics=[Metric("accuracy", trivial=25.0)])

`train(settings, run)` trains one model with one seed. It resumes from `run.checkpoint`, saves with `run.save`, and
returns its metrics, or None where `run.should_stop()` has told it to end. Imports no torch.
"""

from orchestrator.simple_project.project import SimpleProject, simple_project
from orchestrator.simple_project.run import Run
from orchestrator.simple_project.settings import DataSet, Metric, SimpleSettings

__all__ = ["DataSet", "Metric", "Run", "SimpleProject", "SimpleSettings", "simple_project"]
