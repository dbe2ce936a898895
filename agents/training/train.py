"""The training run: builds everything, and the loop act, send, learn, receive, add, log.

One process. The emulators work (`send` .. `recv`) while the learner updates. All counts of steps
are agent steps over all environments; the autoreset step of each episode counts as one.
"""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Lt
from tqdm import tqdm

from agents.config import Config, check_resumable, write_config
from agents.learning.actor import Actor, frozen_statistics, to_device
from agents.learning.learner import Learner
from agents.playing import attention
from agents.playing.evaluate import env_seed, play
from agents.replay.buffer import Replay, ReturnConfig, replay_bytes
from agents.saving import checkpoint
from agents.saving.run_folder import RunFolder
from agents.saving.writer import CheckpointWriter
from agents.training.memory_check import check_memory, out_of_memory_told
from agents.training.step import GradientStep
from envs import make_env
from rl_nfm.nfm import NeuralFunctionModule
from rl_nfm.support.configuration import validate


@dataclasses.dataclass(kw_only=True)
class Counters:
    """What a resumed run continues from; saved in every checkpoint."""

    steps: Annotated[int, Ge(0)] = 0
    episodes: Annotated[int, Ge(0)] = 0
    update_credit: Annotated[float, Ge(0), Lt(1)] = 0.0
    next_log: Annotated[int, Ge(0)] = 0
    next_eval: Annotated[int, Ge(0)] = 0
    next_checkpoint: Annotated[int, Ge(0)] = 0
    best_return: float | None = None
    last_returns: list[float] = dataclasses.field(default_factory=list)
    new_returns: list[float] = dataclasses.field(default_factory=list)
    new_lengths: list[int] = dataclasses.field(default_factory=list)


class Stop(Exception):
    """A signal asked the run to end."""


