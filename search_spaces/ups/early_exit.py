"""Speed against accuracy of one trained UPS: the encoder may end after any of its layers (after deephar's early exits,
Luvizon et al., 2020)."""

from search_spaces.columns import AR2D, AR3D, EAP, MPJPE
from search_spaces.study import Row, Study, Table

LAYERS = 3

STUDY = Study(
    name="early_exit",
    question="What does a trained UPS lose if its encoder ends earlier, and what does training for that cost?",
    expectation="Each layer helps less than the one before it; the full encoder loses little by it.",
    tables=(
        Table(
            "exits",
            "Encoder layers that are run",
            "Layers",
            (AR3D, MPJPE, *EAP, AR2D[0]),
            (
                *(Row(f"{layer} of {LAYERS}", {"exit_layer": layer}, "joint") for layer in range(1, LAYERS)),
                Row(f"{LAYERS} of {LAYERS}", training="joint"),
                Row(f"{LAYERS}, trained without exits", {"exits": "last"}, "joint"),
            ),
            baseline=f"{LAYERS} of {LAYERS}",
            notes=(
                "The first rows are one model, trained once with the exit drawn anew for each step and measured after "
                "each layer; the decoder is shared.",
            ),
        ),
    ),
    base={"encoder_layers": LAYERS, "exits": "drawn"},
)
