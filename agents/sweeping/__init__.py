"""Many runs from one command: plans, progress, local processes or a Ray cluster, and search."""
