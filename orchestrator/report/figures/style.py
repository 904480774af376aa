"""What all figures have in common: settings, colours, and their files. Same numbers, same bytes."""

import io
import math
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from orchestrator.report.model import Cell, Report, unhealthy
from orchestrator.report.wording import listed

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

OURS, PAPER, GREY = "#1f5fa8", "#c4572b", "#767676"
PALETTE = ("#1f5fa8", "#d98200", "#00845f", "#b5508f", "#5bb0e0", "#8a6d00", "#444444", "#7a4fc0")
"""Of lines that differ in kind; the first ones can be told apart by colour-blind readers (after Okabe and Ito)."""
PAPER_DATA = "; diamonds are published values, on the paper's data"
"""What a caption says where a figure shows published values."""
MAX_PANELS_ACROSS = 5
PNG_DPI = 150
MAX_LABEL = 24
"""Characters of a row's or a class's label; the tables have all of it."""

STYLE: dict["RcKeyType", Any] = {
    "svg.hashsalt": "report",  # Element names are hashed, with a random salt by default.
    "svg.fonttype": "none",  # Text stays text: searchable, and in the reader's own fonts.
    "text.parse_math": False,  # A label with two $ is no formula.
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}


@dataclass(frozen=True)
class Image:
    """A figure in both formats."""

    svg: str
    png: bytes


@dataclass(frozen=True)
class Drawing:
    """A figure with its words."""

    name: str
    """Of its file, without folder and suffix."""
    title: str
    caption: str
    """One sentence: what is shown, n, data."""
    image: Image
    table: tuple[tuple[str, ...], ...] = ()
    """Lines of a small table below it, headings first; empty for none."""


@contextmanager
def styled() -> Iterator[None]:
    """Settings under which a figure is made, laid out and saved, whatever the user's own matplotlibrc says."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        warnings.filterwarnings("ignore", message="Tight layout not applied")  # Of labels longer than the panels.
        # Text is not drawn but written; the reader's fonts have what this machine's lack.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def grid(panels: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with this many panels of `width` x `height` inches, at most MAX_PANELS_ACROSS in a line."""
    down = math.ceil(panels / MAX_PANELS_ACROSS)
    across = math.ceil(panels / down)
    figure = Figure(figsize=(max(width * across + 0.8, 4.2), height * down + 0.5))
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for unused in axes[panels:]:
        unused.set_axis_off()
    for panel in axes[:panels]:
        panel.spines["left"].set_visible(True)
        panel.grid(axis="y", color="#e4e4e4", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.margins(x=0.08, y=0.1)
    return figure, axes[:panels]


def finish(figure: Figure, entries: Iterable[tuple[str, Artist]]) -> Image:
    """A figure's files, with a key above its panels, without date and software; to be called inside `styled`."""
    names, artists = zip(*entries, strict=True)
    # About 85 characters of the key's text fit beside each other in 6 inches.
    across = max(1, min(len(names), int(figure.get_figwidth() * 14 / (max(map(len, names)) + 7))))
    key_height = 0.1 + 0.17 * math.ceil(len(names) / across)
    figure.set_figheight(figure.get_figheight() + key_height)
    figure.legend(artists, names, loc="upper center", ncols=across, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0, 1, 1 - key_height / figure.get_figheight()), w_pad=1.5)
    text, pixels = io.StringIO(), io.BytesIO()
    # Not by `savefig`, which draws everything once more before it does so.
    FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    figure.set_dpi(PNG_DPI)
    FigureCanvasAgg(figure).print_png(pixels, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return Image(text.getvalue(), pixels.getvalue())


def line_color(place: int) -> str:
    """Of the line at a place of the key; after the last colour they begin again."""
    return PALETTE[place % len(PALETTE)]


def measured_on(report: Report, tasks: Iterable[str]) -> str:
    """What a caption says of the clip sets that tasks are measured on."""
    return f"data: {data_names(source.name for task in tasks for source in report.sources.get(task, ())[:1])}"


def data_names(names: Iterable[str]) -> str:
    """What a caption calls data sets."""
    return listed(dict.fromkeys(names)) or "no data set that is named"


def extent(numbers: Iterable[int]) -> str:
    """The smallest and the largest number: "2 to 5", or "5" where they are the same."""
    ordered = sorted(numbers)
    return " to ".join(map(str, dict.fromkeys((ordered[0], ordered[-1]))))


def is_unhealthy(state: str | None) -> bool:
    """Whether a run's state of health is drawn hollow: it collapsed or did not converge."""
    return state is not None and any(unhealthy({0: state}))


def has_unhealthy(cell: Cell) -> bool:
    """Whether a mean over a cell's runs is drawn hollow."""
    return any(is_unhealthy(state) for state in cell.health.values())


def marker(panel: Axes, name: str, x: float, y: float, color: str, hollow: bool) -> None:
    """One run's value; hollow where the run collapsed or did not converge."""
    inside, kind = ("white", "hollow") if hollow else (color, "run")
    panel.plot(x, y, "o", color=color, markersize=4, markerfacecolor=inside, gid=f"{kind}-{name}", zorder=3)


def hollow_entry(panel: Axes) -> tuple[str, Line2D]:
    """The key's entry of hollow markers."""
    return "collapsed or not converged", panel.plot([], [], "o", color=GREY, markersize=4, markerfacecolor="white")[0]


def paper_entry(panel: Axes) -> tuple[str, Line2D]:
    """The key's entry of published values."""
    return "paper", panel.plot([], [], "D", color=PAPER, markersize=4)[0]


def shorten(label: str) -> str:
    """A label of at most MAX_LABEL characters."""
    return label if len(label) <= MAX_LABEL else f"{label[: MAX_LABEL - 1]}…"


def file_name(table: str, index: int) -> str:
    """A table's own name if that can be one of a file, else with its number, so that no two are the same."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", table)
    return plain if plain == table else f"{plain}-{index}"
