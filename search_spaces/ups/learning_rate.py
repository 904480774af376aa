"""The learning rate, and the two regularisers that go with it."""

from search_spaces.space import Range, Space

SPACE = Space(
    name="learning_rate",
    question="Which learning rate, label smoothing and dropout learn most from the same samples?",
    base={"validation_subjects": 2},
    dimensions={
        "learning_rate": Range(1e-4, 1e-2, log=True),
        "label_smoothing": Range(0.0, 0.2),
        "dropout": Range(0.0, 0.4),
    },
    trials=24,
)
