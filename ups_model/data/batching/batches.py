"""Batches of a task: which clips, which frames, in what coordinates; all draws from (seed, purpose, task, step).

So a batch depends on the step alone: not on workers, processes, devices, or on whether the run was resumed.

Shape suffixes: J native joints.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ups_model.config import TASK_NAMES, Config, TaskData, TaskName
from ups_model.data.batching.batch import Batch
from ups_model.data.batching.class_loader import ClassLoader
from ups_model.data.batching.device_clips import Source
from ups_model.data.batching.pose_loader import PoseLoader
from ups_model.data.batching.suitability import check_suitable
from ups_model.data.format.clip_set import ClipSet, Split
from ups_model.model.layers import seed_for
from ups_model.tasks import TASKS

__all__ = ["Batch", "Feed", "Source", "build_feeds"]

STATISTICS_CLIPS = 512
"""Clips from which a task's input statistics are taken."""
EVALUATED = 128
"""Clips of a batch in evaluation. With fewer, what a step of decoding costs for any batch outweighs the rest; with more
nothing is gained, and preset `paper` would need 5.8 GB for 256 clips of one person in 3D, 8.8 GB in 2D."""


class Feed:
    """Batches of one task: `train(step)` for any step in any order, `evaluate(part)` once through."""

    def __init__(self, task: TaskName, data: TaskData, sources: list[Source], seed: int) -> None:
        self.task, self.data, self.sources, self.seed = task, data, sources, seed
        for source in sources:
            check_suitable(task, data, source.clips)
        self._loader = PoseLoader(task, data) if TASKS[task].kind == "pose" else ClassLoader(task, data)
        self._items = {source.name: self._loader.items(source) for source in sources}
        self._orders: dict[tuple[str, int], Tensor] = {}
        for name, items in self._items.items():
            if not len(items):
                raise ValueError(f"training split must have clips, got none in {name!r} for {task}")

    def _generator(self, purpose: str, *parts: int | str) -> torch.Generator:
        return torch.Generator().manual_seed(seed_for(self.seed, purpose, self.task, *parts))

    def _rows(self, source: Source, first: int, count: int) -> Tensor:
        """Numbers first .. first + count - 1 of the endless sequence of reshuffled passes over the training items."""
        size = len(self._items[source.name])
        position = torch.arange(first, first + count)
        out = torch.empty(count, dtype=torch.int64)
        for epoch in range(first // size, (first + count - 1) // size + 1):
            key = (source.name, epoch)
            if key not in self._orders:
                generator = self._generator("order", source.name, epoch)
                if len(self._orders) > 2 * len(self.sources):
                    self._orders.clear()
                self._orders[key] = torch.randperm(size, generator=generator)
            inside = position // size == epoch
            out[inside] = self._orders[key][position[inside] % size]
        return out

    def train(self, turn: int, share: tuple[int, int] = (0, 1)) -> Batch:
        """The batch of this task's `turn`-th iteration (from 0), all of it from one source, drawn in proportion to the
        sources' sizes; `share` = (rank, processes) takes a part of its clips."""
        sizes = torch.tensor([float(len(self._items[source.name])) for source in self.sources])
        choice = self._generator("source", turn)
        source = self.sources[int(torch.multinomial(sizes, 1, generator=choice))]
        rows = self._rows(source, turn * self.data.batch_size, self.data.batch_size)
        batch = self._loader.train(source, self._items[source.name][rows], self._generator("augment", turn))
        return batch.share(*share)

    def statistics_batch(self) -> Batch:
        """A large batch of training clips, from which the scale of input features is taken: the same in every seed that
        holds out the same subjects."""
        return Feed(self.task, self.data.replace(batch_size=STATISTICS_CLIPS), self.sources[:1], 0).train(0)

    def only(self, source: Source) -> "Feed":
        """The same feed with one of its sources."""
        return self if len(self.sources) == 1 else Feed(self.task, self.data, [source], self.seed)

    def evaluate(self, part: str, ratio: float = 1.0, batch_size: int = 0, max_clips: int = 0) -> Iterator[Batch]:
        """All clips of "validation" or "test" once, in order; class tasks see the first `ratio` of each clip.

        With `max_clips`, at most about that many of them (pose estimation: predicted frames, in whole windows), evenly
        spaced.
        """
        size = batch_size or EVALUATED
        for source in self.sources:
            yield from self._loader.evaluate(source, part, ratio, size, max_clips)

    def poses(self, source: Source, part: str = "train") -> Iterator[Tensor]:
        """[cameras * frames, J, 3] root-relative poses of `part`, metres, clip by clip (pose estimation)."""
        assert isinstance(self._loader, PoseLoader), f"{self.task} has no poses"
        return self._loader.poses(source, part)


def build_feeds(config: Config, sets: dict[str, tuple[ClipSet, Split]], device: torch.device) -> dict[TaskName, Feed]:
    """A feed for each trained task; a clip set that serves several tasks is put on the device once."""
    sources: dict[str, Source] = {}
    feeds: dict[TaskName, Feed] = {}
    for task in TASK_NAMES:
        if task not in config.optim.tasks:
            continue
        data: TaskData = getattr(config.data, task)
        for name in data.sources:
            if name not in sources:
                clips, split = sets[name]
                same = [sources[other] for other in sources if sets[other][0].path == clips.path]
                sources[name] = same[0].under(split, name) if same else Source(clips, split, device, name)
        feeds[task] = Feed(task, data, [sources[name] for name in data.sources], config.seed)
    return feeds
