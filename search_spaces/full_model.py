"""The paper's setting alone, joint and then fine-tuned, on all four tasks. Shares its units with `tables_7_9`."""

from search_spaces import paper_tables
from search_spaces.study import Row, Study, Table

STUDY = Study(
    name="full_model",
    question="What does the paper's setting reach on each of the four tasks?",
    expectation="Fine-tuning improves every task, lifting most.",
    tables=(
        Table(
            "full_model",
            "UPS before and after fine-tuning",
            "Training",
            paper_tables.TRAINING.columns,
            (Row("joint", training="joint"), Row("joint, fine-tuned")),
            baseline="joint",
            notes=(
                "The joint run has seen fewer samples of each task than it and its fine-tuning together: its ‡.",
                paper_tables.SEEDS_NOTE,
            ),
        ),
    ),
    base=paper_tables.STUDY.base,
    fine_tuning=paper_tables.FINE_TUNING,
)
