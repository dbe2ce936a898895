"""From a stream of frames to a policy: config, replay, learner, train, evaluate, checkpoint."""

from agents.playing.policy import Agent, load

__all__ = ["Agent", "load"]
