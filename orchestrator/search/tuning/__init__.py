"""Equal tuning of a study: the same search for each of its arms, before its tables are trained."""
