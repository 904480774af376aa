"""How GCN units normalise, on all four tasks; the paper does not say. Shares units with `paper_tables`."""

from dataclasses import replace

from search_spaces.columns import AR2D
from search_spaces.study import Claim, Row, Table
from search_spaces.ups import paper_tables

NAME = "normalisation"
LAYER, BATCH = "LayerNorm", "BatchNorm, statistics of each task"

STUDY = replace(
    paper_tables.STUDY,
    name=NAME,
    question="Does BatchNorm with statistics of each task's own train better than LayerNorm?",
    expectation="2D recognition is better by some points, lifting is the same.",
    tables=(
        Table(
            NAME,
            "Normalisation in the units of tokenizer and encoder",
            "Normalisation",
            paper_tables.TRAINING.columns,
            (Row(LAYER), Row(BATCH, {"normalisation": "task_batch"})),
            baseline=LAYER,
            notes=(
                "The paper doesn't say how it normalises. CTR-GCN, of whose kind its units are, has BatchNorm; "
                "statistics that tasks share would mix data sets.",
                paper_tables.SEEDS_NOTE,
            ),
        ),
    ),
    claims=(
        Claim(
            "With BatchNorm 2D actions are recognised better than with LayerNorm",
            NAME,
            BATCH,
            LAYER,
            AR2D[0].metric,
            "superior",
        ),
    ),
)
