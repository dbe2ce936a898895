"""Stages of `scripts/gpu_session.py`: each a function that measures and yields plain results."""
