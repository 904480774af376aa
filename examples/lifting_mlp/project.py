"""The training function as a project: all that the orchestrator needs of a user's model."""

from examples.lifting_mlp.model import Settings, train
from orchestrator.simple_project import DataSet, Metric, simple_project

PROJECT = simple_project(
    "lifting",
    train,
    Settings,
    metrics=[Metric("mpjpe", unit="mm", higher_is_better=False)],
    title="3D pose estimation",
    data=[DataSet("poses", "2D poses from one camera at a time, subjects apart for testing")],
    presets={"tiny": {"steps": 200, "width": 64}, "small": {"steps": 2000}},
    samples=lambda settings: settings.steps * settings.batch_size,
)
