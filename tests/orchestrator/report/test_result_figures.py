"""Figures of what the study claims and of single test results, read from outside."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from orchestrator.planning.plan_file import PlanFile
from orchestrator.record import Record
from orchestrator.report import build, files
from orchestrator.report.figures.confusion import LIGHT, SHADES
from orchestrator.report.model import NewSubjects, Route
from search_spaces.columns import ABLATION
from search_spaces.study import Claim
from tests.orchestrator.report.test_figures import names_in, texts_in
from tests.orchestrator.report.test_report_formats import Page
from tests.support.report_cases import ROWS, finished, keys_of, plan_file_of, plan_of, records_of

SHARP = {"thin": (80.0, 80.4, 79.8), "full": (83.0, 83.3, 82.9)}
BETTER = Claim("Two layers beat one", "depth", "full", "thin", "ar3d/top1", "superior")
EQUAL = Claim("Equal within 4", "depth", "thin", "full", "ar3d/top1", "equivalent", 4.0, "of seeds")
SMALLER = Claim("One millimetre better", "depth", "full", "thin", "pe/mpjpe_mm", "superior", 1.0, "of use")


def claiming(*claims, accuracies=SHARP):
    plan = plan_of(seeds=3)
    plan = replace(plan, study=replace(plan.study, claims=claims))
    errors = {"thin": (50.0, 52.0, 51.0), "full": (48.0, 49.0, 50.5)}
    return build(plan_file_of(plan), records_of(plan, accuracies, errors))


def node_of(svg, name):
    return next(node for node in ElementTree.fromstring(svg).iter() if node.get("id") == name)


def ends_of(svg, name):
    """x of the two ends of a straight line."""
    (path,) = [node.get("d") for node in node_of(svg, name).iter() if node.get("d")]
    return [float(x) for x in re.findall(r"[ML] (\S+) \S+", path)]


def place_of(svg, name):
    """x of a marker."""
    return next(float(node.get("x")) for node in node_of(svg, name).iter() if node.tag.endswith("use"))


# --- routes


@pytest.mark.slow
def test_a_route_through_one_layer_or_one_block_is_drawn_within_its_block():
    for layers, blocks in ((1, 2), (3, 1)):
        of_arm = {task: (blocks - 1,) * layers for task in ("pe", "ar2d", "eap", "ar3d")}
        svg = files(replace(claiming(), routes=(Route("base", 0, of_arm, blocks),)))["figures/routes.svg"]
        paths = {task: ends_of(svg, f"path-0-{task}-0") for task in of_arm}
        assert all(max(places) - min(places) > 5 for places in paths.values()), "it has a length"
        (squares,) = [
            [float(node.get("y")) for node in group.iter() if node.tag.endswith("use")]
            for group in [next(node for node in ElementTree.fromstring(svg).iter() if node.get("id") == "blocks-0-0")]
        ]
        heights = [
            float(y)
            for task in of_arm
            for node in node_of(svg, f"path-0-{task}-0").iter()
            for y in re.findall(r"[ML] \S+ (\S+)", node.get("d") or "")
        ]
        half = 17 / 2  # Of a square, in points, which are the picture's units.
        assert min(squares) - half <= min(heights) and max(heights) <= max(squares) + half


# --- claims


@pytest.mark.slow
def test_the_forest_has_a_line_a_claim_a_panel_a_unit_and_the_verdicts():
    made = claiming(BETTER, EQUAL, SMALLER)
    svg = files(made)["figures/claims.svg"]
    drawn = names_in(svg)
    assert (drawn["effect"], drawn["interval"], drawn["margin"]) == (3, 3, 2)
    assert {"effect (points), better →", "effect (mm), better →"} <= set(texts_in(svg))
    assert [text for text in texts_in(svg) if text in ("supported", "contradicted", "undecided", "withheld")] == [
        result.verdict for result in made.claims
    ]


def test_the_papers_diamond_and_the_margin_stand_at_their_values():
    made = claiming(BETTER, EQUAL, SMALLER)
    svg = files(made)["figures/claims.svg"]
    for name, published in (("0", 1.3), ("1", -1.3), ("2", 1.2)):
        result = made.claims[int(name)]
        left, right = ends_of(svg, f"interval-{name}")
        scale = (right - left) / (result.high - result.low)
        # Better is to the right: fewer millimetres too.
        assert place_of(svg, f"paper-{name}") == pytest.approx(left + scale * (published - result.low), abs=0.01)
        assert place_of(svg, f"effect-{name}") == pytest.approx((left + right) / 2, abs=0.01)
        if result.claim.kind == "superior" and result.claim.margin:
            assert ends_of(svg, f"margin-{name}") == pytest.approx([left + scale * (1.0 - result.low)] * 2, abs=0.01)
        if result.claim.kind == "equivalent":
            band = ends_of(svg, f"margin-{name}")
            assert max(band) - min(band) == pytest.approx(8 * scale, abs=0.01)


@pytest.mark.slow
def test_intervals_for_new_subjects_are_drawn_where_there_are_any():
    made = claiming(BETTER, EQUAL)
    assert "subjects" not in names_in(files(made)["figures/claims.svg"])
    new = tuple(replace(result, new_subjects=NewSubjects(1.0, -1.0, 3.0, 9)) for result in made.claims[:1])
    svg = files(replace(made, claims=(*new, *made.claims[1:])))["figures/claims.svg"]
    assert names_in(svg)["subjects"] == 1 and "95 % interval for new subjects" in texts_in(svg)


@pytest.mark.slow
def test_a_withheld_claim_is_grey_and_one_without_a_pair_has_its_verdict_alone():
    missing = claiming(BETTER, accuracies={"thin": (80.0, None, None), "full": (None, 83.0, 82.0)})
    (result,) = missing.claims
    svg = files(missing)["figures/claims.svg"]
    assert (result.verdict, result.mean) == ("withheld", None)
    assert names_in(svg)["effect"] == 0 and "withheld" in texts_in(svg)
    partly = files(claiming(BETTER, accuracies={"thin": SHARP["thin"], "full": (83.0, 82.0, None)}))
    grey = ElementTree.tostring(node_of(partly["figures/claims.svg"], "effect-0"), encoding="unicode")
    assert "#767676" in grey and "#1f5fa8" not in grey


@pytest.mark.slow
def test_the_forest_stands_with_the_table_of_claims():
    texts = files(claiming(BETTER))
    top = texts["report.md"].split("## Runs")[0]
    assert (
        "](figures/claims.svg)" in top
        and "n = 3 paired seeds" in top
        and "SYNTHETIC DATA." in top.split("*Claims.*")[1]
    )
    page = texts["report.html"]
    assert page.index(">Claims</h2>") < page.index("<svg") < page.index(">Runs</h2>")
    ids = Page(page).ids
    assert len(ids) == len(set(ids))
    without = files(claiming())
    assert "figures/claims.svg" not in without and "figures/claims.svg" not in without["report.md"]


# --- confusions

NAMES = ("sit", "stand", "walk")
TRUE = [0, 0, 0, 1, 1, 2]
PREDICTED = {0: [0, 0, 1, 1, 1, 0], 1: [0, 1, 1, 1, 2, 0]}
COUNTS = ((3, 3, 0), (0, 3, 1), (2, 0, 0))
"""Of both seeds together, counted by hand."""


def classified(predicted, classes=NAMES, true=TRUE, task="ar3d", suffixes=("",)):
    """A report whose baseline row has these predictions by seed; the other row has other ones."""
    rows = tuple(replace(row, published=()) for row in ROWS)
    plan = plan_of(rows, columns=ABLATION, seeds=len(predicted))
    plan_file = plan_file_of(plan)
    data = {name: replace(facts, classes=classes) for name, facts in plan_file.data.items()}
    outcomes, records = {}, {}
    for label in ("full", "thin"):
        for seed, key in enumerate(keys_of(plan, label, task)):
            place = f"{task}/synthetic_ntu25/"
            records[key] = finished(key, {"ar3d/top1": 50.0})
            outcomes[key] = {f"{place}label": np.array(true, np.int16)}
            answers = predicted[seed] if label == "full" else np.zeros(len(true))
            outcomes[key] |= {f"{place}predicted{suffix}": np.array(answers, np.int16) for suffix in suffixes}
    return replace(plan_file, data=data), records, outcomes


def counts_in(svg):
    nodes = {node.get("id", ""): node for node in ElementTree.fromstring(svg).iter()}
    names = [name for name in nodes if name.startswith("count-")]
    return {tuple(map(int, name.split("-")[1:])): int("".join(nodes[name].itertext())) for name in names}


@pytest.mark.slow
def test_the_confusion_matrix_sums_the_baselines_runs_and_names_the_classes():
    plan, records, outcomes = classified(PREDICTED)
    made = build(plan, records, outcomes.get)
    (matrix,) = made.confusions
    assert (matrix.counts, matrix.seeds, matrix.row) == (COUNTS, 2, "full")
    texts = files(made)
    svg = texts["figures/confusion-ar3d.svg"]
    assert counts_in(svg) == {(i, j): COUNTS[i][j] for i in range(3) for j in range(3) if COUNTS[i][j]}
    assert [text for text in texts_in(svg) if text in NAMES] == [*NAMES, *NAMES]
    # 3 + 3 of 12 are on the diagonal.
    assert "n = 12 clips of 2 seeds, 50.0 % of them right; data: synthetic_ntu25." in texts["report.md"]


@pytest.mark.slow
def test_cells_are_shaded_by_the_share_of_their_true_class():
    plan, records, outcomes = classified({0: [0] * 9 + [1] + [2] * 2}, true=[0] * 10 + [1] * 2)
    svg = files(build(plan, records, outcomes.get))["figures/confusion-ar3d.svg"]
    # 9 of 10 and 2 of 2 are above 75 %, 1 of 10 is at 10 %: two shades, two cells and one.
    corners = {level: node_of(svg, f"cells-{level}").find(".//{*}path").get("d").count("z") for level in (0, 4)}
    assert names_in(svg)["cells"] == 2 and corners == {0: 1, 4: 2}


def test_counts_stand_out_from_every_shade():
    def luminance(color):
        parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for upper, color in SHADES:
        background, text = luminance(color), 1.0 if upper > LIGHT else 0.0
        assert (max(background, text) + 0.05) / (min(background, text) + 0.05) >= 4.5, color  # WCAG 2, level AA.


@pytest.mark.slow
def test_without_names_and_with_runs_that_failed_or_left_no_results_it_has_numbers_of_the_others():
    plan, records, outcomes = classified({**PREDICTED, 2: TRUE}, classes=())
    first, second = [key for key, unit in plan.units.items() if key in plan.tables[0].rows[1].units["ar3d"]][:2]
    records[first] = Record(first, "failed", error="Boom")
    del outcomes[second]
    (matrix,) = build(plan, records, outcomes.get).confusions
    assert (matrix.seeds, matrix.counts) == (1, ((3, 0, 0), (0, 2, 0), (0, 0, 1)))
    texts = files(build(plan, records, outcomes.get))
    assert {"0", "1", "2"} <= set(texts_in(texts["figures/confusion-ar3d.svg"]))
    assert "classes by their number from 0" in texts["report.md"]


def test_no_results_by_clip_no_confusions():
    plan, records, _ = classified(PREDICTED)
    assert build(plan, records).confusions == ()
    assert build(plan, {}, {}.get).confusions == ()


def test_names_that_do_not_fit_the_numbers_are_left_out():
    plan, records, outcomes = classified({0: [0, 0, 0, 1, 1, 5]})
    (matrix,) = build(plan, records, outcomes.get).confusions
    assert len(matrix.counts) == 6 and matrix.classes == ()


@pytest.mark.slow
def test_early_prediction_is_shown_at_its_middle_ratio():
    plan, records, outcomes = classified(PREDICTED, task="eap", suffixes=("@0.2", "@0.4", "@0.6"))
    made = build(plan, records, outcomes.get)
    (matrix,) = made.confusions
    assert (matrix.task, matrix.ratio, matrix.counts) == ("eap", "0.4", COUNTS)
    assert "40 % observed" in files(made)["report.md"]


@pytest.mark.slow
def test_many_classes_have_the_most_frequent_confusions_as_a_table():
    names = tuple(f"class {number}" for number in range(60))
    true = [0] * 4 + list(range(60)) + [7] * 5
    predicted = [3, 3, 3, 0, *range(60), 9, 9, 8, 7, 7]
    plan, records, outcomes = classified({0: predicted}, classes=names, true=true)
    texts = files(build(plan, records, outcomes.get))
    assert counts_in(texts["figures/confusion-ar3d.svg"]) == {}
    lines = texts["report.md"].split("| True class |")[1].splitlines()[2:5]
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines] == [
        ["class 0", "class 3", "3", "60.0 %"],
        ["class 7", "class 9", "2", "33.3 %"],
        ["class 7", "class 8", "1", "16.7 %"],
    ]


def test_names_of_classes_survive_the_plan_and_plans_without_them_can_be_read():
    plan, _, _ = classified(PREDICTED)
    assert PlanFile.from_json(plan.to_json()) == plan
    plain = json.loads(plan.to_json())
    for facts in plain["data"].values():
        del facts["classes"]
    former = PlanFile.from_json(json.dumps(plain))
    assert former.name == plan.name and all(facts.classes == () for facts in former.data.values())


# --- poses


def posed(**changes):
    """A report whose baseline row's first seed has examples: the prediction is the truth moved by 30, 60 and 90 mm."""
    plan = plan_file_of(plan_of(seeds=2))
    truth = np.tile(np.array([[0, 0, 0], [0, -500, 100], [300, -500, 100]], float), (3, 1, 1))
    moved = np.array([30, 60, 90], float)[:, None, None] * [1, 0, 0]
    arrays = {
        "frames": np.array([1000, 234]),
        "example_clip": np.array([4, 5, 6]),
        "example_camera": np.array([0, 1, 0]),
        "example_frame": np.array([7, 8, 9]),
        "example_bones": np.array([[1, 0], [2, 1]]),
        "example_input": np.tile([[0, 0], [0, 0.5], [0.25, 0.5]], (3, 1, 1)),
        "example_truth_mm": truth,
        "example_pose_mm": truth + moved,
    }
    arrays = {name: value for name, value in {**arrays, **changes}.items() if value is not None}
    keys = plan.tables[0].rows[1].units["pe"]
    own = {f"pe/synthetic_h36m17/{name}": value for name, value in arrays.items()}
    records = {key: finished(key, {"pe/mpjpe_mm": 50.0}) for key in plan.units}
    return plan, records, {keys[0]: own}


