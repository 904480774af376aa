"""Does the model need more than one layer, and does it need to know where a word stands?"""

from search_spaces.study import Claim, Column, Row, Study, Table

STUDY = Study(
    name="hf_text",
    question="Does word order need positions, and do two layers learn it better than one?",
    expectation="Without positions no model can be better than chance.",
    project="examples.hf_text.project:PROJECT",
    tables=(
        Table(
            "positions_and_depth",
            "Positions and depth",
            "Setting",
            (Column("hf_text/accuracy", "Accuracy", "%", True), Column("hf_text/loss", "Loss", "nats", False)),
            (
                Row("2 layers"),
                Row("1 layer", {"layers": 1}),
                Row("2 layers, no positions", {"positions": False}),
            ),
            baseline="2 layers",
        ),
    ),
    claims=(
        Claim(
            "positions are needed",
            "positions_and_depth",
            "2 layers",
            "2 layers, no positions",
            "hf_text/accuracy",
            "superior",
        ),
    ),
)
