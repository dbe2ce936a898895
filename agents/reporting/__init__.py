"""Reports over runs: sources, statistics, tables, figures."""
