"""Memory of a full replay of one million steps: ours is measured, Stable-Baselines3's computed."""

import argparse
import resource

import torch

from agents.replay.buffer import Replay
from agents.replay.config import ReplayConfig
from agents.replay.layout import replay_bytes
from agents.replay.returns import ReturnConfig
from benchmarks._options import positive


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=positive, default=1_000_000)
    parser.add_argument("--num-envs", type=int, default=8)
    options = parser.parse_args(argv)
    config = ReplayConfig(capacity_steps=options.steps)
    shape, device = (4, 84, 84), torch.device("cpu")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    returns = ReturnConfig(n_steps=3, discount=0.99, reward_clip=1.0, terminal_on_life_loss=False)
    replay = Replay(config, returns, num_envs=options.num_envs, obs_shape=shape, device=device)
    for store in replay.row_stores.values():
        store.fill_(1)  # touch every page
    replay.priorities.load(torch.ones_like(replay.priorities.weights))
    for _ in range(100):
        replay.sample(32)
    measured = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    computed, _ = replay_bytes(config, num_envs=options.num_envs, obs_shape=shape, state=())
    # SB3's ReplayBuffer: two stacks of four frames, action int64, reward and done float32, timeout
    sb3 = options.steps * (2 * 4 * 84 * 84 + 8 + 4 + 4 + 4)
    print(f"{options.steps} steps, GB:")
    print(f"  ours, resident (measured)  {measured / 1e9:7.2f}")
    print(f"  ours, allocated (computed) {computed / 1e9:7.2f}")
    print(f"  SB3 default (computed)     {sb3 / 1e9:7.2f}   {sb3 / measured:.1f}x ours")
