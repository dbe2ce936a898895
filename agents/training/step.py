"""One gradient step: draw a batch, update the networks, write the priorities back.

The learner knows no replay and the replay no learner; they meet here. So do the ways to make them
faster, which need the whole step at once: compiling and capture as a CUDA graph.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from agents.learning.captured import Captured
from agents.learning.compiling import how_to_compile
from agents.learning.learner import Learner
from agents.learning.random_stream import RandomStream
from agents.replay.batch import Batch
from agents.replay.config import ReplayConfig


class Memory(Protocol):
    """What a gradient step needs of a replay."""

    config: ReplayConfig
    capturable: bool

    def compile(self) -> None:
        """Let `torch.compile` make what it makes faster."""
        ...

    def sample(self, batch_size: int) -> Batch:
        """Draw a batch."""
        ...

    def update_priorities(self, index: Tensor, td_error: Tensor, mask: Tensor) -> None:
        """Set the priorities of a batch from its errors."""
        ...

    def set_schedule(self, progress: float) -> None:
        """Set what depends on the share of training done."""
        ...


class GradientStep:
    """Callable: one update, without host synchronisation; on a GPU soon a captured graph."""

    def __init__(
        self,
        learner: Learner,
        replay: Memory,
        *,
        random: RandomStream | None = None,
        updates: float = 0,
    ):
        """Compose them.

        Args:
            learner: updates the networks.
            replay: gives batches and takes priorities.
            random: where random numbers of both come from; None: torch's default generator.
            updates: how many the run makes, about; in a short one it is not measured whether
                compiling pays.
        """
        self.learner, self.replay, self.random = learner, replay, random
        how = how_to_compile(learner.config, learner.device, updates)
        if how != "never":
            sizes = replay.config
            about = f"{sizes.batch_size} {sizes.sequence_steps} {sizes.overlap_steps}"
            learner.compile(how, about=about)
        if how == "always":
            replay.compile()
        graph = learner.device.type == "cuda" and learner.config.cuda_graph and replay.capturable
        self._step = Captured(self._run, name="the update", enabled=graph, random=random)

    @property
    def captured(self) -> bool:
        """Whether the update is replayed as a graph."""
        return self._step.captured

    def set_schedule(self, progress: float) -> None:
        """Set learning rate and beta for this share of training done, in [0, 1]."""
        self.learner.set_schedule(progress)
        self.replay.set_schedule(progress)

    def __call__(self) -> None:
        """One update."""
        self._step()
        self.learner.count_update()

    def state(self) -> dict[str, Tensor]:
        """The state of the random generator, where learning has one of its own."""
        return {} if self.random is None else {"rng": self.random.state()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore it, after learner and replay: an earlier graph does not know their tensors."""
        if self.random is not None and "rng" in state:
            self.random.load_state(state["rng"])
        self.forget_graph()

    def forget_graph(self) -> None:
        """Go on eagerly, and capture anew."""
        self._step.forget()

    def _run(self) -> None:
        batch = self.replay.sample(self.replay.config.batch_size)
        error = self.learner.gradient_step(batch)
        self.replay.update_priorities(batch.index, error, batch.mask)
