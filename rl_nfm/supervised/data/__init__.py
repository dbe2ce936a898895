"""Data sets of the supervised tasks, generated or read."""
