"""Gradient updates per second beside Stable-Baselines3's DQN, replay sampling included.

Batch 32 of uint8 4x84x84, 9 actions. On a CPU every contender has its own process, ours with the
memory settings of a training run; they take turns, so that other work disturbs all alike. On a GPU
they take turns in one process, eagerly and as captured CUDA graphs.
"""

import argparse
import functools
import time
from collections.abc import Callable

import gymnasium
import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.logger import configure

from agents.config import Config, make_config
from agents.learning.config import autocast_dtype
from agents.learning.learner import Learner
from agents.replay.buffer import Replay
from agents.replay.returns import ReturnConfig
from agents.saving.checkpoint import build_network
from agents.training.step import GradientStep
from benchmarks._options import positive
from benchmarks._turns import Make, take_turns
from rl_nfm.support.memory import keep_freed_memory

EIGHT = {"num_quantiles": 8, "num_target_quantiles": 8, "num_action_quantiles": 8}
PLAIN = {"distribution": "none", "dueling": False, "noisy": False}
OURS = {
    "dqn": ({"double": False, "n_steps": 1}, PLAIN, 0.0),
    "iqn_8": ({"double": False, **EIGHT}, {"dueling": False, "noisy": False}, 0.0),
    "rainbow_8": (EIGHT, {"quantile_layer": "hidden"}, 0.5),
    "rainbow_8_compiled": ({**EIGHT, "compile": True}, {"quantile_layer": "hidden"}, 0.5),
    "rainbow_64": ({}, {"quantile_layer": "hidden"}, 0.5),
    "rainbow_64_features": ({}, {"quantile_layer": "features"}, 0.5),
}
"""Learner, head and priority exponent of each contender."""
TARGETS = {
    "dqn": (2.5, 1.3),
    "rainbow_8": (1.8, 1.0),
    "rainbow_8_compiled": (1.8, 1.0),
    "rainbow_64": (4 * 2.85 / 30.45, 4 * 2.85 / 30.45),
}
"""Wanted ratio to SB3's DQN on a CPU, in bf16 and in fp32; the last is 4x tianshou's
IQN-64 by peers' medians of one run (2.85 and 30.45)."""


def config_of(name: str, *, precision: str, graph: bool, encoder: str, batch: int) -> Config:
    learner, head, exponent = OURS[name]
    return make_config(
        {
            "encoder": encoder,
            "learner": {**learner, "precision": precision, "cuda_graph": graph},
            "head": head,
            "replay": {
                "capacity_steps": 10_000,
                "min_steps": 1000,
                "priority_exponent": exponent,
                "batch_size": batch,
            },
        }
    )


def fill(replay: Replay, state: tuple[torch.Tensor, ...] = ()) -> None:
    """Random rows, with borders now and then; `state` is a recurrent encoder's in all of them."""
    shape, device = replay.frame.shape[1:], replay.device
    for _ in range(replay.rows):
        replay.add(
            frame=torch.randint(0, 256, shape, dtype=torch.uint8, device=device),
            action=torch.randint(0, 9, shape[:1], device=device),
            reward=torch.randn(shape[:1], device=device),
            discount=torch.rand(shape[:1], device=device) > 0.01,
            episode_start=torch.rand(shape[:1], device=device) < 0.01,
            life_loss=torch.zeros(shape[:1], dtype=torch.bool, device=device),
            episode_step=torch.zeros(shape[:1], device=device),
            state=state,
        )


def ours(config: Config, device: torch.device) -> GradientStep:
    """One update over a filled replay."""
    torch.manual_seed(0)
    keep_freed_memory(device)
    shape = (config.env.resolve().stack_num, 84, 84)
    online, target = (build_network(config, shape, 9).to(device) for _ in range(2))
    returns = ReturnConfig(
        n_steps=config.learner.n_steps,
        discount=config.learner.discount,
        reward_clip=config.learner.reward_clip,
        terminal_on_life_loss=False,
    )
    replay = Replay(
        config.replay,
        returns,
        num_envs=config.env.num_envs,
        obs_shape=shape,
        device=device,
        state=online.initial_state(1),
    )
    fill(replay, online.initial_state(config.env.num_envs))
    return GradientStep(Learner(config.learner, online, target, device=device), replay)


