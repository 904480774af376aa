"""The training function as a project: all that the orchestrator needs of a user's model."""

from examples.hf_text.model import CLASSES, Settings, train
from orchestrator.simple_project import DataSet, Metric, simple_project

PROJECT = simple_project(
    "hf_text",
    train,
    Settings,
    metrics=[Metric("accuracy", trivial=100 / CLASSES), Metric("loss", unit="nats", higher_is_better=False)],
    title="Text classification",
    data=[DataSet("toy_sentences", "Word order decides the class.", synthetic=True, made=True, examples=1200)],
    presets={"tiny": {"steps": 60}, "small": {"steps": 300}},
    samples=lambda settings: settings.steps * settings.batch_size,
)
