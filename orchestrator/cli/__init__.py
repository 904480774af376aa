"""What the commands share: arguments, a study's session, the live display."""
