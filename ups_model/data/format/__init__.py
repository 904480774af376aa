"""The clip set on disk: its arrays, rules and splits."""
