"""The training run: act, send, learn, receive, hand over, and what is due in between.

One process, or several ranks that each have a share of everything (`rl_nfm.support.ranks`) and take
each step of this loop together. The emulators work (`send` .. `receive`) while the learner updates;
on a GPU acting and learning overlap too, see `agents.training.collector`. All counts of steps are
agent steps over all environments; the autoreset step of each episode counts as one.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.config import Config
from agents.learning.random_stream import RandomStream
from agents.learning.streams import one_host_thread
from agents.playing.evaluate import env_seed
from agents.saving import checkpoint, shards
from agents.saving.board import add_end
from agents.saving.run_folder import RunFolder
from agents.saving.writer import CheckpointWriter
from agents.training import parts
from agents.training.clock import Clock, Epsilon, Stopwatch
from agents.training.collector import Collector, Streams
from agents.training.evaluation import evaluate
from agents.training.memory_check import out_of_memory_told
from agents.training.pictures import picture_encoder
from agents.training.record import Counters, Episode, Recorder
from agents.training.step import GradientStep
from agents.training.stop import StopRequest
from rl_nfm.support.memory import keep_freed_memory
from rl_nfm.support.ranks import ALONE, Ranks

AGREE_EVERY_ROUNDS = 16
"""Steps of every environment after which several ranks ask each other whether to end."""


class Trainer:
    """Everything a run is made of."""

    def __init__(
        self,
        config: Config,
        device: torch.device,
        *,
        streams: Streams | None = None,
        ranks: Ranks = ALONE,
    ):
        """Build all parts.

        Args:
            config: of the run.
            device: where networks and replay live.
            streams: the queues of work; None: those of the device.
            ranks: that train the run together, each with its share of it.

        Raises:
            ValueError: options that do not fit together, or too little memory.
        """
        self.config, self.device, self.ranks = config, device, ranks
        self.share = share = parts.share_of(config, ranks)
        self.streams = Streams.of(device) if streams is None else streams
        torch.manual_seed(config.seed)
        self.env = parts.build_env(share)
        self.learner = parts.build_learner(config, self.env, device, ranks)
        if not ranks.alone:  # the weights are the same everywhere, all that follows differs
            torch.manual_seed(share.seed)
        state = self.learner.online.initial_state(1)
        self.replay = parts.build_replay(share, self.env, state, device, ranks)
        own = RandomStream(device, share.seed + 1) if device.type == "cuda" else None
        self.step = GradientStep(self.learner, self.replay, random=own)
        self.collector = Collector(
            share,
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
        self._ended: list[Episode] = []

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
                one_host_thread(self.device),
            ):
                try:
                    self._loop()
                    self.saver.finish()
                except Exception:
                    with contextlib.suppress(ValueError):  # what is raised already says more
                        self.saver.wait()
                    raise
                finally:
                    if not self.ranks.alone:  # a graph would outlive the ranks that it speaks to
                        self.step.forget_graph()
        if self.learner.updates == 0:
            print(
                f"note: this run made no update: learning begins at replay.min_steps "
                f"({self.config.replay.min_steps})"
            )
        if self.ranks.first and any(folder.checkpoints.glob("rank-*")):
            shards.forget_former_ranks(folder.checkpoints, self.ranks)
        self.asked.raise_if_asked(folder.path)
        return folder.path

    def _open(self, folder: RunFolder, last: checkpoint.Checkpoint | None) -> None:
        """Take over what the last checkpoint, that of rank 0, holds; make the run's writers."""
        if last is not None:
            last = shards.restore_part(last, self.ranks, self.learner, self.replay, self.others)
            self.counters = Counters.of(last.counters, where=str(last.path))
        if self.ranks.first:
            folder.begin(self.config, self.counters.steps)
        if not self.ranks.alone or (last is not None and last.meta.ranks > 1):
            folder.checkpoints.mkdir(exist_ok=True)
            steps = -1 if last is None else last.steps
            shards.forget_others(folder.checkpoints, self.ranks, steps)
        self.saver = CheckpointWriter(
            shards.folder_of(folder.checkpoints, self.ranks.rank),
            self.config,
            self.learner,
            self.replay,
            others=self.others,
            obs_shape=parts.obs_shape_of(self.env),
            last=last,
            ranks=self.ranks,
        )
        self.recorder = Recorder(
            folder,
            self.counters,
            self.learner.updates,
            steps=self.config.steps,
            silent=not self.ranks.first,
        )
        self.ranks.agree()  # the folder is as it should be

    def _loop(self) -> None:
        counters, num_envs = self.counters, self.config.env.num_envs
        obs, info = self.env.reset(seed=env_seed(self.share.seed, counters.steps))
        with self._paused():
            pass  # until all that was built is there
        self.collector.begin(obs, info, epsilon=self._epsilon())
        while counters.steps < self.config.steps and not self._stops():
            self.env.send(self.collector.act())
            self.watch.lap("act")
            self._learn()
            self.watch.lap("learn")
            obs, reward, terminated, _, info = self.env.recv()
            self.watch.lap("recv")
            counters.steps += num_envs
            self.collector.receive(obs, reward, terminated, info, epsilon=self._epsilon())
            self._ended += Episode.of(info, counters.steps)
            if self.ranks.alone:
                self._count_episodes()
            self.watch.lap("add")
            self._housekeeping()
            self.watch.lap("other")
        self._finish()

    def _stops(self) -> bool:
        """Whether the run was asked to end; ranks agree about it now and then."""
        rounds = self.counters.steps // self.config.env.num_envs
        if not self.ranks.alone and rounds % AGREE_EVERY_ROUNDS:
            return False
        return self.asked.agreed(self.ranks)

    def _epsilon(self) -> Tensor:
        """Of this rank's environments; exploration is spread over those of all ranks."""
        own = self.share.env.num_envs
        return self.epsilon(self.counters.steps)[self.ranks.rank * own :][:own]

    def _count_episodes(self) -> None:
        """Those of all ranks, in the order in which they ended."""
        ended = itertools.chain(*self.ranks.gather(self._ended))
        self.counters.count_episodes(sorted(ended, key=lambda episode: episode.ended_at))
        self._ended = []

    def _learn(self) -> None:
        """The updates that this step's frames have paid for."""
        config, replay = self.config, self.replay
        if replay.steps < self.share.replay.min_steps or not replay.ready:
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
            self._count_episodes()
            self._require_numbers()
            scores = self._evaluated() if "evaluate" in due else {}
            if scores or "log" in due:
                self._log(scores)
            if "save" in due:
                self._save()

    def _finish(self) -> None:
        """Log the last stretch, and leave a checkpoint of the last step."""
        with self._paused():
            self._count_episodes()
            self._require_numbers()
            if self.counters.steps > self.recorder.begun_steps:
                self._log({})
            if self.counters.steps > self.saver.saved_steps:
                self._save()
            if self.ranks.first and self.counters.steps >= self.config.steps:
                self.recorder.folder.curves.draw(lambda board: add_end(board, self.counters.steps))

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
        (diverged,) = self.ranks.agree(int(not self.learner.finite()))
        if diverged:
            self.saver.wait()
            last = self.saver.last_good
            raise ValueError(
                f"learning diverged between steps {self.recorder.begun_steps} and "
                f"{self.counters.steps}: loss or weights are not finite; "
                f"{'no checkpoint was written' if last is None else f'last good one: {last}'}"
            )

    def _evaluated(self) -> dict[str, Any]:
        return evaluate(
            self.learner.online, self.config, self.recorder, self.saver, self.asked, self.ranks
        )

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
        if self.ranks.first:
            curves, steps = self.recorder.folder.curves, self.counters.steps
            picture_encoder(self.learner.online, self.replay, curves, steps)

    def memory_told(self) -> contextlib.AbstractContextManager[None]:
        """Inside, running out of memory ends with one line that says what the replay takes."""
        stores = self.replay.row_stores.values()
        return out_of_memory_told(sum(store.nbytes for store in stores), self.device)
