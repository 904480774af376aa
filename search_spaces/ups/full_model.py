"""The paper's setting alone, joint and then fine-tuned, on all four tasks. Shares its units with `tables_7_9`."""

from dataclasses import replace

from search_spaces.study import Table
from search_spaces.ups import paper_tables

STUDY = replace(
    paper_tables.STUDY,
    name="full_model",
    question="What does the paper's setting reach on each of the four tasks?",
    expectation="All four tasks converge.",
    tables=(
        Table(
            "full_model",
            "UPS, the paper's setting",
            "Training",
            paper_tables.TRAINING.columns,
            (paper_tables.TRAINING.rows[-1],),
            baseline=paper_tables.TRAINING.rows[-1].label,
            notes=(paper_tables.SEEDS_NOTE,),
        ),
    ),
    claims=(),
)
