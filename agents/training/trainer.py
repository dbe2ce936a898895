"""A training run: its parts, built from a config, restored or fresh, and run by `loop`.

One process, or several ranks that each have a share of everything (`rl_nfm.support.ranks`) and take
each step of the loop together. The emulators work (`send` .. `receive`) while the learner updates;
on a GPU acting and learning overlap too, see `agents.training.collector`. All counts of steps are
agent steps over all environments; the autoreset step of each episode counts as one.
"""

import contextlib
from pathlib import Path

import torch
from torch import Tensor

from agents.config import Config
from agents.learning.random_stream import RandomStream
from agents.saving import checkpoint, shards
from agents.saving.run_folder import RunFolder
from agents.training import parts
from agents.training.clock import Clock, Epsilon, Stopwatch
from agents.training.collector import Collector, Streams
from agents.training.loop import Loop
from agents.training.memory_check import explained_out_of_memory
from agents.training.record import Counters
from agents.training.step import GradientStep
from agents.training.stop import StopRequest
from agents.training.turns import Turns
from rl_nfm.support.ranks import ALONE, Ranks


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
        with explained_out_of_memory(0, device):
            envs = parts.build_envs(share, device)
            self.learner = parts.build_learner(config, envs[0], device, ranks)
        self.env = envs[0]
        """The first group of environments; all are alike."""
        if not ranks.alone:  # the weights are the same everywhere, all that follows differs
            torch.manual_seed(share.seed)
        state = self.learner.online.initial_state(1)
        self.replay = parts.build_replay(share, self.env, state, device, ranks)
        random = RandomStream(device, share.seed + 1) if device.type == "cuda" else None
        updates = (config.steps - config.replay.min_steps) / config.learner.steps_per_update
        self.step = GradientStep(self.learner, self.replay, random=random, updates=updates)
        with self.explained_memory():
            self.collector = Collector(
                share,
                self.learner,
                self.replay,
                self.streams,
                terminal_on_life_loss=self.env.protocol.terminal_on_life_loss,
                groups=len(envs),
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
        self.counters, self.watch, self.stop_request = Counters(), Stopwatch(), StopRequest()
        self.turns = Turns(envs, self.collector, self.watch)
        self.loop: Loop | None = None
        """Set by `run`."""

    def run(self, folder: RunFolder, last: checkpoint.Checkpoint | None) -> Path:
        """Train to the end, or until a signal; always ends with a checkpoint.

        Raises:
            ValueError: learning diverged, or a checkpoint cannot be written.
            Stop: a signal asked for the end.
        """
        with self.stop_request.listening():  # from the first line that names the folder to the last
            last = self._restore(folder, last)
            self.loop = Loop(self, folder, last)
            with contextlib.closing(self.turns):
                self.loop.run()
        if self.learner.updates == 0:
            least = self.config.replay.min_steps
            print(
                f"note: this run made no update: learning begins at replay.min_steps ({least}), "
                "and when the replay holds a transition of learner.n_steps, or a whole sequence"
            )
        if self.ranks.first and any(folder.checkpoints.glob("rank-*")):
            shards.forget_former_ranks(folder.checkpoints, self.ranks)
        self.stop_request.raise_if_asked(folder.path)
        return folder.path

    def _restore(
        self, folder: RunFolder, last: checkpoint.Checkpoint | None
    ) -> checkpoint.Checkpoint | None:
        """Restore the last checkpoint, which is that of rank 0; returns this rank's part."""
        if last is not None:
            last = shards.restore_part(last, self.ranks, self.learner, self.replay, self.others)
            self.counters = Counters.of(last.counters, where=str(last.path))
        if self.ranks.first:
            folder.begin(self.config, self.counters.steps)
        if not self.ranks.alone or (last is not None and last.meta.ranks > 1):
            shards.begin(folder.path, self.ranks)
            steps = -1 if last is None else last.steps
            shards.forget_others(folder.checkpoints, self.ranks, steps)
        return last

    def rank_epsilon(self) -> Tensor:
        """Epsilon of the next actions of this rank, whose environments have a share of all."""
        num_envs = self.share.env.num_envs
        return self.epsilon(self.counters.steps)[self.ranks.rank * num_envs :][:num_envs]

    def explained_memory(self) -> contextlib.AbstractContextManager[None]:
        """Inside, running out of memory ends with one line that says what the replay takes."""
        stores = self.replay.row_stores.values()
        mine = [x.nbytes for x in stores if x.device.type == self.device.type]
        return explained_out_of_memory(sum(mine), self.device)
