"""What a run trains: a network with its batches, loss and measures. `baselines.train` has the loop."""

from abc import ABC, abstractmethod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from baselines.build import Baseline, BaselineAnswers, NetworkShape, prediction_flops
from baselines.config import BaselineConfig
from ups_model.data.batching.batch import Batch
from ups_model.data.batching.batches import Feed, Source
from ups_model.evaluation.measure import measure_answers, score, trivial_values
from ups_model.evaluation.metric_names import headline_metric
from ups_model.evaluation.outcomes import Outcomes
from ups_model.tasks import TASKS
from ups_model.training.build import mean_pose_error_mm, training_poses
from ups_model.training.run_state import Metrics


class Learner(ABC):
    """A network on the device of its clip set, made from a configuration."""

    system: str
    name: str
    """Of the loss in progress lines."""
    model: nn.Module
    shape: NetworkShape
    feed: Feed
    items: int
    """Training clips, or frames in all cameras: a pass."""
    headlines: tuple[str, ...]
    """Metrics by which health is judged."""
    mean_pose_mm: float = 0.0
    """Error of the mean training pose on training poses; 0 without pose estimation."""
    validation_mean_pose_mm: float = 0.0
    """The same on validation poses; 0 where there are none."""

    @abstractmethod
    def __init__(self, config: Any, source: Source) -> None: ...

    def prepare(self, step: int) -> None:  # noqa: B027  # most have nothing to do
        """What changes before the update after `step` steps, whatever ran before in this process."""

    @abstractmethod
    def loss(self, answer: Any, batch: Batch) -> Tensor:
        """Of the model's answer to the inputs of a batch."""

    @abstractmethod
    def measure(self, part: str, outcomes: Outcomes | None, max_clips: int) -> Metrics:
        """As `ups_model.evaluation.measure.measure`, of a model in evaluation mode."""

    @abstractmethod
    def score(self, metrics: Metrics) -> float:
        """One number to choose weights by, higher is better: the share solved, in percent."""

    @abstractmethod
    def trivial(self) -> dict[str, float]:
        """Headline metrics of the trivial answer on the validation split."""

    @abstractmethod
    def flops(self) -> int:
        """Operations of one prediction."""

    def measure_mean_pose(self) -> None:
        """Set what depends on the training poses."""
        poses_BJ3 = training_poses(self.feed)
        self.items = len(poses_BJ3)
        self.mean_pose_mm = mean_pose_error_mm(self.feed, poses_BJ3)
        if len(self.feed.sources[0].rows("validation")):
            self.validation_mean_pose_mm = mean_pose_error_mm(self.feed, poses_BJ3, "validation")


class SingleTask(Learner):
    """A baseline on one task of UPS."""

    def __init__(self, config: BaselineConfig, source: Source) -> None:
        self.config, self.task = config, config.optim.task
        self.system, self.name = config.network.system, config.optim.task
        self.feed = Feed(self.task, config.task_data, [source], config.seed)
        self.shape = NetworkShape.of(config, source.clips)
        self.model: Baseline = Baseline(config, self.shape).to(source.device)
        self.items = len(source.rows("train"))
        self.headlines = (headline_metric(self.task),)
        if TASKS[self.task].kind == "pose":
            self.measure_mean_pose()

    def loss(self, answer: Tensor, batch: Batch) -> Tensor:
        return task_loss(answer.float(), batch, self.config)

    def measure(self, part: str, outcomes: Outcomes | None, max_clips: int) -> Metrics:
        ratios, feeds = self.config.evaluation.ratios, {self.task: self.feed}
        return measure_answers(BaselineAnswers(self.model), feeds, part, ratios, outcomes, max_clips)

    def score(self, metrics: Metrics) -> float:
        return score(metrics, (self.task,), self.mean_pose_mm)

    def trivial(self) -> dict[str, float]:
        return trivial_values({self.task: self.feed}, self.validation_mean_pose_mm)

    def flops(self) -> int:
        return prediction_flops(self.model)


def task_loss(answer: Tensor, batch: Batch, config: BaselineConfig) -> Tensor:
    """MPJPE in metres of poses [B * R, J, 3] (Pavllo et al., section 3), or cross-entropy of scores [B, K]."""
    if batch.pose_BRJ3 is not None:
        return (answer - batch.pose_BRJ3.flatten(0, 1)).norm(dim=-1).mean()
    assert batch.label_B is not None, "class batches have labels"
    return F.cross_entropy(answer, batch.label_B, label_smoothing=config.optim.label_smoothing)