@pytest.mark.slow
def test_poses_are_drawn_to_scale_with_their_errors():
    plan, records, outcomes = posed()
    texts = files(build(plan, records, outcomes.get))
    svg = texts["figures/poses.svg"]
    (left, right) = ends_of(svg, "scale-bar")
    for place, moved in enumerate((30, 60, 90)):
        truth, predicted = (ends_of(svg, f"{name}-front-{place}") for name in ("truth", "predicted"))
        shift = {round(ours - theirs, 3) for ours, theirs in zip(predicted, truth, strict=True)}
        assert len(shift) == 1 and shift.pop() == pytest.approx((right - left) * moved / 500, abs=0.02)
        # Seen from the side, a shift across the picture is none.
        assert ends_of(svg, f"truth-side-{place}") == ends_of(svg, f"predicted-side-{place}")
    drawn = names_in(svg)
    assert (drawn["input"], drawn["truth"], drawn["predicted"]) == (3, 6, 6)
    shown = " ".join(text for text in texts_in(svg) if text)
    for text in ("best: 30.0 mm", "median: 60.0 mm", "worst: 90.0 mm", "clip 5, camera 1, frame 8"):
        assert text in shown
    assert "n = 1,234 frames; data: synthetic_h36m17. SYNTHETIC DATA." in texts["report.md"]


def test_the_head_is_up():
    plan, records, outcomes = posed()
    svg = files(build(plan, records, outcomes.get))["figures/poses.svg"]
    for name in ("truth-front-0", "truth-side-0"):
        (path,) = [node.get("d") for node in node_of(svg, name).iter() if node.get("d")]
        child, parent = (float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)[:2])
        # Joint 1 is half a metre above joint 0, and y of a picture points down.
        assert child < parent


@pytest.mark.slow
def test_joints_that_are_not_numbers_leave_gaps():
    plan, records, outcomes = posed(example_input=np.full((3, 3, 2), np.nan))
    drawn = names_in(files(build(plan, records, outcomes.get))["figures/poses.svg"])
    assert (drawn["truth"], drawn["predicted"]) == (6, 6)


def test_runs_measured_before_there_were_examples_have_no_poses():
    plan, records, outcomes = posed(example_pose_mm=None)
    texts = files(build(plan, records, outcomes.get))
    assert "figures/poses.svg" not in texts and "figures/poses.svg" not in texts["report.md"]
