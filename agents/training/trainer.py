"""The training run: act, send, learn, receive, hand over, and what is due in between.

One process. The emulators work (`send` .. `receive`) while the learner updates; on a GPU acting and
learning overlap too, see `agents.training.collector`. All counts of steps are agent steps over all
environments; the autoreset step of each episode counts as one.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from agents.config import Config, write_config
from agents.learning.actor import frozen_statistics
from agents.learning.random_stream import RandomStream
from agents.playing import attention
from agents.playing.evaluate import Interrupted, env_seed, play
from agents.saving import checkpoint
from agents.saving.run_folder import RunFolder
from agents.saving.writer import CheckpointWriter
from agents.training import parts
from agents.training.clock import Clock, Epsilon, Stopwatch
from agents.training.collector import Collector, Streams
from agents.training.memory_check import out_of_memory_told
from agents.training.record import Counters, Recorder
from agents.training.step import GradientStep
from agents.training.stop import StopRequest
from rl_nfm.support.memory import keep_freed_memory


class Trainer:
    """Everything a run is made of."""

    def __init__(self, config: Config, device: torch.device, *, streams: Streams | None = None):
        """Build all parts.

        Args:
            config: of the run.
            device: where networks and replay live.
            streams: the queues of work; None: those of the device.

        Raises:
            ValueError: options that do not fit together, or too little memory.
        """
        self.config, self.device = config, device
        self.streams = Streams.of(device) if streams is None else streams
        torch.manual_seed(config.seed)
        self.env = parts.build_env(config)
        self.learner = parts.build_learner(config, self.env, device)
        state = self.learner.online.initial_state(1)
        self.replay = parts.build_replay(config, self.env, state, device)
        own = RandomStream(device, config.seed + 1) if device.type == "cuda" else None
        self.step = GradientStep(self.learner, self.replay, random=own)
        self.collector = Collector(
            config,
            self.learner,
            self.replay,
            self.streams,
            terminal_on_life_loss=self.env.protocol.terminal_on_life_loss,
        )
        self.others = {"learning": self.step, "acting": self.collector}
        self.epsilon = Epsilon(
            config.exploration,
            num_envs=config.env.num_envs,
            min_steps=config.replay.min_steps,
        )
        run = config.run
        self.clock = Clock(
            log=run.log_every_steps,
            evaluate=run.eval_every_steps,
            save=run.checkpoint_every_steps,
        )
        self.counters, self.watch, self.asked = Counters(), Stopwatch(), StopRequest()

    def run(self, folder: RunFolder, last: checkpoint.Checkpoint | None) -> Path:
        """Train to the end, or until a signal; always ends with a checkpoint.

        Raises:
            ValueError: learning diverged, or a checkpoint cannot be written.
            Stop: a signal asked for the end.
        """
        keep_freed_memory(self.device)
        with self.asked.listening():  # from the first line that names the folder to the last
            self._open(folder, last)
            with (
                contextlib.closing(self.env),
                self.recorder.progress,
                _one_host_thread(self.device),
            ):
                try:
                    self._loop()
                    self.saver.wait()
                except Exception:
                    with contextlib.suppress(ValueError):  # what is raised already says more
                        self.saver.wait()
                    raise
        if self.learner.updates == 0:
            print(
                f"note: this run made no update: learning begins at replay.min_steps "
                f"({self.config.replay.min_steps})"
            )
        self.asked.raise_if_asked(folder.path)
        return folder.path

    def _open(self, folder: RunFolder, last: checkpoint.Checkpoint | None) -> None:
        """Take over what the last checkpoint holds; make the run's writers."""
        if last is not None:
            if not checkpoint.restore(last, self.learner, self.replay, self.others):
                print(
                    f"note: {last.path} holds no replay (run.save_replay was off, or a sweep "
                    f"dropped it when the run was done); learning goes on when a new one holds "
                    f"replay.min_steps ({self.config.replay.min_steps})"
                )
            self.counters = Counters.of(last.counters, where=str(last.path))
        write_config(self.config, folder.config_path)  # a resumed run may have changed some of it
        self.saver = CheckpointWriter(
            folder.checkpoints,
            self.config,
            self.learner,
            self.replay,
            others=self.others,
            obs_shape=parts.obs_shape_of(self.env),
            last=last,
        )
        folder.cut(self.counters.steps)
        updates = self.learner.updates
        self.recorder = Recorder(folder, self.counters, updates, steps=self.config.steps)

    def _loop(self) -> None:
        counters, num_envs = self.counters, self.config.env.num_envs
        obs, info = self.env.reset(seed=env_seed(self.config.seed, counters.steps))
        with self._paused():
            pass  # until all that was built is there
        self.collector.begin(obs, info, epsilon=self.epsilon(counters.steps))
        while counters.steps < self.config.steps and not self.asked():
            self.env.send(self.collector.act())
            self.watch.lap("act")
            self._learn()
            self.watch.lap("learn")
            obs, reward, terminated, _, info = self.env.recv()
            self.watch.lap("recv")
            counters.steps += num_envs
            epsilon = self.epsilon(counters.steps)
            self.collector.receive(obs, reward, terminated, info, epsilon=epsilon)
            counters.count_episodes(info)
            self.watch.lap("add")
            self._housekeeping()
            self.watch.lap("other")
        self._finish()

    def _learn(self) -> None:
        """The updates that this step's frames have paid for."""
        config, replay = self.config, self.replay
        if replay.steps < config.replay.min_steps or not replay.ready:
            return
        due = self.counters.updates_due(config.env.num_envs, config.learner.steps_per_update)
        progress = min(1.0, self.counters.steps / config.steps)
        learning, weights = self.streams.learning, self.collector.weights
        learning.run(lambda: self.step.set_schedule(progress))
        if due:
            weights.before_updates()
            for _ in range(due):
                learning.run(self.step)
            weights.after_updates()

    def _housekeeping(self) -> None:
        """Log, evaluate and save when due; end the run if a checkpoint could not be written."""
        self.saver.check()
        now, num_envs = self.counters.steps, self.config.env.num_envs
        self.recorder.advance(num_envs, self.learner.updates)
        due = self.clock.due(now - num_envs, now)
        if not self.config.run.eval_episodes:
            due -= {"evaluate"}
        if not due:
            return
        with self._paused():
            self._require_numbers()
            scores = self._evaluate() if "evaluate" in due else {}
            if scores or "log" in due:
                self._log(scores)
            if "save" in due:
                self._save()
                self._picture_attention()

    def _finish(self) -> None:
        """Log the last stretch, and leave a checkpoint of the last step."""
        with self._paused():
            self._require_numbers()
            if self.counters.steps > self.recorder.begun_steps:
                self._log({})
            if self.counters.steps > self.saver.saved_steps:
                self._save()

    @contextlib.contextmanager
    def _paused(self) -> Iterator[None]:
        """Inside, no stream has work under way, so that the host may read and write everything."""
        self.streams.finish()
        yield
        if self.device.type == "cuda":  # what was done inside is done before streams go on
            torch.cuda.current_stream(self.device).synchronize()

    def _require_numbers(self) -> None:
        """Stop before anything that is not a number is logged, evaluated or saved.

        Raises:
            ValueError: naming the stretch of steps and the checkpoint to go back to.
        """
        if not self.learner.finite():
            self.saver.wait()
            last = self.saver.last_good
            raise ValueError(
                f"learning diverged between steps {self.recorder.begun_steps} and "
                f"{self.counters.steps}: loss or weights are not finite; "
                f"{'no checkpoint was written' if last is None else f'last good one: {last}'}"
            )

    def _evaluate(self) -> dict[str, Any]:
        """Scores for the log; none where a signal cut them short."""
        config = self.config
        try:
            scores = play(
                self.learner.online,
                config,
                episodes=config.run.eval_episodes,
                epsilon=config.run.eval_epsilon,
                seed=config.seed + 1_000_000,
                num_envs=config.env.num_envs,
                stop=self.asked,
            )
        except Interrupted:
            return {}
        if self.saver.save_best(dataclasses.asdict(self.counters), scores.mean):
            self.counters.best_return = scores.mean
        return {"eval_return_mean": scores.mean, "eval_return_median": scores.median}

    def _picture_attention(self) -> None:
        """What the encoder attends to in the newest observations, to TensorBoard."""
        network, replay, steps = self.learner.online, self.replay, self.counters.steps
        if "attention" not in network.encoder.shows:
            return
        env = torch.arange(replay.num_envs, device=self.device)
        obs = replay.stacks(torch.full_like(env, replay.added_rows - 1)[None], env)[0]
        with frozen_statistics(network):
            weights, image = attention.summary(network, obs, replay.frame_channels)
        folder = self.recorder.folder
        for name, values in weights.items():
            folder.draw(
                lambda board, tag=f"attention/{name}", values=values: board.add_histogram(
                    tag, values, steps
                )
            )
        folder.draw(lambda board: board.add_image("attention", image, steps, dataformats="HWC"))

    def _log(self, scores: dict[str, Any]) -> None:
        counters = self.counters
        rounds = (counters.steps - self.recorder.begun_steps) // self.config.env.num_envs
        schedules = {
            "epsilon": float(self.epsilon(counters.steps).mean()),
            "learning_rate": float(self.learner.learning_rate),
            "beta": float(self.replay.beta),
        }
        learnt = self.learner.metrics()
        times = self.watch.milliseconds(rounds)
        self.recorder.log(self.learner.updates, {**schedules, **learnt, **scores, **times})

    def _save(self) -> None:
        self.saver.save(dataclasses.asdict(self.counters))

    def memory_told(self) -> contextlib.AbstractContextManager[None]:
        """Inside, running out of memory ends with one line that says what the replay takes."""
        stores = self.replay.row_stores.values()
        return out_of_memory_told(sum(store.nbytes for store in stores), self.device)


@contextlib.contextmanager
def _one_host_thread(device: torch.device) -> Iterator[None]:
    """With a GPU the host computes nothing; threads that wait for work would slow the emulators."""
    before = torch.get_num_threads()
    if device.type == "cuda":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
