"""The supervised tasks: secondary entry points over the same modules."""
