"""The number of bins alone, which the paper doesn't give. Shares its units with `paper_tables`."""

from dataclasses import replace

from search_spaces.ups import paper_tables

STUDY = replace(
    paper_tables.STUDY,
    name="n_bins",
    question="How many bins per coordinate axis does lifting need, and what do they cost the other tasks?",
    expectation="Beyond a few hundred bins the quantisation floor is far below the error, and nothing changes.",
    tables=(paper_tables.BINS,),
    claims=(),
)
