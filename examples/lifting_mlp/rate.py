"""python -m orchestrator.search examples/lifting_mlp/rate.py --data poses=poses.npz"""

from search_spaces.space import Range, Space

SPACE = Space(
    name="lifting_rate",
    question="Which learning rate and dropout lift best in the same number of steps?",
    dimensions={"learning_rate": Range(1e-4, 1e-2, log=True), "dropout": Range(0.0, 0.5)},
    objective="validation/lifting/mpjpe",
    direction="minimize",
    trials=12,
    project="examples.lifting_mlp.project:PROJECT",
)
