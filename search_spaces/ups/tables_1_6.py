"""The paper's main results, Tables 1-6: all tasks on all protocols, each alone (UPS_separate) and together (UPS).

Published values, ours and others': Foo et al., "Unified Pose Sequence Modeling", CVPR 2023, Tables 1-6; numbers in
brackets are its references.
"""

from collections.abc import Mapping, Sequence

from search_spaces.columns import AR2D, EAP, MPJPE, P_MPJPE
from search_spaces.study import Claim, Column, Reference, Row, Study, Table
from search_spaces.ups import paper_tables

ACTIONS = {
    "Dir.": "Directions",
    "Disc.": "Discussion",
    "Eat": "Eating",
    "Greet": "Greeting",
    "Phone": "Phoning",
    "Photo": "Photo",
    "Pose": "Posing",
    "Pur.": "Purchases",
    "Sit": "Sitting",
    "SitD.": "SittingDown",
    "Smoke": "Smoking",
    "Wait": "Waiting",
    "WalkD.": "WalkDog",
    "Walk": "Walking",
    "WalkT.": "WalkTogether",
}
"""Headings of Tables 3 and 4, and the actions' names in the files of Human3.6M."""

_TABLE_1 = (
    ("ST-GCN [88]", (81.5, 88.3, 70.7, 73.2)),
    ("2s-AGCN [67]", (88.5, 95.1, 82.2, 84.1)),
    ("Shift-GCN [12]", (90.7, 96.5, 85.9, 87.6)),
    ("MS-G3D [48]", (91.5, 96.2, 86.9, 88.4)),
    ("DSTA-Net [68]", (91.5, 96.4, 86.6, 89.0)),
    ("CTR-GCN [11]", (92.4, 96.8, 88.9, 90.6)),
    ("PoseConv3D [21]", (94.1, 97.1, 86.9, 90.3)),
    ("InfoGCN [13]", (93.0, 97.1, 89.8, 91.2)),
    ("UPS_separate", (89.6, 93.1, 85.1, 87.8)),
    ("UPS", (92.6, 97.0, 89.3, 91.1)),
)

_TABLE_2 = (
    ("ST-GCN [88]", (30.7, 52.8)),
    ("2s-AGCN [67]", (36.1, 58.7)),
    ("DGNN [66]", (36.9, 59.6)),
    ("GCN-NAS [55]", (37.1, 60.1)),
    ("MS-AAGCN [69]", (37.8, 61.0)),
    ("Sybio-GNN [37]", (37.2, 58.1)),
    ("UPS_separate", (36.2, 59.4)),
    ("UPS", (40.5, 63.3)),
)

_TABLE_3 = (
    (
        "Pavlo et al. [54]",
        (45.2, 46.7, 43.3, 45.6, 48.1, 55.1, 44.6, 44.3, 57.3, 65.8, 47.1, 44.0, 49.0, 32.8, 33.9, 46.8),
    ),
    (
        "Lin et al. [40]",
        (42.5, 44.8, 42.6, 44.2, 48.5, 57.1, 42.6, 41.4, 56.5, 64.5, 47.4, 43.0, 48.1, 33.0, 35.1, 46.6),
    ),
    (
        "Cai et al. [5]",
        (44.6, 47.4, 45.6, 48.8, 50.8, 59.0, 47.2, 43.9, 57.9, 61.9, 49.7, 46.6, 51.3, 37.1, 39.4, 48.8),
    ),
    (
        "Xu et al. [81]",
        (37.4, 43.5, 42.7, 42.7, 46.6, 59.7, 41.3, 45.1, 52.7, 60.2, 45.8, 43.1, 47.7, 33.7, 37.1, 45.6),
    ),
    (
        "Wang et al. [74]",
        (41.3, 43.9, 44.0, 42.2, 48.0, 57.1, 42.2, 43.2, 57.3, 61.3, 47.0, 43.5, 47.0, 32.6, 31.8, 45.6),
    ),
    (
        "Liu et al. [46]",
        (41.8, 44.8, 41.1, 44.9, 47.4, 54.1, 43.4, 42.2, 56.2, 63.6, 45.3, 43.5, 45.3, 31.3, 32.2, 45.1),
    ),
    (
        "Zeng et al. [91]",
        (46.6, 47.1, 43.9, 41.6, 45.8, 49.6, 46.5, 40.0, 53.4, 61.1, 46.1, 42.6, 43.1, 31.5, 32.6, 44.8),
    ),
    (
        "Zheng et al. [96]",
        (41.5, 44.8, 39.8, 42.5, 46.5, 51.6, 42.1, 42.0, 53.3, 60.7, 45.5, 43.3, 46.1, 31.8, 32.2, 44.3),
    ),
    (
        "Chen et al. [7]",
        (41.4, 43.5, 40.1, 42.9, 46.6, 51.9, 41.7, 42.3, 53.9, 60.2, 45.4, 41.7, 46.0, 31.5, 32.7, 44.1),
    ),
    (
        "Shan et al. [65]",
        (38.4, 42.1, 39.8, 40.2, 45.2, 48.9, 40.4, 38.3, 53.8, 57.3, 43.9, 41.6, 42.2, 29.3, 29.3, 42.1),
    ),
    ("UPS_separate", (39.4, 44.2, 38.0, 42.5, 43.6, 52.5, 40.9, 49.2, 53.6, 70.5, 43.5, 45.3, 48.1, 30.0, 31.9, 44.9)),
    ("UPS", (37.5, 39.2, 36.9, 40.6, 39.3, 46.8, 39.0, 41.7, 50.6, 63.5, 40.4, 37.8, 44.2, 26.7, 29.1, 40.8)),
)

