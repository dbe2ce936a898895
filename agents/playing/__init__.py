"""A trained agent at play: evaluation, predict, video, attention."""
