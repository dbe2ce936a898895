"""From a stream of frames to a policy: config, replay, learner, train, evaluate, checkpoint."""
