"""Training: one gradient step composed of its parts, and what the loop around it needs."""