def pick_device(name: str) -> torch.device:
    """The device of `auto`, `cpu` or `cuda`.

    Raises:
        ValueError: if there is no CUDA device where one is asked for.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: 'cuda' is not available on this machine (allowed: auto, cpu)")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def train(config: Config, *, out: Path | None = None) -> Path:
    """Begin a new run; returns its folder.

    Raises:
        ValueError: see `RunFolder.create`, `pick_device`, `check_memory`.
    """
    device = pick_device(config.device)
    trainer = Trainer(config, device)
    folder = RunFolder.create(config, out)
    with folder.held(), trainer.memory_told():
        return trainer.run(folder, None)


def resume(path: Path, override: Callable[[Config], Config]) -> Path:
    """Go on with a run from its last checkpoint, or from its beginning where it has none.

    Args:
        path: the run's folder.
        override: gives the config to go on with from the saved one.

    Raises:
        ValueError: no run, a damaged checkpoint, or a change that does not fit.
    """
    folder = RunFolder.open(path)
    with folder.held():
        found = checkpoint.list_checkpoints(folder.checkpoints)
        last = checkpoint.open_checkpoint(found[-1], replay=True) if found else None
        config = override(folder.config())
        if last is not None:
            # Not with config.yaml, which may have been edited since.
            check_resumable(last.config, config)
            if config.steps < last.steps:
                raise ValueError(
                    f"steps: {config.steps} is not allowed: {last.steps} are done already"
                )
        trainer = Trainer(config, pick_device(config.device))
        with trainer.memory_told():
            return trainer.run(folder, last)


class Trainer:
    """Everything a run is made of."""

    def __init__(self, config: Config, device: torch.device):
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        self.env = make_env(
            config.game,
            num_envs=config.env.num_envs,
            num_threads=config.env.num_threads,
            protocol=config.env.resolve(),
            seed=env_seed(config.seed),
        )
        protocol = self.env.protocol
        obs_shape: Any = self.env.single_observation_space.shape
        num_actions = int(self.env.single_action_space.n)  # pyright: ignore
        self._obs_shape = obs_shape
        online = checkpoint.build_network(config, obs_shape, num_actions).to(device)
        target = checkpoint.build_network(config, obs_shape, num_actions).to(device)
        state = online.initial_state(1)
        if not state and config.replay.sequence_steps + config.replay.burn_in_steps > 1:
            raise ValueError(
                f"replay.sequence_steps: {config.replay.sequence_steps} is not allowed: encoder "
                f"{config.encoder!r} has no state (allowed: 1, with burn_in_steps 0)"
            )
        if state and config.replay.sequence_steps == 1:
            print(
                f"note: encoder {config.encoder!r} is trained on single steps from stored states; "
                "set --replay.sequence-steps (rltime: 20) for gradients through time"
            )
        size = replay_bytes(
            config.replay, num_envs=config.env.num_envs, obs_shape=obs_shape, state=state
        )
        check_memory(*size, device)
        self._replay_bytes = size[0]
        with self.memory_told():
            self.replay = Replay(
                config.replay,
                ReturnConfig(
                    n_steps=config.learner.n_steps,
                    discount=config.learner.discount,
                    reward_clip=config.learner.reward_clip,
                    terminal_on_life_loss=protocol.terminal_on_life_loss,
                ),
                num_envs=config.env.num_envs,
                obs_shape=obs_shape,
                device=device,
                state=state,
            )
        self.learner = Learner(config.learner, online, target, device=device)
        self.step = GradientStep(self.learner, self.replay)
        self.actor = Actor(
            online,
            num_envs=config.env.num_envs,
            num_quantiles=config.learner.num_action_quantiles,
            dtype=self.learner.dtype,
            terminal_on_life_loss=protocol.terminal_on_life_loss,
        )
        self.counters = Counters(
            next_log=config.run.log_every_steps,
            next_eval=config.run.eval_every_steps,
            next_checkpoint=config.run.checkpoint_every_steps,
        )
        spread = torch.arange(config.env.num_envs) / max(1, config.env.num_envs - 1)
        self.epsilon_exponent = (1 + config.exploration.epsilon_power * spread).to(device)
        self._signal: int | None = None

    def run(self, folder: RunFolder, last: checkpoint.Checkpoint | None) -> Path:
        """Train to the end, or until a signal; always ends with a checkpoint."""
        self.folder = folder
        if last is not None:
            checkpoint.restore(last, self.learner, self.replay)
            self.step.forget_graph()
            self.counters = validate(Counters, last.counters, where=str(last.path))
        write_config(self.config, folder.config_path)  # a resumed run may have changed some of it
        self.saver = CheckpointWriter(
            folder.checkpoints,
            self.config,
            self.learner,
            self.replay,
            obs_shape=self._obs_shape,
            last=last,
        )
        folder.cut(self.counters.steps)
        self._clock = (time.perf_counter(), self.counters.steps, self.learner.updates)
        before = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        bar = tqdm(
            total=self.config.steps,
            initial=self.counters.steps,
            unit="step",
            mininterval=1.0,
            smoothing=0.05,
            dynamic_ncols=True,
        )
        try:
            with bar:
                self._loop(bar)
            self.saver.wait()
        except Exception:
            with contextlib.suppress(ValueError):  # what is raised already says more
                self.saver.wait()
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.env.close()
        if self._signal is not None:
            raise Stop(signal.Signals(self._signal).name)
        return folder.path

    def _on_signal(self, number: int, _frame: Any) -> None:
        self._signal = number

    def _loop(self, bar: "tqdm[Any]") -> None:
        counters, config = self.counters, self.config
        obs, info = self.env.reset(seed=env_seed(config.seed, counters.steps))
        while counters.steps < config.steps and self._signal is None:
            start = to_device(info["episode_start"], self.device)
            pixels = to_device(obs, self.device)
            state = self.actor.state
            action = self.actor.act(pixels, start, epsilon=self._epsilon(), noise=True)
            row_step = self.actor.episode_step
            self.env.send(action.cpu().numpy())
            self._learn()
            obs, reward, terminated, _, info = self.env.recv()
            raw = to_device(reward, self.device)
            life_loss = to_device(info["life_loss"], self.device)
            self.actor.observe(raw, life_loss)
            self.replay.add(
                frame=pixels[:, -1],
                action=action,
                reward=raw,
                discount=to_device(~terminated, self.device),
                episode_start=start,
                life_loss=life_loss,
                episode_step=row_step,
                state=state,
            )
            counters.steps += config.env.num_envs
            self._count_episodes(info)
            self._housekeeping(bar)
        if counters.steps > self.saver.saved_steps:
            if self.counters.steps > self._clock[1]:
                self._log(bar, {})
            self._save()

    def _learn(self) -> None:
        """The updates that this step's frames have paid for."""
        config, counters, replay = self.config, self.counters, self.replay
        if replay.steps < config.replay.min_steps or not replay.ready:
            return
        counters.update_credit += config.env.num_envs / config.learner.steps_per_update
        self.step.set_schedule(min(1.0, counters.steps / config.steps))
        while counters.update_credit >= 1.0:
            counters.update_credit -= 1.0
            self.step()

    def _epsilon(self) -> torch.Tensor:
        """Probability of a random action, per environment."""
        config = self.config.exploration
        begun = self.counters.steps - self.config.replay.min_steps
        share = min(1.0, max(0.0, begun / config.epsilon_decay_steps))
        base = config.epsilon_start + share * (config.epsilon_final - config.epsilon_start)
        epsilon = torch.full_like(self.epsilon_exponent, base) ** self.epsilon_exponent
        return epsilon.clamp(min=config.epsilon_min)

    def _count_episodes(self, info: dict[str, Any]) -> None:
        ended = info["episode_end"]
        if ended.any():
            returns = info["episode_return"][ended].tolist()
            self.counters.new_returns += returns
            self.counters.new_lengths += info["episode_steps"][ended].tolist()
            self.counters.last_returns = (self.counters.last_returns + returns)[-100:]
            self.counters.episodes += len(returns)

    def _housekeeping(self, bar: "tqdm[Any]") -> None:
        """Log, evaluate and save when due; end the run if a checkpoint could not be written."""
        self.saver.check()
        counters, run = self.counters, self.config.run
        bar.update(self.config.env.num_envs)
        extra: dict[str, Any] = {}
        evaluate = run.eval_episodes > 0 and counters.steps >= counters.next_eval
        if evaluate:
            counters.next_eval += run.eval_every_steps
            extra = self._evaluate()
        if evaluate or counters.steps >= counters.next_log:
            counters.next_log = (counters.steps // run.log_every_steps + 1) * run.log_every_steps
            self._log(bar, extra)
        if counters.steps >= counters.next_checkpoint:
            counters.next_checkpoint += run.checkpoint_every_steps
            self._save()
            self._picture_attention()

    def _evaluate(self) -> dict[str, Any]:
        config = self.config
        scores = play(
            self.learner.online,
            config,
            episodes=config.run.eval_episodes,
            epsilon=config.run.eval_epsilon,
            seed=config.seed + 1_000_000,
        )
        if self.saver.save_best(dataclasses.asdict(self.counters), scores.mean):
            self.counters.best_return = scores.mean
        return {"eval_return_mean": scores.mean, "eval_return_median": scores.median}

    def _picture_attention(self) -> None:
        """What an NFM attends to in the newest observations, to TensorBoard."""
        network, replay, steps = self.learner.online, self.replay, self.counters.steps
        if not any(isinstance(module, NeuralFunctionModule) for module in network.modules()):
            return
        env = torch.arange(replay.num_envs, device=self.device)
        obs = replay.stacks(torch.full_like(env, replay.added_rows - 1)[None], env)[0]
        with frozen_statistics(network):
            weights, image = attention.summary(network, obs)
        for name, values in weights.items():
            self.folder.draw(
                lambda board, tag=f"attention/{name}", values=values: board.add_histogram(
                    tag, values, steps
                )
            )
        self.folder.draw(
            lambda board: board.add_image("attention", image, steps, dataformats="HWC")
        )

    def _log(self, bar: "tqdm[Any]", extra: dict[str, Any]) -> None:
        """One line of metrics; docs/metrics.md says what each number means."""
        counters, learner = self.counters, self.learner
        now = (time.perf_counter(), counters.steps, learner.updates)
        seconds = max(1e-9, now[0] - self._clock[0])
        line: dict[str, Any] = {
            "steps": counters.steps,
            "updates": learner.updates,
            "episodes": counters.episodes,
            "epsilon": float(self._epsilon().mean()),
            "learning_rate": float(learner.learning_rate),
            "beta": float(self.replay.beta),
            "steps_per_second": (now[1] - self._clock[1]) / seconds,
            "updates_per_second": (now[2] - self._clock[2]) / seconds,
            "episode_returns": counters.new_returns,
            "episode_lengths": counters.new_lengths,
            **learner.metrics(),
            **extra,
        }
        if counters.new_returns:
            line["return_mean"] = sum(counters.new_returns) / len(counters.new_returns)
            line["length_mean"] = sum(counters.new_lengths) / len(counters.new_lengths)
        if counters.last_returns:
            line["return_last_100"] = sum(counters.last_returns) / len(counters.last_returns)
            bar.set_postfix(
                {
                    "updates/s": f"{line['updates_per_second']:.1f}",
                    "return": f"{line['return_last_100']:.0f}",
                },
                refresh=False,
            )
        self.folder.log(line)
        counters.new_returns, counters.new_lengths = [], []
        self._clock = now

    def _save(self) -> None:
        self.saver.save(dataclasses.asdict(self.counters))

    def memory_told(self) -> contextlib.AbstractContextManager[None]:
        """Inside, running out of memory ends with one line that says what the replay takes."""
        return out_of_memory_told(self._replay_bytes, self.device)
