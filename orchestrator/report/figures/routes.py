"""The paper's Figure 4: the block that each task takes in each encoder layer after joint training."""

from itertools import combinations

from matplotlib.axes import Axes

from orchestrator.report.figures.style import Drawing, finish, grid, line_color, measured_on, styled
from orchestrator.report.model import Report, Route
from ups_model.wording import count

GAP = 0.07
"""Between the paths of two tasks through one block, in blocks."""
EDGE = 0.1
"""From a block's middle to where a path begins or ends, in layers."""


def routes(report: Report) -> Drawing | None:
    """A panel an arm, a colour a task, a thin line a seed; None where no run has routes."""
    arms = {arm: [route for route in report.routes if route.arm == arm] for arm in {r.arm: None for r in report.routes}}
    tasks = [task for task in report.plan.titles if any(task in route.blocks for route in report.routes)]
    if not tasks:
        return None
    titles = report.plan.titles
    colors = {task: line_color(place) for place, task in enumerate(titles)}
    with styled():
        figure, panels = grid(len(arms), 2.6, 2.0)
        for index, (panel, (arm, of_arm)) in enumerate(zip(panels, arms.items(), strict=True)):
            _panel(panel, of_arm, {task: colors[task] for task in tasks}, index)
            panel.set_title(arm, fontsize=8)
        lines = [panels[0].plot([], [], "-", color=colors[task], linewidth=1.4)[0] for task in tasks]
        entries = [(titles[task], line) for task, line in zip(tasks, lines, strict=True)]
        image = finish(figure, entries)
    seeds = len({route.seed for route in report.routes})
    return Drawing(
        name="routes",
        title="Routes",
        caption="The block that each task takes in each encoder layer after joint training (the paper's Figure 4), one "
        f"thin line a seed, and below how often two tasks share a block, over layers and seeds; n = "
        f"{count(seeds, 'seed')}; {measured_on(report, tasks)}.",
        image=image,
        table=_table(arms, {task: titles[task] for task in tasks}),
    )


def _panel(panel: Axes, of_arm: list[Route], colors: dict[str, str], index: int) -> None:
    blocks = max(route.blocks_per_layer for route in of_arm)
    layers = max(len(path) for route in of_arm for path in route.blocks.values())
    for layer in range(layers):
        at, name = ([layer] * blocks, range(blocks)), f"blocks-{index}-{layer}"
        panel.plot(*at, "s", color="#dddddd", markersize=17, zorder=0, gid=name)
    for place, (task, color) in enumerate(colors.items()):
        for route in of_arm:
            if task in route.blocks:
                offset = GAP * (place - (len(colors) - 1) / 2)
                path = route.blocks[task]
                # A path ends at the edges of its blocks: one of a single layer would have no length.
                places = [-EDGE, *range(len(path)), len(path) - 1 + EDGE]
                ends = [block + offset for block in (path[0], *path, path[-1])]
                name = f"path-{index}-{task}-{route.seed}"
                panel.plot(places, ends, "-", color=color, gid=name, linewidth=1.1, alpha=0.6)
    panel.grid(visible=False)
    panel.set_xticks(range(layers), [str(layer + 1) for layer in range(layers)])
    panel.set_yticks(range(blocks))
    panel.set_xlim(-0.4, layers - 0.6)
    # One block alone would be drawn so small that paths run beside it.
    panel.set_ylim(-0.5 - (blocks < 2) / 2, blocks - 0.5 + (blocks < 2) / 2)
    panel.set_xlabel("encoder layer")
    panel.set_ylabel("block")


def shared(of_arm: list[Route], one: str, other: str) -> float | None:
    """Share of layers, over all seeds, in which two tasks take the same block; None where no run has both."""
    same = [
        a == b
        for route in of_arm
        if one in route.blocks and other in route.blocks
        for a, b in zip(route.blocks[one], route.blocks[other], strict=True)
    ]
    return sum(same) / len(same) if same else None


def _table(arms: dict[str, list[Route]], titles: dict[str, str]) -> tuple[tuple[str, ...], ...]:
    lines = []
    for one, other in combinations(titles, 2):
        shares = [shared(of_arm, one, other) for of_arm in arms.values()]
        texts = ["—" if share is None else f"{100 * share:.0f} %" for share in shares]
        lines.append((f"{titles[one]} and {titles[other]}", *texts))
    return (("Tasks that share a block", *arms), *lines) if lines else ()
