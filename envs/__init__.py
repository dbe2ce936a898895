"""From a game name to batches of uint8 frames. Knows numpy, gymnasium and ale-py; no torch."""
