"""The published learning rate beside ours, for preset `paper_twin`: what it would cost to find out on a cluster."""

from search_spaces.columns import ABLATION, AR2D
from search_spaces.study import Row, Study, Table

STUDY = Study(
    name="published_rate",
    question="Does the published learning rate of 1e-2 train the published recipe?",
    expectation="No: at 1e-2 all tasks stay at chance; at 5e-4 all four learn.",
    tables=(
        Table(
            "rate",
            "Peak learning rate of AdamW",
            "Rate",
            (*ABLATION, AR2D[0]),
            tuple(Row(text, {"learning_rate": float(text)}, training="joint") for text in ("1e-2", "5e-4")),
            baseline="5e-4",
            notes=(
                "Preset paper_twin has the recipe of preset paper (loss, memory, features, decoding, warm-up) with "
                "small widths and batches. The paper's batch is 1024, which a rate of 1e-2 may have been chosen for.",
            ),
        ),
    ),
    seeds=1,
)
