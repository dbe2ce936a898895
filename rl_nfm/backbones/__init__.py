"""Residual networks and norms, and baselines matched to another network's size."""
