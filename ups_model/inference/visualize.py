"""Predictions as pictures: a strip of frames (PNG) or an animation (GIF). Needs Matplotlib.

Shape suffixes: N frames, J joints, C coordinates.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ups_model.data.prepare.jobs import Recording
from ups_model.inference.predictions import ClassPrediction, Prediction
from ups_model.skeletons import Skeleton, get_skeleton

try:
    import matplotlib
    from matplotlib.animation import FuncAnimation, PillowWriter
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from mpl_toolkits.mplot3d import Axes3D
except ImportError as error:
    raise ValueError(f"pictures need Matplotlib ({error}); pip install 'ups-ablate[pictures]'") from error

STRIP = 6
"""Frames side by side in a PNG."""
MAX_GIF_FRAMES = 120
"""Frames of a GIF at most, evenly spaced."""
LEFT, RIGHT, MIDDLE = "#1f5fa8", "#c4572b", "#555555"
SHOWN_CLASSES = 5


def draw(file: Path, prediction: Prediction, recording: Recording) -> None:
    """Write a picture of a prediction; .gif moves, anything else is a strip of frames."""
    scene = _scene(prediction, recording)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # The user's own matplotlibrc must not matter.
        logging.getLogger("matplotlib.animation").setLevel(logging.WARNING)  # It logs each file that it writes.
        if file.suffix == ".gif":
            _animate(file, scene)
        else:
            _strip(file, scene)


class _Panel:
    """A moving body in two dimensions, or three."""

    def __init__(self, title: str, persons: list[tuple[int, np.ndarray]], skeleton: Skeleton, down: bool) -> None:
        self.title, self.persons, self.skeleton, self.down = title, persons, skeleton, down
        every = np.concatenate([pose_NJC.reshape(-1, pose_NJC.shape[-1]) for _, pose_NJC in persons])
        self.centre = (every.min(axis=0) + every.max(axis=0)) / 2
        self.reach = max(float((every.max(axis=0) - every.min(axis=0)).max()) / 2, 1e-6) * 1.05
        self.dims = every.shape[-1]

    def open(self, drawing: Figure, rows: int, columns: int, place: int) -> _View:
        """Axes at a place of a grid, with a line for each bone of each person."""
        axes = drawing.add_subplot(rows, columns, place, projection="3d" if self.dims == 3 else None)
        low, high = self.centre - self.reach, self.centre + self.reach
        height = (high[1], low[1]) if self.down else (low[1], high[1])
        axes.set_xlim(low[0], high[0])
        if self.dims == 3:
            assert isinstance(axes, Axes3D), "as its projection says"
            # Matplotlib's z is up: depth goes to its y, height to its z.
            axes.set_ylim(low[2], high[2])
            axes.set_zlim(*height)
            axes.set_box_aspect((1, 1, 1), zoom=1.3)
            for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
                axis.set_ticklabels([])
        else:
            axes.set_ylim(*height)
            axes.set_aspect("equal")
            axes.set_xticks([])
            axes.set_yticks([])
        parents = [(joint, parent) for joint, parent in enumerate(self.skeleton.parents) if parent >= 0]
        bones = [[(joint, parent, self._line(axes, joint)) for joint, parent in parents] for _ in self.persons]
        return _View(self, axes, bones)

    def _line(self, axes: Axes, joint: int) -> Any:
        color = {"l_": LEFT, "r_": RIGHT}.get(self.skeleton.joint_names[joint][:2], MIDDLE)
        return axes.plot(*([],) * self.dims, color=color, linewidth=1.5, solid_capstyle="round")[0]


@dataclass(frozen=True)
class _View:
    """A panel in its axes."""

    panel: _Panel
    axes: Axes
    bones: list[list[tuple[int, int, Any]]]
    """For each person joint, parent and line of each bone."""

    def show(self, frame: int) -> None:
        """Draw the persons that are there at a frame."""
        for (offset, pose_NJC), bones in zip(self.panel.persons, self.bones, strict=True):
            there = offset <= frame < offset + len(pose_NJC)
            for joint, parent, line in bones:
                line.set_visible(there)
                if there:
                    ends = pose_NJC[frame - offset, [joint, parent]].T
                    if self.panel.dims == 3:
                        line.set_data_3d(ends[0], ends[2], ends[1])
                    else:
                        line.set_data(ends[0], ends[1])
        self.axes.set_title(f"{self.panel.title}\nframe {frame}", fontsize=7)


@dataclass(frozen=True)
class _Scene:
    """Panels of bodies, and a list of classes where there is one."""

    name: str
    panels: list[_Panel]
    frames: range
    fps: float
    classes: list[tuple[str, float]]


def _scene(prediction: Prediction, recording: Recording) -> _Scene:
    skeleton = get_skeleton(recording.skeleton)
    if isinstance(prediction, ClassPrediction):
        persons = [(track.offset, _upright(track.positions, recording.up_axis)) for track in recording.tracks]
        panel = _Panel(f"{recording.dims}D {recording.units}", persons, skeleton, down=recording.up_axis == "-y")
        return _Scene(recording.name, [panel], range(recording.length), recording.fps, prediction.best[:SHOWN_CLASSES])
    first = prediction.first_frame
    seen = _Panel("keypoints", [(first, prediction.keypoints_NJ2)], prediction.seen, down=True)
    answer = _Panel("predicted, metres", [(first, prediction.pose_NJ3)], prediction.skeleton, down=True)
    return _Scene(recording.name, [seen, answer], range(first, first + len(prediction.pose_NJ3)), prediction.fps, [])


def _upright(pose_NJC: np.ndarray, up_axis: str) -> np.ndarray:
    """Coordinates in which the second one is height."""
    pose_NJC = np.asarray(pose_NJC, dtype=np.float32)
    return pose_NJC[..., [0, 2, 1]] if up_axis == "z" else pose_NJC


def _strip(file: Path, scene: _Scene) -> None:
    count = min(STRIP, len(scene.frames))
    chosen = [scene.frames[int(index)] for index in np.linspace(0, len(scene.frames) - 1, count).round()]
    rows, columns = len(scene.panels), count + (2 if scene.classes else 0)
    drawing = Figure(figsize=(1.7 * columns, 2.0 * rows), dpi=150)
    for row, panel in enumerate(scene.panels):
        for column, frame in enumerate(chosen):
            panel.open(drawing, rows, columns, row * columns + column + 1).show(frame)
    if scene.classes:
        _bars(drawing.add_subplot(rows, columns, (columns - 1, columns)), scene.classes)
    drawing.suptitle(scene.name, fontsize=8)
    drawing.tight_layout()
    drawing.savefig(file)


def _animate(file: Path, scene: _Scene) -> None:
    step = -(-len(scene.frames) // MAX_GIF_FRAMES)
    columns = len(scene.panels) + bool(scene.classes)
    drawing = Figure(figsize=(3.2 * columns, 3.2), dpi=80)
    views = [panel.open(drawing, 1, columns, place) for place, panel in enumerate(scene.panels, start=1)]
    if scene.classes:
        _bars(drawing.add_subplot(1, columns, columns), scene.classes)
    drawing.suptitle(scene.name, fontsize=8)
    drawing.tight_layout()

    def show(frame: int) -> None:
        for view in views:
            view.show(frame)

    moving = FuncAnimation(drawing, show, frames=list(scene.frames[::step]), init_func=lambda: None)
    moving.save(file, writer=PillowWriter(fps=max(1.0, scene.fps / step)))  # type: ignore[arg-type]  # it divides by it


def _bars(axes: Axes, classes: list[tuple[str, float]]) -> None:
    names, shares = zip(*classes[::-1], strict=True)
    axes.barh(range(len(names)), [100 * share for share in shares], color=LEFT, height=0.6)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.tick_params(axis="x", labelsize=6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("probability, %", fontsize=7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
