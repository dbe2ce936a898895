"""Replays by name: the one in host memory computes the same, and an unknown name is refused."""

import pytest
import torch
from torch import Tensor

from agents.replay.batch import Batch
from agents.replay.buffer import Replay
from agents.replay.config import ReplayConfig
from agents.replay.host import HostReplay
from agents.replay.returns import ReturnConfig
from agents.replay.storage import register_storage, storages
from agents.saving.run_folder import RunFolder, read_metrics
from agents.training.train import resume, train
from tests.small_runs import tiny

CPU = torch.device("cpu")


def measured(config, out):
    """All metrics of a run but those of its clock."""
    lines = read_metrics(RunFolder(train(config, out=out)).metrics_path)
    return [
        {k: v for k, v in line.items() if "time/" not in k and "per_second" not in k}
        for line in lines
    ]


@pytest.mark.parametrize("encoder", ["nature", "lstm"])
def test_a_run_with_its_replay_in_host_memory_has_the_same_metrics(tmp_path, encoder):
    device = measured(tiny(encoder=encoder), tmp_path / "device")
    host = measured(tiny(encoder=encoder, replay={"storage": "host"}), tmp_path / "host")
    assert device[-1]["updates"] > 3
    assert host == device


def test_a_run_may_go_on_with_the_other_storage(tmp_path):
    whole = measured(tiny(), tmp_path / "whole")
    folder = train(tiny(steps=64), out=tmp_path / "moved")
    resume(folder, lambda _: tiny(replay={"storage": "host"}))
    lines = read_metrics(RunFolder(folder).metrics_path)
    for line, other in zip(lines[-2:], whole[-2:], strict=True):
        assert line["steps"] == other["steps"]
        assert line["loss"] != other["loss"]  # a continued run begins new episodes


def test_batches_move_as_a_whole():
    """On torch's device without memory, every tensor of a batch arrives there."""
    replay = HostReplay(
        ReplayConfig(capacity_steps=40, min_steps=1),
        ReturnConfig(n_steps=2, discount=0.9, reward_clip=None, terminal_on_life_loss=False),
        num_envs=2,
        obs_shape=(2, 3, 2),
        device=torch.device("meta"),
        state=(torch.zeros(1, 3),),
    )
    for number in range(12):
        row = {name: torch.zeros_like(store[0]) for name, store in replay.row_stores.items()}
        row["reward"] += number
        replay.add(state=(torch.full((2, 3), float(number)),), **row)
    batch = replay.sample(5)
    tensors = [*vars(batch).values(), *batch.state, *batch.extras.values()]
    tensors = [x for x in tensors if isinstance(x, Tensor)]
    assert len(tensors) == 10 + 1 + 3
    assert {x.device.type for x in tensors} == {"meta"}
    assert {store.device for store in replay.row_stores.values()} == {CPU}
    assert isinstance(batch, Batch)


def test_storages_have_names():
    assert {"device", "host"} <= set(storages)
    assert storages["device"] is Replay
    with pytest.raises(ValueError, match=r"replay\.storage: .*'hots'.*host"):
        _ = storages["hots"]
    with pytest.raises(ValueError, match="free Python identifier"):
        register_storage("device")
