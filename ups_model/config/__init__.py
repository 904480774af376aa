"""Configuration of a run: its sections, presets and identity. Imports no torch."""

from ups_model.config.config import (
    TASK_NAMES,
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    TaskData,
    TaskName,
    canonical,
    digest,
    protocol_of,
    set_of,
)

__all__ = [
    "TASK_NAMES",
    "Config",
    "DataConfig",
    "EvalConfig",
    "ModelConfig",
    "OptimConfig",
    "TaskData",
    "TaskName",
    "canonical",
    "digest",
    "protocol_of",
    "set_of",
]
