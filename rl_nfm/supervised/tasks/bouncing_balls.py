"""Bouncing balls: predict the next frame, then go on from the own predictions (RIMs, section 4.2).

Goyal et al. 2019, section 4.2 and appendix D.4: frames of balls that collide
(`data.bouncing_balls`); a convolutional encoder, a recurrent core and a decoder predict each next
frame under a binary cross-entropy, with the true frames as input. At test the first 15 true frames
are seen, and from then on the model gets what it predicted. Trained on four balls, it is tested on
six to eight, on three behind a curtain, or the other way round.

Encoder and decoder: `tasks.frame_predictor`. The prediction that is fed back is the probability of
each pixel.

All losses are nats per pixel. `seen_*`: of the predictions made from true frames; `rollout_*`: of
the further ones, made from predictions; `rollout10_*`: of the first ten of these, after which the
paper no longer trusts the measure, as collisions make the motion chaotic. The report draws the loss
over the predicted frames. The paper has plots only, so there are no published rows.

Two models that have learned nothing: the last true frame repeated, as the probability that a pixel
which was on (or off) is on so many frames later, and the mean training frame.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.nn import functional as F

from rl_nfm.supervised.columns import Columns
from rl_nfm.supervised.data.bouncing_balls import BallSequences, make_sequences, render
from rl_nfm.supervised.data.frame_video import write_comparison
from rl_nfm.supervised.loop.presets import Presets
from rl_nfm.supervised.loop.run import Metrics, Task, register_loop_task
from rl_nfm.supervised.tasks.frame_predictor import FramePredictor, FrameSizes
from rl_nfm.supervised.tasks.recurrent import CORES, RecurrentConfig, make_core

BallData = Literal["4balls", "678balls", "curtain"]
CHUNK = 32
BASELINE_SEQUENCES = 512
VIDEO_SEQUENCES = 6
_TRAIN, _VALIDATION, _TEST = 0, 1, 2
_TINY = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class BouncingBallsConfig(RecurrentConfig):
    """Options of bouncing balls."""

    epochs: Annotated[int, Ge(0)] = 100
    """Passes over the training sequences."""
    learning_rate: Annotated[float, Gt(0)] = 7e-4
    """Learning rate of Adam."""
    hidden_size: Annotated[int, Gt(0)] = 510
    """Size of the hidden state, over all modules."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout between the recurrent core and the decoder."""
    train_data: BallData = "4balls"
    """Training and validation sequences: four balls, six to eight, or three behind a curtain."""
    test_data: tuple[BallData, ...] = ("4balls", "678balls", "curtain")
    """Test sets; a video shows the first one."""
    train_sequences: Annotated[int, Gt(0)] = 50_000
    """Training sequences."""
    test_sequences: Annotated[int, Gt(0)] = 10_000
    """Sequences of each test set."""
    validation_sequences: Annotated[int, Gt(0)] = 1000
    """Validation sequences."""
    frames: Annotated[int, Ge(3)] = 51
    """Frames of a sequence."""
    seen_frames: Annotated[int, Gt(0)] = 15
    """True frames at the start of a rollout."""
    frame_size: Annotated[int, Gt(0)] = 64
    """Side of the frames in pixels, a multiple of 8: the same box at another resolution."""
    width: Annotated[int, Gt(0)] = 16
    """Channels of the first convolution; doubled at each further one."""
    feature_size: Annotated[int, Gt(0)] = 512
    """Size of a frame's code, which the core reads, and of the decoder's first layer."""


PRESETS = Presets("bouncing_balls", BouncingBallsConfig)


def losses_by_frame(logits: Tensor, frames: Tensor) -> Tensor:
    """Sum over the batch of the nats per pixel of each predicted frame: [T] of two [B, T, S, S]."""
    losses = F.binary_cross_entropy_with_logits(logits, frames, reduction="none")
    return losses.mean((2, 3)).sum(0)


