"""Which unit runs next and where, and what a failure means. Pure; no Ray."""
