"""What a training run finds out about its network in between: scores, and what it attends to."""

import dataclasses
from typing import Any

import torch

from agents.config import Config
from agents.learning.actor import frozen_statistics
from agents.learning.network import QNetwork
from agents.playing import attention
from agents.playing.evaluate import Interrupted, play
from agents.replay.buffer import Replay
from agents.saving.run_folder import RunFolder
from agents.saving.writer import CheckpointWriter
from agents.training.record import Counters
from agents.training.stop import Meanwhile, StopRequest
from rl_nfm.support.ranks import Ranks


def evaluate(
    network: QNetwork,
    config: Config,
    counters: Counters,
    saver: CheckpointWriter,
    asked: StopRequest,
    ranks: Ranks,
) -> dict[str, Any]:
    """Scores for the log; none where a signal cut them short.

    Rank 0 plays while the others wait.

    Args:
        network: that is trained.
        config: of the run.
        counters: of the run; told of a better return.
        saver: keeps the best network.
        asked: whether the run is to end.
        ranks: of the run.
    """

    def scores() -> dict[str, Any]:
        try:
            found = play(
                network,
                config,
                episodes=config.run.eval_episodes,
                epsilon=config.run.eval_epsilon,
                seed=config.seed + 1_000_000,
                num_envs=config.env.num_envs,
                stop=meanwhile,
            )
        except Interrupted:
            return {}
        if saver.save_best(dataclasses.asdict(counters), found.mean):
            counters.best_return = found.mean
        return {"eval_return_mean": found.mean, "eval_return_median": found.median}

    meanwhile = Meanwhile(asked, ranks)
    own = scores() if ranks.first else {}
    meanwhile.wait()
    return ranks.of_first(lambda: own)


def picture_attention(network: QNetwork, replay: Replay, folder: RunFolder, steps: int) -> None:
    """What the encoder attends to in the newest observations, to TensorBoard."""
    if "attention" not in network.encoder.shows:
        return
    env = torch.arange(replay.num_envs, device=replay.device)
    obs = replay.stacks(torch.full_like(env, replay.added_rows - 1)[None], env)[0]
    with frozen_statistics(network):
        weights, image = attention.summary(network, obs, replay.frame_channels)
    for name, values in weights.items():
        folder.draw(
            lambda board, tag=f"attention/{name}", values=values: board.add_histogram(
                tag, values, steps
            )
        )
    folder.draw(lambda board: board.add_image("attention", image, steps, dataformats="HWC"))
