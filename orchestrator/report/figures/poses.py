"""The best, the median and the worst predicted pose, beside the input and the truth."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.report.figures.style import GREY, OURS, Drawing, finish, styled
from orchestrator.report.model import ExamplePoses

WHICH = ("best", "median", "worst")
INPUT = "#444444"
VIEWS = (("front", (0, 1)), ("side", (2, 1)))
"""Axes of the camera that each view shows: x right or z away, and y down."""
BAR_MM, PADDING_MM = 500, 50


def poses(examples: ExamplePoses | None) -> Drawing | None:
    """A column a pose: its 2D input, and two views of truth and prediction on one scale; None where there is none."""
    if examples is None:
        return None
    predicted, truth, joints = map(np.array, (examples.predicted, examples.truth, examples.joints))
    error = np.linalg.norm(predicted - truth, axis=-1).mean(axis=-1)
    both = np.stack([predicted, truth])
    # All views have sides of equal lengths, so that errors in all panels are to one scale.
    extent = np.nanmax(both, axis=(0, 1, 2)) - np.nanmin(both, axis=(0, 1, 2)) + 2 * PADDING_MM
    sides = np.array([max(extent[across] for _, (across, _) in VIEWS), extent[1]])
    with styled():
        figure = Figure(figsize=(6.4, 7.2))
        panels = figure.subplots(1 + len(VIEWS), len(WHICH), squeeze=False)
        for place, which in enumerate(WHICH):
            top = panels[0, place]
            _skeleton(top, joints[place], examples, INPUT, f"input-{place}")
            seen = joints[place][np.isfinite(joints[place]).all(axis=1)]
            if len(seen):
                _center(top, seen, 0.52 * sides * (np.ptp(seen, axis=0) / sides).max())
            clip, camera, frame = examples.places[place]
            top.set_title(f"{which}: {error[place]:.1f} mm\nclip {clip}, camera {camera}, frame {frame}", fontsize=8)
            for (name, axes), panel in zip(VIEWS, panels[1:, place], strict=True):
                _skeleton(panel, truth[place][:, axes], examples, GREY, f"truth-{name}-{place}")
                _skeleton(panel, predicted[place][:, axes], examples, OURS, f"predicted-{name}-{place}")
                _center(panel, both[..., axes], sides / 2)
        for name, panel in zip(("2D input", *(name for name, _ in VIEWS)), panels[:, 0], strict=True):
            panel.set_ylabel(name)
        _scale_bar(panels[-1, 0])
        names = (("2D input", INPUT), ("truth", GREY), ("predicted", OURS))
        entries = [(name, panels[0, 0].plot([], [], "-", color=color, linewidth=1.4)[0]) for name, color in names]
        image = finish(figure, entries)
    return Drawing(
        name="poses",
        title="Predicted poses",
        caption="The poses of the smallest, the median and the largest error (MPJPE) among the test frames, of row "
        f"“{examples.row}”, seed {examples.seed}: the joints that the model is given, and truth and prediction "
        f"relative to the root, in the camera's axes; the bar is {BAR_MM} mm; n = {examples.frames:,} frames; "
        f"data: {examples.source}.",
        image=image,
    )


def _skeleton(panel: Axes, joints: np.ndarray, examples: ExamplePoses, color: str, name: str) -> None:
    """Bones as one line with gaps."""
    gap = np.full((1, 2), np.nan)
    line = np.concatenate([part for bone in examples.bones for part in (joints[list(bone)], gap)])
    panel.plot(*line.T, "-", color=color, linewidth=1.3, solid_capstyle="round", gid=name)
    panel.set_aspect("equal", adjustable="box")
    if not panel.yaxis_inverted():
        panel.invert_yaxis()
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines["bottom"].set_visible(False)


def _center(panel: Axes, views: np.ndarray, half: np.ndarray) -> None:
    """Limits around the middle of all poses in one view, [..., 2]."""
    flat = views.reshape(-1, 2)
    middle = (np.nanmin(flat, axis=0) + np.nanmax(flat, axis=0)) / 2
    panel.set_xlim(middle[0] - half[0], middle[0] + half[0])
    panel.set_ylim(middle[1] + half[1], middle[1] - half[1])


def _scale_bar(panel: Axes) -> None:
    left, bottom = panel.get_xlim()[0], panel.get_ylim()[0]
    panel.plot([left, left + BAR_MM], [bottom] * 2, "-", color="black", linewidth=1.5, gid="scale-bar")
    panel.text(left, bottom, f"{BAR_MM} mm", va="top", fontsize=7)
