"""The paper's ablation tables alone: encoder depth, blocks per layer, routing. Shares its units with `paper_tables`."""

from dataclasses import replace

from search_spaces.ups import paper_tables

STUDY = replace(
    paper_tables.STUDY,
    name="tables_7_9",
    question="What do encoder depth, blocks per layer and dynamic routing each contribute?",
    expectation="Depth 3 and two blocks suffice, more adds nothing; without routing every task is worse.",
    tables=(paper_tables.TABLE_7, paper_tables.TABLE_8, paper_tables.TABLE_9),
    claims=paper_tables.CLAIMS,
)
