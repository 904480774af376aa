"""Predictions as pictures: a strip of frames (PNG) or an animation (GIF). Needs Matplotlib.

Shape suffixes: N frames, J joints, C coordinates.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ups_model.data.format.writer import Track
from ups_model.data.prepare.jobs import Recording, seen_frames
from ups_model.data.readers.fill_missing import fill_undetected
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
UNSEEN_ALPHA = 0.3
"""Opacity of a body in a frame without a detection."""


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


@dataclass(frozen=True)
class _Body:
    """A person from frame `first` on."""

    first: int
    pose_NJC: np.ndarray
    seen_N: np.ndarray
    """bool [N]: in which frames there is a detection."""


class _Panel:
    """Moving bodies in two dimensions, or three."""

    def __init__(self, title: str, bodies: list[_Body], skeleton: Skeleton, down: bool) -> None:
        self.title, self.bodies, self.skeleton, self.down = title, bodies, skeleton, down
        every = np.concatenate([body.pose_NJC.reshape(-1, body.pose_NJC.shape[-1]) for body in bodies])
        self.centre = (every.min(axis=0) + every.max(axis=0)) / 2
        self.reach = max(float((every.max(axis=0) - every.min(axis=0)).max()) / 2, 1e-6) * 1.05
        self.dims = every.shape[-1]

    def open(self, drawing: Figure, rows: int, columns: int, place: int) -> "_View":
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
        bones = [[(joint, parent, self._line(axes, joint)) for joint, parent in parents] for _ in self.bodies]
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
    """For each body joint, parent and line of each bone."""

    def show(self, frame: int) -> None:
        """Draw the bodies that are there at a frame, pale and with a word where none of them was detected."""
        seen = []
        for body, bones in zip(self.panel.bodies, self.bones, strict=True):
            at = frame - body.first
            there = 0 <= at < len(body.pose_NJC)
            seen += [bool(body.seen_N[at])] if there else []
            for joint, parent, line in bones:
                line.set_visible(there)
                if there:
                    line.set_alpha(1 if seen[-1] else UNSEEN_ALPHA)
                    ends = body.pose_NJC[at, [joint, parent]].T
                    if self.panel.dims == 3:
                        line.set_data_3d(ends[0], ends[2], ends[1])
                    else:
                        line.set_data(ends[0], ends[1])
        unseen = "" if any(seen) or not seen else ", not seen"
        self.axes.set_title(f"{self.panel.title}\nframe {frame}{unseen}", fontsize=7)


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
        first = recording.first_frame
        bodies = [
            _Body(first + track.offset, _upright(track, recording.up_axis), seen_frames(track))
            for track in recording.tracks
        ]
        panel = _Panel(f"{recording.dims}D {recording.units}", bodies, skeleton, down=recording.up_axis == "-y")
        frames = range(first, first + recording.length)
        return _Scene(recording.name, [panel], frames, recording.fps, prediction.best[:SHOWN_CLASSES])
    first, seen_N = prediction.first_frame, prediction.seen_N
    keypoints, poses = (_Body(first, pose, seen_N) for pose in (prediction.keypoints_NJ2, prediction.pose_NJ3))
    source = _Panel("keypoints", [keypoints], prediction.keypoint_skeleton, down=True)
    answer = _Panel("predicted, metres", [poses], prediction.skeleton, down=True)
    return _Scene(recording.name, [source, answer], range(first, first + len(seen_N)), prediction.fps, [])


def _upright(track: Track, up_axis: str) -> np.ndarray:
    """Coordinates of which the second one is height, without gaps."""
    pose_NJC = np.asarray(track.positions, dtype=np.float32)
    if track.confidence is not None:
        pose_NJC = fill_undetected(pose_NJC, track.confidence)
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
