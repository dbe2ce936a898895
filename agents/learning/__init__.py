"""The network of the agent, its update, and its acting."""
