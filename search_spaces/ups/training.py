"""Joint against separate training alone, on all four tasks. Shares its units with `paper_tables` and `full_model`."""

from dataclasses import replace

from search_spaces.columns import AR2D, AR3D, EAP, MPJPE
from search_spaces.ups import paper_tables

STUDY = replace(
    paper_tables.STUDY,
    name="training",
    question="Is one model for four tasks as good as one for each, trained on equal samples?",
    expectation="Joint training with fine-tuning is better than separate training on every task.",
    tables=(paper_tables.TRAINING,),
    claims=tuple(
        paper_tables.joint_is_better(
            paper_tables.TRAINING.name, "joint, fine-tuned", "separate", column.title, column.metric
        )
        for column in (AR3D, MPJPE, *EAP, AR2D[0])
    ),
)
