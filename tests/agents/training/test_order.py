"""Acting beside learning: whatever the streams do when, the events give one result."""

import pytest
import torch

from agents.config import Config, make_config
from agents.learning.streams import HostStream
from agents.saving.run_folder import RunFolder, read_metrics
from agents.training.collector import Streams
from agents.training.trainer import Trainer

CPU = torch.device("cpu")
POLICIES = [(False, True), (True, False), (True, True), (False, False)]
"""Whether acting and learning are late; the orders that tell most first."""


def config_of(lag: int, groups: int = 1) -> Config:
    """Recurrent, prioritised, noisy; more rows before learning begins than the handover holds."""
    return make_config(
        {
            "game": "memory_cue",
            "encoder": "lstm",
            "steps": 120,
            "env": {"num_envs": 4 if groups == 2 else 3, "num_groups": groups},
            "replay": {
                "capacity_steps": 120,
                "min_steps": 60,
                "batch_size": 4,
                "sequence_steps": 3,
                "overlap_steps": 1,
            },
            "learner": {
                "acting_lag": lag,
                "precision": "fp32",
                "steps_per_update": 4,
                "n_steps": 2,
                "num_quantiles": 3,
                "num_target_quantiles": 3,
                "num_action_quantiles": 3,
                "learning_rate": 0.01,
                "learning_rate_final": 0.001,
                "target_every_updates": 5,
            },
            "head": {"hidden_size": 8, "noisy": True, "num_cosines": 4},
            "exploration": {"epsilon_final": 0.1, "epsilon_decay_steps": 60},
            "run": {
                "log_every_steps": 90,
                "eval_episodes": 0,
                "checkpoint_every_steps": 120,
            },
            "nature": {"width": 2},
            "lstm": {"trunk": "nature", "hidden_size": 6},
        }
    )


def result_of(config: Config, streams: Streams, folder) -> dict:
    """Everything that a run leaves: weights, replay, and metrics without times."""
    trainer = Trainer(config, CPU, streams=streams)
    run = RunFolder.create(config, folder)
    with run.held():
        trainer.run(run, None)
    lines = read_metrics(folder / "metrics.jsonl")
    found = {"metrics": [{k: v for k, v in x.items() if not told_by_time(k)} for x in lines]}
    found["weights"] = [p.detach().clone() for p in trainer.learner.online.parameters()]
    found["acting"] = [p.detach().clone() for p in trainer.collector.weights.network.parameters()]
    found["replay"] = [*trainer.replay.row_stores.values(), *trainer.replay.recurrent]
    found["priorities"] = [trainer.replay.priorities.weights]
    return found


def told_by_time(name: str) -> bool:
    return name.startswith("time/") or name.endswith("_per_second")


def same(a: dict, b: dict) -> bool:
    if a["metrics"] != b["metrics"]:
        return False
    tensors = ("weights", "acting", "replay", "priorities")
    return all(torch.equal(x, y) for k in tensors for x, y in zip(a[k], b[k], strict=True))


def expected_result(config: Config, tmp_path) -> dict:
    found = result_of(config, Streams(acting=HostStream(), learning=HostStream()), tmp_path / "a")
    assert found["metrics"][-1]["updates"] > 10
    return found


@pytest.mark.parametrize(("lag", "groups"), [(0, 1), (1, 1), (1, 2)])
def test_one_result_in_whatever_order(lag: int, groups: int, tmp_path, recorder) -> None:
    """Work done as late and as early as events allow, on either stream, and work done at once."""
    config = config_of(lag, groups)
    expected = expected_result(config, tmp_path)
    for number, (acting_late, learning_late) in enumerate(POLICIES):
        late = recorder(acting_late=acting_late, learning_late=learning_late)
        found = result_of(config, late.streams, tmp_path / str(number))
        assert same(found, expected), (acting_late, learning_late)


SLOW = [pytest.param(0, 1, marks=pytest.mark.slow), pytest.param(1, 2, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("lag", "groups"), [(1, 1), *SLOW])
def test_every_wait_is_needed(lag: int, groups: int, tmp_path, recorder) -> None:
    """Without it, some order that is then allowed gives another result."""
    config = config_of(lag, groups)
    expected = expected_result(config, tmp_path)
    whole = recorder(acting_late=True, learning_late=True)
    result_of(config, whole.streams, tmp_path / "whole")
    for wait in sorted(whole.waits):
        late = (recorder(acting_late=a, learning_late=b, leave_out=wait) for a, b in POLICIES)
        assert any(differs(one, config, expected, tmp_path) for one in late), wait
    assert len(whole.waits) == (5 if lag == 0 else 6)


def differs(late, config, expected, tmp_path) -> bool:
    folder = tmp_path / f"without-{len(list(tmp_path.iterdir()))}"
    try:
        return not same(result_of(config, late.streams, folder), expected)
    except (ValueError, RuntimeError, IndexError):
        return True  # what was read is not even of the right kind


def test_the_lag_is_one_batch_of_updates(tmp_path) -> None:
    """Without a lag acting reads the learner's weights; with one, those before the last updates."""
    config = config_of(1)
    trainer = Trainer(config, CPU)
    versions, acted = [], []
    before_updates, act = trainer.collector.weights.before_updates, trainer.collector.act

    def watch_updates() -> None:
        versions.append(flat(trainer.learner.online))
        before_updates()

    def watch_act(group):
        acted.append((len(versions), flat(trainer.collector.weights.network)))
        return act(group)

    trainer.collector.weights.before_updates = watch_updates
    trainer.collector.act = watch_act
    run = RunFolder.create(config, tmp_path / "run")
    with run.held():
        trainer.run(run, None)
    assert len(versions) > 10
    for batches, weights in acted:
        # versions[i] is what the first i batches made: after b of them b - 1 may be acted with
        assert torch.equal(weights, versions[max(0, batches - 1)])


def flat(network) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in network.parameters()])