_TABLE_4 = (
    (
        "Liu et al. [40]",
        (32.5, 35.3, 34.3, 36.2, 37.8, 43.0, 33.0, 32.2, 45.7, 51.8, 38.4, 32.8, 37.5, 25.8, 28.9, 36.8),
    ),
    (
        "Pavlo et al. [54]",
        (34.1, 36.1, 34.4, 37.2, 36.4, 42.2, 34.4, 33.6, 45.0, 52.5, 37.4, 33.8, 37.8, 25.6, 27.3, 36.5),
    ),
    (
        "Cai et al. [5]",
        (35.7, 37.8, 36.9, 40.7, 39.6, 45.2, 37.4, 34.5, 46.9, 50.1, 40.5, 36.1, 41.0, 29.6, 33.2, 39.0),
    ),
    (
        "Xu et al. [81]",
        (31.0, 34.8, 34.7, 34.4, 36.2, 43.9, 31.6, 33.5, 42.3, 49.0, 37.1, 33.0, 39.1, 26.9, 31.9, 36.2),
    ),
    (
        "Liu et al. [46]",
        (32.3, 35.2, 33.3, 35.8, 35.9, 41.5, 33.2, 32.7, 44.6, 50.9, 37.0, 32.4, 37.0, 25.2, 27.2, 35.6),
    ),
    (
        "Wang et al. [74]",
        (32.9, 35.2, 35.6, 34.4, 36.4, 42.7, 31.2, 32.5, 45.6, 50.2, 37.3, 32.8, 36.3, 26.0, 23.9, 35.5),
    ),
    (
        "Chen et al. [7]",
        (33.1, 35.3, 33.4, 35.9, 36.1, 41.7, 32.8, 33.3, 42.6, 49.4, 37.0, 32.7, 36.5, 25.5, 27.9, 35.6),
    ),
    (
        "Zheng et al. [96]",
        (32.5, 34.8, 32.6, 34.6, 35.3, 39.5, 32.1, 32.0, 42.8, 48.5, 34.8, 32.4, 35.3, 24.5, 26.0, 34.6),
    ),
    (
        "Shan et al. [65]",
        (31.3, 35.2, 32.9, 33.9, 35.4, 39.3, 32.5, 31.5, 44.6, 48.2, 36.3, 32.9, 34.4, 23.8, 23.9, 34.4),
    ),
    ("UPS_separate", (32.4, 35.6, 31.4, 35.3, 34.3, 40.7, 32.9, 38.7, 44.6, 54.1, 36.9, 33.5, 40.6, 25.9, 28.0, 36.3)),
    ("UPS", (30.3, 32.2, 30.8, 33.1, 31.1, 35.2, 30.3, 32.1, 39.4, 49.6, 32.9, 29.2, 33.9, 21.6, 24.5, 32.5)),
)

_TABLE_5 = (
    ("Jain et al. [29]", (7.07, 18.98, 44.55)),
    ("Ke et al. [34]", (8.34, 26.97, 56.78)),
    ("Weng et al. [78]", (35.56, 54.63, 67.08)),
    ("Aliakbarian et al. [63]", (27.41, 59.26, 72.43)),
    ("Wang et al. [77]", (35.85, 58.45, 73.86)),
    ("Pang et al. [52]", (33.30, 56.94, 74.50)),
    ("Tran et al. [72]", (24.60, 57.70, 76.90)),
    ("Ke et al. [35]", (32.12, 63.82, 77.02)),
    ("Li et al. [39]", (42.39, 72.24, 82.99)),
    ("Foo et al. [23]", (53.98, 74.34, 85.03)),
    ("UPS_separate", (50.11, 69.84, 82.59)),
    ("UPS", (53.25, 75.06, 85.35)),
)

_TABLE_6 = (
    ("Foo et al. [23]", (31.73, 45.67, 67.08)),
    ("UPS_separate", (30.46, 45.91, 66.76)),
    ("UPS", (33.35, 48.12, 69.95)),
)


