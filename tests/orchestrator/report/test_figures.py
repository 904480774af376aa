"""The report's section of figures, read from outside: what the SVGs show, and where they appear."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from orchestrator.report import build, files
from search_spaces.columns import ABLATION, EAP
from search_spaces.study import Row
from tests.orchestrator.report.test_report_formats import Page
from tests.support.report_cases import finished, keys_of, plan_file_of, plan_of
from ups_model.evaluation.health import TaskHealth

SVG = "{http://www.w3.org/2000/svg}"
ROWS = (
    Row("1", {"encoder_layers": 1}, "joint", published=(88.0, 42.0, 52.05, 74.14, 84.29)),
    Row("2", {"encoder_layers": 2}, "joint", published=(89.3, 40.8, 53.25, 75.06, 85.35)),
    Row("3", {"encoder_layers": 3}, "joint"),
)
SEEDS = 2
GOOD = TaskHealth("ar3d/top1", 4.0, ((48, 60.0), (96, 70.0), (144, 80.0), (192, 81.0), (240, 81.5)))
FALLEN = TaskHealth("ar3d/top1", 4.0, ((48, 60.0), (96, 70.0), (144, 80.0), (192, 30.0), (240, 5.0)))


def report(health=True, routes=True, rows=ROWS, columns=ABLATION):
    """Three rows of two seeds; seed 1 of the last row collapsed in recognition and took another block."""
    plan = plan_of(rows, columns, seeds=SEEDS, baseline=rows[-1].label)
    records = {}
    for place, row in enumerate(rows):
        for seed, key in enumerate(keys_of(plan, row.label, columns[0].task)):
            last = place == len(rows) - 1 and seed == 1
            metrics = {column.metric: 50.0 + 3 * place + seed + index for index, column in enumerate(columns)}
            more = {}
            if health:
                more["health"] = {"ar3d": (FALLEN if last else GOOD).to_plain()}
            if routes:
                more["routes"] = {"pe": [0, 1], "ar3d": [0, int(last)]}
            records[key] = finished(key, metrics, **more)
    return build(plan_file_of(plan), records)


def names_in(svg):
    """Counts of what is drawn, by the first part of each element's name."""
    names = [node.get("id", "") for node in ElementTree.fromstring(svg).iter()]
    return Counter(name.partition("-")[0] for name in names if "-" in name)


def texts_in(svg):
    return [node.text for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def figures(made):
    return {name: text for name, text in files(made).items() if re.match(r"figures/.*\.svg", name)}


def test_the_figures_draw_no_interval_and_no_full_mark_where_the_text_makes_no_statement():
    sound, withheld = (files(report(health=health))["tables/depth.svg"] for health in (False, True))
    key = "no statement: runs failed, collapsed or did not converge"
    assert key in texts_in(withheld) and key not in texts_in(sound)
    assert names_in(sound)["hollow"] == 0 < names_in(withheld)["hollow"]
    (early,) = (text for name, text in files(report()).items() if re.match(r"figures/early.*\.svg", name))
    assert names_in(early)["hollow"] == 0, "what collapsed is recognition"


@pytest.mark.slow
def test_the_factor_figure_has_a_line_a_seed_and_panel_and_hollow_marks_where_a_run_collapsed():
    svg = figures(report())["figures/factor-depth.svg"]
    drawn = names_in(svg)
    assert drawn["seed"] == SEEDS * len(ABLATION)
    # The collapsed run was judged in recognition alone, which is one column.
    assert (drawn["hollow"], drawn["run"]) == (1, 3 * SEEDS * len(ABLATION) - 1)
    assert drawn["paper"] == 2 * len(ABLATION)
    shown = texts_in(svg)
    assert {column.title for column in ABLATION} <= set(shown) and {"1", "2", "3", "Layers", "paper"} <= set(shown)


@pytest.mark.slow
def test_a_factor_that_is_no_number_has_its_labels_below_the_panels():
    rows = tuple(replace(row, label=label) for row, label in zip(ROWS, ("none", "one $x$", "several <b>"), strict=True))
    assert {"none", "one $x$", "several <b>"} <= set(texts_in(figures(report(rows=rows))["figures/factor-depth.svg"]))


@pytest.mark.slow
def test_learning_curves_have_a_line_a_run_and_the_trivial_answer():
    svg = figures(report())["figures/learning-curves.svg"]
    drawn = names_in(svg)
    assert (drawn["curve"], drawn["trivial"], drawn["hollow"]) == (3 * SEEDS, 1, 1)
    assert {"3D action recognition", "trivial answer", "collapsed or not converged"} <= set(texts_in(svg))


@pytest.mark.slow
def test_the_routes_figure_has_a_path_a_task_and_seed_and_says_how_often_tasks_share_a_block():
    texts = files(report())
    assert names_in(texts["figures/routes.svg"])["path"] == 3 * 2 * SEEDS
    # Of two layers x two seeds: the same block in layer 1 alone, and in both layers of the last row's seed 1.
    (line,) = [line for line in texts["report.md"].splitlines() if "pose estimation and 3D action" in line]
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["50 %", "50 %", "75 %"]


@pytest.mark.slow
def test_early_prediction_has_a_line_an_arm_with_the_seeds_spread_and_published_values():
    svg = figures(report())["figures/early-depth.svg"]
    drawn = names_in(svg)
    assert (drawn["arm"], drawn["spread"], drawn["paper"]) == (3, 3 * len(EAP), 2)
    assert {"observed (%)", "20", "40", "60"} <= set(texts_in(svg))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"health": False}, "learning-curves"),
        ({"routes": False}, "routes"),
        ({"columns": ABLATION[:2], "rows": tuple(replace(row, published=()) for row in ROWS)}, "early-depth"),
        ({"rows": ROWS[:1]}, "factor-depth"),
    ],
)
def test_a_figure_appears_only_where_its_data_are(options, missing):
    everything, without = figures(report()), files(report(**options))
    assert f"figures/{missing}.svg" in everything and f"figures/{missing}.svg" not in without
    assert f"figures/{missing}.svg" not in without["report.md"]


