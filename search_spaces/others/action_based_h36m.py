"""`action_based` as printed: Human3.6M's fifteen actions, with the paper's values, for who has the data set."""

from search_spaces.others.action_based import CONTRADICTIONS, ORACLE, measure_columns, rows
from search_spaces.study import Reference, Study, Table

ACTIONS = {
    **{"Directions": "Dir.", "Discussion": "Disc.", "Eating": "Eat", "Greeting": "Greet", "Phoning": "Phone"},
    **{"Photo": "Photo", "Posing": "Pose", "Purchases": "Purch.", "Sitting": "Sit", "SittingDown": "SitD."},
    **{"Smoking": "Smoke", "Waiting": "Wait", "WalkDog": "WkD.", "Walking": "Walk", "WalkTogether": "WkT."},
}
STEPS = 20_000

MPJPE = {
    "generalist": (46.6, 47.4, 45.2, 46.2, 49.0, 56.7, 46.4, 47.2, 59.9, 68.2, 48.1, 46.2, 49.4, 32.9, 34.3),
    "specialists": (47.9, 48.8, 45.1, 48.4, 51.7, 62.8, 47.1, 59.4, 61.2, 64.7, 48.2, 59.3, 46.6, 31.4, 35.5),
}
"""Table I, 243 frames."""
MPJVE = {
    "generalist": (3.01, 3.21, 2.33, 3.55, 2.33, 2.83, 2.77, 3.23, 2.11, 3.01, 2.44, 2.43, 3.82, 3.33, 2.86),
    "specialists": (3.14, 3.20, 2.48, 3.62, 2.31, 2.91, 3.04, 3.11, 2.07, 2.88, 2.23, 2.73, 3.66, 3.04, 2.97),
}
"""Table II, 243 frames."""
REFERENCES = (
    Reference(
        "Luvizon et al. (deephar)",
        (49.2, 51.6, 47.6, 50.5, 51.8, 60.3, 48.5, 51.7, 61.5, 70.9, 53.7, 48.9, 57.9, 44.4, 48.9),
    ),
    Reference(
        "Pavlakos et al.", (67.4, 71.9, 66.7, 69.1, 72.0, 77.0, 65.0, 68.3, 83.7, 96.5, 71.7, 65.8, 74.9, 59.1, 63.2)
    ),
)

STUDY = Study(
    name="action_based_h36m",
    question="Is a lifter for each action of Human3.6M better than one for all?",
    expectation="The paper: specialists win 4 of 15 actions at 243 frames, in a third of the time.",
    project="baselines.project:VIDEOPOSE3D",
    tables=tuple(
        Table(
            name,
            f"{title} of each action: specialists and generalists",
            "Training",
            measure_columns(metric, unit, ACTIONS),
            rows(len(ACTIONS), STEPS, published),
            baseline="one for all actions",
            notes=(*ORACLE, *CONTRADICTIONS),
            references=references,
        )
        for name, title, metric, unit, published, references in (
            ("mpjpe", "MPJPE", "mpjpe_mm", "mm", MPJPE, REFERENCES),
            ("p_mpjpe", "P-MPJPE", "p_mpjpe_mm", "mm", None, ()),
            ("n_mpjpe", "N-MPJPE", "n_mpjpe_mm", "mm", None, ()),
            ("mpjve", "MPJVE", "mpjve_mm_per_frame", "mm/frame", MPJVE, ()),
        )
    ),
    base={
        "pe.sources": ("h36m",),
        "receptive_field": 243,
        "pe.frames": 250,
        "pe.evaluate_targets": 8,
        "pe.evaluate_stride": 1,
        "pe.frame_stride": 1,
        "width": 1024,
        "steps": STEPS,
    },
)
