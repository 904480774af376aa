"""Figures of what the study claims and of single test results, read from outside."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from orchestrator.report import build, files
from orchestrator.report.model import NewSubjects
from search_spaces.study import Claim
from tests.orchestrator.report.test_figures import names_in, texts_in
from tests.orchestrator.report.test_report_formats import Page
from tests.support.report_cases import plan_file_of, plan_of, records_of

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


# --- claims


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


def test_intervals_for_new_subjects_are_drawn_where_there_are_any():
    made = claiming(BETTER, EQUAL)
    assert "subjects" not in names_in(files(made)["figures/claims.svg"])
    new = tuple(replace(result, new_subjects=NewSubjects(1.0, -1.0, 3.0, 9)) for result in made.claims[:1])
    svg = files(replace(made, claims=(*new, *made.claims[1:])))["figures/claims.svg"]
    assert names_in(svg)["subjects"] == 1 and "95 % interval for new subjects" in texts_in(svg)


def test_a_withheld_claim_is_grey_and_one_without_a_pair_has_its_verdict_alone():
    missing = claiming(BETTER, accuracies={"thin": (80.0, None, None), "full": (None, 83.0, 82.0)})
    (result,) = missing.claims
    svg = files(missing)["figures/claims.svg"]
    assert (result.verdict, result.mean) == ("withheld", None)
    assert names_in(svg)["effect"] == 0 and "withheld" in texts_in(svg)
    partly = files(claiming(BETTER, accuracies={"thin": SHARP["thin"], "full": (83.0, 82.0, None)}))
    grey = ElementTree.tostring(node_of(partly["figures/claims.svg"], "effect-0"), encoding="unicode")
    assert "#767676" in grey and "#1f5fa8" not in grey


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