def _on(protocol: str) -> Mapping[str, tuple[str, ...]]:
    """Both tasks on 3D clips take the same protocol: one task's training clips would be the other's test clips."""
    return {"ar3d.sources": (protocol,), "eap.sources": (protocol,)}


def _top1(title: str, protocol: str) -> Column:
    return Column("ar3d/top1", title, "%", True, _on(protocol))


def _by_action(error: Column) -> tuple[Column, ...]:
    actions = (Column(f"{error.metric}/{name}", title, "mm", False) for title, name in ACTIONS.items())
    return (*actions, Column(error.metric, "Avg", "mm", False))


def _table(
    number: int,
    title: str,
    columns: Sequence[Column],
    published: Sequence[tuple[str, tuple[float | None, ...]]],
    notes: Sequence[str],
) -> Table:
    values = dict(published)
    return Table(
        f"table_{number}",
        f"Table {number}. {title}",
        "Method",
        tuple(columns),
        (
            Row("UPS_separate", training="separate", published=values["UPS_separate"]),
            Row("UPS", published=values["UPS"]),
        ),
        baseline="UPS_separate",
        notes=(*notes, paper_tables.SEEDS_NOTE),
        references=tuple(Reference(label, line) for label, line in published if not label.startswith("UPS")),
    )


def _joint_is_better(number: int, what: str, column: str) -> Claim:
    return paper_tables.joint_is_better(f"table_{number}", "UPS", "UPS_separate", what, column)


STUDY = Study(
    name="tables_1_6",
    question="Is one model for four tasks as good as one for each, and as good as methods made for one task?",
    expectation="UPS is better than UPS_separate in every cell, and at or above the best published line in most.",
    tables=(
        _table(
            1,
            "3D action recognition on NTU RGB+D 60 and 120, top-1",
            (
                _top1("NTU60 xsub", "ntu60:xsub"),
                _top1("NTU60 xview", "ntu60:xview"),
                Column("ar3d/top1", "NTU120 xsub", "%", True),
                _top1("NTU120 xset", "ntu120:xset"),
            ),
            _TABLE_1,
            (
                "Each protocol is a training of its own. In it early prediction, which is measured on xsub alone, "
                "trains on the same protocol, so that no task trains on clips that another is tested on.",
                "Published lines are of ensembles of several input streams in part; ours is one model on joints.",
            ),
        ),
        _table(2, "2D action recognition on Kinetics-400", AR2D, _TABLE_2, ()),
        _table(
            3,
            "3D pose estimation on Human3.6M, MPJPE",
            _by_action(MPJPE),
            _TABLE_3,
            ("Protocol: S9 and S11, all cameras, every frame, root at 0; averages are unweighted over 15 actions.",),
        ),
        _table(
            4,
            "3D pose estimation on Human3.6M, P-MPJPE",
            _by_action(P_MPJPE),
            _TABLE_4,
            (
                "The paper's text speaks of a rigid transformation; P-MPJPE here is after a similarity (scale, "
                "rotation, translation), as is usual.",
                'The first line is "Liu et al. [40]" in the paper; its Table 3 has "Lin et al. [40]".',
            ),
        ),
        _table(
            5,
            "Early action prediction on NTU RGB+D 60, cross-subject",
            tuple(
                Column(column.metric, column.title, column.unit, column.higher_is_better, _on("ntu60:xsub"))
                for column in EAP
            ),
            _TABLE_5,
            (),
        ),
        _table(6, "Early action prediction on NTU RGB+D 120, cross-subject", EAP, _TABLE_6, ()),
    ),
    base={
        **paper_tables.STUDY.base,
        **_on("ntu120:xsub"),
        "ar2d.sources": ("kinetics",),
        "pe.sources": ("h36m",),
        # Detected keypoints are of one image each: bodies can't be turned, moved or resized.
        "pe.detections": "stored",
        "pe.rotation_deg": 0.0,
        "pe.scale": 0.0,
        "pe.bone_scale": 0.0,
        "pe.translation_m": 0.0,
        "pe.flip": True,
        "pe.evaluate_stride": 1,
        "evaluation.flip": True,
    },
    claims=(
        _joint_is_better(1, "3D recognition, NTU120 xsub", "NTU120 xsub"),
        _joint_is_better(2, "2D recognition, Kinetics-400", "ar2d/top1"),
        _joint_is_better(3, "3D pose estimation, Human3.6M, MPJPE", "Avg"),
        _joint_is_better(4, "3D pose estimation, Human3.6M, P-MPJPE", "Avg"),
        _joint_is_better(5, "early prediction, NTU60, 20 % seen", "eap/top1@0.2"),
        _joint_is_better(6, "early prediction, NTU120, 20 % seen", "eap/top1@0.2"),
    ),
)
