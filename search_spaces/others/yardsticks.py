"""UPS beside small networks made for one task, on the same clips: what its generality costs or brings."""

from dataclasses import replace

from search_spaces.columns import AR2D, AR3D, EAP, MPJPE, P_MPJPE
from search_spaces.study import Row, Table
from search_spaces.ups import paper_tables

EQUAL = {"steps": 700}
"""As many clips as UPS sees of each task in preset `small`: 22,400."""
LIFTING = {
    "receptive_field": 27,
    "pe.frames": 34,
    "pe.frame_stride": 2,
    "pe.evaluate_targets": 8,
    "pe.evaluate_stride": 16,
}
"""Windows of preset `small`, in every preset."""
EQUAL_LIFTING = {**LIFTING, "steps": 525, "pe.batch_size": 64, "pe.targets_per_window": 6}
"""As many windows, and targets of each: 33,600."""
HOW = (
    "UPS is one model for four tasks, trained jointly and then fine-tuned; each yardstick is one network a task and "
    "knows no other. Clips, splits, augmentation and measures are UPS's own.",
    "Rates, dropout and sizes of the yardsticks were looked for by hand on validation subjects: two to four runs each, "
    "a dozen of VideoPose3D.",
)
FLIP = "All systems lift a window and its mirror image, and the mean is measured."

STUDY = replace(
    paper_tables.STUDY,
    name="yardsticks",
    question="Is UPS level with small networks that are made for one task?",
    expectation="The paper compares with large networks alone. On small sets, those made for the task should be ahead.",
    tables=(
        Table(
            "recognition",
            "Recognition and early prediction",
            "System",
            (AR3D, *EAP, AR2D[0]),
            (
                Row("UPS, joint, fine-tuned"),
                Row("DD-Net's kind", EQUAL, project="baselines.project:DD_NET"),
                Row("ST-GCN's kind", EQUAL, project="baselines.project:ST_GCN"),
            ),
            baseline="UPS, joint, fine-tuned",
            notes=HOW,
        ),
        Table(
            "lifting",
            "3D pose estimation",
            "System",
            (MPJPE, P_MPJPE),
            (
                Row("UPS, joint, fine-tuned"),
                Row("residual MLP, equal samples", EQUAL_LIFTING, project="baselines.project:RESIDUAL_MLP"),
                Row("VideoPose3D, 27 frames, equal samples", EQUAL_LIFTING, project="baselines.project:VIDEOPOSE3D"),
                Row("residual MLP, trained out", LIFTING, project="baselines.project:RESIDUAL_MLP"),
                Row("VideoPose3D, 27 frames, trained out", LIFTING, project="baselines.project:VIDEOPOSE3D"),
            ),
            baseline="UPS, joint, fine-tuned",
            notes=(*HOW, FLIP),
        ),
    ),
    claims=(),
)
