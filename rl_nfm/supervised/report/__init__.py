"""The report of supervised runs: which share a row, the table, the curves."""
