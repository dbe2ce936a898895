"""One training loop for the supervised tasks: options, trials, batches of seeds."""
