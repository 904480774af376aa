"""The smallest study that has every kind of unit: to see in a few minutes that a machine or a cluster works."""

from search_spaces.columns import ABLATION
from search_spaces.study import Row, Study, Table

STUDY = Study(
    name="smoke",
    question="Does everything run on this machine?",
    expectation="Every cell is filled; with so little training the values themselves mean nothing.",
    tables=(
        Table(
            "routing",
            "Routing and training, a few steps each",
            "Setting",
            ABLATION,
            (
                Row("UPS w/o DR", {"routing": False}),
                Row("UPS"),
                Row("separate", training="separate"),
            ),
            baseline="UPS",
        ),
    ),
    base={"steps": 48, "encoder_layers": 1},
    seeds=2,
)