def test_a_report_without_records_has_no_section_of_figures():
    texts = files(build(plan_file_of(plan_of()), {}))
    assert not any(name.startswith("figures/") for name in texts)
    assert "## Figures" not in texts["report.md"] and ">Figures<" not in texts["report.html"]


@pytest.mark.slow
def test_the_same_report_gives_the_same_bytes():
    assert files(report()) == files(report())


@pytest.mark.slow
def test_every_figure_has_a_picture_of_the_same_shape_beside_it():
    texts = files(report())
    names = {name.rpartition(".")[0] for name in texts if name.endswith(".svg")}
    assert names == {name.rpartition(".")[0] for name in texts if name.endswith(".png")}
    assert {name.partition("/")[0] for name in names} == {"tables", "figures"}
    for name in names:
        content = texts[f"{name}.png"]
        assert content.startswith(b"\x89PNG") and not re.search(rb"tEXt|tIME|iTXt|atplotlib", content)
        width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
        # An SVG is in points, 72 an inch.
        root = ElementTree.fromstring(texts[f"{name}.svg"])
        points = [float(root.get(side).removesuffix("pt")) for side in ("width", "height")]
        assert [width * 72 / 150, height * 72 / 150] == pytest.approx(points, abs=1)


@pytest.mark.slow
def test_the_page_shows_every_figure_and_needs_no_other_file():
    texts = files(report())
    page = Page(texts["report.html"])
    assert texts["report.html"].count("<svg") == sum(name.endswith(".svg") for name in texts)
    assert all(address.startswith("#") for address in page.addresses)
    assert not re.search(r"@import|url\((?!#)|\bfetch\(|XMLHttpRequest|<link|<iframe|\bsrc=", texts["report.html"])
    assert [name for name, times in Counter(page.ids).items() if times > 1] == []


@pytest.mark.slow
def test_every_figure_is_linked_in_markdown_with_a_caption_that_says_n_and_data():
    texts = files(report())
    section = texts["report.md"].split("## Figures")[1]
    links = re.findall(r"\]\((figures/[^)]*)\)", section)
    assert sorted(links) == sorted(figures(report()))
    captions = [line for line in section.splitlines() if line.startswith("*")]
    assert len(captions) == len(links)
    assert all("n = " in caption and "data: synthetic" in caption for caption in captions)


@pytest.mark.slow
def test_sorting_keeps_a_rows_own_line_and_the_papers_together():
    text = files(report())["report.html"]
    groups = re.findall(r"<tbody>(.*?)</tbody>", text, re.DOTALL)
    pairs = [re.findall(r'<tr class="(\w+)"', group) for group in groups]
    assert [pair for pair in pairs if pair][:3] == [["ours", "paper"]] * 3
