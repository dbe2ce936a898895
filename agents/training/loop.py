"""The loop of a training run: act, send, learn, receive, store; log, save and evaluate when due."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from agents.learning.streams import one_host_thread
from agents.playing.evaluate import env_seed
from agents.saving import checkpoint, shards
from agents.saving.run_folder import RunFolder
from agents.saving.tensorboard import add_end
from agents.saving.writer import CheckpointWriter
from agents.training.evaluation import evaluate
from agents.training.parts import obs_shape_of
from agents.training.pictures import picture_encoder
from agents.training.record import Episode, Recorder

if TYPE_CHECKING:
    from agents.training.trainer import Trainer

AGREE_EVERY_ROUNDS = 16
"""Steps of every environment after which several ranks ask each other whether to end."""


class Loop:
    """Runs the parts of a trainer from their state to the end, and writes the run's files."""

    def __init__(self, parts: "Trainer", folder: RunFolder, last: checkpoint.Checkpoint | None):
        """Make the writers.

        Args:
            parts: of the run, restored if it goes on.
            folder: of the run.
            last: the checkpoint it goes on from.
        """
        self.config, self.device, self.env = parts.config, parts.device, parts.env
        self.ranks, self.share = parts.ranks, parts.share
        self.learner, self.replay, self.step = parts.learner, parts.replay, parts.step
        self.collector, self.streams, self.turns = parts.collector, parts.streams, parts.turns
        self.epsilon, self.rank_epsilon = parts.epsilon, parts.rank_epsilon
        self.clock, self.watch = parts.clock, parts.watch
        self.counters, self.stop_request = parts.counters, parts.stop_request
        self._ended: list[Episode] = []
        self.saver = CheckpointWriter(
            shards.folder_of(folder.checkpoints, self.ranks.rank),
            self.config,
            self.learner,
            self.replay,
            others=parts.others,
            obs_shape=obs_shape_of(self.env),
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

    def run(self) -> None:
        """Train to the end, or until a signal; always ends with a checkpoint.

        Raises:
            ValueError: learning diverged, or a checkpoint cannot be written.
        """
        with self.recorder.progress, one_host_thread(self.device):
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

    def _loop(self) -> None:
        counters, num_envs = self.counters, self.config.env.num_envs
        with self._paused():
            pass  # until all that was built is there
        seed = env_seed(self.share.seed, counters.steps)
        self.turns.begin(seed=seed, epsilon=self.rank_epsilon())
        while counters.steps < self.config.steps and not self._stops():
            self.turns.send()
            self._learn()
            self.watch.lap("learn")
            counters.steps += num_envs
            due = self._due()
            ahead = counters.steps < self.config.steps and not due
            for info in self.turns.receive(epsilon=self.rank_epsilon(), ahead=ahead):
                self._ended += Episode.of(info, counters.steps)
            if self.ranks.alone:
                self._count_episodes()
            self._housekeeping(due)
            self.watch.lap("other")
        self.turns.drop()
        self._finish()

    def _stops(self) -> bool:
        """Whether the run was asked to end; the ranks exchange this from time to time."""
        if self.stop_request.all_know:  # during an evaluation, say
            return True
        rounds = self.counters.steps // self.config.env.num_envs
        if not self.ranks.alone and rounds % AGREE_EVERY_ROUNDS:
            return False
        return self.stop_request.agreed(self.ranks)

    def _count_episodes(self) -> None:
        """Count the ended episodes of all ranks, in the order in which they ended."""
        ended = itertools.chain(*self.ranks.gather(self._ended))
        self.counters.count_episodes(sorted(ended, key=lambda episode: episode.ended_at))
        self._ended = []

    def _learn(self) -> None:
        """Do the updates that are due after this step."""
        config, replay = self.config, self.replay
        if replay.steps < self.share.replay.min_steps or not replay.ready:
            return
        due = self.counters.updates_due(config.env.num_envs, config.learner.steps_per_update)
        progress = min(1.0, self.counters.steps / config.steps)
        learning, weights = self.streams.learning, self.collector.weights
        learning.run(lambda: self.step.set_schedule(progress))
        if due and (notice := self.learner.compiling.notice()):
            self.recorder.progress.write(notice)
        if due:
            weights.before_updates()
            for _ in range(due):
                learning.run(self.step)
            weights.after_updates()

    def _housekeeping(self, due: frozenset[str]) -> None:
        """Log, evaluate and save what is due; end the run if a checkpoint could not be written."""
        self.saver.check()
        self.recorder.advance(self.config.env.num_envs, self.learner.updates)
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
        """Log the last interval and write a checkpoint of the last step."""
        with self._paused():
            self._count_episodes()
            self._require_numbers()
            if self.counters.steps > self.recorder.begun_steps:
                self._log({})
            if self.counters.steps > self.saver.saved_steps:
                self._save()
            if self.ranks.first and self.counters.steps >= self.config.steps:
                self.recorder.folder.curves.draw(lambda board: add_end(board, self.counters.steps))

    def _due(self) -> frozenset[str]:
        """What is due after the last step."""
        now = self.counters.steps
        due = self.clock.due(now - self.config.env.num_envs, now)
        return due if self.config.run.eval_episodes else due - {"evaluate"}

    @contextlib.contextmanager
    def _paused(self) -> Iterator[None]:
        """Inside, no stream has unfinished work, so the host may read and write all tensors."""
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
            self.learner.online,
            self.config,
            self.recorder,
            self.saver,
            self.stop_request,
            self.ranks,
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
        if self.ranks.first:
            self.recorder.folder.metrics.sync()  # a resumed run goes on behind these lines
        self.saver.save(dataclasses.asdict(self.counters))
        if self.ranks.first:
            curves, steps = self.recorder.folder.curves, self.counters.steps
            picture_encoder(self.learner.online, self.replay, curves, steps)
