"""Configuration of a run: its sections, presets and identity. Imports no torch."""

from ups_model.config.config import Config, EvalConfig, OptimConfig
from ups_model.config.data_config import TASK_NAMES, DataConfig, TaskData, TaskName, protocol_of, set_of
from ups_model.config.model_config import ModelConfig
from ups_model.config.schema import canonical, digest

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
