"""Evaluations in training: scores, and now and then a clip of play.

None of it draws from training's random numbers, so a run computes the same with and without.
"""

import dataclasses
from typing import Any

from agents.config import Config
from agents.learning.network import QNetwork
from agents.playing.clip import EpisodeClip
from agents.playing.evaluate import Interrupted, play
from agents.saving.tensorboard import VIDEO
from agents.saving.writer import CheckpointWriter
from agents.training.record import Recorder
from agents.training.stop import Meanwhile, StopRequest
from rl_nfm.support.ranks import Ranks


def evaluate(
    network: QNetwork,
    config: Config,
    recorder: Recorder,
    saver: CheckpointWriter,
    stop_request: StopRequest,
    ranks: Ranks,
) -> dict[str, Any]:
    """Evaluate the network; returns scores for the log, none where a signal ended it early.

    Rank 0 plays while the others wait.

    Args:
        network: the one in training.
        config: of the run.
        recorder: of the run: a better return is noted in its counters, the clip in its curves.
        saver: keeps the best network.
        stop_request: tells whether a signal asked the run to end.
        ranks: of the run.
    """
    counters = recorder.counters
    clip = EpisodeClip() if clip_due(config, counters.steps) else None

    def scores() -> dict[str, Any]:
        try:
            played = play(
                network,
                config,
                episodes=config.run.eval_episodes,
                epsilon=config.run.eval_epsilon,
                seed=config.seed + 1_000_000,
                num_envs=config.env.num_envs,
                on_step=clip,
                stop=meanwhile,
            )
        except Interrupted:
            return {}
        if saver.save_best(dataclasses.asdict(counters), played.mean):
            counters.best_return = played.mean
        if clip is not None:
            _show(clip, recorder)
        return {"eval_return_mean": played.mean, "eval_return_median": played.median}

    meanwhile = Meanwhile(stop_request, ranks)
    local_scores = scores() if ranks.first else {}
    meanwhile.wait()
    return ranks.of_first(lambda: local_scores)


def _show(clip: EpisodeClip, recorder: Recorder) -> None:
    steps = recorder.counters.steps
    recorder.folder.curves.draw(lambda board: board.add_gif(VIDEO, clip.gif(), clip.size, steps))


def clip_due(config: Config, steps: int) -> bool:
    """Whether the evaluation at `steps` leaves a clip: the first, every so many-th and the last."""
    every, between = config.run.video_every_evals, config.run.eval_every_steps
    number, round_steps = steps // between, config.env.num_envs
    end = -(-config.steps // round_steps) * round_steps  # the last round is played to its end
    is_first = (steps - round_steps) // between == 0
    is_last = (number + 1) * between > end
    return every > 0 and (is_first or is_last or (number - 1) % every == 0)
