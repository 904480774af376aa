"""Figures of a search: Optuna's own plots."""

import copy
import io
import warnings

import optuna
from optuna.trial import FrozenTrial

from orchestrator.search.resolve_space import SearchInputs
from orchestrator.search.trial_queue import TrialQueue

FIGURES = {
    "history.png": "plot_optimization_history",
    "slice.png": "plot_slice",
    "parallel.png": "plot_parallel_coordinate",
    "contour.png": "plot_contour",
}
"""Files, and what `optuna.visualization.matplotlib` draws in them."""
PARETO = "pareto.png"
"""Of two or three objectives."""
MAX_CONTOUR = 5
"""Dimensions of which each pair is drawn."""
RUNGS = "rungs.png"
"""Of a search with early stopping."""
MAX_LEGEND = 20
"""Trials that a legend names; of more, colours repeat."""
DRAWN = (RUNGS, PARETO, *FIGURES)
"""All files there may be."""


def figures(inputs: SearchInputs, graph: TrialQueue) -> dict[str, bytes]:
    """Of complete trials, and of the values of all at rungs: PNG by file name; none of fewer than two complete ones."""
    complete = [trial for trial in graph.trials if trial.values is not None]
    if len(complete) < 2:
        return {}
    plan, aims = inputs.plan, inputs.plan.study.aims
    import matplotlib  # It takes a second to import, which the start of a search need not wait for.
    import optuna.visualization.matplotlib as plots

    # Its plots call themselves experimental.
    with matplotlib.rc_context({"backend": "agg"}), warnings.catch_warnings(action="ignore"):
        from matplotlib import pyplot

        columns, drawn = len(inputs.dimensions), {}
        study = optuna.create_study(directions=[aim.direction for aim in aims])
        study.add_trials(complete)

        def keep(name: str, width: float, height: float) -> None:
            figure, stream = pyplot.gcf(), io.BytesIO()
            figure.set_size_inches(width, height)
            figure.savefig(stream, format="png", dpi=110, bbox_inches="tight")
            pyplot.close("all")
            drawn[name] = stream.getvalue()

        if plan.rungs is not None:
            rungs = optuna.create_study(direction=aims[0].direction)
            rungs.add_trials([_with_end(trial, plan.rungs.steps) for trial in graph.trials])
            legend = plots.plot_intermediate_values(rungs).get_legend()
            if legend is not None and len(graph.trials) > MAX_LEGEND:
                legend.remove()
            keep(RUNGS, 7, 4)
        if 2 <= len(aims) <= 3:
            plots.plot_pareto_front(study, target_names=[aim.metric for aim in aims])
            keep(PARETO, 7, 5)
        for name, plot in FIGURES.items() if len(aims) == 1 else ():
            if name == "contour.png" and not 2 <= columns <= MAX_CONTOUR:
                continue
            getattr(plots, plot)(study, target_name=aims[0].metric)
            keep(name, max(7, 3.2 * columns), 3.2 * columns if name == "contour.png" else 4)
    return drawn


def _with_end(trial: FrozenTrial, steps: int) -> FrozenTrial:
    """With the value of a trial that came to its end as one more rung."""
    shown = copy.copy(trial)
    shown.intermediate_values = trial.intermediate_values | ({steps: trial.value} if trial.value is not None else {})
    return shown
