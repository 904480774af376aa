"""The report's section of figures: what is in them, read from their SVG; when there are none."""

import re

from orchestrator.report import build, files
from orchestrator.report.figures.factor import numeric
from orchestrator.report.figures.routes import shared
from orchestrator.report.model import Route
from search_spaces.columns import EAP
from tests.support.report_cases import finished, keys_of, plan_file_of, plan_of, records_of
from ups_model.evaluation.health import TaskHealth

GOOD, COLLAPSED = ((10, 50.0), (20, 80.0), (30, 80.5)), ((10, 50.0), (20, 80.0), (30, 5.0))


def texts_of(plan, records):
    return files(build(plan_file_of(plan), records))


def with_health(plan, records, row, curve):
    for key in keys_of(plan, row):
        health = {"ar3d": TaskHealth("ar3d/top1", 4.0, curve).to_plain()}
        records[key] = finished(key, {"ar3d/top1": 80.0, "ar3d/clips": 100.0}, health=health)
    return records


def ids(svg, prefix):
    return re.findall(rf'id="({prefix}[^"]*)"', svg)


def test_a_measure_is_drawn_against_the_rows_with_a_line_a_seed():
    plan = plan_of()
    svg = texts_of(plan, records_of(plan, {"thin": (80, 81, 82), "full": (83, 84, None)}))["figures/factor-depth.svg"]
    assert len(ids(svg, "seed-0-")) == 3
    # Seed 2 has one of two rows: five runs in the first panel, all of them filled; two published values.
    assert (len(ids(svg, "run-0-")), len(ids(svg, "hollow-0-")), len(ids(svg, "paper-0-"))) == (5, 0, 2)


def test_collapsed_runs_are_hollow():
    plan = plan_of()
    records = records_of(plan, {"thin": (80, 81, 82), "full": (83, 84, 85)})
    svg = texts_of(plan, with_health(plan, records, "thin", COLLAPSED))["figures/factor-depth.svg"]
    assert (len(ids(svg, "run-0-")), len(ids(svg, "hollow-0-"))) == (3, 3)


def test_learning_curves_and_routes_are_there_with_their_data_alone():
    plan = plan_of()
    records = records_of(plan, {"thin": (80, 81, 82), "full": (83, 84, 85)})
    plain = texts_of(plan, records)
    assert [name for name in plain if name.startswith("figures/")] == ["figures/factor-depth.svg"]
    judged = texts_of(plan, with_health(plan, dict(records), "full", GOOD))
    assert "figures/learning-curves.svg" in judged
    assert "n = 3 curves of 3 seeds" in judged["report.md"] and "SYNTHETIC DATA." in judged["report.md"]


def test_early_prediction_is_drawn_against_the_share_observed():
    plan = plan_of(rows=rows_without_values(), columns=EAP)
    keys = {label: keys_of(plan, label, "eap") for label in ("thin", "full")}
    records = {
        key: finished(key, {column.metric: 50.0 + place + seed for place, column in enumerate(EAP)})
        for label in keys
        for seed, key in enumerate(keys[label])
    }
    svg = texts_of(plan, records)["figures/early-depth.svg"]
    assert len(ids(svg, "arm-")) == 2
    assert len(ids(svg, "spread-")) == 2 * 3


def rows_without_values():
    from search_spaces.study import Row

    return (Row("thin", {"encoder_layers": 1}, "joint"), Row("full", {"encoder_layers": 2}, "joint"))


def test_tasks_share_a_block_as_counted_by_hand():
    routes = [
        Route("base", 0, {"pe": (0, 1, 1), "eap": (0, 1, 0)}, 2),
        Route("base", 1, {"pe": (1, 1, 1), "eap": (0, 0, 0)}, 2),
    ]
    assert shared(routes, "pe", "eap") == 2 / 6
    assert shared(routes, "pe", "ar3d") is None


def test_labels_are_numbers_if_all_are_and_differ():
    assert numeric(["1", "3", "5"]) == [1, 3, 5]
    assert numeric(["1", "many"]) == numeric(["1", "1.0"]) == numeric(["1", "inf"]) == []


def test_the_page_needs_no_other_file_and_is_the_same_twice():
    plan = plan_of()
    records = with_health(plan, records_of(plan, {"thin": (80, 81, 82), "full": (83, 84, 85)}), "full", GOOD)
    first, second = texts_of(plan, records), texts_of(plan, records)
    assert first == second
    page = first["report.html"]
    assert "<h2>Figures</h2>" in page and page.count("<svg") == 3
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', page)