class _Pixels(gymnasium.Env):
    """Only provides the spaces to SB3; it is never stepped."""

    observation_space = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = gymnasium.spaces.Discrete(9)


def sb3(device: torch.device) -> Callable[[], None]:
    """One call of SB3's DQN.train with a filled buffer."""
    model = DQN(
        "CnnPolicy",
        _Pixels(),
        buffer_size=10_000,
        batch_size=32,
        device=device,
        optimize_memory_usage=False,
        policy_kwargs={"normalize_images": True},
    )
    model.set_logger(configure(None, []))
    buffer = model.replay_buffer
    assert buffer is not None
    rng = np.random.default_rng(0)
    buffer.observations[:] = rng.integers(0, 256, buffer.observations.shape, dtype=np.uint8)
    buffer.next_observations[:] = buffer.observations[::-1]
    buffer.actions[:] = rng.integers(0, 9, buffer.actions.shape)
    buffer.rewards[:] = rng.standard_normal(buffer.rewards.shape)
    buffer.full = True
    return lambda: model.train(1, batch_size=32)


def slice_times(update: Callable[[], None], seconds: float, device: torch.device) -> list[float]:
    """Times of single updates during about `seconds`."""
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        update()
        torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return times


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="per contender and round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--encoder", default="nature")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", nargs="*", help=f"contenders, of {', '.join(OURS)}")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    contenders: dict[str, Make] = {}
    if options.encoder == "nature" and options.batch == 32:
        contenders["sb3_dqn"] = functools.partial(sb3, device)
    for name in options.only or OURS:
        for graph in (False, True) if device.type == "cuda" else (False,):
            config = config_of(
                name,
                precision=options.precision,
                graph=graph,
                encoder=options.encoder,
                batch=options.batch,
            )
            make = functools.partial(ours, config, device)
            contenders[f"{name}_graph" if graph else name] = make
    times = {"rounds": options.rounds, "seconds": options.seconds}
    if device.type == "cpu":
        found, threads = take_turns(contenders, threads=options.threads, **times), options.threads
    else:
        found, threads = _on_gpu(contenders, device, **times), torch.get_num_threads()
    report(found, device, threads, options.precision)


def _on_gpu(
    contenders: dict[str, Make],
    device: torch.device,
    *,
    rounds: int,
    seconds: float,
) -> dict[str, list[float]]:
    updates = {name: make() for name, make in contenders.items()}
    for update in updates.values():
        slice_times(update, 1.0, device)  # warm-up
    measured: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(rounds):
        for name, update in updates.items():
            measured[name] += slice_times(update, seconds, device)
    return measured


def report(
    measured: dict[str, list[float]], device: torch.device, threads: int, precision: str
) -> None:
    clock = "processor time" if device.type == "cpu" and threads == 1 else "by the clock"
    print(f"torch {torch.__version__}, {device.type}, {threads} threads, {clock}")
    print(
        f"{'update':28s} {'median/s':>9s} {'best decile/s':>14s} {'to sb3_dqn':>11s} {'target':>7s}"
    )
    bf16 = autocast_dtype(precision, device) is not None
    base = np.median(measured["sb3_dqn"]) if "sb3_dqn" in measured else np.nan
    for name, times in measured.items():
        median, best = np.median(times), np.quantile(times, 0.1)
        targets = TARGETS.get(name.removesuffix("_graph"))
        wanted = f"{targets[not bf16]:.2f}" if targets and device.type == "cpu" else ""
        print(f"{name:28s} {1 / median:9.1f} {1 / best:14.1f} {base / median:11.2f} {wanted:>7s}")
