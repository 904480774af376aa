"""Table 7 with each depth's own learning rate: does its ranking rest on one rate for all depths?

The range has the rates of presets tiny (0.002) and small (0.001) in it, with a factor of four or more on either side.
"""

from dataclasses import replace

from search_spaces.space import Range
from search_spaces.study import Study, Tuning
from search_spaces.ups.paper_tables import STUDY as PAPER_TABLES
from search_spaces.ups.paper_tables import TABLE_7

STUDY = Study(
    name="table_7_tuned",
    question="Does the ranking of encoder depths change when each depth has its own learning rate?",
    expectation="No: the base recipe's rate lies on the plateau of every depth.",
    # Joint training alone: a trial is then the very run that its row is measured on.
    tables=(replace(TABLE_7, rows=tuple(replace(row, training="joint") for row in TABLE_7.rows)),),
    base=PAPER_TABLES.base,
    seeds=2,
    tuning=Tuning({"learning_rate": Range(2.5e-4, 8e-3, log=True)}, trials=4, seeds=1),
)
