"""Bai (2021), "A Training Method for VideoPose3D with Ideology of Action Recognition": a lifter for each action, each
seeing as many frames as one lifter for all, on UI-PRMD's ten exercises."""

from collections.abc import Mapping

from search_spaces.study import Claim, Column, Row, Study, Table

ACTIONS = {
    "deep squat": "Squat",
    "hurdle step": "Hurdle",
    "inline lunge": "Lunge",
    "side lunge": "Side lunge",
    "sit to stand": "Sit, stand",
    "standing active straight leg raise": "Leg raise",
    "standing shoulder abduction": "Abduction",
    "standing shoulder extension": "Extension",
    "standing shoulder internal-external rotation": "Rotation",
    "standing shoulder scaption": "Scaption",
}
"""UI-PRMD's exercises, and headings of their columns."""
STEPS = 3_000
"""Of the generalist and of each specialist: as many frames seen."""

ORACLE = (
    "An oracle: a specialist is told the action of each test clip, which the generalist is not. In use, a recogniser "
    "would have to tell it.",
    "Each specialist sees as many frames as the generalist, so all specialists together cost as many times its "
    "training as there are actions; the row of equal total time is a generalist with as many steps as all of them.",
)
CONTRADICTIONS = (
    "The paper's mean velocities, 2.49 (VideoPose3D) and 3.08 (specialists), are 2.88 and 2.89 by its own rows.",
    "By its Table IV the generalist at epoch 10 (50.14 mm) beats the specialists at epoch 80 (50.54 mm); its "
    "time-precision rate, (60.46 - error) / seconds, depends on where one stops.",
)


def measure_columns(metric: str, unit: str, actions: dict[str, str]) -> tuple[Column, ...]:
    """A column for each action, whose specialists train on its clips alone."""
    return tuple(
        Column(f"pe/{metric}/{action}", title, unit, False, {"data.pe.actions": (action,)})
        for action, title in actions.items()
    )


def rows(count: int, steps: int, published: Mapping[str, tuple[float | None, ...]] | None = None) -> tuple[Row, ...]:
    """One for all actions; one each; one for all in the time of all specialists."""
    every: dict[str, object] = {"data.pe.actions": ()}
    printed = published or {}
    return (
        Row("one for all actions", every, published=printed.get("generalist", ())),
        Row("one for each action", published=printed.get("specialists", ())),
        Row("one for all, equal total time", {**every, "steps": count * steps}),
    )


STUDY = Study(
    name="action_based",
    question="Is a lifter for each action better than one for all, at equal frames seen and at equal total time?",
    expectation="The paper: as good at a third of the time. By its own Table IV a generalist that trains on is better.",
    project="baselines.project:VIDEOPOSE3D",
    tables=tuple(
        Table(
            name,
            f"{title} of each exercise: specialists and generalists",
            "Training",
            measure_columns(metric, unit, ACTIONS),
            rows(len(ACTIONS), STEPS),
            baseline="one for all actions",
            notes=(*ORACLE, *CONTRADICTIONS),
        )
        for name, title, metric, unit in (
            ("mpjpe", "MPJPE", "mpjpe_mm", "mm"),
            ("p_mpjpe", "P-MPJPE", "p_mpjpe_mm", "mm"),
            ("n_mpjpe", "N-MPJPE", "n_mpjpe_mm", "mm"),
            ("mpjve", "MPJVE", "mpjve_mm_per_frame", "mm/frame"),
        )
    ),
    base={
        "pe.sources": ("uiprmd",),
        "receptive_field": 27,
        "pe.frames": 34,
        "pe.evaluate_targets": 8,
        "pe.evaluate_stride": 1,  # All frames: MPJVE is of consecutive ones.
        "pe.frame_stride": 2,
        "pe.batch_size": 64,
        "pe.targets_per_window": 4,
        "width": 128,
        "validation_folds": 1,  # Not each training subject has done each exercise.
        "steps": STEPS,
        "decay_samples": 0,
    },
    claims=tuple(
        Claim(
            f"{title}: a specialist lifts better than the generalist at equal frames",
            "mpjpe",
            "one for each action",
            "one for all actions",
            f"pe/mpjpe_mm/{action}",
            "superior",
        )
        for action, title in ACTIONS.items()
    ),
)
