"""The encoder's size and how its routes are found. Trials see the same samples, but deeper ones compute more."""

from search_spaces.space import Choice, Range, Space

SPACE = Space(
    name="routed_encoder",
    question="How many layers and blocks, and how long should routes be explored?",
    base={"validation_subjects": 2},
    dimensions={
        "encoder_layers": Range(1, 4),
        "blocks_per_layer": Range(1, 4),
        "gumbel_start": Range(1.0, 10.0, log=True),
        "routing_explore_share": Range(0.0, 1.0, step=0.1),
        "routing_execution": Choice(("sparse", "dense")),
    },
    trials=30,
)
