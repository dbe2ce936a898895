"""What the networks, the agent and the supervised tasks share."""
