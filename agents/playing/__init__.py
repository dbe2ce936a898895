"""Playing with a trained agent: evaluation, `predict`, videos and pictures of attention."""
