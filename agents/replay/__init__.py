"""Replay on the learner's device: the buffer and its priorities."""