class BouncingBallsTask(Task[BouncingBallsConfig]):
    """One trial of bouncing balls."""

    models = CORES
    lower_is_better = True
    free_in_evaluation: ClassVar = ("test_data", "test_sequences", "seen_frames", "frames")
    columns: ClassVar = Columns(
        shown=("rollout10_*", "rollout_*", "seen_*"), step="predicted frame"
    )

    def __init__(self, config: BouncingBallsConfig, device: torch.device):
        super().__init__(config, device)
        if config.seen_frames > config.frames - 2:
            raise ValueError(
                f"seen_frames: {config.seen_frames} is not allowed, must be at most frames - 2 = "
                f"{config.frames - 2}"
            )
        if not config.test_data:
            raise ValueError("test_data: must name at least one test set")
        self.tests = {
            name: self._make(name, config.test_sequences, _TEST)
            for name in dict.fromkeys(config.test_data)
        }

    @cached_property
    def train(self) -> BallSequences:
        """The training sequences, the same for every seed."""
        return self._make(self.config.train_data, self.config.train_sequences, _TRAIN)

    @cached_property
    def validation(self) -> BallSequences:
        """Further sequences of the training distribution."""
        return self._make(self.config.train_data, self.config.validation_sequences, _VALIDATION)

    def _make(self, name: str, count: int, split: int) -> BallSequences:
        return make_sequences(name, count, self.config.frames, [split]).to(self.device)

    def build_model(self) -> nn.Module:
        """See `Task.build_model`."""
        config = self.config
        sizes = FrameSizes(
            frame=config.frame_size,
            width=config.width,
            features=config.feature_size,
            hidden=config.hidden_size,
            dropout=config.dropout,
        )
        return FramePredictor(make_core(config, config.feature_size), sizes)

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Shuffled batches of frames [B, T, S, S]."""
        del epoch
        for rows in torch.randperm(len(self.train)).split(self.config.batch_size):
            yield self._draw(self.train[rows.to(self.device)])

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Nats per pixel of all next frames, the true frames given."""
        logits, _ = model(batch[:, :-1])
        return F.binary_cross_entropy_with_logits(logits, batch[:, 1:])

    def evaluate(self, model: nn.Module) -> Metrics:
        """Nats per pixel: of rollouts on each test set, of next frames on the validation set."""
        assert isinstance(model, FramePredictor)
        total = sum(
            float(losses_by_frame(model(frames[:, :-1])[0], frames[:, 1:]).sum())
            for frames in self._chunks(self.validation)
        )
        count = len(self.validation) * (self.config.frames - 1)
        return {**self._summaries(self.by_step(model)), "validation": total / count}

    def by_step(self, model: nn.Module) -> dict[str, list[float]]:
        """Nats per pixel of each predicted frame of each test set's rollouts."""
        assert isinstance(model, FramePredictor)
        steps, seen, curves = self.config.frames - 1, self.config.seen_frames, {}
        for name, test in self.tests.items():
            total = torch.zeros(steps, device=self.device)
            for frames in self._chunks(test):
                logits = model.rollout(frames[:, :seen], steps - seen)
                total += losses_by_frame(logits, frames[:, 1:])
            curves[name] = (total / len(test)).tolist()
        return curves

    def _summaries(self, curves: Mapping[str, list[float]]) -> Metrics:
        seen, metrics = self.config.seen_frames, {}
        for name, curve in curves.items():
            parts = {
                "seen": curve[:seen],
                "rollout10": curve[seen : seen + 10],
                "rollout": curve[seen:],
            }
            metrics |= {f"{part}_{name}": sum(x) / len(x) for part, x in parts.items()}
        return metrics

    def baselines(self) -> Metrics:
        """Of the last true frame repeated."""
        curves = self.baselines_by_step()
        return self._summaries({name: curves[name]["last frame repeated"] for name in curves})

    def baselines_by_step(self) -> dict[str, dict[str, list[float]]]:
        """Nats per pixel of the predicted frames of each test set, of two constant predictors."""
        return self._baselines

    @cached_property
    def _baselines(self) -> dict[str, dict[str, list[float]]]:
        known = self.train[torch.arange(min(BASELINE_SEQUENCES, len(self.train))).to(self.device)]
        mean = sum(frames.mean(1).sum(0) for frames in self._chunks(known)) / len(known)
        assert isinstance(mean, Tensor)
        stays, appears = self._transitions(known)
        curves = {}
        for name, test in self.tests.items():
            totals = torch.zeros(2, self.config.frames - 1, device=self.device)
            for frames in self._chunks(test):
                chances = torch.where(self._last_seen(frames) > 0, stays, appears)
                for total, chance in zip(totals, (chances, mean.expand_as(chances)), strict=True):
                    total += losses_by_frame(chance.logit(_TINY), frames[:, 1:])
            last, average = (totals / len(test)).tolist()
            curves[name] = {"last frame repeated": last, "mean frame": average}
        return curves

    def _transitions(self, sequences: BallSequences) -> tuple[Tensor, Tensor]:
        """Shares of pixels that stay on, and that come on, from the last frame seen: [T - 1, 1, 1].

        Of each predicted frame.
        """
        counts = torch.zeros(4, self.config.frames - 1, device=self.device)
        for frames in self._chunks(sequences):
            last, now = self._last_seen(frames), frames[:, 1:]
            parts = (last * now, last, (1 - last) * now, 1 - last)
            counts += torch.stack([part.sum((0, 2, 3)) for part in parts])
        on, was_on, came_on, was_off = counts[..., None, None]
        return on / was_on.clamp(min=1), came_on / was_off.clamp(min=1)

    def _last_seen(self, frames: Tensor) -> Tensor:
        """For each predicted frame of [B, T, S, S], the last true frame before it."""
        last = torch.arange(self.config.frames - 1).clamp(max=self.config.seen_frames - 1)
        return frames[:, last.to(self.device)]

    def write_video(self, model: nn.Module, path: Path) -> None:
        """Truth above prediction for the first sequences of the first test set."""
        assert isinstance(model, FramePredictor)
        test, seen = next(iter(self.tests.values())), self.config.seen_frames
        count = min(VIDEO_SEQUENCES, len(test))
        frames = self._draw(test[torch.arange(count).to(self.device)])
        logits = model.rollout(frames[:, :seen], self.config.frames - 1 - seen)
        write_comparison(path, frames[:, 1:], logits.sigmoid(), seen)

    def _chunks(self, sequences: BallSequences) -> Iterator[Tensor]:
        for rows in torch.arange(len(sequences)).split(CHUNK):
            yield self._draw(sequences[rows.to(self.device)])

    def _draw(self, sequences: BallSequences) -> Tensor:
        return render(sequences, self.config.frame_size)


register_loop_task(
    "bouncing_balls",
    "predict frames of colliding balls, with other numbers of balls at test (lstm, gru, RIMs)",
    BouncingBallsTask,
    PRESETS,
)
