"""Value learning: heads and losses."""
