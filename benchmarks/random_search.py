"""The full random search whose learning curves `early_stopping.py` replays: every trial to its end, measured often."""

from search_spaces.space import Range, Space

SPACE = Space(
    name="random_search",
    question="Which learning rate, label smoothing and dropout learn most of UTD-MHAD's actions?",
    base={
        "data.ar3d.sources": ("utd_mhad",),
        "optim.cycle": ("ar3d",),
        "steps": 540,
        "evaluate_every": 20,
        "validation_subjects": 2,
    },
    dimensions={
        "learning_rate": Range(1e-4, 3e-2, log=True),
        "label_smoothing": Range(0.0, 0.4),
        "dropout": Range(0.0, 0.6),
    },
    objective="validation/ar3d/top1",
    trials=96,
    sampler="random",
)
