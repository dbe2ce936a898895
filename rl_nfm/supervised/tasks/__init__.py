"""The supervised tasks, each with its models."""
