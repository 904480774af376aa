"""Table 9 alone; shares its units with tables_7_9."""

from search_spaces.study import Study
from search_spaces.ups import paper_tables

STUDY = Study(
    name="table_9",
    question="What does dynamic routing contribute?",
    expectation="Without routing every task is worse.",
    tables=(paper_tables.TABLE_9,),
    base=paper_tables.STUDY.base,
    fine_tuning=paper_tables.FINE_TUNING,
)
