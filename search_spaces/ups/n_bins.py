"""The number of bins alone, which the paper doesn't give. Shares its units with `paper_tables`."""

from search_spaces.study import Study
from search_spaces.ups import paper_tables

STUDY = Study(
    name="n_bins",
    question="How many bins per coordinate axis does lifting need, and what do they cost the other tasks?",
    expectation="Beyond a few hundred bins the quantisation floor is far below the error, and nothing changes.",
    tables=(paper_tables.BINS,),
    base=paper_tables.STUDY.base,
    fine_tuning=paper_tables.FINE_TUNING,
)
