"""The report of supervised runs: grouping into rows, the table and the curves."""
