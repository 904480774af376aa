"""Pose and action in one network with early exits, after Luvizon et al., on sequences of 2D joints instead of RGB.

Published values: Luvizon, Picard, Tabia, "Multi-task Deep Learning for Real-Time 3D Human Pose Estimation and Action
Recognition", TPAMI 2021 (deephar).
"""

from search_spaces.study import Claim, Column, Reference, Row, Study, Table

MPJPE = Column("pe/mpjpe_mm", "Pose, MPJPE", "mm", False)
ACTION = Column("action/top1", "Action", "%", True)
EXITS = (1, 2, 3, 4)

INPUT_NOTE = (
    "Ours lifts and recognises sequences of 2D joints of UI-PRMD, as pose estimation sees them; the paper starts from "
    "RGB frames. Its poses are single frames', ours see the window. An action's clip is one camera's view, its class "
    "that of the highest mean probability over windows."
)
MPII_NOTE = (
    "The paper measures this table's poses by PCKh@0.5 on MPII, which has no place in a column of millimetres: {}. "
    "Actions are on Penn Action."
)
SEEDS_NOTE = "The paper reports neither seeds nor variance: seed variation is not reported."

SUPERVISION = Table(
    "supervision",
    "Supervision of all exits or of the last (Table 4 of the paper)",
    "Supervised",
    (MPJPE, ACTION),
    (
        Row("the last exit", {"supervision": "last"}, published=(None, 97.5)),
        Row("all exits", {"supervision": "all"}, published=(None, 98.1)),
    ),
    baseline="the last exit",
    notes=(MPII_NOTE.format("84.2 with the last supervised, 85.1 with all"), INPUT_NOTE, SEEDS_NOTE),
)
POSES = Table(
    "poses",
    "What the action heads see (Table 5 of the paper)",
    "Input",
    (MPJPE, ACTION),
    (
        Row("poses", {"action_input": "poses"}, published=(None, 97.7)),
        Row("features", {"action_input": "features"}, published=(None, 97.9)),
        Row("combined", {"action_input": "combined"}, published=(None, 98.1)),
        Row("combined, decoupled poses", {"action_input": "decoupled"}, published=(None, 98.2)),
    ),
    baseline="combined",
    notes=(
        MPII_NOTE.format("84.9 with poses alone, 85.2 with features alone, 85.1 combined, 85.4 decoupled"),
        "The paper contradicts itself: section 4.5.2 has 97.4 for poses alone, 0.7 lower than combined, where Table 5 "
        "has 97.7, 0.4 lower.",
        'The paper decouples after "about one half of the full training iterations" (section 3.3.4), "after the main '
        'training process" (Figure 6) or for "a few more epochs" (section 3.3.4); here after half of the steps.',
        INPUT_NOTE,
        SEEDS_NOTE,
    ),
)
TASKS = Table(
    "tasks",
    "One task or both (Tables 1 and 6 of the paper)",
    "Trained",
    (MPJPE, ACTION),
    (
        Row("pose only", {"tasks": "pose"}, published=(49.5, None)),
        Row("action only", {"tasks": "action"}, published=(None, 87.5)),
        Row("both", {"tasks": "both"}, published=(48.6, 97.4)),
    ),
    baseline="both",
    notes=(
        "Published poses are those of Table 1, Human3.6M with MPII; actions those of Table 6, all on Penn Action.",
        "The network is the same in all rows; what isn't trained isn't measured.",
        INPUT_NOTE,
        SEEDS_NOTE,
    ),
    references=(
        Reference("deephar, both, with MPII", (None, 98.2)),
        Reference("deephar, action only, NTU RGB+D", (None, 88.0)),
        Reference("deephar, both, NTU RGB+D with MPII and Human3.6M", (48.6, 89.9)),
    ),
)
STAGES = Table(
    "stages",
    "Both tasks from the start, or in stages (section 4.2.3 of the paper)",
    "Training",
    (MPJPE, ACTION),
    (
        Row("both from the start"),
        Row("poses, then actions, then both", {"pose_share": 0.4, "action_share": 0.2}),
    ),
    baseline="both from the start",
    notes=(
        "The paper trains in stages and doesn't compare. Both rows have as many steps, so in stages each task has "
        "fewer samples.",
        INPUT_NOTE,
    ),
)
EXIT_TABLE = Table(
    "exits",
    "Early exit: each layer of one trained network (Figure 9 and Table 7 of the paper)",
    "Supervised",
    (
        *(Column(f"pe/mpjpe_mm@exit{number}", f"MPJPE, exit {number}", "mm", False) for number in EXITS),
        *(Column(f"action/top1@exit{number}", f"Action, exit {number}", "%", True) for number in EXITS),
    ),
    (Row("all exits", {"supervision": "all"}), Row("the last exit", {"supervision": "last"})),
    baseline="all exits",
    notes=(
        "The paper cuts a network of 8 pyramids for 3D at three places: 240, 180 and 90 frames/s on its GPU, here "
        "beside exits 1, 2 and 4 of 4. Section 4.5.4 names pyramids 2, 4 and 8, not which speed is whose. Our speeds: "
        "benchmarks/exits.py.",
        "Exit k is the network of the first k layers, bit for bit. Supervised by the last exit alone, the heads of the "
        "others have no loss of their own.",
        INPUT_NOTE,
        SEEDS_NOTE,
    ),
    references=(
        Reference(
            "deephar, Human3.6M and NTU RGB+D, 240 / 180 / 90 frames/s",
            (63.9, 57.3, None, 48.6, 86.6, 87.7, None, 89.9),
        ),
    ),
)
CUT_TABLE = Table(
    "cut",
    "What an exit costs: networks that have no more layers than the exit",
    "Layers",
    (MPJPE, ACTION),
    tuple(Row(f"{number} of {len(EXITS)}", {"layers": number}) for number in EXITS),
    baseline=f"{len(EXITS)} of {len(EXITS)}",
    notes=(
        "Compare with the exits of the same number above: those share their layers with the exits after them.",
        INPUT_NOTE,
    ),
)

STUDY = Study(
    name="multitask",
    question="On sequences of joints, do poses and actions gain from one network with a supervised exit in each layer?",
    expectation=(
        "As in the paper: supervision of all exits helps both tasks, decoupled poses help a little, actions gain much "
        "from poses, poses a little from actions, and early exits trade accuracy for speed."
    ),
    tables=(SUPERVISION, POSES, TASKS, STAGES, EXIT_TABLE, CUT_TABLE),
    project="baselines.multitask.project:MULTITASK",
    claims=(
        Claim(
            "supervision of all exits lowers the last exit's MPJPE",
            "supervision",
            "all exits",
            "the last exit",
            "pe/mpjpe_mm",
            "superior",
        ),
        Claim(
            "training both tasks recognises more actions than actions alone",
            "tasks",
            "both",
            "action only",
            "action/top1",
            "superior",
        ),
    ),
)
