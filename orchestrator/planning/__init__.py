"""From a study to the units that fill its tables. Pure; starts nothing."""
