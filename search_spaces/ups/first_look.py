"""What `make ablate` runs: depth and routing on synthetic motion, nine joint trainings in about ten minutes.

Its claims are its expectation, so that the report answers the question with verdicts; they say nothing of real motion.
A storage that has the study from before it had claims keeps that plan beside this one, whose name is another. Units and
their keys are the same: nothing is trained again, and the report says how many runs had ended before the claims.
"""

from search_spaces.columns import ABLATION, AR2D
from search_spaces.study import Claim, Row, Study, Table
from ups_model.config.presets import LIFTING_CYCLE

TABLE = "depth_and_routing"
LARGE = "about two standard errors of one accuracy on 240 test clips: a first look is for effects that are not smaller"

STUDY = Study(
    name="first_look",
    question="On synthetic motion, does a second layer help, and does routing?",
    expectation="Every run learns all four tasks. Motion this simple needs neither depth nor routing.",
    tables=(
        Table(
            TABLE,
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
    claims=tuple(
        Claim(text, TABLE, "2 layers, DR", other, "ar3d/top1", "not better", margin=5.0, reason=LARGE)
        for text, other in (
            ("Two layers recognise actions no better than one", "1 layer"),
            ("With routing actions are recognised no better than without", "2 layers, w/o DR"),
        )
    ),
)
