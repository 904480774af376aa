"""What `make ablate` runs: depth and routing on synthetic motion, nine joint trainings in about ten minutes."""

from search_spaces.columns import ABLATION, AR2D
from search_spaces.study import Row, Study, Table
from ups_model.config.presets import LIFTING_CYCLE

STUDY = Study(
    name="first_look",
    question="On synthetic motion, does a second layer help, and does routing?",
    expectation="Every run learns all four tasks. Motion this simple needs neither depth nor routing.",
    tables=(
        Table(
            "depth_and_routing",
            "Depth of the encoder, and dynamic routing (DR)",
            "Setting",
            (*ABLATION, AR2D[0]),
            (
                Row("1 layer", {"encoder_layers": 1}, "joint"),
                Row("2 layers, w/o DR", {"routing": False}, "joint"),
                Row("2 layers, DR", training="joint"),
            ),
            baseline="2 layers, DR",
        ),
    ),
    base={
        "encoder_layers": 2,
        "blocks_per_layer": 2,
        "routing": True,
        "optim.cycle": LIFTING_CYCLE,
        "steps": 600,
        "data.pe.batch_size": 8,
        "data.pe.targets_per_window": 8,
        "data.pe.evaluate_targets": 8,
    },
)
