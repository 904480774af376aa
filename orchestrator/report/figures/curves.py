"""Learning curves: the validation metric by which a run's health is judged, at each fifth of its steps."""

from matplotlib.axes import Axes

from orchestrator.report.figures.style import (
    GREY,
    Drawing,
    finish,
    grid,
    hollow_entry,
    is_unhealthy,
    line_color,
    marker,
    measured_on,
    styled,
)
from orchestrator.report.model import Curve, Report
from ups_model.wording import count


def learning_curves(report: Report) -> Drawing | None:
    """A panel a task, a colour an arm, a thin line a run; None where no run was judged."""
    if not report.curves:
        return None
    tasks = [task for task in report.plan.titles if any(curve.task == task for curve in report.curves)]
    arms = {arm: line_color(place) for place, arm in enumerate(dict.fromkeys(map(_arm, report.curves)))}
    with styled():
        figure, panels = grid(len(tasks), 2.5, 2.2)
        for panel, task in zip(panels, tasks, strict=True):
            curves = [curve for curve in report.curves if curve.task == task]
            _panel(panel, curves, arms)
            panel.set_title(report.plan.titles[task], fontsize=8)
        entries = [(arm, panels[0].plot([], [], "-", color=color, linewidth=1.2)[0]) for arm, color in arms.items()]
        entries.append(("trivial answer", panels[0].plot([], [], "--", color=GREY, linewidth=0.8)[0]))
        if any(is_unhealthy(curve.state) for curve in report.curves):
            entries.append(hollow_entry(panels[0]))
        image = finish(figure, entries)
    seeds = len({curve.seed for curve in report.curves})
    return Drawing(
        name="learning-curves",
        title="Learning curves",
        caption="Metric on the validation subjects at each fifth of a run, one thin line a seed, fine-tuning after the "
        "joint training that it starts from, whose runs stand in no cell themselves; "
        f"n = {count(len(report.curves), 'curve')} of {count(seeds, 'seed')}; "
        f"{measured_on(report, tasks)}.",
        image=image,
    )


def _arm(curve: Curve) -> str:
    ends = curve.arm == "separate" or curve.arm.endswith(", separate")
    return f"{curve.arm}, separate" if curve.stage == "separate" and not ends else curve.arm


def _panel(panel: Axes, curves: list[Curve], arms: dict[str, str]) -> None:
    task = curves[0].task
    for curve in curves:
        name = f"{task}-{list(arms).index(_arm(curve))}-{curve.stage}-{curve.seed}"
        steps = [curve.first_step + step for step, _ in curve.points]
        values = [value for _, value in curve.points]
        color = arms[_arm(curve)]
        panel.plot(steps, values, "-", color=color, linewidth=0.9, alpha=0.75, gid=f"curve-{name}")
        if is_unhealthy(curve.state):
            marker(panel, name, steps[-1], values[-1], color, hollow=True)
    for place, trivial in enumerate(sorted({curve.trivial for curve in curves})):
        panel.axhline(trivial, linestyle="--", color=GREY, linewidth=0.8).set_gid(f"trivial-{task}-{place}")
    metric = curves[0].metric
    panel.set_ylabel(f"{metric.partition('/')[2].removesuffix('_mm')} ({'mm ↓' if metric.endswith('_mm') else '% ↑'})")
    panel.set_xlabel("step")
